"""Plans for a time: of blocks, of heads and channels, or of both together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sparsec.errors import InputError
from sparsec.pruning import plan, units
from sparsec.pruning.allocation import Choice, least_error
from sparsec.pruning.plan import Milliseconds
from sparsec.pruning.survey import Surveyed
from sparsec.pruning.units import SurveyedSite

MOST = 200
"""Options of layers that belong together that are told apart."""


@dataclass(frozen=True)
class Plan:
    """What is to become of layers.

    Attributes:
        sparsities: share of 4-blocks to prune, by layer: of those of the units that stay.
        kept: units that stay, by the layer that reads them.
        error: what that costs, to first order.
        milliseconds: what the layers take, by the cost model.
    """

    sparsities: Mapping[str, float] = field(default_factory=dict)
    kept: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    error: float = 0.0
    milliseconds: float = 0.0


class Planner(Protocol):
    """Makes plans for a time."""

    @property
    def dense(self) -> float:
        """Milliseconds of all layers with nothing pruned, by the cost model."""

    def fastest(self) -> Plan:
        """With all pruned that can be."""

    def within(self, budget: float) -> Plan:
        """The least error within a time; :meth:`fastest` where there is not enough of it."""


class Blocks:
    """Plans of 4-blocks."""

    def __init__(self, layers: Sequence[Surveyed], milliseconds: Milliseconds) -> None:
        self.layers, self.milliseconds = layers, milliseconds
        self.dense = plan.total_time(layers, {}, milliseconds)

    def _plan(self, sparsities: Mapping[str, float]) -> Plan:
        error = sum(layer.errors[sparsities[layer.name]] for layer in self.layers)
        time = plan.total_time(self.layers, sparsities, self.milliseconds)
        return Plan(dict(sparsities), {}, error, time)

    def fastest(self) -> Plan:
        """Each layer at the sparsity that takes least."""
        return self._plan(
            {
                one.name: min(
                    one.errors, key=lambda s: self.milliseconds(one.outputs, one.inputs, 1 - s)
                )
                for one in self.layers
            }
        )

    def within(self, budget: float) -> Plan:
        """See :class:`Planner`."""
        try:
            return self._plan(plan.by_time(self.layers, budget, self.milliseconds))
        except InputError:
            return self.fastest()


class Channels:
    """Plans of heads and channels.

    Args:
        rest: milliseconds of the layers at no site.
    """

    def __init__(
        self, sites: Sequence[SurveyedSite], milliseconds: Milliseconds, rest: float
    ) -> None:
        self.sites, self.milliseconds, self.rest = sites, milliseconds, rest
        whole = {one.site.reader: one.kept(len(one.site.units)) for one in sites}
        self.dense = self._plan(whole).milliseconds

    def _plan(self, kept: Mapping[str, tuple[int, ...]]) -> Plan:
        time = self.rest + sum(
            one.milliseconds(len(kept[one.site.reader]), self.milliseconds) for one in self.sites
        )
        return Plan({}, dict(kept), units.error_of(self.sites, kept), time)

    def fastest(self) -> Plan:
        """As few units as may be."""
        return self._plan({one.site.reader: one.kept(min(one.errors)) for one in self.sites})

    def within(self, budget: float) -> Plan:
        """See :class:`Planner`."""
        try:
            found = units.by_time(self.sites, budget - self.rest, self.milliseconds)
        except InputError:
            return self.fastest()
        return self._plan(found)


class Mixed:
    """Plans of heads, channels and 4-blocks together: at each site some units go, and of what is
    left of its layers some blocks.

    Both errors add up, as those of layers do: what blocks cost in a layer that has lost channels is
    taken to be what the same share of them costs in the whole layer.
    """

    def __init__(
        self,
        layers: Sequence[Surveyed],
        sites: Sequence[SurveyedSite],
        milliseconds: Milliseconds,
    ) -> None:
        self.layers, self.sites, self.milliseconds = layers, sites, milliseconds
        self.dense = plan.total_time(layers, {}, milliseconds)
        by_name = {one.name: one for one in layers}
        at_sites = {name for one in sites for name in one.shapes}
        self._groups = [self._site(one, by_name) for one in sites]
        self._groups += [
            frontier(self._blocks(one, one.outputs, one.inputs))
            for one in layers
            if one.name not in at_sites
        ]

    def _blocks(self, layer: Surveyed, outputs: int, inputs: int) -> list[Option]:
        """A layer of that shape at every sparsity."""
        return [
            Option(self.milliseconds(outputs, inputs, 1 - s), error, {layer.name: s})
            for s, error in {0.0: 0.0, **layer.errors}.items()
        ]

    def _site(self, site: SurveyedSite, layers: Mapping[str, Surveyed]) -> list[Option]:
        """All that a site may become."""
        found: list[Option] = []
        for count, error in site.errors.items():
            kept = {site.site.reader: site.kept(count)} if count < len(site.site.units) else {}
            options = [Option(0.0, error, {}, kept)]
            for name, (outputs, inputs) in site.shapes_with(count).items():
                choices = (
                    self._blocks(layers[name], outputs, inputs)
                    if name in layers
                    else [Option(self.milliseconds(outputs, inputs, 1.0), 0.0, {})]
                )
                options = frontier([a.with_(b) for a in options for b in choices])
            found += options
        return frontier(found)

    def _plan(self, chosen: Sequence[Option]) -> Plan:
        whole = Option(0.0, 0.0, {})
        for one in chosen:
            whole = whole.with_(one)
        return Plan(whole.sparsities, whole.kept, whole.error, whole.milliseconds)

    def fastest(self) -> Plan:
        """See :class:`Planner`."""
        return self._plan([min(group, key=lambda one: one.milliseconds) for group in self._groups])

    def within(self, budget: float) -> Plan:
        """See :class:`Planner`."""
        choices = [[Choice(one.milliseconds, one.error) for one in group] for group in self._groups]
        try:
            chosen = least_error(choices, budget)
        except InputError:
            return self.fastest()
        return self._plan([group[i] for group, i in zip(self._groups, chosen, strict=True)])


@dataclass(frozen=True)
class Option:
    """What some layers may become.

    Attributes:
        milliseconds, error: as in :class:`Plan`, of these layers.
        sparsities, kept: likewise.
    """

    milliseconds: float
    error: float
    sparsities: Mapping[str, float]
    kept: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def with_(self, other: Option) -> Option:
        """Both."""
        return Option(
            self.milliseconds + other.milliseconds,
            self.error + other.error,
            {**self.sparsities, **other.sparsities},
            {**self.kept, **other.kept},
        )


def frontier(options: Sequence[Option]) -> list[Option]:
    """Those of which no other is as fast and has no more error, slowest first; of such as take
    nearly the same time the one of least error, so that there are at most :data:`MOST` of them."""
    left: list[Option] = []
    least = float("inf")
    for one in sorted(options, key=lambda one: (one.milliseconds, one.error)):
        if one.error < least:
            left.append(one)
            least = one.error
    span = left[-1].milliseconds - left[0].milliseconds
    chosen: dict[int, Option] = {}
    for one in left:
        share = (one.milliseconds - left[0].milliseconds) / span if span else 0.0
        # The ends stay as they are; the later of a step has less error.
        step = 0 if one is left[0] else 1 + int(share * (MOST - 2))
        chosen[step] = one
    return list(chosen.values())[::-1]
