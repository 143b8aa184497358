"""ONNX Runtime's fused attention and embedding ops (domain com.microsoft), taken apart again.

Their meaning is that of ONNX Runtime's CPU kernels: a mask adds ``mask_filter_value`` to the scores
of the keys that it hides.  Caches of a decoder (past, present) are refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparsec.compiler.frontend.importer import Importer, OnnxNode, onnx_op
from sparsec.compiler.frontend.onnx_ops.layout import unsqueeze
from sparsec.compiler.frontend.onnx_ops.normalization import layernorm
from sparsec.compiler.frontend.onnx_ops.quantization import integer_product, parameter
from sparsec.compiler.frontend.tensor import Fail, Tensor, constant, fixed
from sparsec.compiler.ir import BATCH, BatchDim

_MS = "com.microsoft"


def _refuse_decoders(n: OnnxNode, names: dict[int, str], outputs: dict[int, str]) -> None:
    """Raise Fail for what only decoders have."""
    for flag in ("unidirectional", "do_rotary", "past_present_share_buffer"):
        if n.attrs.get(flag, 0):
            raise Fail(f"its attribute {flag} is not supported")
    present = [name for i, name in names.items() if n.optional(i) is not None]
    present += [name for i, name in outputs.items() if n.wants(i)]
    if present:
        raise Fail(f"{' and '.join(present)}: caches are not supported; export the encoder alone")


def _hidden_keys(c: Importer, mask: Tensor, length: int, value: float) -> Tensor:
    """What a mask adds to scores [B, H, S, L]: 0 or `value`, in a shape that broadcasts.

    Args:
        mask: [B] numbers of keys, [B, L] or [B, S, L], positive where a key may be seen.
        length: L.
    """
    rank = len(mask.shape)
    if rank == 1 and mask.shape[0] == BATCH:
        places = constant(np.arange(length, dtype=mask.dtype).reshape(1, length), "positions")
        seen = c.emit("less", places, c.reshape(mask, (BATCH, 1)))
    elif rank in (2, 3) and mask.shape[-1] == length:
        mask = c.cast(mask, np.int32)
        seen = c.emit("greater", mask, c.scalar(0, mask))
    else:
        raise Fail(f"a mask of shape {list(mask.shape)} is not supported")
    seen = unsqueeze(c, seen, [1] if rank == 3 else [1, 2])
    visible, hidden = (constant(np.float32(v), "mask") for v in (0.0, value))
    return c.emit("where", seen, visible, hidden)


def _heads(c: Importer, x: Tensor, heads: int) -> Tensor:
    """[B, S, C] -> [B, H, S, D]."""
    batch, length, channels = x.shape
    if fixed(channels) % heads:
        raise Fail(f"{channels} channels do not divide into {heads} heads")
    apart = c.reshape(x, (batch, length, heads, fixed(channels) // heads))
    return c.transpose(apart, (0, 2, 1, 3))


def attention(
    c: Importer,
    n: OnnxNode,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """Attention of q [B, S, C], k [B, L, C] and v [B, L, Cv] -> [B, S, Cv].

    Args:
        mask: as for `_hidden_keys`.
        bias: added to the scores; broadcasts against [B, H, S, L].
    """
    heads = int(n.attrs["num_heads"])
    q4, k4, v4 = (_heads(c, x, heads) for x in (q, k, v))
    width = fixed(q4.shape[-1])
    scale = float(n.attrs.get("scale", 0.0)) or width**-0.5
    scores = c.emit("matmul", q4, c.transpose(k4, (0, 1, 3, 2)))
    scores = c.emit("mul", scores, c.scalar(scale, scores))
    if mask is not None:
        value = float(n.attrs.get("mask_filter_value", -10000.0))
        scores = c.emit("add", scores, _hidden_keys(c, mask, fixed(k.shape[1]), value))
    if bias is not None:
        scores = c.emit("add", scores, bias)
    out = c.emit("matmul", c.emit("softmax", scores, axis=3), v4)
    out = c.transpose(out, (0, 2, 1, 3))
    return c.reshape(out, (*q.shape[:2], v.shape[-1]))


def _projections(c: Importer, n: OnnxNode, width: int) -> list[tuple[int, int]]:
    """Where Q, K and V begin and end in the merged weights of that many columns."""
    sizes = list(n.attrs.get("qkv_hidden_sizes", ())) or [width // 3] * 3
    if len(sizes) != 3 or sum(sizes) != width:
        raise Fail(f"its weights of {width} columns are not those of Q, K and V of {sizes}")
    ends = [int(e) for e in np.cumsum(sizes)]
    return list(zip([0, *ends[:2]], ends, strict=True))


def _part(c: Importer, x: Tensor, start: int, end: int) -> Tensor:
    """Columns of the last axis; a single number stays as it is."""
    if not x.shape or x.shape[-1] == 1:
        return x
    axis = len(x.shape) - 1
    return c.emit("slice", x, starts=(start,), ends=(end,), axes=(axis,), steps=(1,))


@onnx_op("Attention", domain=_MS)
def _attention(c: Importer, n: OnnxNode) -> Tensor:
    """One product with the merged weights of Q, K and V, then attention."""
    _refuse_decoders(n, {4: "past", 6: "past_sequence_length"}, {1: "present"})
    x, weights, bias = n[0], n[1], n.optional(2)
    parts = []
    for start, end in _projections(c, n, fixed(weights.shape[-1])):
        y = c.emit("matmul", x, _part(c, weights, start, end))
        parts.append(y if bias is None else c.emit("add", y, _part(c, bias, start, end)))
    q, k, v = parts
    return attention(c, n, q, k, v, n.optional(3), n.optional(5))


@onnx_op("QAttention", domain=_MS)
def _qattention(c: Importer, n: OnnxNode) -> Tensor:
    """Attention whose product with the weights is one of integers."""
    _refuse_decoders(n, {8: "past"}, {1: "present"})
    x, weights, bias = n[0], n[1], n[2]
    x_scale, w_scale = parameter(c, n[3]), parameter(c, n[4])
    x_zero, w_zero = n.optional(6), n.optional(7)
    parts = []
    for start, end in _projections(c, n, fixed(weights.shape[-1])):
        scale = c.emit("mul", x_scale, _part(c, w_scale, start, end))
        zero = _part(c, w_zero, start, end) if w_zero is not None else None
        y = integer_product(c, x, _part(c, weights, start, end), x_zero, zero, scale)
        parts.append(c.emit("add", y, _part(c, bias, start, end)))
    q, k, v = parts
    return attention(c, n, q, k, v, n.optional(5), None)


@onnx_op("MultiHeadAttention", domain=_MS)
def _multi_head_attention(c: Importer, n: OnnxNode) -> Tensor:
    """Attention after the projections; K and V may be split into heads."""
    past = {6: "past_key", 7: "past_value", 8: "past_sequence_length"}
    _refuse_decoders(n, past, {1: "present_key", 2: "present_value", 3: "qk"})
    q, key, value, bias = n[0], n.optional(1), n.optional(2), n.optional(3)
    if key is None or value is None or len(q.shape) != 3:
        raise Fail("packed queries, keys and values are not supported; ONNX Runtime's CPU has none")
    key, value = (_merged(c, t) for t in (key, value))
    parts = [q, key, value]
    if bias is not None:
        ends = np.cumsum([fixed(t.shape[-1]) for t in parts])
        starts = [0, *ends[:2]]
        parts = [
            c.emit("add", t, _part(c, bias, int(start), int(end)))
            for t, start, end in zip(parts, starts, ends, strict=True)
        ]
    q, key, value = parts
    return attention(c, n, q, key, value, n.optional(4), n.optional(5))


def _merged(c: Importer, x: Tensor) -> Tensor:
    """[B, H, L, D] -> [B, L, C]; [B, L, C] as it is."""
    if len(x.shape) != 4:
        return x
    batch, heads, length, width = x.shape
    x = c.transpose(x, (0, 2, 1, 3))
    return c.reshape(x, (batch, length, fixed(heads) * fixed(width)))


def _embedding(
    c: Importer, n: OnnxNode, tables: Sequence[Tensor | None], parameters: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Layer normalization of the sum of word, position and segment embeddings, and that sum."""
    ids, segments = n[0], n.optional(1)
    words, places, kinds = tables
    if words is None or places is None:
        raise Fail("its word or position embeddings are missing")
    total = c.emit("gather", words, ids, axis=0)
    positions = n.optional(8) if n.op == "EmbedLayerNormalization" else None
    if positions is None:
        length = fixed(ids.shape[1])
        positions = constant(np.arange(length, dtype=np.int64).reshape(1, length), "positions")
    total = c.emit("add", total, c.emit("gather", places, positions, axis=0))
    if segments is not None and kinds is not None:
        total = c.emit("add", total, c.emit("gather", kinds, segments, axis=0))
    eps = float(n.attrs.get("epsilon", 1e-12))
    return layernorm(c, total, parameters[0], parameters[1], eps, 2), total


