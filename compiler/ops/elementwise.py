"""Elementwise ops: numpy broadcasting, the result at an index depends on that index alone.

Integers follow C: ``div`` truncates toward zero, arithmetic wraps.  ``mod`` takes the sign of the
divisor unless ``fmod``.  ``round`` rounds halves to even.  Float ops stay in their own width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sparsec.compiler.ir import Dim, Shape, Value
from sparsec.compiler.ops import flow
from sparsec.compiler.ops.expressions import (
    BOOL,
    BYTES,
    F32,
    I32,
    Elementwise,
    cast,
    library_suffix,
    suffix,
)
from sparsec.compiler.ops.row import Op

Attrs = Mapping[str, Any]
Types = list[tuple[Any, Shape]]


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
    return np.asarray(x != 0 if to == BOOL else x.astype(to))


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
    code: Elementwise,
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

    return Op(name, infer, reference, flow.elementwise, elementwise=code)


def _binary(
    name: str,
    f: Callable[..., np.ndarray],
    code: Elementwise,
    kinds: str = "iuf",
    result: Any = None,
) -> Op:
    return _row(name, lambda attrs, v: f(v[0], v[1]), 2, kinds, code, result)


def _unary(
    name: str,
    f: Callable[..., np.ndarray],
    code: Elementwise,
    kinds: str = "f",
    result: Any = None,
) -> Op:
    return _row(name, lambda attrs, v: f(v[0]), 1, kinds, code, result)


def _compared(name: str, f: Callable[..., np.ndarray], operator: str, kinds: str = "iuf") -> Op:
    code = Elementwise(
        dict.fromkeys("fib", f"{{a}} {operator} {{b}}"),
        dict.fromkeys("fi", f"(vi)({{a}} {operator} {{b}})"),
    )
    return _binary(name, f, code, kinds, BOOL)


def _mod(attrs: Attrs, v: tuple[np.ndarray, ...]) -> np.ndarray:
    return np.asarray((np.fmod if attrs.get("fmod") else np.mod)(v[0], v[1]))


def _infer_where(attrs: Attrs, cond: Value, a: Value, b: Value) -> Types:
    if cond.dtype != BOOL:
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


# -- C

_ARITHMETIC = {"f": "op_{op}_{S}({a}, {b})", "i": "op_{op}_{S}({a}, {b})"}
_ARITHMETIC_OF_ONE = {"f": "op_{op}_{S}({a})", "i": "op_{op}_{S}({a})"}


def _operator(operator: str, lanes: str = "f") -> Elementwise:
    """An operator of C on floats; integers wrap, or divide by anything, in a function.

    Args:
        lanes: kinds of vectors that have it.
    """
    vectors = dict.fromkeys(lanes, f"({{a}} {operator} {{b}})")
    return Elementwise({**_ARITHMETIC, "f": f"{{a}} {operator} {{b}}"}, vectors)


def _library(name: str, inexact: bool = False) -> Elementwise:
    """A function of the C library."""
    return Elementwise({"f": f"{name}{{F}}({{a}})"}, {"f": "vf_{op}({a})"}, inexact=inexact)


def _function(lanes: bool, variant: Callable[[Attrs], str] | None = None) -> Elementwise:
    """A function that the project has itself, of floats and perhaps of vectors of them."""
    vectors = {"f": "vf_{op}({a})"} if lanes else None
    return Elementwise({"f": "op_{op}_{S}({a})"}, vectors, variant, inexact=lanes)


def _power(attrs: Attrs, types: Sequence[np.dtype[Any]]) -> str:
    base, exponent = types
    if base.kind == "f":
        return f"pow{library_suffix(base)}({{a}}, {cast('{b}', exponent, base)})"
    if exponent.kind == "f":
        return cast("pow((double){a}, {b})", np.dtype(np.float64), base)
    return f"op_power_{suffix(base)}({{a}}, {{b}})"


def _cast_element(attrs: Attrs, types: Sequence[np.dtype[Any]]) -> str:
    return cast("{a}", types[0], np.dtype(attrs["to"]))


def _cast_lanes(attrs: Attrs, types: Sequence[np.dtype[Any]]) -> str | None:
    """Wider ones only, and truth values as floats; bytes are int32 in lanes already."""
    source, to = types[0], np.dtype(attrs["to"])
    if source == BOOL:
        return "vf_cvt(-{a})" if to == F32 else None
    if source not in (I32, *BYTES) or to not in (F32, I32) or source == to:
        return None
    return "vf_cvt({a})" if to == F32 else "{a}"


ROWS = [
    _binary("add", np.add, _operator("+", lanes="fi")),
    _binary("sub", np.subtract, _operator("-", lanes="fi")),
    _binary("mul", np.multiply, _operator("*", lanes="fi")),
    _binary("div", _div, _operator("/")),
    _row(
        "pow",
        lambda attrs, v: _pow(v[0], v[1]),
        2,
        "iuf",
        Elementwise(_power, lanes=None),
        mixed=True,
    ),
    _row(
        "mod",
        _mod,
        2,
        "iuf",
        Elementwise(_ARITHMETIC, None, lambda attrs: "fmod" if attrs.get("fmod") else "mod"),
    ),
    _binary("min", np.minimum, Elementwise(_ARITHMETIC, {"f": "vf_min_nan({a}, {b})"})),
    _binary("max", np.maximum, Elementwise(_ARITHMETIC, {"f": "vf_max_nan({a}, {b})"})),
    _unary(
        "neg",
        np.negative,
        Elementwise({**_ARITHMETIC_OF_ONE, "f": "-{a}"}, {"f": "vf_neg({a})"}),
        "if",
    ),
    _unary(
        "abs",
        np.abs,
        Elementwise({**_ARITHMETIC_OF_ONE, "f": "fabs{F}({a})"}, {"f": "vf_abs({a})"}),
        "iuf",
    ),
    _unary("sqrt", np.sqrt, _library("sqrt", inexact=True)),
    _unary("exp", np.exp, _function(lanes=True)),
    _unary("log", np.log, _function(lanes=False)),
    _unary("sin", np.sin, _function(lanes=False)),
    _unary("cos", np.cos, _function(lanes=False)),
    _unary("erf", erf, _function(lanes=True)),
    _unary("tanh", np.tanh, _function(lanes=True)),
    _unary("sigmoid", _sigmoid, _function(lanes=True)),
    _unary(
        "relu",
        lambda x: np.maximum(x, x.dtype.type(0)),
        Elementwise(
            {"f": "op_relu_{S}({a})", "i": "op_max_{S}({a}, 0)"},
            {"f": "vf_max_nan({a}, vf_set1(0.0f))"},
        ),
        "if",
    ),
    _unary(
        "reciprocal",
        lambda x: x.dtype.type(1) / x,
        Elementwise({"f": "1 / {a}"}, {"f": "(1.0f / {a})"}, inexact=True),
    ),
    _unary("floor", np.floor, _library("floor")),
    _unary("ceil", np.ceil, _library("ceil")),
    _unary("round", np.rint, _library("rint")),
    _unary("sign", np.sign, Elementwise(_ARITHMETIC_OF_ONE, lanes=None), "iuf"),
    _unary("not", np.logical_not, Elementwise({"b": "!{a}"}, {"b": "(~{a})"}), "b", BOOL),
    _unary(
        "isnan", np.isnan, Elementwise({"f": "{a} != {a}"}, {"f": "(vi)({a} != {a})"}), "f", BOOL
    ),
    _binary(
        "and", np.logical_and, Elementwise({"b": "{a} & {b}"}, {"b": "({a} & {b})"}), "b", BOOL
    ),
    _binary("or", np.logical_or, Elementwise({"b": "{a} | {b}"}, {"b": "({a} | {b})"}), "b", BOOL),
    _compared("equal", np.equal, "==", "biuf"),
    _compared("less", np.less, "<"),
    _compared("less_equal", np.less_equal, "<="),
    _compared("greater", np.greater, ">"),
    _compared("greater_equal", np.greater_equal, ">="),
    Op(
        "where",
        _infer_where,
        _reference_where,
        flow.elementwise,
        elementwise=Elementwise(
            dict.fromkeys("fib", "{a} ? {b} : {c}"),
            {"f": "vf_sel({a}, {b}, {c})", "i": "vi_sel({a}, {b}, {c})"},
        ),
    ),
    Op(
        "cast",
        _infer_cast,
        _reference_cast,
        flow.elementwise,
        elementwise=Elementwise(_cast_element, _cast_lanes),
    ),
    _row(
        "gelu",
        lambda attrs, v: gelu(v[0], attrs.get("approximate", "none")),
        1,
        "f",
        _function(
            lanes=True,
            variant=lambda attrs: (
                "gelu_tanh" if attrs.get("approximate", "none") == "tanh" else "gelu"
            ),
        ),
    ),
]
