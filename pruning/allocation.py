"""How much is pruned where: the choice for each layer that together cost the least error in time.

Each layer has choices (a sparsity, a number of heads, dense ...), of which each takes some
milliseconds and adds some error.  Errors add up over layers to first order, and so do times; which
choices together have the least error within a time is a knapsack of multiple choices, which a
dynamic programme over time in small steps solves (as SPDY, Frantar and Alistarh, arXiv:2201.13096,
and ZipLM, Kurtic et al., 2302.04089).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparsec.errors import InputError

#: Steps that a budget is divided into: a whole model's time is off by less than layers / STEPS.
STEPS = 20_000


@dataclass(frozen=True)
class Choice:
    """One way to have a layer.

    Attributes:
        milliseconds: what it takes.
        error: what it adds, comparable between layers.
    """

    milliseconds: float
    error: float


def least_error(layers: Sequence[Sequence[Choice]], budget: float) -> list[int]:
    """Which choice of each layer, for the least sum of errors within a time.

    Args:
        layers: the choices of each layer, at least one.
        budget: milliseconds of all layers together.

    Raises:
        InputError: even the fastest choices take longer; says how long.
    """
    least = sum(min(c.milliseconds for c in choices) for choices in layers)
    if least > budget * (1 + 1e-9):
        raise InputError(
            f"the layers take {least:.3g} ms when everything that can be pruned is, "
            f"and {budget:.3g} ms were asked for: ask for less speed"
        )
    # Times above the fastest, in steps; rounded up, so that the budget holds.
    unit = max(budget - least, 1e-12) / STEPS
    error = np.zeros(STEPS + 1)
    chosen = np.zeros((len(layers), STEPS + 1), np.int32)
    steps = []
    for i, choices in enumerate(layers):
        fastest = min(c.milliseconds for c in choices)
        took = [int(np.ceil((c.milliseconds - fastest) / unit - 1e-9)) for c in choices]
        steps.append(took)
        best = np.full(STEPS + 1, np.inf)
        for j, (choice, n) in enumerate(zip(choices, took, strict=True)):
            if n > STEPS:
                continue
            total = np.full(STEPS + 1, np.inf)
            total[n:] = error[: STEPS + 1 - n] + choice.error
            better = total < best
            best[better], chosen[i][better] = total[better], j
        error = best
    left, result = STEPS, []
    for i in reversed(range(len(layers))):
        result.append(int(chosen[i, left]))
        left -= steps[i][result[-1]]
    return result[::-1]


def fastest(layers: Sequence[Sequence[Choice]], bound: float) -> list[int]:
    """Which choice of each layer, for the least time with at most `bound` of error in sum.

    Raises:
        InputError: even the best choices add more error; says how much.
    """
    swapped = [[Choice(c.error, c.milliseconds) for c in choices] for choices in layers]
    least = sum(min(c.error for c in choices) for choices in layers)
    if least > bound * (1 + 1e-9):
        raise InputError(f"no choice of layers has an error below {least:.3g}, not {bound:.3g}")
    return least_error(swapped, bound)
