"""Which steps wait for which, kept free of circles while steps are added and joined."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence


class Waits:
    """Steps, numbered as they are added, and those that each waits for.

    Ranks are an order in which they could run.  A dependence that goes against it moves the steps
    between its ends only (Pearce and Kelly, 2006), so a search never goes further back than it has
    to, and a graph of many steps costs no more than its dependences.

    Attributes:
        on: the steps that each waits for, directly.
    """

    def __init__(self) -> None:
        self.on: list[set[int]] = []
        self._readers: list[set[int]] = []
        self._rank: list[int] = []

    def add(self, on: Iterable[int]) -> int:
        """The number of a new step, which waits for those."""
        index = len(self.on)
        self.on.append(set(on))
        self._readers.append(set())
        self._rank.append(index)
        for other in self.on[index]:
            self._readers[other].add(index)
        return index

    def reaches(self, steps: Collection[int], goal: int) -> bool:
        """Whether one of `steps` is `goal`, or waits for it through others."""
        return goal in self._found(steps, self.on, self._rank[goal], len(self.on))

    def extend(self, step: int, on: Collection[int]) -> None:
        """A step waits for more, none of which waits for it."""
        for other in on:
            self.on[step].add(other)
            self._readers[other].add(step)
            if self._rank[other] > self._rank[step]:
                self._reorder(other, step)

    def _reorder(self, early: int, late: int) -> None:
        """Change ranks so that `early`, and what it waits for, comes before `late` and its readers,
        using those that they have."""
        low, high = self._rank[late], self._rank[early]
        first = self._found([early], self.on, low, high)
        then = self._found([late], self._readers, low, high)
        moved = [*sorted(first, key=self._rank.__getitem__)]
        moved += sorted(then, key=self._rank.__getitem__)
        ranks = sorted(self._rank[i] for i in moved)
        for i, rank in zip(moved, ranks, strict=True):
            self._rank[i] = rank

    def _found(
        self, start: Iterable[int], edges: Sequence[Collection[int]], low: int, high: int
    ) -> set[int]:
        """What is reached from some steps through those with ranks from `low` to `high`."""
        found: set[int] = set()
        todo = [i for i in start if low <= self._rank[i] <= high]
        while todo:
            i = todo.pop()
            if i not in found:
                found.add(i)
                todo += (j for j in edges[i] if low <= self._rank[j] <= high)
        return found

    def ordered(self, steps: Iterable[int]) -> list[int]:
        """Those steps in order, each behind all that it waits for, lowest numbers first."""
        placed: dict[int, None] = {}
        for step in steps:
            stack = [(step, False)]
            while stack:
                i, ready = stack.pop()
                if i in placed:
                    continue
                if ready:
                    placed[i] = None
                    continue
                stack.append((i, True))
                stack += ((j, False) for j in sorted(self._missing(i, placed), reverse=True))
        return list(placed)

    def _missing(self, step: int, placed: Collection[int]) -> set[int]:
        """All that a step waits for, through others too, and that is not placed yet."""
        found: set[int] = set()
        todo = [step]
        while todo:
            new = {j for j in self.on[todo.pop()] if j not in placed and j not in found}
            found |= new
            todo += new
        return found
