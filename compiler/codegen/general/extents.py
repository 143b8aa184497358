"""Extents, strides and loops over them, as C text.

An extent of a shape is a number or a multiple of the batch size; products of them are monomials
``coef * B**power``.  Everything here works on those, so that numbers stay literal in the C and only
the batch size is read at run time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sparsec.compiler.ir import BatchDim, Dim, Shape


@dataclass(frozen=True)
class Extent:
    """``coef * B**power``; prints as a C expression that can stand in a product."""

    coef: int
    power: int = 0

    @staticmethod
    def of(dim: Dim) -> Extent:
        """The extent of a shape's entry; ValueError for one that is not a multiple of the batch."""
        if not isinstance(dim, BatchDim):
            return Extent(int(dim))
        if dim.const:
            raise ValueError(f"extent {dim} is no multiple of the batch size")
        return Extent(dim.coef, 1)

    def __mul__(self, other: Extent) -> Extent:
        coef = self.coef * other.coef
        return Extent(coef, self.power + other.power if coef else 0)

    def __str__(self) -> str:
        factors = ["B"] * self.power
        if self.coef != 1 or not factors:
            factors.insert(0, f"INT64_C({self.coef})" if self.coef > 2**31 - 1 else str(self.coef))
        return factors[0] if len(factors) == 1 else "(" + " * ".join(factors) + ")"


ZERO, ONE = Extent(0), Extent(1)


def product(extents: Iterable[Extent]) -> Extent:
    """The product of some extents."""
    result = ONE
    for extent in extents:
        result = result * extent
    return result


def extents(shape: Shape) -> list[Extent]:
    """The extents of a shape."""
    return [Extent.of(dim) for dim in shape]


def strides(dims: Sequence[Extent]) -> list[Extent]:
    """Row-major strides in elements; 0 where the extent is 1."""
    result: list[Extent] = []
    step = ONE
    for dim in reversed(dims):
        result.insert(0, ZERO if dim == ONE else step)
        step = step * dim
    return result


def broadcast_strides(shape: Shape, rank: int) -> list[Extent]:
    """Strides of a tensor seen as one of higher rank, aligned at the right."""
    own = strides(extents(shape))
    return [ZERO] * (rank - len(own)) + own


def collapse(
    dims: Sequence[Extent], operands: Sequence[Sequence[Extent]]
) -> tuple[list[Extent], list[list[Extent]]]:
    """The same loop nest with as few loops as possible.

    Drops extents of 1, and merges neighbours that every operand walks as one.

    Args:
        dims: extents of the loops, outermost first.
        operands: for each operand its stride in each loop.
    """
    kept = [i for i, dim in enumerate(dims) if dim != ONE]
    out: list[Extent] = []
    steps: list[list[Extent]] = [[] for _ in operands]
    for i in kept:
        if out and all(s[-1] == o[i] * dims[i] for s, o in zip(steps, operands, strict=True)):
            out[-1] = out[-1] * dims[i]
            for s, o in zip(steps, operands, strict=True):
                s[-1] = o[i]
        else:
            out.append(dims[i])
            for s, o in zip(steps, operands, strict=True):
                s.append(o[i])
    return out, steps


def decode(
    index: str, dims: Sequence[Extent], prefix: str, operands: Sequence[Sequence[Extent]]
) -> list[str]:
    """C statements that turn a flat index into coordinates ``<prefix><k>``, one for each extent.

    Only for those along which one of the operands, given by their strides, moves at all.
    """
    lines: list[str] = []
    step = ONE
    for k in range(len(dims) - 1, -1, -1):
        value = index if step == ONE else f"{index} / {step}"
        if k:
            value = f"{value} % {dims[k]}"
        if any(steps[k] != ZERO for steps in operands):
            lines.insert(0, f"const int64_t {prefix}{k} = {value};")
        step = step * dims[k]
    return lines


def total(*terms: str) -> str:
    """The C expression of a sum of some; those that are "0" count for nothing."""
    return " + ".join(term for term in terms if term != "0") or "0"


def offset(prefix: str, steps: Sequence[Extent]) -> str:
    """The C expression of an element offset from coordinates ``<prefix><k>``."""
    return total(
        *(
            f"{prefix}{k}" if step == ONE else f"{prefix}{k} * {step}"
            for k, step in enumerate(steps)
            if step != ZERO
        )
    )
