"""When how much is pruned, and how fast is learnt: the schedule of a training in cycles.

A cycle begins with masks chosen anew at a higher sparsity, and its learning rate begins at the top
again and falls to the end of the cycle (a *rewind*).  Sparsity rises as the cube does in Zhu and
Gupta (2017), "To prune, or not to prune", eq. 1: much at first, when there is most to choose from.
Rewinds at every step of it are those of Kurtic et al. (2022), "The Optimal BERT Surgeon", and
Kurtic and Alistarh (2022), "GMP*".  The last cycle computes with rounded weights and activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

PRUNING = 0.35
"""Share of the steps in which sparsity still rises."""

QUANTIZING = 0.15
"""Share of the steps that compute with rounded numbers."""

MOST_CYCLES = 16
"""Times that masks are chosen anew: each costs about as much as twenty steps."""

SHORTEST = 30
"""Steps that a cycle has at least: what it begins with must not take most of the time, and weights
have to settle between two prunings."""

WARMUP = 0.1
"""Share of a cycle in which its learning rate rises: Adam's moments are those of other masks."""

FLOOR = 0.05
"""Learning rate at the end of a cycle, of that at its top."""

QUANTIZED_RATE = 0.3
"""Top of the learning rate with rounded numbers, of that before."""


@dataclass(frozen=True)
class Cycle:
    """A stretch of training with the same masks.

    Attributes:
        steps: how many; at least 1.
        share: of the sparsity that each layer is to have in the end, 0 to 1.
        rate: top of its learning rate, of the top of the training.
        quantized: whether it computes with rounded weights and activations.
    """

    steps: int
    share: float
    rate: float = 1.0
    quantized: bool = False

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step of this cycle, 0 the first, of the top of the training."""
        warm = max(1, round(WARMUP * self.steps))
        if step < warm:
            return self.rate * (step + 1) / warm
        done = (step - warm) / max(1, self.steps - warm)
        return self.rate * (1 - (1 - FLOOR) * done)


def cubic(done: float) -> float:
    """Share of the final sparsity after a share of the time to prune: 1 - (1 - done)^3."""
    return 1 - (1 - min(1.0, max(0.0, done))) ** 3


def make(
    steps: int, prune: bool = True, quantize: bool = True, start: float = 0.0
) -> tuple[Cycle, ...]:
    """The cycles of a training.

    Args:
        steps: of all cycles together, at least 1.
        prune: whether sparsity is to rise; else masks stay as they are.
        quantize: whether the end computes with rounded numbers.
        start: share of the final sparsity that is there before the first step.

    Raises:
        ValueError: there is no step.
    """
    if steps < 1:
        raise ValueError("a training has at least one step")
    # Ranges are found where rounding begins: there has to be a step of it.
    rounded = max(1, round(QUANTIZING * steps)) if quantize else 0
    rising = round(PRUNING * steps) if prune else 0
    settling = steps - rounded - rising
    cycles = []
    if rising:
        count = max(1, min(MOST_CYCLES, rising // SHORTEST))
        for i, length in enumerate(_even(rising, count), 1):
            # The masks of the last of them are the final ones.
            cycles.append(Cycle(length, start + (1 - start) * cubic(i / count)))
    if settling:
        cycles.append(Cycle(settling, 1.0))
    if rounded:
        cycles.append(Cycle(rounded, 1.0, QUANTIZED_RATE, True))
    if prune and not rising:
        return tuple(replace(cycle, share=1.0) for cycle in cycles)
    return tuple(cycles)


def _even(total: int, parts: int) -> list[int]:
    """`total` as a sum of `parts` numbers that differ by at most 1."""
    return [(i + 1) * total // parts - i * total // parts for i in range(parts)]


def shortened(cycles: Sequence[Cycle], done: int, factor: float) -> tuple[Cycle, ...]:
    """The plan with the cycles behind the first `done` shorter, of at least one step each."""
    kept = list(cycles[:done])
    return (*kept, *(replace(c, steps=max(1, int(c.steps * factor))) for c in cycles[done:]))


def locate(cycles: Sequence[Cycle], step: int) -> tuple[int, int]:
    """Which cycle a step is in, and which step of that it is.

    Raises:
        IndexError: the plan has no such step.
    """
    for index, cycle in enumerate(cycles):
        if step < cycle.steps:
            return index, step
        step -= cycle.steps
    raise IndexError("the plan ends before")


def total(cycles: Sequence[Cycle]) -> int:
    """Steps of all cycles."""
    return sum(cycle.steps for cycle in cycles)


def steps_in(seconds: float, step_seconds: float) -> int:
    """Steps that fit into a time, rounded down to two digits, so that a measurement that is a
    little off gives the same plan."""
    count = max(1, int(seconds / max(step_seconds, 1e-9)))
    unit: int = 10 ** max(0, len(str(count)) - 2)
    return count // unit * unit
