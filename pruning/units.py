"""Whole heads and feed-forward channels: what removing them costs, and how many go where."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from sparsec.pruning import channels
from sparsec.pruning.allocation import Choice, least_error
from sparsec.pruning.batches import Batch
from sparsec.pruning.engine import TorchModel
from sparsec.pruning.layers import Layer
from sparsec.pruning.least_squares import make_problem
from sparsec.pruning.oneshot import Form, OneShot, plain_form, stored_form
from sparsec.pruning.plan import Milliseconds
from sparsec.pruning.structure import Site
from sparsec.pruning.survey import DAMPING, LADDER, distance, few_batches

#: Share of the units that stay at least: a layer without any would be another model.
LEAST_KEPT = 0.05

#: Share of a site's remaining channels that goes at once; heads go one by one.
RATE = 0.02

#: Share of the units at which the way to the results is measured.
MEASURED = 0.5


@dataclass(frozen=True)
class SurveyedSite:
    """A site, and what removing units costs.

    Attributes:
        site: where.
        order: units in the order in which they go.
        errors: by number of units that are kept, the squared error of the model's results as a
            share of their size.
        shapes: outputs and inputs of the reader, and of each maker.
    """

    site: Site
    order: tuple[int, ...]
    errors: Mapping[int, float]
    shapes: Mapping[str, tuple[int, int]]

    def shapes_with(self, kept: int) -> dict[str, tuple[int, int]]:
        """Outputs and inputs of its layers with so many units."""
        share = kept / len(self.site.units)
        n, k = self.shapes[self.site.reader]
        found = {self.site.reader: (n, max(4, round(k * share)))}
        for name in self.site.makers:
            n, k = self.shapes[name]
            found[name] = max(4, round(n * share)), k
        return found

    def milliseconds(self, kept: int, milliseconds: Milliseconds) -> float:
        """What its layers take with so many units, by the cost model."""
        return sum(milliseconds(n, k, 1.0) for n, k in self.shapes_with(kept).values())

    def weights(self, kept: int) -> float:
        """Weights of its layers with so many units."""
        share = kept / len(self.site.units)
        return share * sum(n * k for n, k in self.shapes.values())

    def kept(self, count: int) -> tuple[int, ...]:
        """Which units stay if so many do."""
        return tuple(sorted(self.order[len(self.order) - count :]))


def shapes_of(site: Site, layers: Sequence[Layer]) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of a site's layers, the reader first."""
    by_name = {layer.name: (layer.outputs, layer.inputs) for layer in layers}
    return {name: by_name[name] for name in (site.reader, *site.makers)}


Report = Callable[[SurveyedSite], None]


@torch.no_grad()
def survey_sites(
    model: TorchModel,
    batches: Sequence[Batch],
    sites: Sequence[Site],
    report: Report | None = None,
    known: Mapping[str, SurveyedSite] | None = None,
) -> list[SurveyedSite]:
    """What removing units costs at each site, by the dense model's own inputs.

    Args:
        report: called with each site when it is done.
        known: sites that were looked at before, by reader.
    """
    layers = {layer.name: layer for layer in model.layers}
    both = OneShot(model, batches)
    few = few_batches(batches)
    before = [model(batch.inputs, states=True) for batch in few]
    found = []
    for site in sites:
        if known is not None and site.reader in known:
            found.append(known[site.reader])
            continue
        layer = layers[site.reader]
        dense = plain_form(layer, model.weights[layer.name].detach())
        data = both.moments(layer).centered()
        problem = make_problem(data, dense, DAMPING)
        rate = RATE if site.size == 1 else 0.0
        removal = channels.removal_order(problem, site.size, rate)
        count = len(site.units)
        half = count - round(MEASURED * count)
        keep = torch.zeros(count, dtype=torch.bool)
        keep[removal.order[count - half :]] = True
        solved = channels.solve(problem, keep).weights
        replaced = {layer.name: stored_form(layer, solved.float())}
        if layer.bias:
            replaced[layer.bias] = data.bias(solved).float()
        after = [model(batch.inputs, weights=replaced, states=True) for batch in few]
        scale = distance(before, after, few) / max(float(removal.loss[count - half]), 1e-30)
        errors = {
            kept: scale * float(removal.loss[count - kept]) for kept in _counts(count, site.size)
        }
        shapes = shapes_of(site, model.layers)
        found.append(SurveyedSite(site, tuple(removal.order.tolist()), errors, shapes))
        if report is not None:
            report(found[-1])
    return found


def _counts(units: int, size: int) -> list[int]:
    """Numbers of units to keep that are looked at: of heads all, of channels some sixteens."""
    if size > 1:
        return list(range(units, 0, -1))
    least = max(4, round(LEAST_KEPT * units))
    wanted = [units, *(max(least, round(units * (1 - s) / 16) * 16) for s in (0.1, *LADDER))]
    return sorted(set(wanted), reverse=True)


def by_time(
    looked_at: Sequence[SurveyedSite], budget: float, milliseconds: Milliseconds
) -> dict[str, tuple[int, ...]]:
    """The units of each site's reader that stay, for the least error within a time.

    Raises:
        InputError: the fewest take longer; says how long.
    """
    return _chosen(looked_at, budget, lambda one, kept: one.milliseconds(kept, milliseconds))


def by_sparsity(looked_at: Sequence[SurveyedSite], sparsity: float) -> dict[str, tuple[int, ...]]:
    """The same, for a share of the sites' weights that goes.

    Raises:
        InputError: not so many can go.
    """
    total = sum(one.weights(len(one.site.units)) for one in looked_at)
    return _chosen(looked_at, (1 - sparsity) * total, lambda one, kept: one.weights(kept))


def _chosen(
    looked_at: Sequence[SurveyedSite],
    budget: float,
    cost: Callable[[SurveyedSite, int], float],
) -> dict[str, tuple[int, ...]]:
    choices = [
        [Choice(cost(one, kept), error) for kept, error in one.errors.items()] for one in looked_at
    ]
    chosen = least_error(choices, budget)
    return {
        one.site.reader: one.kept(list(one.errors)[i])
        for one, i in zip(looked_at, chosen, strict=True)
    }


def error_of(looked_at: Sequence[SurveyedSite], kept: Mapping[str, tuple[int, ...]]) -> float:
    """What a plan costs, to first order."""
    return sum(one.errors[len(kept[one.site.reader])] for one in looked_at)


def forms(
    sites: Sequence[Site],
    kept: Mapping[str, tuple[int, ...]],
    layers: Sequence[Layer],
    sparsities: Mapping[str, float],
) -> dict[str, Form]:
    """What becomes of layers when some units stay, and a share of their blocks goes."""
    inputs: dict[str, tuple[int, ...]] = {}
    outputs: dict[str, tuple[int, ...]] = {}
    for site in sites:
        stay = kept.get(site.reader)
        if stay is None or len(stay) == len(site.units):
            continue
        chosen = [site.units[i] for i in stay]
        inputs[site.reader] = tuple(c for unit in chosen for c in unit.inputs)
        for maker in site.makers:
            outputs[maker] = tuple(sorted(r for unit in chosen for r in unit.rows[maker]))
    return {
        layer.name: Form(
            sparsities.get(layer.name, 0.0), inputs.get(layer.name), outputs.get(layer.name)
        )
        for layer in layers
    }
