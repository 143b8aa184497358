"""How sparse each layer becomes: for a share of all weights, or for a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sparsec.pruning.allocation import Choice, least_error
from sparsec.pruning.survey import Surveyed

Milliseconds = Callable[[int, int, float], float]
"""``milliseconds(outputs, inputs, density)`` of a layer, by the cost model."""


def by_sparsity(layers: Sequence[Surveyed], sparsity: float) -> dict[str, float]:
    """The sparsities of least error with a share of all weights pruned, to a hundredth of it.

    A sparsity is one of those that were looked at, but for what has to be given back so that no
    more goes than was asked for.
    """
    if sparsity <= 0:
        return {layer.name: 0.0 for layer in layers}
    size = {layer.name: layer.outputs * layer.inputs for layer in layers}
    total = sum(size.values())
    highest = max(max(layer.errors) for layer in layers)
    if sparsity >= highest:
        return {layer.name: sparsity for layer in layers}
    choices = [
        [Choice(size[layer.name] * (1 - s), error) for s, error in layer.errors.items()]
        for layer in layers
    ]
    chosen = least_error(choices, (1 - sparsity) * total)
    found = {layer.name: list(layer.errors)[i] for layer, i in zip(layers, chosen, strict=True)}
    pruned = sum(size[name] * s for name, s in found.items())
    share = sparsity * total / pruned if pruned else 1.0
    return {name: s * min(1.0, share) for name, s in found.items()}


def by_time(
    layers: Sequence[Surveyed], budget: float, milliseconds: Milliseconds
) -> dict[str, float]:
    """The sparsities of least error with which all layers together take no more than a time.

    Args:
        budget: milliseconds of all layers, by the cost model.

    Raises:
        InputError: even the sparsest take longer; says how long.
    """
    choices = [
        [
            Choice(milliseconds(layer.outputs, layer.inputs, 1 - s), error)
            for s, error in layer.errors.items()
        ]
        for layer in layers
    ]
    chosen = least_error(choices, budget)
    return {layer.name: list(layer.errors)[i] for layer, i in zip(layers, chosen, strict=True)}


def total_time(
    layers: Sequence[Surveyed], sparsities: Mapping[str, float], milliseconds: Milliseconds
) -> float:
    """What layers take together, by the cost model."""
    return sum(
        milliseconds(layer.outputs, layer.inputs, 1 - sparsities.get(layer.name, 0.0))
        for layer in layers
    )
