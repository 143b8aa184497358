"""Texts in batches of similar length, in an order that a seed decides and a step number finds.

A training on two cores spends its time on tokens, padding included: sequences of one length bucket
share a batch, and a batch has about the same number of tokens whatever their length.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsec.errors import InputError

Array = NDArray[Any]

MOST_BUCKETS = 6
"""Sequence lengths that batches are padded to."""

GRAIN = 8
"""Bucket lengths are multiples of this, which matrix products like."""


@dataclass(frozen=True)
class Example:
    """A sequence to train on.

    Attributes:
        inputs: the model's inputs by name, int64 `[length]`.
        targets: what is right, by output: a number or an array whose first axis, if it is as long
            as the sequence, is that of the tokens; empty: not known.
    """

    inputs: Mapping[str, Array]
    targets: Mapping[str, Any]

    @property
    def length(self) -> int:
        """Tokens."""
        return len(next(iter(self.inputs.values())))


@dataclass(frozen=True)
class Batch:
    """Sequences side by side.

    Attributes:
        inputs: by name, int64 `[B, S]`, filled up with zeros at the end.
        mask: bool `[B, S]`, which tokens are real.
        targets: by output, `[B]`, `[B, S]` or `[B, L]`; empty: not known.
        numbers: which examples they are, `B` of them.
    """

    inputs: Mapping[str, Array]
    mask: Array
    targets: Mapping[str, Array]
    numbers: Sequence[int]

    @property
    def length(self) -> int:
        """Tokens of a sequence, those that fill it up included."""
        return int(self.mask.shape[1])


def choose_buckets(lengths: Sequence[int], most: int = MOST_BUCKETS) -> tuple[int, ...]:
    """The `most` lengths, multiples of :data:`GRAIN`, that leave the least to fill up: exact, by
    dynamic programming over the lengths that there are.

    Args:
        lengths: of the sequences, at least one.
        most: how many buckets at most.

    Returns:
        Ascending; the last fits the longest sequence.
    """
    rounded = -(-np.asarray(lengths) // GRAIN) * GRAIN
    sizes, counts = np.unique(rounded, return_counts=True)
    total = np.concatenate([[0], np.cumsum(counts)])
    # cost[j]: tokens computed for the j shortest sizes, with the buckets allowed so far.
    cost = sizes * total[1:]
    chosen = [[int(size)] for size in sizes]
    for _ in range(most - 1):
        better, made = cost.copy(), list(chosen)
        for j in range(1, len(sizes)):
            with_last = cost[:j] + sizes[j] * (total[j + 1] - total[1 : j + 1])
            i = int(with_last.argmin())
            if with_last[i] < better[j]:
                better[j], made[j] = with_last[i], [*chosen[i], int(sizes[j])]
        cost, chosen = better, made
    return tuple(chosen[-1])


class Batches:
    """An endless series of batches: every example once an epoch, in an order of that epoch.

    Args:
        examples: at least one.
        tokens: about how many tokens a batch has.
        seed: of the order.
        buckets: lengths to fill up to; None: chosen by the examples' lengths.  A model that takes
            no padding needs a bucket of each of them.
        ignore: what targets of tokens are filled up with.

    Attributes:
        buckets: the lengths that batches have.
        tokens: as given.
        starts: how many tokens the examples before each have, int64 `[examples + 1]`.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        tokens: int,
        seed: int,
        buckets: Sequence[int] | None = None,
        ignore: int = -100,
    ) -> None:
        if not examples:
            raise InputError("there is no text to train on")
        self._examples = examples
        self.tokens = tokens
        self._seed = seed
        self._ignore = ignore
        lengths = np.array([example.length for example in examples])
        self.starts = np.concatenate([[0], np.cumsum(lengths)])
        self.buckets = tuple(sorted(buckets)) if buckets else choose_buckets(lengths.tolist())
        if lengths.max() > self.buckets[-1]:
            raise InputError(
                f"a sequence of {lengths.max()} tokens is longer than the longest batch, "
                f"{self.buckets[-1]}"
            )
        self._bucket_of = np.searchsorted(self.buckets, lengths)
        self._epoch: tuple[int, list[list[int]]] = (-1, [])

    @property
    def per_epoch(self) -> int:
        """Batches that show every example once."""
        counts = np.bincount(self._bucket_of, minlength=len(self.buckets))
        sizes = [self._size(bucket) for bucket in self.buckets]
        return sum(-(-int(n) // size) for n, size in zip(counts, sizes, strict=True))

    def _size(self, bucket: int) -> int:
        """Sequences in a batch of a length."""
        return max(1, self.tokens // bucket)

    def batch(self, step: int) -> Batch:
        """The batch of a step: always the same."""
        epoch, index = divmod(step, self.per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = epoch, self._order(epoch)
        return self.collate(self._epoch[1][index])

    def epoch(self) -> Iterator[Batch]:
        """The batches of the first epoch."""
        return (self.batch(step) for step in range(self.per_epoch))

    def _order(self, epoch: int) -> list[list[int]]:
        """The batches of an epoch, as numbers of examples."""
        rng = np.random.default_rng([self._seed, epoch])
        made = []
        for k, bucket in enumerate(self.buckets):
            order = rng.permutation(np.flatnonzero(self._bucket_of == k))
            size = self._size(bucket)
            made += [order[i : i + size].tolist() for i in range(0, len(order), size)]
        return [made[i] for i in rng.permutation(len(made))]

    def all(self) -> list[Batch]:
        """Every example once, shortest first: to measure on."""
        order = np.argsort([e.length for e in self._examples], kind="stable")
        made: list[list[int]] = []
        for i in order.tolist():
            bucket = self._bucket_of[i]
            same = made and self._bucket_of[made[-1][0]] == bucket
            if same and len(made[-1]) < self._size(self.buckets[bucket]):
                made[-1].append(i)
            else:
                made.append([i])
        return [self.collate(numbers) for numbers in made]

    def collate(self, numbers: Sequence[int]) -> Batch:
        """Examples, all of one bucket, as a batch."""
        chosen = [self._examples[i] for i in numbers]
        length = self.buckets[max(int(self._bucket_of[i]) for i in numbers)]
        shape = len(chosen), length
        inputs = {name: np.zeros(shape, np.int64) for name in chosen[0].inputs}
        mask = np.zeros(shape, bool)
        for row, example in enumerate(chosen):
            mask[row, : example.length] = True
            for name, values in example.inputs.items():
                inputs[name][row, : example.length] = values
        targets = {name: self._targets(name, chosen, length) for name in chosen[0].targets}
        return Batch(inputs, mask, targets, tuple(numbers))

    def _targets(self, name: str, chosen: Sequence[Example], length: int) -> Array:
        """An output's targets, those of tokens filled up."""
        values = [np.asarray(example.targets[name]) for example in chosen]
        of_tokens = all(
            v.ndim == 1 and len(v) == example.length
            for v, example in zip(values, chosen, strict=True)
        )
        if not of_tokens:
            return np.stack(values)
        made = np.full((len(chosen), length), self._ignore, values[0].dtype)
        for row, value in zip(made, values, strict=True):
            row[: len(value)] = value
        return made
