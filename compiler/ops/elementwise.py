"""Elementwise ops: numpy broadcasting, the result at an index depends on that index alone.

Integers follow C: ``div`` truncates toward zero, arithmetic wraps.  ``mod`` takes the sign of the
divisor unless ``fmod``.  ``round`` rounds halves to even.  Float ops stay in their own width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sparsec.compiler.ir import Dim, Shape, Value
from sparsec.compiler.ops import flow
from sparsec.compiler.ops.row import Op

Attrs = Mapping[str, Any]
Types = list[tuple[Any, Shape]]
_BOOL = np.dtype(np.bool_)


def broadcast_dim(a: Dim, b: Dim) -> Dim:
    """The extent two extents broadcast to; ValueError if they do not for every batch size."""
    if a == b or b == 1:
        return a
    if a == 1:
        return b
    raise ValueError(f"extents {a} and {b} do not broadcast")


def broadcast_shape(*shapes: Shape) -> Shape:
    """The shape that shapes broadcast to, by numpy's rules; ValueError if they do not."""
    rank = max((len(s) for s in shapes), default=0)
    out: list[Dim] = [1] * rank
    for shape in shapes:
        for i, dim in enumerate(shape, start=rank - len(shape)):
            out[i] = broadcast_dim(out[i], dim)
    return tuple(out)


def erf(x: np.ndarray) -> np.ndarray:
    """The error function of a float array, in its dtype (computed in float64).

    W. J. Cody's rational approximations (Math. Comp. 23, 1969), good to about 1e-16.
    """
    v = np.asarray(x, np.float64)
    y = np.minimum(np.abs(v), 10.0)  # erf is 1 in float64 from 6 on
    small, large = y <= 0.46875, y > 4.0
    z = np.where(small, y * y, 0.0)
    near = v * (_poly(_ERF_A, z) / _poly(_ERF_B, z))
    mid = np.exp(-y * y) * (_poly(_ERF_C, y) / _poly(_ERF_D, y))
    w = np.where(large, y, 4.0) ** -2.0
    tail = _INV_SQRT_PI - w * (_poly(_ERF_P, w) / _poly(_ERF_Q, w))
    far = np.exp(-y * y) * tail / np.where(large, y, 4.0)
    out = np.where(small, near, np.copysign(1.0 - np.where(large, far, mid), v))
    return np.where(np.isnan(v), v, out).astype(np.asarray(x).dtype)


def _poly(coefficients: tuple[float, ...], x: np.ndarray) -> np.ndarray:
    """Horner's rule, highest power first."""
    out = np.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        out = out * x + c
    return out


_INV_SQRT_PI = 5.6418958354775628695e-1
_ERF_A = (
    1.85777706184603153e-1,
    3.16112374387056560e00,
    1.13864154151050156e02,
    3.77485237685302021e02,
    3.20937758913846947e03,
)
_ERF_B = (
    1.0,
    2.36012909523441209e01,
    2.44024637934444173e02,
    1.28261652607737228e03,
    2.84423683343917062e03,
)
_ERF_C = (
    2.15311535474403846e-8,
    5.64188496988670089e-1,
    8.88314979438837594e00,
    6.61191906371416295e01,
    2.98635138197400131e02,
    8.81952221241769090e02,
    1.71204761263407058e03,
    2.05107837782607147e03,
    1.23033935479799725e03,
)
_ERF_D = (
    1.0,
    1.57449261107098347e01,
    1.17693950891312499e02,
    5.37181101862009858e02,
    1.62138957456669019e03,
    3.29079923573345963e03,
    4.36261909014324716e03,
    3.43936767414372164e03,
    1.23033935480374942e03,
)
_ERF_P = (
    1.63153871373020978e-2,
    3.05326634961232344e-1,
    3.60344899949804439e-1,
    1.25781726111229246e-1,
    1.60837851487422766e-2,
    6.58749161529837803e-4,
)
_ERF_Q = (
    1.0,
    2.56852019228982242e00,
    1.87295284992346725e00,
    5.27905102951428412e-1,
    6.05183413124413191e-2,
    2.33520497626869185e-3,
)


def gelu(x: np.ndarray, approximate: str = "none") -> np.ndarray:
    """GELU of a float array, in its dtype; `approximate` is "none" (erf) or "tanh"."""
    t = x.dtype.type
    if approximate == "tanh":
        inner = t(math.sqrt(2.0 / math.pi)) * (x + t(0.044715) * x * x * x)
        return np.asarray(t(0.5) * x * (t(1.0) + np.tanh(inner)))
    return np.asarray(t(0.5) * x * (t(1.0) + erf(x * t(math.sqrt(0.5)))))


def _div(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype.kind == "f":
        return np.asarray(np.divide(a, b))
    quotient = np.floor_divide(a, b)
    return np.asarray(quotient + ((quotient < 0) & (quotient * b != a)).astype(a.dtype))


def _pow(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype.kind in "iu" and (b.dtype.kind == "f" or np.any(b < 0)):
        return np.asarray(np.power(a.astype(np.float64), b)).astype(a.dtype)
    return np.asarray(np.power(a, b.astype(a.dtype)))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    one = x.dtype.type(1)
    e = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, one / (one + e), e / (one + e)))


