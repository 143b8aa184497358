"""Quantization and its inverse, as in ONNX QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sparsec.compiler.ir import Shape, Value
from sparsec.compiler.ops import flow
from sparsec.compiler.ops.expressions import Elementwise, Rule, suffix
from sparsec.compiler.ops.row import Op, TypeRule

Attrs = Mapping[str, Any]

_QUANTIZED = tuple(np.dtype(t) for t in (np.uint8, np.int8, np.uint16, np.int16, np.int32))


def _check(op: str, attrs: Attrs, x: Value, scale: Value, zp: Value) -> None:
    if zp.dtype not in _QUANTIZED:
        raise ValueError(f"{op} with a zero point of type {zp.dtype}")
    if scale.dtype != np.float32:
        raise ValueError(f"{op} with a scale of type {scale.dtype}")
    for parameter in (scale, zp):
        if parameter.shape in ((), (1,)):
            continue
        axis = int(attrs.get("axis", 1))
        if len(parameter.shape) != 1 or not -len(x.shape) <= axis < len(x.shape):
            raise ValueError(f"{op} of {x} along axis {axis} with parameters {parameter}")
        if parameter.shape[0] != x.shape[axis]:
            raise ValueError(f"{op} of {x}: axis {axis} does not fit parameters {parameter}")


def _along(attrs: Attrs, parameter: np.ndarray, rank: int) -> np.ndarray:
    """The parameter, shaped to broadcast against a tensor of that rank."""
    if parameter.size == 1:
        return parameter.reshape(())
    shape = [1] * rank
    shape[int(attrs.get("axis", 1))] = parameter.size
    return parameter.reshape(shape)


def _infer_quantize(attrs: Attrs, x: Value, scale: Value, zp: Value) -> list[tuple[Any, Shape]]:
    _check("quantize", attrs, x, scale, zp)
    if x.dtype != np.float32:
        raise ValueError(f"quantize of {x.dtype}")
    return [(zp.dtype, x.shape)]


def _quantize(attrs: Attrs, x: np.ndarray, scale: np.ndarray, zp: np.ndarray) -> tuple[np.ndarray]:
    limits = np.iinfo(zp.dtype)
    with np.errstate(all="ignore"):
        y = np.rint(x / _along(attrs, scale, x.ndim))
    y = y.astype(np.float64) + _along(attrs, zp, x.ndim)
    # A NaN saturates downwards, which is what the vector code of ONNX Runtime does with it.
    y = np.nan_to_num(y, nan=limits.min, posinf=limits.max, neginf=limits.min)
    return (np.clip(y, limits.min, limits.max).astype(zp.dtype),)


def _infer_dequantize(attrs: Attrs, q: Value, scale: Value, zp: Value) -> list[tuple[Any, Shape]]:
    _check("dequantize", attrs, q, scale, zp)
    if q.dtype != zp.dtype:
        raise ValueError(f"dequantize of {q.dtype} with a zero point of type {zp.dtype}")
    return [(np.float32, q.shape)]


def _dequantize(
    attrs: Attrs, q: np.ndarray, scale: np.ndarray, zp: np.ndarray
) -> tuple[np.ndarray]:
    shifted = q.astype(np.int64) - _along(attrs, zp, q.ndim).astype(np.int64)
    return (shifted.astype(np.float32) * _along(attrs, scale, q.ndim),)


def _infer_extremes(attrs: Attrs, x: Value, real: Value | None = None) -> list[tuple[Any, Shape]]:
    if x.dtype != np.float32 or not x.shape:
        raise ValueError(f"extremes of {x}")
    if real is not None and (real.dtype != np.bool_ or real.shape != x.shape[:-1]):
        raise ValueError(f"extremes of {x} where {real}")
    return [(np.float32, ()), (np.float32, ())]


def _extremes(
    attrs: Attrs, x: np.ndarray, real: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    kept = x if real is None else x[real]
    return np.asarray(np.min(kept, initial=0.0)), np.asarray(np.max(kept, initial=0.0))


def _element(name: str) -> Rule:
    def template(attrs: Attrs, types: Sequence[np.dtype[Any]]) -> str:
        return f"op_{name}_{suffix(types[2])}({{a}}, {{b}}, {{c}})"

    return template


def _row(name: str, infer: TypeRule, reference: Callable[..., tuple[np.ndarray]]) -> Op:
    return Op(
        name,
        infer,
        reference,
        flow.per_axis,
        elementwise=Elementwise(_element(name), lanes=None),
        quantizes=True,
        row_operands=1,
    )


ROWS = [
    _row("quantize", _infer_quantize, _quantize),
    _row("dequantize", _infer_dequantize, _dequantize),
    # The smallest and the greatest of 0 and all elements of x, of those rows that are real.
    Op("extremes", _infer_extremes, _extremes, flow.everything, row_operands=1),
]
