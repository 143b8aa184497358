"""What is known of padded positions, and what elementwise work makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsec.compiler.axes import Axes
from sparsec.compiler.interpreter import run_node
from sparsec.compiler.ir import Graph, Node
from sparsec.compiler.ops import OPS

#: Scores this far below tame ones leave nothing after a softmax.
MASKED = -1000.0
#: How far a tame number may be from zero where a mask or a saturation is judged.
TAME = 500.0

FINITE, MAYBE_MASKED, ANYTHING = 0, 1, 2
"""Levels: all numbers finite; or -inf; or infinities and NaN."""


@dataclass(frozen=True)
class Pad:
    """What is known of the elements at the padded positions of one axis.

    Attributes:
        number: their exact value, if it is one and known.
        shift, spread: else they are this, give or take so much.
        level: and what they may be instead.
    """

    number: Any = None
    shift: float = 0.0
    spread: float = TAME
    level: int = FINITE

    @property
    def masked(self) -> bool:
        """Whether a softmax makes 0 of it."""
        if self.number is not None:
            return bool(self.number <= MASKED)
        return self.level <= MAYBE_MASKED and self.shift + self.spread <= MASKED

    def is_number(self, number: Any) -> bool:
        return self.number is not None and bool(self.number == number)

    @property
    def tame(self) -> bool:
        return self.level == FINITE and not (self.number is not None and np.isinf(self.number))


TAME_PAD, LOST_PAD = Pad(), Pad(level=ANYTHING)


@dataclass(frozen=True)
class Info:
    """What is known of a value.

    Attributes:
        axes: its factors.
        pads: for each axis, what its padded positions hold, for each token factor of it.
        level: what its other elements may be.
        number: the value of all elements, if it is one and known.
    """

    axes: Axes
    pads: tuple[tuple[Pad, ...], ...]
    level: int = FINITE
    number: Any = None
    #: A constant that is larger at a larger length, by as much: indices from a middle.
    moves: bool = False

    def elsewhere(self) -> Pad:
        """What it holds along an axis that it does not have."""
        return Pad(self.number) if self.number is not None else Pad(level=self.level)


def along(info: Info | None, axis: int | None, spot: int) -> Pad | None:
    """What an operand holds at the padded positions of a result's axis."""
    if info is None:
        return None
    if axis is None or spot >= len(info.pads[axis]):
        return info.elsewhere()
    return info.pads[axis][spot]


def joined(pads: Sequence[Pad]) -> Pad:
    """What holds for all."""
    first = pads[0]
    if all(p == first for p in pads):
        return first
    if all(p.number is not None and p.number == first.number for p in pads):
        return first
    if all(p.masked for p in pads):
        return Pad(shift=MASKED, spread=0.0, level=MAYBE_MASKED)
    return Pad(level=max(pad_level(p) for p in pads))


def pad_level(pad: Pad) -> int:
    if pad.number is None:
        return pad.level
    return level_of(np.asarray(pad.number))


def level_of(array: np.ndarray) -> int:
    if array.dtype.kind != "f" or bool(np.all(np.isfinite(array))):
        return FINITE
    return ANYTHING if bool(np.any(np.isnan(array) | (array == np.inf))) else MAYBE_MASKED


_KEEPS_MASKED = {
    "add",
    "min",
    "cast",
    "where",
    "max",
    "floor",
    "ceil",
    "round",
    "sub",
    "mul",
    "div",
}
_TAMES = {"exp", "sigmoid", "tanh", "relu", "isnan", "not", "and", "or", "quantize", "dequantize"}
_TAMES |= {"equal", "less", "less_equal", "greater", "greater_equal", "erf"}


_MONOTONE = {"neg", "exp", "sigmoid", "tanh", "erf", "relu", "floor", "ceil", "round", "cast"}
_MONOTONE |= {"min", "max", "less", "less_equal", "greater", "greater_equal"}
_MONOTONE |= {"quantize", "dequantize"}


