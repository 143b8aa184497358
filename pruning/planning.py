"""What is to become of each layer: surveys, which go on after a stop, and plans for the goal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sparsec.errors import InputError
from sparsec.progress import Step
from sparsec.pruning import plan, units
from sparsec.pruning.batches import Batch
from sparsec.pruning.clock import Clock
from sparsec.pruning.engine import TorchModel
from sparsec.pruning.latency import layer_milliseconds
from sparsec.pruning.layers import Layer
from sparsec.pruning.planner import Blocks, Channels, Mixed, Plan, Planner
from sparsec.pruning.sketches import Sketches
from sparsec.pruning.structure import Site
from sparsec.pruning.survey import Surveyed, survey
from sparsec.pruning.units import SurveyedSite, survey_sites
from sparsec.pruning.wanted import Wanted
from sparsec.pruning.workspace import Workspace
from sparsec.targets import Target

#: How near a measured speedup has to come, and how often it is tried.
NEAR, TRIES = 0.05, 5

Say = Callable[[str], None]


@dataclass(eq=False)
class Planning:
    """Makes the plan for a goal.

    Attributes:
        model, batches: the dense model, and what its layers are looked at with.
        pruned: layers that can lose blocks.
        sites: where heads and channels can go.
        lengths: tokens of texts, at which layers are timed.
        isa: which cost model counts.
        wanted: goal and form.
        work: what is kept of it.
        sketches: makes models to measure.
        say: called with lines of progress.
        warnings: what was not reached.
    """

    model: TorchModel
    batches: Sequence[Batch]
    pruned: Sequence[Layer]
    sites: Sequence[Site]
    lengths: Sequence[int]
    isa: Target
    wanted: Wanted
    work: Workspace
    sketches: Callable[[], Sketches]
    say: Say
    warnings: list[str]
    _times: dict[tuple[int, int, float], float] = field(default_factory=dict)

    def plan(self) -> Plan:
        """The plan for the goal; the one of an earlier run that stopped, if there is one."""
        found = self.work.plan()
        if found is None:
            found = self._new_plan()
            self.work.keep_plan(found)
        return found

    def _new_plan(self) -> Plan:
        goal = self.wanted.goal
        if not goal.prunes:
            return Plan()
        if goal.sparsity is None:
            assert goal.speedup is not None
            return self._for_speedup(self.planner(), goal.speedup)
        if self.wanted.form == "channels":
            return Plan(kept=units.by_sparsity(self._survey_sites(), goal.sparsity))
        return Plan(plan.by_sparsity(self._survey(), goal.sparsity))

    def planner(self) -> Planner:
        """What makes plans of the form that is asked for."""
        form = self.wanted.form
        if form == "blocks" or not self.sites:
            return Blocks(self._survey(), self._milliseconds)
        if form == "auto":
            return Mixed(self._survey(), self._survey_sites(), self._milliseconds)
        at_sites = {n for site in self.sites for n in (site.reader, *site.makers)}
        rest = sum(
            self._milliseconds(layer.outputs, layer.inputs, 1.0)
            for layer in self.pruned
            if layer.name not in at_sites
        )
        return Channels(self._survey_sites(), self._milliseconds, rest)

    def _for_speedup(self, planner: Planner, speedup: float) -> Plan:
        """The plan whose compiled form, with weights that stand for those to come, is as fast as
        that when it is measured.

        Raises:
            InputError: nothing is; says how fast it can become.
        """
        budget = planner.dense / speedup
        best: tuple[float, Plan] | None = None
        with self.sketches() as sketches:
            for attempt in range(1, TRIES + 1):
                chosen = planner.within(budget)
                dense_ms, ms = sketches.measured(chosen, max(3.0, self.wanted.seconds))
                got = dense_ms / ms
                self.say(
                    f"attempt {attempt}: {got:.2f} times as fast as dense int8 ({ms:.3g} ms a text "
                    f"instead of {dense_ms:.3g})"
                )
                if best is None or abs(got / speedup - 1) < abs(best[0] / speedup - 1):
                    best = got, chosen
                if abs(got / speedup - 1) <= NEAR:
                    return chosen
                self._check_reach(planner, chosen, got, speedup)
                # What is measured beside the model's layers does not change with the plan.
                budget = chosen.milliseconds + (dense_ms / speedup - ms) * planner.dense / dense_ms
        assert best is not None
        self.warnings.append(
            f"{TRIES} attempts came no nearer to {speedup:g} times as fast than {best[0]:.2f}"
        )
        return best[1]

    def _check_reach(self, planner: Planner, tried: Plan, got: float, speedup: float) -> None:
        """Stop where the fastest plan was measured and is too slow.

        Raises:
            InputError: it is; says how fast it is.
        """
        if got < speedup and tried.milliseconds <= planner.fastest().milliseconds * 1.001:
            raise InputError(
                f"a speedup of {speedup:g} is out of reach: with all pruned that can be, the model "
                f"is {got:.2f} times as fast as dense int8, at the lengths of these texts on "
                f"{self.isa.name}; ask for less, or for another form"
            )

    def _survey(self) -> list[Surveyed]:
        known = self.work.survey()
        timer = Clock(len(self.pruned) - len(known))

        def report(one: Surveyed) -> None:
            if one.name in known:
                return
            known[one.name] = one
            self.work.keep_survey(known)
            line = (
                f"layer {len(known)} of {len(self.pruned)} looked at: 80 % of its blocks are "
                f"{one.errors[0.8]:.2e} of the result, {timer.left()} left"
            )
            self.say(Step(line, "looking at layers", len(known), len(self.pruned)))

        return survey(self.model, self.batches, self.pruned, report, dict(known))

    def _survey_sites(self) -> list[SurveyedSite]:
        known = self.work.sites(self.sites, self.model.layers)
        timer = Clock(len(self.sites) - len(known))

        def report(one: SurveyedSite) -> None:
            known[one.site.reader] = one
            self.work.keep_sites(known)
            what = "heads" if one.site.size > 1 else "channels"
            line = f"{len(one.site.units)} {what} looked at, {timer.left()} left"
            self.say(Step(line, "looking at heads and channels", len(known), len(self.sites)))

        return survey_sites(self.model, self.batches, self.sites, report, dict(known))

    def _milliseconds(self, outputs: int, inputs: int, density: float) -> float:
        """What a layer takes at the lengths of the texts, by the cost model."""
        key = outputs, inputs, density
        if key not in self._times:
            lengths = np.quantile(self.lengths, (1 / 6, 1 / 2, 5 / 6)).round().astype(int)
            each = [
                layer_milliseconds(outputs, inputs, density, self.isa, max(1, int(length)))
                for length in lengths
            ]
            self._times[key] = float(np.mean(each))
        return self._times[key]
