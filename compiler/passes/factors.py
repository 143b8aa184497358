"""Products taken apart, so that patterns need not care how they were associated."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import reduce

import numpy as np

from sparsec.compiler.editor import Match

_DEPTH = 6


@dataclass
class Product:
    """``prod(constants) * prod(over) / prod(under)``; constants in float64."""

    over: list[str] = field(default_factory=list)
    under: list[str] = field(default_factory=list)
    constants: list[np.ndarray] = field(default_factory=list)

    @property
    def constant(self) -> np.ndarray:
        """The product of the constants, broadcast."""
        out = np.ones(())
        for array in self.constants:
            out = np.asarray(out * array)
        return out


def product(m: Match, name: str, stop: Collection[str] = ()) -> Product:
    """The factors of a value, through mul, div and reciprocal; values in `stop` stay whole."""
    out = Product()
    _collect(m, name, stop, out, over=True, depth=_DEPTH)
    return out


def _collect(
    m: Match, name: str, stop: Collection[str], out: Product, over: bool, depth: int
) -> None:
    array = m.constant(name)
    if array is not None and array.dtype.kind == "f":
        wide = array.astype(np.float64)
        with np.errstate(divide="ignore"):
            out.constants.append(wide if over else 1 / wide)
        return
    node = m.producer(name, "mul", "div", "reciprocal") if depth and name not in stop else None
    if node is None:
        (out.over if over else out.under).append(name)
        return
    last_over = over if node.op == "mul" else not over
    for operand in node.inputs[:-1]:
        _collect(m, operand, stop, out, over, depth - 1)
    _collect(m, node.inputs[-1], stop, out, last_over, depth - 1)


def polynomial(m: Match, name: str, x: str, depth: int = _DEPTH) -> dict[int, float] | None:
    """`name` as a polynomial in `x` with constant coefficients, by degree; None if it is none."""
    if name == x:
        return {1: 1.0}
    array = m.constant(name)
    if array is not None:
        return {0: float(array.reshape(-1)[0])} if array.size == 1 else None
    node = m.producer(name, "mul", "div", "add", "sub", "pow", "neg") if depth else None
    if node is None:
        return None
    parts = [polynomial(m, operand, x, depth - 1) for operand in node.inputs]
    left, right = parts[0], parts[-1]
    return None if left is None or right is None else _combined(node.op, left, right)


def _combined(op: str, left: dict[int, float], right: dict[int, float]) -> dict[int, float] | None:
    """What an op makes of two polynomials (`neg`: of the first one); None if that is none."""
    if op == "neg":
        return {d: -c for d, c in left.items()}
    if op in ("add", "sub"):
        sign = 1 if op == "add" else -1
        return {d: left.get(d, 0.0) + sign * right.get(d, 0.0) for d in {*left, *right}}
    if op == "mul":
        return _times(left, right)
    number = right.get(0, 0.0)
    if set(right) != {0}:
        return None
    if op == "div":
        return {d: c / number for d, c in left.items()} if number else None
    return reduce(_times, [left] * int(number)) if number in (1.0, 2.0, 3.0) else None


def _times(a: dict[int, float], b: dict[int, float]) -> dict[int, float]:
    out: dict[int, float] = {}
    for i, x in a.items():
        for j, y in b.items():
            out[i + j] = out.get(i + j, 0.0) + x * y
    return out
