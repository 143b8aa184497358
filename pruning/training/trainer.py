"""A student that loses blocks step by step while it learns from the dense model.

`plan` says when how much is pruned and how fast is learnt, `masks` which blocks, `losses` how far
the student is from its teacher, `batches` what it sees, `checkpoint` what it goes on from.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsec.errors import NonFiniteError
from sparsec.progress import Step
from sparsec.pruning.clock import clock
from sparsec.pruning.ranges import Rounding
from sparsec.pruning.training import (
    checkpoint,
    losses,
    masks,
    observe,
    plan,
    precision,
    remembered,
)
from sparsec.pruning.training.batches import Batch, Batches
from sparsec.pruning.training.losses import Kind, Result
from sparsec.pruning.training.network import Network, Student
from sparsec.pruning.training.plan import Cycle
from sparsec.pruning.training.remembered import Remembered
from sparsec.pruning.training.rows import clip
from sparsec.pruning.training.state import Optimizer, Point, State, restore, snapshot

OBSERVED = 12
"""Batches whose second moments and ranges are measured when a cycle begins."""

TIMED = 6
"""Steps that are timed to know how many fit; the first is not counted."""

GOOD_EVERY = 50
"""Steps after which a state is kept to go back to: it takes most of the time of a step."""

RETRIES = 4
"""Times that a training goes back before it gives up."""

GRADIENT_LIMIT = 1.0
"""Norm that gradients are clipped to."""

EPOCHS = 2
"""Epochs from which on the teacher's answers are kept rather than computed anew."""

