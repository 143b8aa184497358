"""One run of ``sparsec sparsify``: what is known of model and texts, and the steps."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparsec import __version__, targets
from sparsec.arguments import argument
from sparsec.compiler.artifact import companions_of, writing
from sparsec.compiler.frontend import Model, dialect_name, import_graph, load_model
from sparsec.compiler.interpreter import interpret
from sparsec.errors import InputError, ModelError, NonFiniteError
from sparsec.progress import Step
from sparsec.pruning import export, measure, memory, oneshot, reorder, shrink, units
from sparsec.pruning.batches import Batch, features, make_batches, may_pad
from sparsec.pruning.clock import Clock
from sparsec.pruning.engine import TorchModel
from sparsec.pruning.evaluation import Evaluation, evaluate
from sparsec.pruning.evaluation.models import USUAL_LENGTH, Found, count_tokens
from sparsec.pruning.evaluation.parts import Latency
from sparsec.pruning.evaluation.texts import Sample
from sparsec.pruning.layers import Layer
from sparsec.pruning.learn import Lesson, begun, learn, start_share, steps_that_fit
from sparsec.pruning.made import Made
from sparsec.pruning.outcome import CurvePoint, LayerOutcome, Sparsified
from sparsec.pruning.planner import Plan
from sparsec.pruning.planning import NEAR, Planning
from sparsec.pruning.prepare import prepared
from sparsec.pruning.report import render
from sparsec.pruning.shrink import fewer_heads
from sparsec.pruning.sketches import Sketches
from sparsec.pruning.structure import Site, sites
from sparsec.pruning.survey import prunable, quantizable
from sparsec.pruning.wanted import Wanted
from sparsec.pruning.workspace import (
    REPORT,
    Workspace,
    publishing,
    publishing_nowhere,
)
from sparsec.runtime import cpu
from sparsec.serving.runner import Features

#: Texts that are held out: a share of all, and at most so many.
HELD_SHARE, HELD_MOST = 0.2, 256

#: Tokens that layers are fitted on at most.  With few, what is left of a layer learns them by
#: heart: half of all-MiniLM-L6-v2's blocks keep a cosine of 0.873 on other texts with 17,000
#: tokens, of 0.902 with 69,000.
CALIBRATION_TOKENS = 131_072

#: The same where nothing is pruned.
ROUNDING_TOKENS = 32_768

#: Candidates that are tried for `keep`.
KEEP_TRIES = 6

Say = Callable[[str], None]


class Job:
    """One run: what is known of the model and the texts, and the steps."""

    def __init__(
        self,
        found: Found,
        samples: Sequence[Sample],
        labelled: bool,
        output: Path,
        wanted: Wanted,
        say: Say,
    ) -> None:
        self.found, self.output, self.wanted, self.say = found, output, wanted, say
        self.labelled = labelled
        self.began = time.monotonic()
        self.threads = torch.get_num_threads()
        if wanted.threads is not None:
            torch.set_num_threads(wanted.threads)
        self.isa = targets.choose(wanted.target, cpu.detect())
        order = np.random.default_rng(wanted.seed).permutation(len(samples))
        held = min(HELD_MOST, max(1, round(HELD_SHARE * len(samples))))
        self.held = [samples[i] for i in sorted(order[:held])]
        self.samples = [samples[i] for i in sorted(order[held:])]
        self.warnings: list[str] = []

    def close(self) -> None:
        """Leave the process as it was."""
        torch.set_num_threads(self.threads)

    # -- steps ------------------------------------------------------------------------------------

    def run(self) -> Sparsified:
        """All of it."""
        self._load()
        self._read_texts()
        need = memory.check(self.model, self.batches, self.wanted.trains)
        self.say(
            f"{len(self.layers)} linear layers, of which {len(self.pruned)} can be pruned; "
            f"{sum(batch.tokens for batch in self.batches)} tokens to calibrate on; about "
            f"{need / memory.GIB:.1f} GiB of memory"
        )
        self.work = Workspace(self.output, self._settings(), self.wanted.force)
        if self.work.resumed:
            self.say(f"goes on with what is in {self.work.folder}")
        self._check_finite()
        self._reorder()
        keeps = self.wanted.goal.keep is not None
        return self._finish(self._fastest() if keeps else self._make(self._planning().plan()))

    def _load(self) -> None:
        if self.found.files.is_artifact:
            raise ModelError(f"{self.found.path} is compiled: give the ONNX model it was made of")
        loaded = load_model(self.found.files.onnx)
        _refuse_quantized(loaded)
        export.check_opset(loaded)
        self.say(f"reading {loaded.path}")
        self._open(prepared(loaded))
        if not self.pruned:
            raise ModelError(f"{loaded.path} has no linear layer that could be pruned")
        if self.wanted.form == "channels" and not self.sites:
            raise ModelError(
                f"{loaded.path} has no heads or channels that could go as a whole: give form blocks"
            )

    def _open(self, ready: Model) -> None:
        """Find what there is in a model that was made ready."""
        self.ready = ready
        self.model = TorchModel(ready)
        self.layers: list[Layer] = quantizable(self.model)
        self.pruned: list[Layer] = prunable(self.model)
        graph = self.model.opened.graph(self.model.opened.probe)
        self.sites: list[Site] = sites(graph, self.pruned)

    def _reorder(self) -> None:
        """Lay channels so that less is lost with blocks of neighbours."""
        if not self.wanted.goal.prunes or self.wanted.form not in ("auto", "blocks"):
            return
        found = self.work.orders()
        if found is None:
            self.say("looking for an order of channels in which less is lost with whole blocks")
            found = reorder.find_orders(
                self.ready, self.model, self.pruned, self.batches, self.wanted.goal.sparsity
            )
            self.work.keep_orders(found)
        if found:
            self._open(reorder.apply(self.ready, found))

    def _read_texts(self) -> None:
        found, wanted = self.found, self.wanted
        text = found.text
        text.check_inputs([spec.name for spec in self.model.opened.signature.inputs], found.files)
        everything = [*self.samples, *self.held]
        lengths = count_tokens(text, everything)
        self.longest = wanted.max_length or found.longest or min(USUAL_LENGTH, max(16, *lengths))
        if found.longest is not None and self.longest > found.longest:
            raise InputError(
                f"{argument('max_length', self.longest)} is too long: the model takes "
                f"{found.longest} tokens"
            )
        longer = sum(length > self.longest for length in lengths)
        if longer:
            self.warnings.append(f"{longer} texts are longer than {self.longest} tokens and cut")
        self.pad = may_pad(self.ready)
        self.items = features(found, self.samples, self.longest)
        self.held_items = features(found, self.held, self.longest)
        self.held_lengths = [min(n, self.longest) for n in lengths[len(self.samples) :]]
        tokens = CALIBRATION_TOKENS if wanted.goal.prunes else ROUNDING_TOKENS
        self.batches = self._batches(_within(self.items, tokens))

    def _batches(self, items: Sequence[Features]) -> list[Batch]:
        return make_batches(items, pad=self.pad, fixed=self.found.fixed, longest=self.found.longest)

    def _settings(self) -> dict[str, Any]:
        """All that the result depends on."""
        texts = hashlib.sha256(repr([astuple(s) for s in (*self.samples, *self.held)]).encode())
        wanted = {**asdict(self.wanted), "target": self.isa.name}
        for name in ("force", "seconds", "threads", "engine"):
            del wanted[name]
        return {
            "model": self.ready.sha256, "texts": texts.hexdigest(), "labelled": self.labelled,
            "wanted": wanted, "longest": self.longest, "sparsec": __version__,
            "torch": torch.__version__,
        }  # fmt: skip

    def _check_finite(self) -> None:
        """A dense model that gives NaN is no measure of anything.

        Raises:
            NonFiniteError: it does.
        """
        batch = self.batches[0]
        with torch.no_grad():
            outputs = self.model(batch.inputs).outputs
        bad = [
            name
            for name, value in outputs.items()
            if value.is_floating_point() and not bool(value.isfinite().all())
        ]
        if bad:
            raise NonFiniteError(
                f"{self.found.path} gives NaN or infinity in {', '.join(bad)} before anything is "
                f"pruned: does it run as it is?"
            )

    # -- plans ------------------------------------------------------------------------------------

    def _planning(self) -> Planning:
        return Planning(
            self.model, self.batches, self.pruned, self.sites, self.held_lengths, self.isa,
            self.wanted, self.work, self._sketches, self.say, self.warnings,
        )  # fmt: skip

    def _sketches(self) -> Sketches:
        return Sketches(
            self.output, self.layers, self.model.weights, self._forms,
            lambda made, folder: self.write(made, folder, sketch=True), self._measure,
        )  # fmt: skip

    def _measure(self, folders: Sequence[Path], seconds: float) -> tuple[Latency, ...]:
        return measure.measure(
            folders, self.found, self.held, self.held_lengths, self.longest,
            threads=self.wanted.threads, seconds=seconds, progress=self.say,
        )  # fmt: skip

    # -- making -----------------------------------------------------------------------------------

    def _forms(self, chosen: Plan) -> dict[str, oneshot.Form]:
        """What becomes of each layer."""
        return units.forms(self.sites, chosen.kept, self.layers, chosen.sparsities)

    def _make(self, chosen: Plan, share: float = 1.0) -> Made:
        """Layers after a plan, trained for a share of the time if at all."""
        if self.wanted.trains and share:
            return self._train(chosen, share)
        return Made(self._solved(self._forms(chosen)), {}, chosen, ())

    def _solved(self, forms: Mapping[str, oneshot.Form]) -> dict[str, oneshot.Compressed]:
        """Layers pruned and rounded in one shot; those of an earlier run are not solved again."""
        if not forms:
            return {}
        settings = oneshot.Settings(per_channel=export.per_channel(self.ready, self.wanted.dialect))
        kept = self.work.layers(json.dumps({n: asdict(f) for n, f in forms.items()}))
        known = kept.read()
        timer = Clock(len(forms) - len(known))
        done = 0

        def report(layer: Layer, made: oneshot.Compressed) -> None:
            nonlocal done
            done += 1
            if layer.name in known:
                kept.count += 1
                return
            kept.keep(made)
            line = (
                f"layer {done} of {len(forms)}: {made.sparsity:.0%} pruned, {made.error:.2%} of "
                f"its outputs lost, {timer.left()} left"
            )
            self.say(Step(line, "solving layers", done, len(forms), lost=f"{made.error:.2%}"))

        run = oneshot.OneShot(self.model, self.batches, settings).compress(forms, report, known)
        return run.made

    def _train(self, chosen: Plan, share: float) -> Made:
        """Layers that are trained for a share of the time."""
        digest = hashlib.sha256(json.dumps(asdict(chosen)).encode()).hexdigest()[:16]
        lesson = Lesson(self.samples, self.items, self.held, self.held_items, self.labelled)
        forms, began = self._forms(chosen), time.monotonic()
        minutes, steps = share * self.wanted.minutes, self.wanted.steps
        there = self._start_share(lesson, forms, minutes)
        start = self._solved(begun(forms, there))
        learnt = learn(
            self.model, self.found, lesson, self.layers, forms=forms, start=start, share=there,
            minutes=minutes, spent=time.monotonic() - began, steps=steps,
            max_length=self.longest, pad=self.pad, seed=self.wanted.seed,
            per_channel=export.per_channel(self.ready, self.wanted.dialect),
            folder=self.work.folder / f"training-{digest}", answers=self.work.folder / "teacher",
            fingerprint=self.work.fingerprint, say=self.say,
        )  # fmt: skip
        curve = tuple(
            CurvePoint(point.seconds / 60, point.sparsity, point.agreement)
            for point in learnt.curve
        )
        return Made(dict(learnt.layers), learnt.others, chosen, curve, learnt.steps)

    def _start_share(
        self, lesson: Lesson, forms: Mapping[str, oneshot.Form], minutes: float
    ) -> float:
        """Share of the final sparsity that a training begins with: by its steps, however they are
        given."""
        if self.wanted.steps is not None:
            return start_share(self.wanted.steps)
        found = self.work.start()
        if found is None:
            steps = steps_that_fit(
                self.model, self.found, lesson, self.layers, forms=forms, minutes=minutes,
                max_length=self.longest, pad=self.pad, seed=self.wanted.seed,
                answers=self.work.folder / "teacher",
            )  # fmt: skip
            found = start_share(steps)
            self.work.keep_start(found)
        return found

    def _fastest(self) -> Made:
        """The sparsest that agrees as well as is asked for, by bisection over times."""
        planner = self._planning().planner()
        keep = self.wanted.goal.keep or 0.0
        span = planner.dense - planner.fastest().milliseconds
        low, high = 0.0, 1.0  # share of the time that can be saved
        best = self._make(Plan(), 0)
        found = self._agreement(best)
        self.say(f"int8 alone: agreement {found:.4f}")
        if found < keep:
            return best
        for _ in range(KEEP_TRIES):
            share = (low + high) / 2
            made = self._make(planner.within(planner.dense - share * span), 1 / KEEP_TRIES)
            found = self._agreement(made)
            sparsity = made.sparsity(self.pruned)
            self.say(f"{sparsity:.0%} pruned: agreement {found:.4f}")
            if found >= keep:
                low, best = share, made
            else:
                high = share
        return best

    def _agreement(self, made: Made) -> float:
        """With the dense model, on the texts held out."""
        with publishing_nowhere(self.output) as folder:
            self.write(made, folder)
            return next(iter(self.evaluate(folder, 0).agreement.values()))

    # -- the end ----------------------------------------------------------------------------------

    def write(self, made: Made, folder: Path, sketch: bool = False) -> None:
        """Write a model with what a folder needs besides.

        Raises:
            ModelError: what was written gives other results than what it was made of.
        """
        with writing(folder):
            for name, path in companions_of(self.ready).items():
                (folder / name).write_bytes(path.read_bytes())
        forms = self._forms(made.plan)
        cut = any(f.keep_inputs or f.keep_outputs for f in forms.values())
        if cut:
            smaller = fewer_heads(self.ready, self.model.layers, self.sites, made.plan.kept)
            self._export(smaller, shrink.cut(made.layers, forms), made.others, folder)
            if sketch or self._same(made, folder):
                return
            self.warnings.append(
                "heads and channels that are gone are zeros in the file: this graph cannot do "
                "without their places"
            )
        self._export(self.ready, made.layers, made.others, folder)
        if not sketch and not self._same(made, folder):
            raise ModelError(
                f"{self.found.path} pruned gives other results as a file than in PyTorch: please "
                f"report this model"
            )

    def _export(
        self,
        model: Model,
        layers: Mapping[str, oneshot.Compressed],
        others: Mapping[str, torch.Tensor],
        folder: Path,
    ) -> None:
        proto = export.export(model, self.model.layers, layers, self.wanted.dialect, others)
        with writing(folder):
            export.save(proto, model, folder)

    def _same(self, made: Made, folder: Path) -> bool:
        """Whether the file means what it was made of, by the compiler's own reading of it."""
        (batch,) = self._batches(self.held_items[:1])
        run = oneshot.Run(self.model)
        run.weights.update(made.others)
        for layer in self.layers:
            if layer.name in made.layers:
                run.put(layer, made.layers[layer.name])
        with torch.no_grad():
            wanted = self.model(batch.inputs, weights=run.weights, on_input=run.on_input).outputs
        try:
            graph = import_graph(load_model(folder), self.model.length_of(batch.inputs))
            values = graph.values
            given = [batch.inputs[n].numpy().astype(values[n].dtype) for n in graph.inputs]
            found = dict(zip(graph.output_names, interpret(graph, given), strict=True))
        except (ModelError, ValueError, TypeError):
            return False
        return all(_near(found[name], value.numpy()) for name, value in wanted.items())

    def evaluate(self, folder: Path, seconds: float) -> Evaluation:
        """The model in a folder against the dense one, on the texts held out."""
        rows = [_row(sample) for sample in self.held]
        return evaluate(
            folder, against=self.found.path, texts=rows, tokenizer=self.found.files.tokenizer,
            engine=self.wanted.engine, reference_engine=self.wanted.engine,
            max_length=self.longest, num_cores=self.wanted.threads, seconds=seconds,
            seed=self.wanted.seed, progress=self.say,
        )  # fmt: skip

    def _finish(self, made: Made) -> Sparsified:
        with publishing(self.output, self.wanted.force) as folder:
            self.write(made, folder)
            found = self.evaluate(folder, self.wanted.seconds)
            latency = baseline = None
            seconds = self.wanted.seconds or (5.0 if self.wanted.goal.speedup else 0.0)
            if seconds:
                self.say("measuring against dense int8")
                with self._sketches() as sketches:
                    baseline, latency = sketches.against(folder, seconds)
            result = self._result(made, found, latency, baseline)
            if not result.reached and self.wanted.goal.keep is not None:
                for path in list(folder.iterdir()):
                    path.unlink()
                result = replace(result, output=None)
            text = json.dumps(result.to_json(), indent=1) + "\n"
            (folder / REPORT).write_text(text, encoding="utf-8")
            (folder / "report.html").write_text(render(result), encoding="utf-8")
        self.work.remove()
        return result

    def _result(
        self, made: Made, found: Evaluation, latency: Latency | None, baseline: Latency | None
    ) -> Sparsified:
        goal = self.wanted.goal
        agreement = next(iter(found.agreement.values()))
        speedup = baseline.median_ms / latency.median_ms if latency and baseline else None
        reached = found.candidate.nonfinite == 0
        if goal.keep is not None:
            reached &= agreement >= goal.keep
        if goal.speedup is not None and speedup is not None:
            reached &= speedup >= goal.speedup * (1 - NEAR)
        rows = []
        for layer in self.layers:
            one = made.layers.get(layer.name)
            if one is not None:
                rows.append(
                    LayerOutcome(
                        layer.label, layer.outputs, layer.inputs, one.sparsity,
                        one.scale is not None, one.error,
                    )
                )  # fmt: skip
        return Sparsified(
            output=str(self.output), model=self.found.path, goal=goal, form=self.wanted.form,
            dialect=self.wanted.dialect, seed=self.wanted.seed, minutes=self.wanted.minutes,
            task=found.task, sparsity=made.sparsity(self.pruned), layers=tuple(rows),
            evaluation=found, latency=latency, baseline=baseline, reached=reached,
            warnings=tuple(self.warnings), seconds=time.monotonic() - self.began,
            texts=(len(self.samples), len(self.held)), curve=made.curve, steps=made.steps,
        )  # fmt: skip