def _key_counts(c: Importer, n: OnnxNode, ids: Tensor) -> Tensor:
    """The output mask_index: how many elements of each row of the mask are 1."""
    mask = n.optional(7)
    if mask is None:
        batch = ids.shape[0]
        zeros = constant(np.zeros(1, np.int32), "mask_index")
        return c.expand(zeros, (batch,)) if isinstance(batch, BatchDim) else zeros
    ones = c.cast(c.emit("equal", mask, c.scalar(1, mask)), np.int32)
    return c.emit("reduce_sum", ones, axes=(1,), keepdims=False)


@onnx_op("EmbedLayerNormalization", domain=_MS)
def _embed_layer_normalization(c: Importer, n: OnnxNode) -> list[Tensor]:
    out, total = _embedding(c, n, [n[2], n[3], n.optional(4)], [n[5], n[6]])
    return [out, _key_counts(c, n, n[0]), total]


@onnx_op("QEmbedLayerNormalization", domain=_MS)
def _quantized_embed_layer_normalization(c: Importer, n: OnnxNode) -> list[Tensor]:
    """Tables and parameters are bytes, each with a scale and a zero point of its own."""

    def wide(index: int, order: int) -> Tensor | None:
        x = n.optional(index)
        if x is None:
            return None
        scale, zero = (parameter(c, n[first + order]) for first in (8, 13))
        return c.emit("dequantize", x, scale, zero, axis=0)

    tables = [wide(2 + i, i) for i in range(3)]
    gamma, beta = wide(5, 3), wide(6, 4)
    if gamma is None or beta is None:
        raise Fail("its gamma or beta is missing")
    return [_embedding(c, n, tables, [gamma, beta])[0], _key_counts(c, n, n[0])]
