"""The ops that only passes make: quantized linear layers and whole attention blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sparsec.compiler.ir import Graph, Shape, Value
from sparsec.compiler.ops import flow
from sparsec.compiler.ops.contraction import BYTES, float_product, integer_product, linear_row
from sparsec.compiler.ops.reduction import softmax
from sparsec.compiler.ops.row import Op

Attrs = Mapping[str, Any]


def _infer_qlinear(
    attrs: Attrs, x: Value, w: Value, scale: Value, bias: Value | None = None
) -> list[tuple[Any, Shape]]:
    if x.dtype not in BYTES or w.dtype != np.int8 or scale.dtype != np.float32:
        raise ValueError(f"qlinear of {x.dtype} with weights {w.dtype}, scale {scale.dtype}")
    if len(w.shape) != 2 or not x.shape or x.shape[-1] != w.shape[1]:
        raise ValueError(f"qlinear of {list(x.shape)} with weights {list(w.shape)}")
    n = w.shape[0]
    if scale.shape not in ((), (n,)):
        raise ValueError(f"qlinear of {n} outputs with scale {list(scale.shape)}")
    if bias is not None and (bias.dtype != np.int32 or bias.shape != (n,)):
        raise ValueError(f"qlinear of {n} outputs with bias {bias}")
    if not np.iinfo(x.dtype).min <= int(attrs["x_zp"]) <= np.iinfo(x.dtype).max:
        raise ValueError(f"qlinear: zero point {attrs['x_zp']} is no {x.dtype}")
    return [(np.float32, (*x.shape[:-1], n))]


def _qlinear(
    attrs: Attrs,
    x: np.ndarray,
    w: np.ndarray,
    scale: np.ndarray,
    bias: np.ndarray | None = None,
) -> tuple[np.ndarray]:
    acc = integer_product(x.astype(np.int32) - int(attrs["x_zp"]), w.T)
    if bias is not None:
        acc = acc + bias
    return (acc.astype(np.float32) * scale,)


def _same_kind(a: Value, b: Value) -> bool:
    """Both float32, or both 8-bit."""
    return (a.dtype == b.dtype == np.float32) or (a.dtype in BYTES and b.dtype in BYTES)


def _infer_attention(
    attrs: Attrs, q: Value, k: Value, v: Value, *extras: Value
) -> list[tuple[Any, Shape]]:
    heads = int(attrs["heads"])
    score: Graph = attrs["score"]
    prob: Graph = attrs["prob"]
    if len(q.shape) != 3 or q.shape != k.shape or q.shape != v.shape:
        raise ValueError(f"attention of {q}, {k}, {v}: shapes must be one [B, S, C]")
    batch, length, channels = q.shape
    if not isinstance(channels, int) or channels % heads:
        raise ValueError(f"attention of {channels} channels with {heads} heads")
    if not _same_kind(q, k):
        raise ValueError(f"attention of q {q.dtype} and k {k.dtype}")
    _check_nested(score, (batch, heads, length, length), len(extras))
    _check_nested(prob, (batch, heads, length, length), 0)
    if score.values[score.outputs[0]].dtype != np.float32:
        raise ValueError("attention: scores must be float32")
    for name, extra in zip(score.inputs[1:], extras, strict=True):
        declared = score.values[name]
        if (declared.dtype, declared.shape) != (extra.dtype, extra.shape):
            raise ValueError(f"attention: extra {extra} declared as {declared}")
    if not _same_kind(prob.values[prob.outputs[0]], v):
        raise ValueError(f"attention of p {prob.values[prob.outputs[0]].dtype} and v {v.dtype}")
    return [(np.float32, q.shape)]


def _check_nested(graph: Graph, shape: Shape, extras: int) -> None:
    """A nested graph maps scores to what has their shape, given so many operands besides."""
    if len(graph.inputs) != 1 + extras or len(graph.outputs) != 1:
        raise ValueError(f"attention: {graph.name} takes {graph.inputs}, given {1 + extras}")
    ends = (graph.values[graph.inputs[0]], graph.values[graph.outputs[0]])
    if ends[0].dtype != np.float32 or any(end.shape != shape for end in ends):
        raise ValueError(f"attention: {graph.name} maps {ends[0]} to {ends[1]}, not {shape}")


def _heads_apart(x: np.ndarray, heads: int, zero: int) -> np.ndarray:
    """[B, S, H*D] -> [B, H, S, D]; integers with the zero point subtracted."""
    b, s, c = x.shape
    wide = x if x.dtype == np.float32 else np.subtract(x, zero, dtype=np.int32)
    return np.transpose(wide.reshape(b, s, heads, c // heads), (0, 2, 1, 3))


def _product(attrs: Attrs, a: np.ndarray, b: np.ndarray, scale: float) -> np.ndarray:
    """``a @ b`` in float32; integers are summed exactly and then scaled."""
    if a.dtype == np.float32:
        return float_product(attrs, a, b)
    return np.asarray(integer_product(a, b).astype(np.float32) * np.float32(scale))


def _attention(
    attrs: Attrs, q: np.ndarray, k: np.ndarray, v: np.ndarray, *extras: np.ndarray
) -> tuple[np.ndarray]:
    heads = int(attrs["heads"])
    q4 = _heads_apart(q, heads, int(attrs["q_zp"]))
    k4 = _heads_apart(k, heads, int(attrs["k_zp"]))
    v4 = _heads_apart(v, heads, int(attrs["v_zp"]))
    s = _product(attrs, q4, k4.transpose(0, 1, 3, 2), attrs["qk_scale"])
    (s,) = attrs["_run"](attrs["score"], [s, *extras])
    (p,) = attrs["_run"](attrs["prob"], [softmax(s, axis=-1)])
    if p.dtype != np.float32:
        p = p.astype(np.int32) - int(attrs["p_zp"])
    o = _product(attrs, p, v4, attrs["pv_scale"])
    return (np.ascontiguousarray(o.transpose(0, 2, 1, 3)).reshape(q.shape),)


ROWS = [
    linear_row("qlinear", _infer_qlinear, _qlinear, "i8"),
    Op(
        "attention",
        _infer_attention,
        _attention,
        flow.attention,
        layer=True,
        row_operands=3,
        # Scores, and their products with the values.
        terms=lambda attrs, shapes: 2 * int(str(shapes[1][1])),
    ),
]