def _near(found: np.ndarray, wanted: np.ndarray) -> bool:
    """Whether two results are one but for 8 bits that fall on the other side."""
    if found.shape != wanted.shape:
        return False
    if found.dtype.kind != "f":
        return True
    size = float(np.sqrt(np.square(wanted, dtype=np.float64).mean())) or 1.0
    return float(np.sqrt(np.square(found - wanted, dtype=np.float64).mean())) < 0.05 * size


def _within(items: Sequence[Features], tokens: int) -> list[Features]:
    """As many sequences as have so many tokens, evenly chosen."""
    total = sum(item.length for item in items)
    if total <= tokens:
        return list(items)
    count = max(1, int(len(items) * tokens / total))
    places = np.linspace(0, len(items) - 1, count).round().astype(int)
    return [items[i] for i in places]


def _row(sample: Sample) -> dict[str, Any]:
    """A sample as `evaluate` reads it."""
    row: dict[str, Any] = {"text": sample.text}
    if sample.words is not None:
        row = {"tokens": list(sample.words)}
    elif sample.pair is not None:
        row = {"text": sample.text, "text_pair": sample.pair}
    if sample.label is not None:
        row["label"] = sample.label
    return row


def _refuse_quantized(model: Model) -> None:
    """Only floats can be pruned.

    Raises:
        ModelError: the model is quantized already.
    """
    kind = dialect_name(model)
    if kind not in ("fp32", "fp16", "fused"):
        raise ModelError(
            f"{model.path} is quantized already ({kind}): give the float model that it was made "
            f"of; rounding twice would lose more than it gains"
        )