LATE = 1.15
"""Time over budget, as a share of it, that is expected before the plan is shortened."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """How a student is trained.

    Attributes:
        minutes: how long, about; the time that some steps take decides how many there are.
        steps: how many there are; None: as many as fit into `minutes`.
        learning_rate: at the top of each cycle, of AdamW.
        range_rate: the same for the logarithms of steps of activations.
        weights: of the parts of the loss.
        quantize: whether the end computes with 8 bits.
        seed: of the order of the texts.
        start: share of the final sparsity that the student has when it comes.
        save_every: seconds between two checkpoints.
        measure_every: seconds between two measurements on held-out texts, besides those at the end
            of cycles.
    """

    minutes: float = 30.0
    steps: int | None = None
    learning_rate: float = 1e-3
    range_rate: float = 1e-3
    weights: losses.Weights = field(default_factory=losses.Weights)
    quantize: bool = True
    seed: int = 0
    start: float = 0.0
    save_every: float = 120.0
    measure_every: float = 300.0


@dataclass(frozen=True)
class Trained:
    """What training gives.

    Attributes:
        parameters: by name, pruned weights zero; not rounded.
        masks: bool `[N, K]`, weights that are not pruned, by parameter.
        roundings: of activations, by place; empty without quantization.
        curve: agreement over time.
        steps: how many there were: with that number, seed and texts, the result is the same.
        seconds: that it took, all runs together.
    """

    parameters: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    roundings: Mapping[str, Rounding]
    curve: tuple[Point, ...]
    steps: int
    seconds: float


class Trainer:
    """Trains a student against its teacher; stops at any step and goes on from there.

    Args:
        teacher: the dense model.
        student: what is trained, already pruned where that is not the training's business.
        batches: what it is trained on.
        held_out: what it is measured on.
        kinds: of the outputs that count.
        targets: share of 4-blocks to prune of each weight, in the end.
        options: how.
        folder: for checkpoints; None: there are none.
        answers: folder for the teacher's answers, which trainings of the same teacher on the same
            texts share; None: they are computed anew each time.
        fingerprint: of the model, the texts and the options that lead to the student.
        spent: seconds of the time that are gone already; half of it is left in any case.
        say: called with lines of progress.
    """

    def __init__(
        self,
        teacher: Network,
        student: Student,
        batches: Batches,
        held_out: Batches,
        kinds: Mapping[str, Kind],
        targets: Mapping[str, float],
        options: Options,
        *,
        folder: Path | None = None,
        answers: Path | None = None,
        fingerprint: str = "",
        spent: float = 0.0,
        say: Say = lambda line: None,
    ) -> None:
        self._budget = max(60 * options.minutes - spent, 30 * options.minutes)
        self.teacher = teacher
        self.student = student
        self._batches = batches
        self._held_out = held_out.all()
        self._kinds = dict(kinds)
        self._targets = {name: share for name, share in targets.items() if share > 0}
        self._options = options
        self._folder, self._answers = folder, answers
        self._taught = f"{fingerprint} {options.seed}"
        self._fingerprint = f"{fingerprint} {asdict(options)} {sorted(self._targets.items())}"
        self._say = say
        self._device = student.values[0].device
        self._products = precision.products(self._device)
        self._optimizer = Optimizer(student)
        self._state = State()
        self._good: dict[str, Any] = {}
        self._remembered: Remembered | None = None
        self._beginning = 0.0  # seconds that the last cycle took to begin

    # ---- the whole ---------------------------------------------------------------------------

    def train(self) -> Trained:
        """Train to the end of the plan.

        Raises:
            NonFiniteError: numbers became NaN or infinite, again and again.
            InputError: the checkpoint in the folder is that of another training.
            KeyboardInterrupt: as it comes; what was done is in the checkpoint.
        """
        state = self._state
        if not self._load():
            self._check_teacher()
            self._state.cycles = self._plan()
            self._keep_good()
        began, saved, measured = (time.monotonic() - state.seconds, *[time.monotonic()] * 2)
        try:
            self._remember()
            if not state.step:
                state.aside = time.monotonic() - began
            while state.step < plan.total(state.cycles):
                index, within = plan.locate(state.cycles, state.step)
                if index != state.cycle:
                    state.seconds = time.monotonic() - began
                    self._begin_cycle(index)
                    self._beginning = time.monotonic() - began - state.seconds
                    state.aside += self._beginning
                self._one(within)
                now = time.monotonic()
                state.seconds = now - began
                last = within + 1 == state.cycles[index].steps
                if last or now - measured > self._options.measure_every:
                    self._measure()
                    measured = time.monotonic()
                if now - saved > self._options.save_every:
                    self._save()
                    saved = time.monotonic()
        except KeyboardInterrupt:
            # The step may be half done.
            self._restore(self._good)
            self._save()
            raise
        self._save()
        return self._result()

    def _check_teacher(self) -> None:
        """A teacher without numbers teaches nothing, however often one goes back.

        Raises:
            NonFiniteError: the dense model gives NaN or infinity.
        """
        for batch in self._held_out:
            inputs, _ = self._tensors(batch)
            with torch.no_grad():
                told = self.teacher.run(inputs, {})
            bad = [n for n in self._kinds if not bool(told.outputs[n].isfinite().all())]
            if bad:
                raise NonFiniteError(
                    f"the dense model gives NaN or infinity in {', '.join(bad)} for a text of the "
                    f"held-out ones: nothing can be learnt from it; does it run as it is?"
                )

    def _result(self) -> Trained:
        student = self.student
        values = {name: p.detach().clone() for name, p in student.named_values().items()}
        found = {} if student.ranges is None else student.ranges.read()
        state = self._state
        return Trained(
            values, dict(student.masks), found, tuple(state.curve), state.step, state.seconds
        )

    def _plan(self) -> tuple[Cycle, ...]:
        """The cycles: as many steps as are asked for, or as fit."""
        options = self._options
        steps = options.steps
        if steps is None:
            steps, pace = self.fitting()
            self._say(f"{pace:.2f} s a step: {steps} steps in {self._budget / 60:.3g} minutes")
        return plan.make(
            steps, prune=bool(self._targets), quantize=options.quantize, start=options.start
        )

    def fitting(self) -> tuple[int, float]:
        """How many steps fit into the time, and the seconds that one takes, by timing some that
        are undone."""
        pace, taught = self._pace()
        seconds, epoch = self._budget, self._batches.per_epoch
        if self._answers is not None and remembered.can_be(self._kinds):
            fewer = plan.steps_in(seconds - epoch * taught, pace - taught)
            if fewer >= EPOCHS * epoch:
                return fewer, pace - taught
        return plan.steps_in(seconds, pace), pace

    def _pace(self) -> tuple[float, float]:
        """Seconds that a step takes, the median of some that are undone, and how many of them the
        teacher takes."""
        kept = self._snapshot()
        times = []
        for step in range(TIMED + 1):
            batch = self._batches.batch(step)
            start = time.perf_counter()
            told = self._told(batch)
            between = time.perf_counter()
            self._gradients(batch, told)
            self._optimizer.step()
            times.append((time.perf_counter() - start, between - start))
        self._restore(kept)
        return sorted(times[1:])[TIMED // 2]

    def _remember(self) -> None:
        """Keep the teacher's answers where each is asked for several times."""
        asked = plan.total(self._state.cycles) / self._batches.per_epoch
        if self._answers is None or asked < EPOCHS:
            return
        if not self._answers.exists():
            self._say(f"the dense model reads all {self._batches.per_epoch} batches, once")
        try:
            self._remembered = remembered.remember(
                self._answers, self._batches, self._told, self._kinds, self._taught
            )
        except OSError as error:
            self._say(f"the teacher's answers are computed anew each time ({error.strerror})")

    def _told(self, batch: Batch) -> Result:
        """What the teacher says of a batch."""
        if self._remembered is not None:
            found = self._remembered.result(batch)
            to = self._device
            return Result(
                {name: value.to(to) for name, value in found.outputs.items()},
                [value.to(to) for value in found.states],
            )
        with self._products(), torch.no_grad():
            return self.teacher.run(self._tensors(batch)[0], {})

    # ---- cycles and steps --------------------------------------------------------------------

    def _begin_cycle(self, index: int) -> None:
        """New masks, a new learning rate, and from the last cycle on rounded numbers."""
        state = self._state
        self._shorten(index)
        cycle = state.cycles[index]
        seen = [self._batches.batch(state.step + i) for i in range(self._observed())]
        if self._targets and (not cycle.quantized or index == 0):
            self._prune(cycle, observe.moments(self.student, seen, self._tensors))
        if cycle.quantized and self.student.ranges is None:
            self.student.begin_rounding(observe.roundings(self.student, seen, self._tensors))
        # Momentum of weights that are gone would bring them back.
        self._optimizer = Optimizer(self.student, self._optimizer.rows)
        state.cycle = index
        self._keep_good()

    def _prune(self, cycle: Cycle, moments: Mapping[str, Tensor]) -> None:
        """The masks of a cycle, and weights that make up for what goes.

        Args:
            moments: of the inputs, by place.
        """
        student, named = self.student, self.student.named_values()
        made: dict[str, Tensor] = {}
        for layer in student.network.layers:
            name = layer.weight
            if name not in self._targets or name in made:
                continue
            seen = moments[layer.place]
            squares = self._optimizer.squares(named[name])
            known = None if squares is None else masks.sensitivity(squares, seen)
            weight = named[name].detach()
            before = student.masks.get(name, torch.ones_like(weight, dtype=torch.bool))
            made[name] = masks.choose(
                weight, seen, before, self._targets[name] * cycle.share, known,
                student.orders.get(name),
            )  # fmt: skip
        places = {layer.weight: layer.place for layer in student.network.layers}
        settled = {
            name: masks.settle(named[name].detach(), moments[places[name]], mask)
            for name, mask in made.items()
        }
        student.prune(made, settled)

    def _observed(self) -> int:
        return min(OBSERVED, self._batches.per_epoch)

    def _shorten(self, index: int) -> None:
        """Fewer steps to come, where the machine has become slower than it was measured."""
        state, options = self._state, self._options
        if options.steps is not None or not state.step:
            return
        left = plan.total(state.cycles) - state.step
        budget = self._budget
        need = state.pace * left + self._beginning * (len(state.cycles) - index)
        if state.seconds + need > LATE * budget:
            factor = max(0.0, budget - state.seconds) / need
            state.cycles = plan.shortened(state.cycles, index, factor)
            self._say(f"steps take longer than measured: {plan.total(state.cycles)} instead")

    def _one(self, within: int) -> None:
        """One step; where its numbers are none, back to the last good ones."""
        state, options = self._state, self._options
        rate = state.cycles[state.cycle].learning_rate(within) * state.slower
        self._optimizer.set_rates(options.learning_rate * rate, options.range_rate * rate)
        batch = self._batches.batch(state.step)
        loss = self._gradients(batch, self._told(batch))
        if loss is None:
            self._go_back(rate * options.learning_rate)
            return
        self._optimizer.step()
        state.step += 1
        state.loss = loss if math.isnan(state.loss) else 0.95 * state.loss + 0.05 * loss
        if state.step % GOOD_EVERY == 0:
            self._keep_good()
        self._tell()

    def _gradients(self, batch: Batch, told: Result) -> float | None:
        """Gradients of a batch, clipped, and its loss; None: they are no numbers."""
        inputs, mask = self._tensors(batch)
        targets = {
            name: torch.from_numpy(values).to(self._device)
            for name, values in batch.targets.items()
        }
        with self._products():
            got = self.student(inputs)
            loss = losses.total_loss(
                self._kinds, self._options.weights, got, told, mask, targets or None
            )
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = clip(self.student.parameters(), GRADIENT_LIMIT)
        value = float(loss.detach())
        return value if math.isfinite(value) and bool(norm.isfinite()) else None

    def _go_back(self, rate: float) -> None:
        """To the last good state, with half the learning rate.

        Raises:
            NonFiniteError: that was done often enough.
        """
        state = self._state
        retries, slower, step = state.retries + 1, state.slower / 2, state.step
        self._restore(self._good)
        state.retries, state.slower = retries, slower
        if retries > RETRIES:
            state.retries = 0  # who starts it again wants it tried again
            self._save()
            raise NonFiniteError(
                f"the training has no numbers any more (NaN or infinity at step {step}), and going "
                f"back with half the learning rate {RETRIES} times did not help; the last was "
                f"{rate:.1e}: less sparsity or a lower learning rate may"
            )
        self._keep_good()
        self._say(f"NaN or infinity at step {step}: back to {state.step}, half the learning rate")

    def _tensors(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        inputs = {
            name: torch.from_numpy(values).to(self._device) for name, values in batch.inputs.items()
        }
        return inputs, torch.from_numpy(batch.mask).to(self._device)

    # ---- how good it is ----------------------------------------------------------------------

    @torch.no_grad()
    def agreement(self) -> float:
        """Mean agreement with the teacher on the held-out texts, over outputs and texts."""
        found: list[Tensor] = []
        for batch in self._held_out:
            inputs, mask = self._tensors(batch)
            told: Result = self.teacher.run(inputs, {})
            got: Result = self.student(inputs)
            found += [
                losses.agreement(kind, got.outputs[name], told.outputs[name], mask)
                for name, kind in self._kinds.items()
            ]
        return float(torch.cat(found).mean())

    def _measure(self) -> None:
        state = self._state
        point = Point(
            state.step,
            round(state.seconds, 3),
            self.student.sparsity(),
            self.student.ranges is not None,
            state.loss,
            self.agreement(),
        )
        state.curve.append(point)
        self._tell(point)

    def _tell(self, point: Point | None = None) -> None:
        """A line of progress: now and then, and at each measurement."""
        state = self._state
        total = plan.total(state.cycles)
        if point is None and state.step % 10:
            return
        left = state.pace * (total - state.step)
        line = (
            f"step {state.step} of {total}, loss {state.loss:.4f}, "
            f"{100 * self.student.sparsity():.0f} % zero"
        )
        figures = {"loss": f"{state.loss:.4f}"}
        if state.curve:
            figures["agreement"] = f"{state.curve[-1].agreement:.4f}"
            line += f", agreement {figures['agreement']}"
        if self.student.ranges is not None:
            line += ", int8"
        self._say(Step(f"{line}, {clock(left)} left", "training", state.step, total, **figures))

    # ---- states ------------------------------------------------------------------------------

    def _snapshot(self) -> dict[str, Any]:
        return snapshot(self.student, self._optimizer, self._state)

    def _restore(self, kept: Mapping[str, Any]) -> None:
        self._optimizer = restore(kept, self.student, self._state)

    def _keep_good(self) -> None:
        self._good = self._snapshot()

    def _save(self) -> None:
        """Write a checkpoint; one that cannot be written is said and changes nothing else."""
        if self._folder is None:
            return
        try:
            checkpoint.write(self._folder, self._fingerprint, self._snapshot())
        except OSError as error:
            self._say(
                f"warning: no checkpoint could be written to {self._folder} ({error.strerror}); "
                f"the one before stays; make room, or what is done since is lost if this stops"
            )

    def _load(self) -> bool:
        """Go on from the folder's checkpoint; whether there is one."""
        kept = None
        if self._folder is not None:
            kept = checkpoint.read(self._folder, self._fingerprint)
        if kept is None:
            return False
        self._restore(kept)
        self._keep_good()
        state = self._state
        self._say(f"goes on at step {state.step} of {plan.total(state.cycles)}")
        return True
