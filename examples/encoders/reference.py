"""The encoder in numpy: the reference of the generated files, and how ranges are calibrated."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from examples.encoders.config import DECODER, PREDICTIONS, EncoderConfig
from examples.encoders.quantization import QuantizedModel, Ranges
from examples.encoders.weights import Weights

Observer = Callable[[str, np.ndarray], None]
Batch = tuple[np.ndarray, np.ndarray, np.ndarray]

LOWEST = float(np.finfo(np.float32).min)


def erf(x: np.ndarray) -> np.ndarray:
    """Error function to 1.5e-7 (Abramowitz and Stegun 7.1.26)."""
    a = np.abs(x)
    t = 1 / (1 + np.float32(0.3275911) * a)
    poly = np.float32(1.061405429)
    for c in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        poly = poly * t + np.float32(c)
    return np.sign(x) * (1 - poly * t * np.exp(-a * a))


def gelu(x: np.ndarray) -> np.ndarray:
    """x * Phi(x)."""
    return x * np.float32(0.5) * (1 + erf(x * np.float32(0.5**0.5)))


def layer_norm(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, eps: float) -> np.ndarray:
    """LayerNorm over the last axis."""
    centered = x - x.mean(-1, keepdims=True)
    variance = np.square(centered).mean(-1, keepdims=True)
    return centered / np.sqrt(variance + np.float32(eps)) * gamma + beta


def softmax(x: np.ndarray) -> np.ndarray:
    """Softmax over the last axis."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def input_key(linear: str) -> str:
    """The activation key of a linear layer's input; query, key and value have the same one."""
    head, _, last = linear.rpartition(".")
    return f"{head}.input" if last in ("query", "key", "value") else f"{linear}.input"