def level_of_result(node: Node, operands: Sequence[Info | None]) -> int:
    """What the elements of a result may be, apart from padding."""
    levels = [o.level for o in operands if o is not None]
    level = max(levels, default=FINITE)
    if level == FINITE or node.op in ("softmax", "argmax", "argmin", "lengths"):
        return FINITE if level <= MAYBE_MASKED else ANYTHING
    if OPS[node.op].layout or node.op in ("reduce_max", "reduce_min"):
        return level
    if OPS[node.op].elementwise:
        return elementwise_level(node, [(o.level, o.number) if o else None for o in operands])
    return ANYTHING


def elementwise_level(node: Node, given: Sequence[tuple[int, Any] | None]) -> int:
    """Levels through elementwise work; `given` are levels and, where known, the numbers."""
    here = [g for g in given if g is not None]
    level = max(g[0] for g in here)
    if level == FINITE:
        return FINITE
    if node.op in ("equal", "less", "less_equal", "greater", "greater_equal", "isnan"):
        return FINITE
    if level == ANYTHING:
        return ANYTHING
    if node.op in _TAMES:
        return FINITE
    if node.op == "max":
        return min(g[0] for g in here)
    if node.op == "sub":
        return level if here[1][0] == FINITE else ANYTHING
    if node.op in ("mul", "div"):
        other = here[1]
        return level if other[1] is not None and other[1] > 0 else ANYTHING
    return level if node.op in _KEEPS_MASKED else ANYTHING


def elementwise(node: Node, pads: Sequence[Pad | None], graph: Graph) -> Pad:
    given = [p for p in pads if p is not None]
    op = node.op
    if op == "where":
        choice = given[0].number
        return joined(given[1:]) if choice is None else given[1 if choice else 2]
    if all(p.number is not None for p in given):
        return _evaluated(node, [p.number if p else None for p in pads], graph)
    numbers = [p.number for p in given if p.number is not None]
    moving = [p for p in given if p.number is None]
    decided = _decided(op, numbers, moving)
    if decided is not None:
        return Pad(decided)
    level = elementwise_level(node, [(pad_level(p), p.number) for p in given])
    if op in ("add", "sub") and _floating(node, graph):
        parts = [p.shift if p.number is None else float(p.number) for p in given]
        total = parts[0] + parts[1] if op == "add" else parts[0] - parts[1]
        spread = max(p.spread for p in moving)
        return Pad(shift=total, spread=spread, level=level) if not np.isnan(total) else LOST_PAD
    if op in ("mul", "div") and _floating(node, graph) and len(moving) == 1:
        if op == "div" and given[1] is moving[0]:
            return Pad(level=level)
        factor = float(numbers[0]) if op == "mul" else 1 / (float(numbers[0]) or np.nan)
        if not np.isfinite(factor):
            return LOST_PAD
        scaled = moving[0].shift * factor, moving[0].spread * abs(factor)
        return Pad(None, *scaled, level=level)
    far = len(moving) == 1 and moving[0].level == FINITE
    if far and abs(moving[0].shift) > moving[0].spread and op in _MONOTONE:
        return _probed(node, pads, graph, level)
    return Pad(level=level)


def _decided(op: str, numbers: Sequence[Any], moving: Sequence[Pad]) -> Any:
    """The result, where some operands decide it whatever the others are; else None."""
    zeros = [n for n in numbers if n == 0]
    if op == "mul" and zeros and all(p.level == FINITE for p in moving):
        return zeros[0]
    if op == "and" and zeros:
        return np.bool_(False)
    if op == "or" and len(zeros) < len(numbers):
        return np.bool_(True)
    if op == "isnan" and moving[0].level <= MAYBE_MASKED:
        return np.bool_(False)
    return None


def _floating(node: Node, graph: Graph) -> bool:
    return graph.values[node.output].dtype.kind == "f"


