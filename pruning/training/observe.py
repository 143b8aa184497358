"""What passes at the places of a network: second moments and ranges of activations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from sparsec.pruning.ranges import Histogram, Rounding, search
from sparsec.pruning.smoothing import Extremes, choose
from sparsec.pruning.training.batches import Batch
from sparsec.pruning.training.network import Student

ToTensors = Callable[[Batch], tuple[dict[str, Tensor], Tensor]]
"""A batch as (inputs, mask) on the device of the training."""


@torch.no_grad()
def moments(student: Student, batches: Iterable[Batch], to_tensors: ToTensors) -> dict[str, Tensor]:
    """Second moments `E x x^T`, float32 `[K, K]`, at each place, real tokens only."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def add(place: str, rows: Tensor) -> None:
        rows = rows.float()
        product = rows.T @ rows
        sums[place] = sums[place] + product if place in sums else product
        counts[place] = counts.get(place, 0) + len(rows)

    _watch(student, batches, to_tensors, add)
    return {place: total / counts[place] for place, total in sums.items()}


def _real_rows(x: Tensor, mask: Tensor) -> Tensor:
    """The rows `[T, K]` of an input `[..., K]` that are no padding."""
    if x.dim() > 2 and x.shape[:2] == mask.shape:
        return x[mask]
    if x.dim() == 2 and len(x) == mask.numel():
        return x[mask.flatten()]
    return x.flatten(0, -2)


@torch.no_grad()
def roundings(
    student: Student, batches: Sequence[Batch], to_tensors: ToTensors
) -> dict[str, Rounding]:
    """How each place is best rounded, unsigned: channels brought to one size where that helps, and
    the range of the least squared error."""
    weights: dict[str, list[Tensor]] = {}
    named = student.effective()
    for layer in student.network.layers:
        if layer.weight in named:
            weights.setdefault(layer.place, []).append(named[layer.weight].detach().cpu())
    sizes: dict[str, Extremes] = {}

    def size(place: str, rows: Tensor) -> None:
        sizes.setdefault(place, Extremes(rows.shape[1])).add(rows)

    _watch(student, batches, to_tensors, size)
    factors = {place: choose(sizes[place], made) for place, made in weights.items()}
    histograms = {place: Histogram() for place in weights}

    def count(place: str, rows: Tensor) -> None:
        if place in histograms:
            by = factors[place]
            histograms[place].add(rows if by is None else rows * by.to(rows))

    _watch(student, batches, to_tensors, count)
    return {place: Rounding(search(histograms[place]), factors[place]) for place in weights}


def _watch(
    student: Student,
    batches: Iterable[Batch],
    to_tensors: ToTensors,
    see: Callable[[str, Tensor], None],
) -> None:
    """Call `see` with each place's rows `[T, K]` of real tokens, once a batch."""
    for batch in batches:
        inputs, mask = to_tensors(batch)
        last: dict[str, Tensor] = {}

        def take(
            place: str, x: Tensor, mask: Tensor = mask, last: dict[str, Tensor] = last
        ) -> Tensor:
            if last.get(place) is not x:  # query, key and value read the same
                last[place] = x
                see(place, _real_rows(x, mask))
            return x

        student(inputs, take)
