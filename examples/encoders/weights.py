"""Random weights and magnitude pruning."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from examples.encoders.config import DECODER, WORDS, EncoderConfig

Weights = dict[str, np.ndarray]


def block_norms(weight: np.ndarray, block: int) -> np.ndarray:
    """Squared norm of each group of `block` consecutive input channels: [N, ceil(K / block)]."""
    n, k = weight.shape
    padded = np.zeros((n, -(-k // block) * block), np.float32)
    padded[:, :k] = weight
    return np.square(padded.reshape(n, -1, block)).sum(-1)


def expand_blocks(blocks: np.ndarray, block: int, width: int) -> np.ndarray:
    """A mask over blocks [N, ceil(K / block)] as a mask over weights [N, K]."""
    return np.repeat(blocks, block, axis=1)[:, :width]


def prune(
    weight: np.ndarray, sparsity: float, block: int = 4, importance: np.ndarray | None = None
) -> np.ndarray:
    """A copy of `weight` [N, K] whose smallest blocks are zero.

    A block is `block` consecutive input channels of one output: weight[n, j*block:(j+1)*block].
    Exactly ``round(sparsity * blocks)`` of them are zeroed.  With `importance` [N, K] it is the
    size of ``weight * importance`` that counts.
    """
    norms = block_norms(weight if importance is None else weight * importance, block)
    drop = round(sparsity * norms.size)
    keep = np.ones(norms.size, bool)
    if drop:
        keep[np.argpartition(norms.reshape(-1), drop - 1)[:drop]] = False
    return weight * expand_blocks(keep.reshape(norms.shape), block, weight.shape[1])


def measured_sparsity(weight: np.ndarray, block: int = 1) -> float:
    """Share of blocks of `weight` [N, K] that are entirely zero."""
    return float(np.mean(block_norms(weight, block) == 0))


def random_weights(
    config: EncoderConfig,
    seed: int = 0,
    sparsity: float = 0.0,
    block: int = 4,
    spread: float = 0.0,
) -> Weights:
    """Float32 parameters under their Hugging Face BERT names, the encoder's linear layers pruned.

    Weights have unit gain, before and after pruning, so activations stay O(1) at any depth.  With
    `spread`, every input and output channel has an importance exp(spread * normal), by which
    pruning weighs its weights: some keep many weights and some few, as in trained models.
    """
    rng = np.random.default_rng(seed)
    channels = np.random.default_rng((seed, 1))
    pruned = {f"{name}.weight" for name in config.encoder_linears()}
    weights: Weights = {}
    for name, shape in config.parameter_shapes().items():
        values = rng.standard_normal(shape, dtype=np.float32)
        if name.endswith("LayerNorm.weight"):
            values = 1 + 0.1 * values
        elif name.endswith("bias"):
            values *= 0.1
        elif not name.startswith("embeddings."):
            if name in pruned and sparsity:
                importance = None
                if spread:
                    drawn = [channels.standard_normal(extent, np.float32) for extent in shape]
                    importance = np.exp(spread * (drawn[0][:, None] + drawn[1]))
                values = prune(values, sparsity, block, importance)
                values /= max(float(np.sqrt(np.square(values).mean())), 1e-6)
            values /= np.sqrt(np.float32(shape[1]))
        weights[name] = values.astype(np.float32)
    if config.head == "masked-lm":
        weights[f"{DECODER}.weight"] = weights[f"{WORDS}.weight"]
    return weights


def check_weights(config: EncoderConfig, weights: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError where parameters are missing or have another shape than `config` says."""
    for name, shape in config.parameter_shapes().items():
        if name not in weights:
            raise ValueError(f"parameter {name} {list(shape)} is missing")
        if weights[name].shape != shape:
            raise ValueError(f"parameter {name} is {list(weights[name].shape)}, not {list(shape)}")
