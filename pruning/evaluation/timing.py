"""How long a text takes; in turns, so that what else the machine does meets both models alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from sparsec.pruning.evaluation.parts import Latency

Call = Callable[[], object]

TURNS = 5
"""Turns of each model at least."""

WISHED = 20
"""Turns that there should be time for: so many make a median that a disturbance does not move."""

MOST = 32
"""Texts that are timed."""

BUSY = 1.5
"""How many times its fastest tenth a median is on a machine that has other work to do."""

PAUSE = 0.05
"""Seconds between turns: threads of a pool wait busily for a while after their last run, and would
take the other model's time."""


def choose(lengths: Sequence[int], seconds: float, each: float) -> list[int]:
    """Which texts to time: of all lengths, as many as fit.

    Args:
        lengths: tokens of each text.
        seconds: for all turns of both models.
        each: seconds that a text takes, both models together.
    """
    fitting = int(seconds / (WISHED * max(each, 1e-6)))
    count = min(len(lengths), max(min(fitting, MOST), 4))
    order = np.argsort(np.asarray(lengths), kind="stable")
    places = (np.arange(count) + 0.5) * len(order) / count
    return [int(order[int(place)]) for place in places]


def measure(
    sides: Sequence[Sequence[Call]], tokens: Sequence[int], seconds: float
) -> tuple[Latency, ...]:
    """Run the calls of each side, all of one side and then all of the other, again and again.

    Args:
        sides: for each model a call per text.
        tokens: of each text.
        seconds: how long in all; at least so many turns as :data:`TURNS` are made.
    """
    times: list[list[list[float]]] = [[[] for _ in calls] for calls in sides]
    end = time.perf_counter() + seconds
    turn = 0
    while turn < TURNS or time.perf_counter() < end:
        for calls, found in zip(sides, times, strict=True):
            time.sleep(PAUSE)
            calls[0]()  # what the other model has put out of the caches comes back
            for call, rows in zip(calls, found, strict=True):
                start = time.perf_counter()
                call()
                rows.append((time.perf_counter() - start) * 1e3)
        turn += 1
    return tuple(_latency(np.array(found), tokens) for found in times)


def _latency(times: np.ndarray, tokens: Sequence[int]) -> Latency:
    """Of ``[texts, turns]`` milliseconds."""
    medians = np.median(times, axis=1)
    fastest = np.quantile(times, 0.1, axis=1)
    return Latency(
        float(medians.mean()),
        float(fastest.mean()),
        times.shape[1],
        tuple(int(n) for n in tokens),
        tuple(np.round(medians, 4).tolist()),
    )


def disturbed(latencies: Sequence[Latency]) -> str:
    """What to say of times that other work has made longer; empty if none has."""
    worst = max((found.median_ms / found.fastest_ms for found in latencies), default=1.0)
    if worst < BUSY:
        return ""
    return (
        f"the machine was busy: a median is {worst:.1f} times the fastest tenth; measure speed "
        f"again when it is not"
    )
