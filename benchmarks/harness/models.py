"""The models of the comparison: made once, kept in a cache, with a count of the work in them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from examples.encoders import (
    EncoderConfig,
    Form,
    calibrate,
    measured_sparsity,
    quantize_model,
    random_batch,
    random_weights,
    write,
)

Quantizer = Callable[[Path, Path], None]

CALIBRATION_TOKENS = 32


@dataclass(frozen=True)
class Recipe:
    """What is compared.

    Attributes:
        form: how the pruned model is written down for sparsec and DeepSparse.
        sparsity, block: what share of the blocks of `block` input channels is zero.
        spread: how unevenly they are spread over the channels.
    """

    config: EncoderConfig
    form: Form = "sparseml"
    sparsity: float = 0.8
    block: int = 4
    seed: int = 0
    spread: float = 0.0

    @property
    def name(self) -> str:
        """Short and unique enough for a file name."""
        c = self.config
        size = f"l{c.layers}-h{c.hidden}-i{c.intermediate}-a{c.heads}-v{c.vocab}"
        spread = f"u{round(100 * self.spread)}" if self.spread else ""
        return f"{size}-s{round(100 * self.sparsity)}b{self.block}{spread}-{self.form}"

    @property
    def title(self) -> str:
        """The same for people."""
        c = self.config
        pruned = f"{self.sparsity:.0%} of {self.block}-blocks pruned" if self.sparsity else "dense"
        if self.sparsity and self.spread:
            pruned += f", channels spread by {self.spread:g}"
        size = f"{c.layers} layers, {c.hidden} wide, {c.intermediate} inner, {c.heads} heads"
        return f"encoder with {size}; {pruned}; {self.form} form"

    def with_(self, **changes: object) -> Recipe:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Work:
    """What the non-zero weights of the linear layers are.

    Attributes:
        kind: ``int8`` or ``fp32``.
        words: groups of four consecutive input channels that are not all zero.
        weights: weights that are not zero.
    """

    kind: Literal["int8", "fp32"]
    words: int
    weights: int


def recipe_folder(cache: Path, recipe: Recipe) -> Path:
    """Where everything about one set of weights is kept."""
    return cache / "models" / recipe.name.removesuffix(f"-{recipe.form}")


def pruned_model(cache: Path, recipe: Recipe) -> tuple[Path, Work]:
    """The recipe's model in its form, made unless it is there."""
    folder = recipe_folder(cache, recipe)
    path, note = folder / f"{recipe.form}.onnx", folder / f"{recipe.form}.json"
    if not note.exists():
        folder.mkdir(parents=True, exist_ok=True)
        work = _write(path, recipe)
        note.write_text(json.dumps(dataclasses.asdict(work)) + "\n", encoding="utf-8")
    return path, Work(**json.loads(note.read_text(encoding="utf-8")))


def _write(path: Path, recipe: Recipe) -> Work:
    config = recipe.config
    weights = random_weights(config, recipe.seed, recipe.sparsity, recipe.block, recipe.spread)
    matrices = [weights[f"{name}.weight"] for name in config.linears()]
    if recipe.form == "fp32":
        write(path, config, weights, "fp32")
        return _work("fp32", matrices)
    length = min(CALIBRATION_TOKENS, config.max_position)
    ranges = calibrate(config, weights, [random_batch(config, 4, length, recipe.seed)])
    quantized = quantize_model(config, weights, ranges, recipe.form)
    write(path, config, weights, recipe.form, quantized=quantized)
    return _work("int8", [layer.weight for layer in quantized.linears.values()])


def _work(kind: Literal["int8", "fp32"], matrices: list[np.ndarray]) -> Work:
    words = sum(
        round((1 - measured_sparsity(m, 4)) * len(m) * -(-m.shape[1] // 4)) for m in matrices
    )
    return Work(kind, words, sum(int(np.count_nonzero(m)) for m in matrices))


def dense_model(cache: Path, recipe: Recipe) -> Path:
    """A dense float32 model of the same size."""
    return pruned_model(cache, recipe.with_(form="fp32", sparsity=0.0, block=4))[0]


def dense_int8_model(cache: Path, recipe: Recipe, quantize: Quantizer) -> Path:
    """The dense model after ONNX Runtime's dynamic quantization.

    Args:
        quantize: called with source and destination.
    """
    source = dense_model(cache, recipe)
    path = source.with_name("dynamic-int8.onnx")
    if not path.exists():
        part = path.with_suffix(".part")
        quantize(source, part)
        part.rename(path)
    return path


def artifact(cache: Path, recipe: Recipe, buckets: list[int]) -> Path:
    """The recipe's model compiled by sparsec.  Compiled anew each time: sparsec is what changes."""
    import sparsec

    model, _ = pruned_model(cache, recipe)
    name = f"{recipe.form}-{'-'.join(map(str, buckets))}.sparsec"
    made = sparsec.compile(model, buckets=buckets, output=model.with_name(name), force=True)
    return Path(made.path)