class Numerics:
    """How products are computed: in float, or with the integers of a quantized model."""

    def __init__(
        self,
        weights: Weights,
        quantized: QuantizedModel | None = None,
        observe: Observer | None = None,
    ) -> None:
        self.weights = weights
        self.quantized = quantized
        self.observe = observe or (lambda key, value: None)

    def embed(self, table: str, ids: np.ndarray) -> np.ndarray:
        """Rows of an embedding table."""
        if self.quantized and table in self.quantized.tables:
            rows, params = self.quantized.tables[table]
            return params.dequantize(rows[ids])
        return self.weights[f"{table}.weight"][ids]

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        """x [..., K] -> [..., N]."""
        key = input_key(name)
        self.observe(key, x)
        if self.quantized is None or name not in self.quantized.linears:
            return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]
        layer = self.quantized.linears[name]
        params = self.quantized.activations[key]
        # Products of 8-bit numbers summed in float64 are exact.
        shifted = params.quantize(x).astype(np.float64) - params.zero_point
        acc = shifted @ layer.weight.T.astype(np.float64)
        scale = params.scale * layer.scale
        if self.quantized.integer_bias:
            return (acc + layer.bias_int32(params.scale)).astype(np.float32) * scale
        return acc.astype(np.float32) * scale + layer.bias

    def product(self, prefix: str, a: str, b: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """x @ y of two activations with keys `prefix`.`a` and `prefix`.`b`."""
        self.observe(f"{prefix}.{a}", x)
        self.observe(f"{prefix}.{b}", y)
        known = self.quantized.activations if self.quantized else {}
        if f"{prefix}.{a}" not in known:
            return x @ y
        pa, pb = known[f"{prefix}.{a}"], known[f"{prefix}.{b}"]
        xi = pa.quantize(x).astype(np.float64) - pa.zero_point
        yi = pb.quantize(y).astype(np.float64) - pb.zero_point
        return (xi @ yi).astype(np.float32) * (pa.scale * pb.scale)

    def requantize(self, key: str, x: np.ndarray) -> np.ndarray:
        """DQ(Q(x)) where the model has that tensor quantized, else x."""
        self.observe(key, x)
        params = self.quantized.activations.get(key) if self.quantized else None
        return params.dequantize(params.quantize(x)) if params else x


def normalize(config: EncoderConfig, num: Numerics, name: str, x: np.ndarray) -> np.ndarray:
    """The LayerNorm called `name`."""
    return layer_norm(x, num.weights[f"{name}.weight"], num.weights[f"{name}.bias"], config.eps)


def embeddings(
    config: EncoderConfig, num: Numerics, ids: np.ndarray, types: np.ndarray
) -> np.ndarray:
    """Token ids and types [B, S] -> what enters the first layer [B, S, hidden]."""
    x = num.embed("embeddings.word_embeddings", ids)
    if config.type_vocab:
        x = x + num.embed("embeddings.token_type_embeddings", types)
    x = x + num.embed("embeddings.position_embeddings", np.arange(ids.shape[1])[None])
    return normalize(config, num, "embeddings.LayerNorm", x)


def attend(
    config: EncoderConfig, num: Numerics, layer: str, x: np.ndarray, mask: np.ndarray
) -> np.ndarray:
    """Self-attention up to the merged heads, before the output projection: [B, S, hidden]."""
    batch, length, _ = x.shape
    attn = f"{layer}.attention.self"

    def split(name: str) -> np.ndarray:
        y = num.linear(f"{attn}.{name}", x)
        return y.reshape(batch, length, config.heads, config.head_size)

    q = split("query").transpose(0, 2, 1, 3)
    k = split("key").transpose(0, 2, 3, 1)
    v = split("value").transpose(0, 2, 1, 3)
    visible = mask[:, None, None, :] != 0
    size = np.float32(config.head_size)
    if config.attention == "sdpa":
        root = np.sqrt(1 / np.sqrt(size))
        q, k = q * root, k * root
    elif config.attention == "distilbert":
        q = q / np.sqrt(size)
    scores = num.requantize(f"{attn}.scores", num.product(attn, "q", "k", q, k))
    if config.attention == "eager":
        scores = scores / np.sqrt(size) + np.where(visible, 0, np.float32(config.mask_value))
    else:
        scores = np.where(visible, scores, np.float32(LOWEST))
    probs = softmax(scores)
    context = num.requantize(f"{attn}.context", num.product(attn, "probs", "v", probs, v))
    return context.transpose(0, 2, 1, 3).reshape(batch, length, config.hidden)


def forward(
    config: EncoderConfig,
    weights: Weights,
    input_ids: np.ndarray,
    attention_mask: np.ndarray | None = None,
    token_type_ids: np.ndarray | None = None,
    *,
    quantized: QuantizedModel | None = None,
    observe: Observer | None = None,
) -> list[np.ndarray]:
    """Run the model in numpy.

    Args:
        input_ids, attention_mask, token_type_ids: integers [batch, sequence]; the mask is all
            ones and the types are all zeros where absent.
        quantized: compute with these integers, as the ONNX file does.
        observe: called with (activation key, array) for the input of every linear layer (see
            `input_key`) and, for each layer i, with ``encoder.layer.i.attention.self.`` and ``q``
            [B, H, S, D], ``k`` [B, H, D, S], ``v`` [B, H, S, D], ``probs``, ``scores`` [B, H, S, S]
            and ``context`` [B, H, S, D], as the operands and results of the two products.

    Returns:
        The outputs in the model's order.
    """
    mask = np.ones_like(input_ids) if attention_mask is None else attention_mask
    types = np.zeros_like(input_ids) if token_type_ids is None else token_type_ids
    num = Numerics(weights, quantized, observe)
    x = embeddings(config, num, input_ids, types)
    for i in range(config.layers):
        layer = f"encoder.layer.{i}"
        y = num.linear(f"{layer}.attention.output.dense", attend(config, num, layer, x, mask))
        x = normalize(config, num, f"{layer}.attention.output.LayerNorm", y + x)
        y = num.linear(f"{layer}.output.dense", gelu(num.linear(f"{layer}.intermediate.dense", x)))
        x = normalize(config, num, f"{layer}.output.LayerNorm", y + x)

    if config.head == "hidden":
        return [x]
    if config.head == "token-classification":
        return [num.linear("classifier", x)]
    if config.head == "question-answering":
        logits = num.linear("qa_outputs", x)
        return [logits[..., 0], logits[..., 1]]
    if config.head == "masked-lm":
        y = gelu(num.linear(f"{PREDICTIONS}.transform.dense", x))
        y = normalize(config, num, f"{PREDICTIONS}.transform.LayerNorm", y)
        return [num.linear(DECODER, y)]
    pooled = np.tanh(num.linear("pooler.dense", x[:, 0]))
    if config.head == "pooler":
        return [x, pooled]
    return [num.linear("classifier", pooled)]


def calibrate(config: EncoderConfig, weights: Weights, batches: Iterable[Batch]) -> Ranges:
    """The range (min, max) of every activation over some batches.

    Args:
        batches: (input_ids, attention_mask, token_type_ids), each integers [batch, sequence].

    Padded positions count too: they are computed, and clipping them would be a different model.
    """
    ranges: Ranges = {}

    def observe(key: str, x: np.ndarray) -> None:
        low, high = ranges.get(key, (0.0, 0.0))
        ranges[key] = (min(low, float(x.min())), max(high, float(x.max())))

    for ids, mask, types in batches:
        forward(config, weights, ids, mask, types, observe=observe)
    return ranges


def random_batch(
    config: EncoderConfig, batch: int, length: int, seed: int = 0, ragged: bool = True
) -> Batch:
    """Random token ids, a mask (the first row full, others ragged) and token types, int64."""
    rng = np.random.default_rng([seed, batch, length])
    ids = rng.integers(0, config.vocab, (batch, length))
    real = rng.integers(1, length + 1, batch) if ragged else np.full(batch, length)
    real[0] = length
    mask = (np.arange(length) < real[:, None]).astype(np.int64)
    types = rng.integers(0, max(config.type_vocab, 1), (batch, length))
    return ids, mask, types