def _probed(node: Node, pads: Sequence[Pad | None], graph: Graph, level: int) -> Pad:
    """A node on one operand far from tame numbers: saturated, or far away as before."""
    made = []
    for side in (-1, 0, 1):
        arguments = [
            None if p is None else p.number if p.number is not None else p.shift + side * p.spread
            for p in pads
        ]
        made.append(_evaluated(node, arguments, graph))
    numbers = [p.number for p in made]
    if any(n is None for n in numbers):
        return Pad(level=level)
    if all(n == numbers[0] for n in numbers):
        return made[0]
    moves = node.op in (
        "neg",
        "quantize",
        "dequantize",
        "cast",
        "max",
        "min",
        "floor",
        "ceil",
        "round",
    )
    if not moves:
        return Pad(level=level)
    least, middle, most = (float(n) for n in numbers)
    return Pad(shift=middle, spread=max(abs(most - middle), abs(middle - least)), level=level)


def _evaluated(node: Node, numbers: Sequence[Any], graph: Graph) -> Pad:
    """A node on numbers."""
    arrays = [
        None if n is None else np.asarray(n).astype(graph.values[name].dtype).reshape(())
        for n, name in zip(numbers, node.inputs, strict=True)
    ]
    with np.errstate(all="ignore"):
        (out,) = run_node(node, arrays)
    number = np.asarray(out).reshape(-1)[0]
    if number.dtype.kind == "f" and (np.isnan(number) or number == np.inf):
        return LOST_PAD
    return Pad(number)


def softmax_pads(
    node: Node, info: Info | None, pads: tuple[tuple[Pad, ...], ...]
) -> tuple[tuple[Pad, ...], ...]:
    """0 where keys are masked; a row of nothing but -inf is NaN."""
    assert info is not None
    axis = int(node.attrs["axis"])

    def row(pad: Pad) -> Pad:
        lost = pad.level == ANYTHING or (pad.number is not None and pad.number == -np.inf)
        return LOST_PAD if lost else TAME_PAD

    return tuple(
        tuple(Pad(np.float32(0)) for _ in p) if a == axis else tuple(map(row, info.pads[a]))
        for a, p in enumerate(pads)
    )


def never_extreme(pad: Pad, dtype: np.dtype[Any], low: bool) -> bool:
    """Whether a maximum (`low`) or minimum never takes it."""
    if pad.is_number(limit(dtype, low)):
        return True
    if dtype.kind != "f" or low:
        return dtype.kind == "f" and pad.masked
    if pad.number is not None:
        return bool(pad.number >= -MASKED)
    return pad.level == FINITE and pad.shift - pad.spread >= -MASKED


def limit(dtype: np.dtype[Any], low: bool) -> Any:
    if dtype.kind == "f":
        return -np.inf if low else np.inf
    limits = np.iinfo(dtype)
    return limits.min if low else limits.max


def equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal, floats but for the last bits: sums of another length may be rounded otherwise."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if np.array_equal(a, b):
        return True
    if a.dtype.kind != "f":
        return False
    finite = np.abs(b[np.isfinite(b)])
    return bool(np.allclose(a, b, rtol=0, atol=1e-5 * finite.max(initial=0), equal_nan=True))


def uniform(array: np.ndarray) -> Any:
    """The number that all elements are, or None."""
    if array.size == 0:
        return None
    first, last = array.reshape(-1)[[0, -1]]
    if first != last:
        return None
    return first if array.size == 1 or bool(np.all(array == first)) else None


def padded(array: np.ndarray, places: Sequence[int], axis: int) -> Pad:
    """What a constant holds at positions from n on, its other tokens being below n, for any n."""
    moved = np.moveaxis(array, axis, 0)
    if len(places) == 1:
        part = moved[1:]
    elif len(places) == 2:
        (other,) = [a for a in places if a != axis]
        both = np.moveaxis(array, (axis, other), (0, 1))
        rows, columns = np.indices(both.shape[:2])
        part = both[rows > columns]
    else:
        return Pad(level=level_of(array))
    number = uniform(part)
    return Pad(number) if number is not None else Pad(level=level_of(array))
