"""Which sequence lengths to compile for: the cheapest set of buckets for texts of given lengths."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sparsec.errors import InputError

# Rows that a sparse layer computes together (16 with vectors of 64 bytes; a dense one computes each
# by itself): a bucket that is no multiple costs as much as the next one.
STEP = 8


@dataclass(frozen=True)
class CostModel:
    """Milliseconds of one sequence of a length: ``call + token * n + pair * n * n``.

    Attributes:
        call, token, pair: of a call, of a token in linear layers, of two tokens in attention.
        source: where the numbers come from.
    """

    call: float
    token: float
    pair: float
    source: str

    def __call__(self, length: int) -> float:
        n = -(-length // STEP) * STEP
        return self.call + self.token * n + self.pair * n * n


# Fitted to benchmarks/results/growth-bert-base.md (within 4 %).
DEFAULT = CostModel(
    0.519, 0.0600, 8.32e-05, "BERT-base, 80 % of its 4-blocks pruned, int8, two Zen 4 cores"
)


def fit(times: dict[int, float], source: str) -> CostModel:
    """A cost model through measured milliseconds by length; needs at least one length.

    Relative errors are squared; no coefficient is negative.
    """
    lengths = np.array(sorted(times), np.float64)
    wanted = np.array([times[int(n)] for n in lengths])
    powers = np.stack([np.ones_like(lengths), lengths, lengths**2], 1) / wanted[:, None]
    best: tuple[float, np.ndarray] | None = None
    # Few enough terms to try all sets: the best one without a negative coefficient.
    for mask in range(1, 8):
        terms = [i for i in range(3) if mask >> i & 1]
        if len(terms) > len(times) or 1 not in terms:
            continue
        part, *_ = np.linalg.lstsq(powers[:, terms], np.ones_like(wanted), rcond=None)
        error = float(np.square(powers[:, terms] @ part - 1).sum())
        if (part >= 0).all() and (best is None or error < best[0] - 1e-12):
            coefficients = np.zeros(3)
            coefficients[terms] = part
            best = error, coefficients
    assert best is not None  # time per token alone is never negative
    call, token, pair = (float(c) for c in best[1])
    return CostModel(call, token, pair, source)


def measure(
    run: Callable[[int], object], lengths: Sequence[int], seconds: float
) -> dict[int, float]:
    """Median milliseconds of ``run(length)``, all lengths in turns for about `seconds` in all."""
    times: dict[int, list[float]] = {length: [] for length in lengths}
    for length in lengths:
        run(length)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[lengths[0]]) < 5:
        for length in lengths:
            start = time.perf_counter()
            run(length)
            times[length].append((time.perf_counter() - start) * 1e3)
    return {length: statistics.median(values) for length, values in times.items()}


@dataclass(frozen=True)
class Suggestion:
    """A set of buckets and what all texts cost with it.

    Attributes:
        buckets: ascending.
        milliseconds: of all texts, one by one, padding computed.
        padding: share of the computed tokens that is padding.
    """

    buckets: tuple[int, ...]
    milliseconds: float
    padding: float


def evaluate(lengths: Sequence[int], buckets: Sequence[int], cost: CostModel) -> Suggestion:
    """What texts of those lengths cost in those buckets; longer ones are truncated."""
    ordered = np.array(sorted(buckets))
    tokens = np.minimum(np.asarray(lengths), ordered[-1])
    used = ordered[np.searchsorted(ordered, tokens)]
    total = sum(
        cost(int(bucket)) * int(count) for bucket, count in zip(*_counts(used), strict=True)
    )
    return Suggestion(tuple(int(b) for b in ordered), total, 1 - float(tokens.sum() / used.sum()))


def suggest(
    lengths: Sequence[int], count: int, cost: CostModel, max_length: int
) -> list[Suggestion]:
    """The cheapest sets of 1, 2, ... `count` buckets; the longest text fits, up to `max_length`.

    Exact: a dynamic programme over the multiples of 8 that any text needs.  Ends early where more
    buckets would save nothing.

    Raises:
        InputError: there are no texts, or a number is below 1.
    """
    if not len(lengths):
        raise InputError("there are no texts to choose buckets for")
    if count < 1 or max_length < 1:
        raise InputError("the number of buckets and the greatest length must be at least 1")
    tokens = np.minimum(np.asarray(lengths), max_length)
    needed = np.minimum(-(-tokens // STEP) * STEP, max_length)
    values, weights = _counts(needed)
    before = np.concatenate([[0], np.cumsum(weights)])
    price = np.array([cost(int(value)) for value in values])
    size = len(values)
    # best[k]: the least cost of the texts with the first k values in exactly so many buckets, of
    # which the last is value k; cuts[...][k]: how many values the buckets before that one cover.
    best = np.concatenate([[0.0], np.full(size, np.inf)])
    earlier = np.arange(size + 1)[:, None] < np.arange(size + 1)
    each = (before - before[:, None]) * np.concatenate([[0.0], price])
    cuts: list[np.ndarray] = []
    suggestions: list[Suggestion] = []
    for _ in range(min(count, size)):
        options = np.where(earlier, best[:, None] + each, np.inf)
        cuts.append(options.argmin(axis=0))
        best = options.min(axis=0)
        if suggestions and not best[size] < suggestions[-1].milliseconds:
            break
        chosen, k = [], size
        for row in reversed(cuts):
            chosen.append(int(values[k - 1]))
            k = int(row[k])
        suggestions.append(evaluate(lengths, chosen, cost))
    return suggestions


def _counts(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(distinct values, how often each), ascending."""
    found, counts = np.unique(values, return_counts=True)
    return found, counts
