"""Plans for a time, of blocks, of heads and channels, or of whichever costs less."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sparsec.errors import InputError
from sparsec.pruning import plan, units
from sparsec.pruning.plan import Milliseconds
from sparsec.pruning.survey import Surveyed
from sparsec.pruning.units import SurveyedSite


@dataclass(frozen=True)
class Plan:
    """What is to become of layers.

    Attributes:
        sparsities: share of 4-blocks to prune, by layer.
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


class Best:
    """Of several kinds of plans the one of least error; where time is short, the fastest."""

    def __init__(self, planners: Sequence[Planner]) -> None:
        self.planners = planners
        self.dense = planners[0].dense

    def fastest(self) -> Plan:
        """See :class:`Planner`."""
        return min((p.fastest() for p in self.planners), key=lambda found: found.milliseconds)

    def within(self, budget: float) -> Plan:
        """See :class:`Planner`."""
        found = [p.within(budget) for p in self.planners]
        fitting = [one for one in found if one.milliseconds <= budget * 1.001]
        if fitting:
            return min(fitting, key=lambda one: one.error)
        return min(found, key=lambda one: one.milliseconds)
