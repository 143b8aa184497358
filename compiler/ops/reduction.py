"""Reductions and the ops built on them: softmax, cumulative sum, layer normalization.

``axes`` and ``axis`` are not negative.  An empty ``axes`` reduces nothing.  The maximum of nothing
is the type's minimum, and the other way round, as in ONNX.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sparsec.compiler.ir import Shape, Value
from sparsec.compiler.ops import flow
from sparsec.compiler.ops.row import Op

Attrs = Mapping[str, Any]
Types = list[tuple[Any, Shape]]
Arrays = tuple[np.ndarray, ...]


def _infer_reduce(attrs: Attrs, x: Value) -> Types:
    axes = tuple(attrs["axes"])
    if len(set(axes)) != len(axes) or any(not 0 <= a < len(x.shape) for a in axes):
        raise ValueError(f"reduction over axes {axes} of {list(x.shape)}")
    if x.dtype.kind not in "iuf":
        raise ValueError(f"reduction of {x.dtype.name}")
    return [(x.dtype, _reduced(attrs, x))]


def _reduced(attrs: Attrs, x: Value) -> Shape:
    axes = attrs["axes"]
    if attrs["keepdims"]:
        return tuple(1 if i in axes else d for i, d in enumerate(x.shape))
    return tuple(d for i, d in enumerate(x.shape) if i not in axes)


def _reduce(function: Callable[..., Any]) -> Callable[..., Arrays]:
    def reference(attrs: Attrs, x: np.ndarray) -> Arrays:
        out = function(x, axis=tuple(attrs["axes"]), keepdims=bool(attrs["keepdims"]))
        return (np.asarray(out).astype(x.dtype, copy=False),)

    return reference


def _extreme(function: Callable[..., Any], largest: bool) -> Callable[..., Any]:
    def reduced(x: np.ndarray, axis: tuple[int, ...], keepdims: bool) -> Any:
        if x.dtype.kind == "f":
            start = -np.inf if largest else np.inf
        else:
            limits = np.iinfo(x.dtype)
            start = limits.min if largest else limits.max
        return function(x, axis=axis, keepdims=keepdims, initial=start)

    return reduced


def _product(x: np.ndarray, axis: tuple[int, ...], keepdims: bool) -> Any:
    with np.errstate(all="ignore"):
        return np.prod(x, axis=axis, keepdims=keepdims, dtype=x.dtype)


def _mean(x: np.ndarray, axis: tuple[int, ...], keepdims: bool) -> Any:
    if x.dtype.kind == "f":
        return np.mean(x, axis=axis, keepdims=keepdims)
    total = np.sum(x, axis=axis, keepdims=keepdims, dtype=np.int64)
    return np.trunc(total / (x.size // max(total.size, 1)))


def _infer_softmax(attrs: Attrs, x: Value) -> Types:
    _check("softmax", attrs, x)
    return [(x.dtype, x.shape)]


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    """Softmax of a float array over one axis, in its dtype.

    A row that is -inf throughout gives NaN, as in ONNX.
    """
    with np.errstate(all="ignore"):
        e = np.exp(x - np.max(x, axis=axis, keepdims=True, initial=-np.inf))
        return np.asarray(e / np.sum(e, axis=axis, keepdims=True))


def _softmax(attrs: Attrs, x: np.ndarray) -> Arrays:
    return (softmax(x, attrs["axis"]),)


def _check(op: str, attrs: Attrs, x: Value, kinds: str = "f") -> None:
    if not 0 <= attrs["axis"] < len(x.shape):
        raise ValueError(f"{op} on axis {attrs['axis']} of a tensor of rank {len(x.shape)}")
    if x.dtype.kind not in kinds:
        raise ValueError(f"{op} does not take {x.dtype.name}")


def _infer_cumsum(attrs: Attrs, x: Value) -> Types:
    _check("cumsum", attrs, x, "iuf")
    return [(x.dtype, x.shape)]


def _cumsum(attrs: Attrs, x: np.ndarray) -> Arrays:
    axis = attrs["axis"]
    x = np.flip(x, axis) if attrs.get("reverse") else x
    out = np.cumsum(x, axis=axis, dtype=x.dtype)
    if attrs.get("exclusive"):
        out = np.roll(out, 1, axis)
        out[(slice(None),) * axis + (slice(0, 1),)] = 0
    return (np.flip(out, axis) if attrs.get("reverse") else out,)


def _infer_layernorm(attrs: Attrs, x: Value, gamma: Value, beta: Value) -> Types:
    if not x.shape or x.dtype.kind != "f":
        raise ValueError(f"layernorm of {x}")
    for v in (gamma, beta):
        if v.shape != x.shape[-1:] or v.dtype != x.dtype:
            raise ValueError(f"layernorm of {x} with {v}")
    return [(x.dtype, x.shape)]


def layernorm(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, eps: float) -> np.ndarray:
    """Layer normalization over the last axis, in x's dtype; the variance is the biased one."""
    centred = x - np.mean(x, axis=-1, keepdims=True)
    variance = np.mean(centred * centred, axis=-1, keepdims=True)
    return np.asarray(centred / np.sqrt(variance + x.dtype.type(eps)) * gamma + beta)


ROWS = [
    Op("reduce_sum", _infer_reduce, _reduce(np.sum), flow.reduced),
    Op("reduce_mean", _infer_reduce, _reduce(_mean), flow.reduced),
    Op("reduce_prod", _infer_reduce, _reduce(_product), flow.reduced),
    Op("reduce_max", _infer_reduce, _reduce(_extreme(np.max, True)), flow.reduced),
    Op("reduce_min", _infer_reduce, _reduce(_extreme(np.min, False)), flow.reduced),
    Op("softmax", _infer_softmax, _softmax, flow.along(lost=False), last_axis=True),
    Op("cumsum", _infer_cumsum, _cumsum, flow.along(lost=False)),
    Op(
        "layernorm",
        _infer_layernorm,
        lambda attrs, x, gamma, beta: (layernorm(x, gamma, beta, attrs["eps"]),),
        flow.layernorm,
        layer=True,
        last_axis=True,
        row_operands=1,
    ),
]
