"""Arithmetic on compile-time integers that may depend on the batch size.

Arrays are numpy object arrays of Python ints, :class:`~sparsec.compiler.ir.BatchDim` and
:class:`PerSample`.  A result that holds neither becomes an ordinary array again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsec.compiler.frontend.tensor import Fail
from sparsec.compiler.ir import BatchDim


@dataclass(frozen=True)
class PerSample:
    """A number that differs along the batch: ``stride * b + offset`` for sample b.

    Exporters write ``arange(batch)`` into the index arithmetic of attention masks.  `linear` is
    False for any other number made from it, of which only the shape may be used.
    """

    stride: int = 1
    offset: int = 0
    linear: bool = True


INDEX = PerSample()
_OPAQUE = PerSample(linear=False)


def _per_sample(op: str, values: tuple[Any, ...]) -> Any:
    """An elementwise op with a PerSample operand."""
    if op == "where" and not isinstance(values[0], PerSample):
        return values[1] if values[0] else values[2]
    if op == "mul" and isinstance(values[0], int):
        values = values[::-1]
    if len(values) != 2 or any(isinstance(v, PerSample) and not v.linear for v in values):
        return _OPAQUE
    a, b = values
    if op in ("add", "sub") and all(isinstance(v, (int, PerSample)) for v in values):
        sign = 1 if op == "add" else -1
        left, right = (v if isinstance(v, PerSample) else PerSample(0, v) for v in values)
        total = PerSample(left.stride + sign * right.stride, left.offset + sign * right.offset)
        return total if total.stride else total.offset
    if isinstance(a, PerSample) and isinstance(b, int):
        if op == "mul":
            return PerSample(a.stride * b, a.offset * b) if b else 0
        if op in ("less", "greater_equal") and a.stride >= 0 and a.offset >= b:
            return op == "greater_equal"
    return _OPAQUE


def compare(a: Any, b: Any) -> int:
    """-1, 0 or 1; raises ValueError where it depends on the batch size."""
    if isinstance(a, BatchDim):
        return a._sign(b)
    if isinstance(b, BatchDim):
        return -b._sign(a)
    return int(a > b) - int(a < b)


def _div(a: Any, b: Any) -> Any:
    if isinstance(a, BatchDim) or isinstance(b, BatchDim):
        return a // b
    return int(a / b) if abs(a) < 2**52 else a // b


def _pow(a: Any, b: Any) -> Any:
    if b == 1:
        return a
    if isinstance(a, BatchDim):
        raise ValueError(f"({a}) ** {b} is not linear in the batch size")
    return a**b


_SCALAR: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": _div,
    "mod": lambda a, b: a % b,
    "pow": _pow,
    "neg": lambda a: -a,
    "abs": lambda a: a if compare(a, 0) >= 0 else -a,
    "sign": lambda a: compare(a, 0),
    "min": lambda a, b: a if compare(a, b) <= 0 else b,
    "max": lambda a, b: a if compare(a, b) >= 0 else b,
    "relu": lambda a: a if compare(a, 0) >= 0 else 0,
    "equal": lambda a, b: compare(a, b) == 0,
    "less": lambda a, b: compare(a, b) < 0,
    "less_equal": lambda a, b: compare(a, b) <= 0,
    "greater": lambda a, b: compare(a, b) > 0,
    "greater_equal": lambda a, b: compare(a, b) >= 0,
    "where": lambda c, a, b: a if c else b,
    # Exact on integers, and symbolic values are integers even where the graph calls them float.
    "floor": lambda a: a,
    "ceil": lambda a: a,
    "round": lambda a: a,
}


def _scalar(value: Any) -> Any:
    """A Python int, bool or BatchDim; raises Fail for a fraction."""
    if isinstance(value, (BatchDim, PerSample, bool, np.bool_)):
        return value
    if int(value) != value:
        raise Fail(f"{value} meets a number that depends on the batch size")
    return int(value)


def elementwise(
    op: str, attrs: Mapping[str, Any], dtype: np.dtype[Any], arrays: list[np.ndarray]
) -> np.ndarray:
    """A core elementwise op on arrays of which at least one is symbolic.

    Args:
        dtype: element type of the result.

    Raises:
        Fail: the op is not integer arithmetic, or the result is not linear in the batch size.
    """
    if op == "cast":
        if dtype == np.bool_:
            return elementwise("not_equal", {}, dtype, [arrays[0]])
        return tidy(arrays[0], dtype)
    function = _SCALAR.get(op)
    if op == "not_equal":
        function = _nonzero
    if function is None:
        raise Fail(f"{op} of a number that depends on the batch size")
    known = function

    def call(*values: Any) -> Any:
        numbers = tuple(map(_scalar, values))
        if any(isinstance(v, PerSample) for v in numbers):
            return _per_sample(op, numbers)
        return known(*numbers)

    try:
        out = np.frompyfunc(call, len(arrays), 1)(*arrays)
    except ValueError as error:
        raise Fail(str(error)) from None
    return tidy(np.asarray(out, dtype=object), dtype)


def _nonzero(a: Any) -> bool:
    return compare(a, 0) != 0


def tidy(array: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """The array with its real dtype if nothing in it depends on the batch size."""
    if array.dtype == object and any(isinstance(v, (BatchDim, PerSample)) for v in array.flat):
        return array
    return array.astype(dtype)
