"""What passes at the places of a network: second moments and ranges of activations."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from sparsec.pruning.ranges import Histogram, Range, search
from sparsec.pruning.training.batches import Batch
from sparsec.pruning.training.network import Student

ToTensors = Callable[[Batch], tuple[dict[str, Tensor], Tensor]]
"""A batch as (inputs, mask) on the device of the training."""


@torch.no_grad()
def moments(student: Student, batches: Iterable[Batch], to_tensors: ToTensors) -> dict[str, Tensor]:
    """Second moments `E x x^T`, float32 `[K, K]`, at each place, real tokens only."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    for batch in batches:
        inputs, mask = to_tensors(batch)
        last: dict[str, Tensor] = {}

        def take(
            place: str, x: Tensor, mask: Tensor = mask, last: dict[str, Tensor] = last
        ) -> Tensor:
            if last.get(place) is x:  # query, key and value read the same
                return x
            last[place] = x
            rows = _real_rows(x, mask).float()
            product = rows.T @ rows
            sums[place] = sums[place] + product if place in sums else product
            counts[place] = counts.get(place, 0) + len(rows)
            return x

        student(inputs, take)
    return {place: total / counts[place] for place, total in sums.items()}


def _real_rows(x: Tensor, mask: Tensor) -> Tensor:
    """The rows `[T, K]` of an input `[..., K]` that are no padding."""
    if x.dim() > 2 and x.shape[:2] == mask.shape:
        return x[mask]
    if x.dim() == 2 and len(x) == mask.numel():
        return x[mask.flatten()]
    return x.flatten(0, -2)


@torch.no_grad()
def ranges(student: Student, batches: Iterable[Batch], to_tensors: ToTensors) -> dict[str, Range]:
    """The range of each place with the least squared error, unsigned."""
    wanted = {layer.place for layer in student.network.layers}
    found: dict[str, Histogram] = {place: Histogram() for place in wanted}

    for batch in batches:
        inputs, mask = to_tensors(batch)
        last: dict[str, Tensor] = {}

        def take(
            place: str, x: Tensor, mask: Tensor = mask, last: dict[str, Tensor] = last
        ) -> Tensor:
            if last.get(place) is not x:
                last[place] = x
                found[place].add(_real_rows(x, mask))
            return x

        student(inputs, take)
    return {place: search(histogram) for place, histogram in found.items()}
