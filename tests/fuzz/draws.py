"""Random extents, numbers and attributes, from one generator of random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

Array = np.ndarray[Any, Any]
T = TypeVar("T")

FLOATS: tuple[type, ...] = (np.float32, np.float32, np.float64)
INTEGERS: tuple[type, ...] = (
    *(np.int8, np.uint8, np.int16, np.uint16),
    *(np.int32, np.uint32, np.int64, np.uint64),
)
BYTES: tuple[type, ...] = (np.int8, np.uint8)

#: What rounding, saturation and exponentials get wrong first.
SPECIAL = (
    *(0.0, -0.0, np.inf, -np.inf, np.nan, 1e38, -1e38, 1e-40, 3e9, -3e9, 1e19),
    *(0.5, 1.5, 2.5, -0.5, -1.5, 127.5, 128.5, -128.5, 255.5),
)


class Draw:
    """A source of random arguments; the same seeds give the same ones."""

    def __init__(self, *seeds: int) -> None:
        self.rng = np.random.default_rng(seeds)

    def sometimes(self, share: float = 0.5) -> bool:
        """True for that share of all calls."""
        return bool(self.rng.random() < share)

    def whole(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return int(self.rng.integers(low, high + 1))

    def one(self, options: Sequence[T]) -> T:
        """One of several."""
        return options[int(self.rng.integers(len(options)))]

    def order(self, count: int) -> list[int]:
        """0 to count - 1 in any order."""
        return [int(i) for i in self.rng.permutation(count)]

    def extents(self, low: int = 0, high: int = 4, empty: float = 0.08) -> list[int]:
        """A shape of `low` to `high` axes, of which that share has no elements."""
        ranks = range(self.whole(low, high))
        return [0 if self.sometimes(empty) else self.one((1, 1, 2, 3, 4, 5)) for _ in ranks]

    def broadcasting(self, count: int) -> list[list[int]]:
        """Shapes that broadcast with each other."""
        full = self.extents()
        shapes = []
        for _ in range(count):
            own = full[self.whole(0, len(full)) :] if self.sometimes(0.4) else full
            shapes.append([1 if self.sometimes(0.25) else extent for extent in own])
        return shapes

    def axis(self, rank: int) -> int:
        """An axis, counted from either end."""
        return self.whole(-rank, rank - 1)

    def axes(self, rank: int, least: int = 0) -> list[int]:
        """Different axes, counted from either end."""
        chosen = self.order(rank)[: self.whole(least, rank)]
        return [axis - rank if self.sometimes(0.4) else axis for axis in chosen]

    def floats(
        self, shape: Sequence[int], dtype: type = np.float32, special: float = 0.25
    ) -> Array:
        """Normal numbers of one size; that share of the arrays has special ones among them."""
        values = np.asarray(self.rng.standard_normal(shape) * self.one((0.1, 1, 10))).astype(dtype)
        if self.sometimes(special):
            places = self.rng.random(shape) < 0.3
            values = np.where(places, self.rng.choice(SPECIAL, shape), values).astype(dtype)
        return np.asarray(values)

    def integers(
        self, shape: Sequence[int], dtype: type = np.int64, low: int = -9, high: int = 9
    ) -> Array:
        """Whole numbers between two limits, as far as the type goes."""
        info = np.iinfo(dtype)
        drawn = self.rng.integers(max(low, info.min), min(high, info.max) + 1, shape)
        return np.asarray(drawn).astype(dtype)

    def bytes(self, shape: Sequence[int], dtype: type) -> Array:
        """Any numbers of one byte."""
        return self.integers(shape, dtype, -128, 255)

    def truths(self, shape: Sequence[int]) -> Array:
        """Truth values."""
        return np.asarray(self.rng.random(shape) < 0.5)

    def numbers(self, shape: Sequence[int]) -> Array:
        """Numbers of any type."""
        dtype = self.one((*FLOATS, *INTEGERS))
        return self.like(np.empty(0, dtype), shape)

    def like(self, other: Array, shape: Sequence[int], special: float = 0.25) -> Array:
        """Numbers of the type of others."""
        if other.dtype.kind == "b":
            return self.truths(shape)
        if other.dtype.kind == "f":
            return self.floats(shape, other.dtype.type, special)
        return self.integers(shape, other.dtype.type)