def _cast(attrs: Attrs, x: np.ndarray) -> np.ndarray:
    to = np.dtype(attrs["to"])
    return np.asarray(x != 0 if to == _BOOL else x.astype(to))


def _check_kinds(op: str, kinds: str, *values: Value) -> None:
    for v in values:
        if v.dtype.kind not in kinds:
            raise ValueError(f"{op} does not take {v.dtype.name}")


def _same_dtype(op: str, *values: Value) -> np.dtype[Any]:
    names = sorted({v.dtype.name for v in values})
    if len(names) > 1:
        raise ValueError(f"{op} needs operands of one dtype, got {' and '.join(names)}")
    return values[0].dtype


def _row(
    name: str,
    function: Callable[[Attrs, tuple[np.ndarray, ...]], np.ndarray],
    arity: int,
    kinds: str,
    result: Any = None,
    mixed: bool = False,
) -> Op:
    """A row whose result has the first operand's dtype, or `result`."""

    def infer(attrs: Attrs, *values: Value) -> Types:
        if len(values) != arity:
            raise ValueError(f"{name} takes {arity} operands, got {len(values)}")
        _check_kinds(name, kinds, *values)
        dtype = values[0].dtype if mixed else _same_dtype(name, *values)
        out = dtype if result is None else np.dtype(result)
        return [(out, broadcast_shape(*(v.shape for v in values)))]

    def reference(attrs: Attrs, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        with np.errstate(all="ignore"):
            return (np.asarray(function(attrs, arrays)),)

    return Op(name, infer, reference, flow.elementwise, elementwise=True)


def _binary(name: str, f: Callable[..., np.ndarray], kinds: str = "iuf", result: Any = None) -> Op:
    return _row(name, lambda attrs, v: f(v[0], v[1]), 2, kinds, result)


def _unary(name: str, f: Callable[..., np.ndarray], kinds: str = "iuf", result: Any = None) -> Op:
    return _row(name, lambda attrs, v: f(v[0]), 1, kinds, result)


def _mod(attrs: Attrs, v: tuple[np.ndarray, ...]) -> np.ndarray:
    return np.asarray((np.fmod if attrs.get("fmod") else np.mod)(v[0], v[1]))


def _infer_where(attrs: Attrs, cond: Value, a: Value, b: Value) -> Types:
    if cond.dtype != _BOOL:
        raise ValueError(f"where needs a bool condition, got {cond.dtype.name}")
    return [(_same_dtype("where", a, b), broadcast_shape(cond.shape, a.shape, b.shape))]


def _reference_where(
    attrs: Attrs, cond: np.ndarray, a: np.ndarray, b: np.ndarray
) -> tuple[np.ndarray, ...]:
    return (np.asarray(np.where(cond, a, b)),)


def _infer_cast(attrs: Attrs, x: Value) -> Types:
    return [(np.dtype(attrs["to"]), x.shape)]


def _reference_cast(attrs: Attrs, x: np.ndarray) -> tuple[np.ndarray, ...]:
    with np.errstate(all="ignore"):
        return (_cast(attrs, x),)


ROWS = [
    _binary("add", np.add),
    _binary("sub", np.subtract),
    _binary("mul", np.multiply),
    _binary("div", _div),
    _row("pow", lambda attrs, v: _pow(v[0], v[1]), 2, "iuf", mixed=True),
    _row("mod", _mod, 2, "iuf"),
    _binary("min", np.minimum),
    _binary("max", np.maximum),
    _unary("neg", np.negative, "if"),
    _unary("abs", np.abs),
    _unary("sqrt", np.sqrt, "f"),
    _unary("exp", np.exp, "f"),
    _unary("log", np.log, "f"),
    _unary("sin", np.sin, "f"),
    _unary("cos", np.cos, "f"),
    _unary("erf", erf, "f"),
    _unary("tanh", np.tanh, "f"),
    _unary("sigmoid", _sigmoid, "f"),
    _unary("relu", lambda x: np.maximum(x, x.dtype.type(0)), "if"),
    _unary("reciprocal", lambda x: x.dtype.type(1) / x, "f"),
    _unary("floor", np.floor, "f"),
    _unary("ceil", np.ceil, "f"),
    _unary("round", np.rint, "f"),
    _unary("sign", np.sign),
    _unary("not", np.logical_not, "b", _BOOL),
    _unary("isnan", np.isnan, "f", _BOOL),
    _binary("and", np.logical_and, "b", _BOOL),
    _binary("or", np.logical_or, "b", _BOOL),
    _binary("equal", np.equal, "biuf", _BOOL),
    _binary("less", np.less, "iuf", _BOOL),
    _binary("less_equal", np.less_equal, "iuf", _BOOL),
    _binary("greater", np.greater, "iuf", _BOOL),
    _binary("greater_equal", np.greater_equal, "iuf", _BOOL),
    Op("where", _infer_where, _reference_where, flow.elementwise, elementwise=True),
    Op("cast", _infer_cast, _reference_cast, flow.elementwise, elementwise=True),
    _row("gelu", lambda attrs, v: gelu(v[0], attrs.get("approximate", "none")), 1, "f"),
]
