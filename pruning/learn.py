"""Layers trained against the dense model, as what export takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsec.errors import InputError
from sparsec.pruning.blocks import BLOCK
from sparsec.pruning.engine import TorchModel
from sparsec.pruning.evaluation import tasks
from sparsec.pruning.evaluation.models import Found
from sparsec.pruning.evaluation.texts import Sample
from sparsec.pruning.layers import Layer
from sparsec.pruning.oneshot import Compressed, Form
from sparsec.pruning.rounding import LIMIT
from sparsec.pruning.training.batches import Batches, Example
from sparsec.pruning.training.losses import Kind, kind_of
from sparsec.pruning.training.model import ModelNetwork, best_device
from sparsec.pruning.training.network import Student
from sparsec.pruning.training.quantizers import weight_scale
from sparsec.pruning.training.state import Point
from sparsec.pruning.training.targets import targets
from sparsec.pruning.training.trainer import Options, Trained, Trainer
from sparsec.serving.runner import Features

#: Tokens of a training batch, about: twice the steps with half of the tokens learn more.
TOKENS = 512

#: Share of the final sparsity that one shot gives a training to begin with.  What is pruned step by
#: step is chosen again as weights move, but takes time to recover: a short training, of fewer steps
#: than these, keeps the blocks that one shot has chosen.
START, SHORT_STEPS = 0.6, 3000

Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Lesson:
    """What is learnt from.

    Attributes:
        samples, items: texts, and their sequences.
        held_samples, held_items: the same of those held out.
        labelled: whether labels count.
    """

    samples: Sequence[Sample]
    items: Sequence[Features]
    held_samples: Sequence[Sample]
    held_items: Sequence[Features]
    labelled: bool


@dataclass(frozen=True, eq=False)
class Learnt:
    """What training gives.

    Attributes:
        layers: by name.
        others: the other parameters that have changed, by name, as the model stores them.
        curve: agreement over time.
        seconds: that it took.
        steps: how many there were.
    """

    layers: Mapping[str, Compressed]
    others: Mapping[str, Tensor]
    curve: Sequence[Point]
    seconds: float
    steps: int


def learn(
    model: TorchModel,
    found: Found,
    lesson: Lesson,
    layers: Sequence[Layer],
    *,
    forms: Mapping[str, Form],
    start: Mapping[str, Compressed],
    share: float,
    minutes: float,
    spent: float,
    steps: int | None,
    max_length: int,
    pad: bool,
    seed: int,
    per_channel: bool,
    folder: Path,
    answers: Path,
    fingerprint: str,
    say: Say,
) -> Learnt:
    """Train a student that loses blocks step by step.

    Args:
        layers: those that are to compute with bytes.
        forms: what becomes of them: channels are gone from the start, blocks go step by step.
        start: layers as floats to begin with, by :func:`begun`.
        share: of the final sparsity that they have.
        minutes, spent: how long, and seconds of that which are gone already.
        folder: for checkpoints.
        answers: folder for the dense model's answers.

    Raises:
        NonFiniteError, InputError, KeyboardInterrupt: as
            :meth:`~sparsec.pruning.training.trainer.Trainer.train`.
    """
    course = _course(model, found, lesson, layers, forms, max_length, pad, seed)
    _begin(course.student, layers, start)
    left = {} if share == 1 else {x.name: _share(x, forms[x.name]) for x in layers}
    trainer = course.trainer(
        left, Options(minutes=minutes, steps=steps, seed=seed, start=share),
        folder=folder, answers=answers, fingerprint=fingerprint, spent=spent, say=say,
    )  # fmt: skip
    try:
        trained = trainer.train()
    finally:
        model.to("cpu")
    return _learnt(model, course.network, trained, layers, per_channel)


def steps_that_fit(
    model: TorchModel,
    found: Found,
    lesson: Lesson,
    layers: Sequence[Layer],
    *,
    forms: Mapping[str, Form],
    minutes: float,
    max_length: int,
    pad: bool,
    seed: int,
    answers: Path,
) -> int:
    """How many steps of training fit into a time on this machine, by what a few of them take.

    Args: as of :func:`learn`.
    """
    course = _course(model, found, lesson, layers, forms, max_length, pad, seed)
    try:
        options = Options(minutes=minutes, seed=seed)
        return course.trainer({}, options, answers=answers).fitting()[0]
    finally:
        model.to("cpu")


def start_share(steps: int) -> float:
    """Share of the final sparsity that a training of so many steps begins with."""
    return 1.0 if steps < SHORT_STEPS else START


def begun(forms: Mapping[str, Form], share: float) -> dict[str, Form]:
    """What one shot makes of layers before a training: floats, without a share of the blocks that
    are to go.  Nothing where nothing goes."""
    if not any(form.prunes for form in forms.values()):
        return {}
    return {
        name: replace(form, sparsity=share * form.sparsity, quantize=False)
        for name, form in forms.items()
    }


@dataclass(frozen=True, eq=False)
class _Course:
    """What a trainer takes of a model and its texts."""

    network: ModelNetwork
    student: Student
    batches: Batches
    held: Batches
    kinds: Mapping[str, Kind]

    def trainer(self, left: Mapping[str, float], options: Options, **more: Any) -> Trainer:
        """A trainer that prunes these shares of layers, and what else it takes."""
        return Trainer(
            self.network, self.student, self.batches, self.held, self.kinds, left, options, **more
        )


def _course(
    model: TorchModel, found: Found, lesson: Lesson, layers: Sequence[Layer],
    forms: Mapping[str, Form], max_length: int, pad: bool, seed: int,
) -> _Course:  # fmt: skip
    network = ModelNetwork(model)
    device = best_device()
    model.to(device)
    student = Student(
        network,
        _masks(layers, forms),
        frozen=network.fixed,
        orders=_orders(layers, forms),
        tables=network.tables,
    ).to(device)
    task = tasks.of_model(found)
    kinds = {
        spec.name: kind_of(task, spec.shape)
        for spec in model.opened.signature.outputs
        if spec.dtype.kind == "f"
    }
    names = _label_names(found)
    examples, held = (
        [
            Example(item.arrays, _targets(task, sample, i, found, max_length, model, names))
            if lesson.labelled
            else Example(item.arrays, {})
            for i, (sample, item) in enumerate(zip(samples, items, strict=True), 1)
        ]
        for samples, items in (
            (lesson.samples, lesson.items), (lesson.held_samples, lesson.held_items),
        )
    )  # fmt: skip
    return _Course(
        network, student, _batches(examples, seed, pad), _batches(held, seed, pad), kinds
    )


def _begin(student: Student, layers: Sequence[Layer], start: Mapping[str, Compressed]) -> None:
    """Let a student be what one shot has made."""
    named = student.named_values()
    values: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}
    for layer in layers:
        if layer.name not in start or layer.name not in named:
            continue
        made = start[layer.name]
        values[layer.name] = made.weights
        if layer.bias in named:
            values[layer.bias] = made.bias
        mask = made.weights != 0
        if not bool(mask.all()):
            masks[layer.name] = mask.to(named[layer.name].device)
    student.prune(masks, values)


def _masks(layers: Sequence[Layer], forms: Mapping[str, Form]) -> dict[str, Tensor]:
    """Weights [N, K] that are not gone with a channel."""
    made = {}
    for layer in layers:
        rows, columns = forms[layer.name].places((layer.outputs, layer.inputs))
        mask = torch.zeros(layer.outputs, layer.inputs, dtype=torch.bool)
        mask[rows[:, None], columns] = True
        if not bool(mask.all()):
            made[layer.name] = mask
    return made


def _orders(layers: Sequence[Layer], forms: Mapping[str, Form]) -> dict[str, Tensor]:
    """Inputs [K] of layers of which some go, those that stay first: in the file these lie side by
    side, and so they do in blocks."""
    made = {}
    for layer in layers:
        keep = forms[layer.name].keep_inputs
        if keep is not None:
            stay = torch.zeros(layer.inputs, dtype=torch.bool)
            stay[list(keep)] = True
            made[layer.name] = (~stay).to(torch.uint8).argsort(stable=True)
    return made


def _share(layer: Layer, form: Form) -> float:
    """Share of all of a layer's blocks that goes with channels or alone; 0 where no block goes
    alone."""
    if form.sparsity <= 0:
        return 0.0
    rows, columns = form.places((layer.outputs, layer.inputs))
    left = len(rows) * -(-len(columns) // BLOCK) * (1 - form.sparsity)
    return 1 - left / (layer.outputs * -(-layer.inputs // BLOCK))


def _batches(examples: Sequence[Example], seed: int, pad: bool) -> Batches:
    exact = None if pad else sorted({example.length for example in examples})
    return Batches(examples, TOKENS, seed, exact)


def _label_names(found: Found) -> list[str]:
    known = found.files.config.get("id2label")
    if not isinstance(known, Mapping):
        return []
    return [str(known[key]) for key in sorted(known, key=lambda k: int(str(k)))]


def _targets(
    task: str, sample: Sample, number: int, found: Found, max_length: int, model: TorchModel,
    names: Sequence[str],
) -> Mapping[str, object]:  # fmt: skip
    if not names and task in ("text-classification", "token-classification"):
        raise InputError("training with labels needs their names: id2label in config.json")
    return targets(
        task, sample, f"text {number}", found.text, max_length, model.output_names, names
    )


def _learnt(
    model: TorchModel,
    network: ModelNetwork,
    trained: Trained,
    layers: Sequence[Layer],
    per_channel: bool,
) -> Learnt:
    places = {layer.weight: layer.place for layer in network.layers}
    parameters = {name: p.detach().cpu() for name, p in trained.parameters.items()}
    made: dict[str, Compressed] = {}
    taken: set[str] = set()
    for layer in layers:
        if layer.name not in parameters:
            continue
        rounding = trained.roundings[places[layer.name]]
        weights = parameters[layer.name]
        if rounding.factors is not None:
            weights = weights / rounding.factors
        scale = weight_scale(weights)[:, 0]
        if not per_channel:
            scale = scale.max()
        steps = (weights / scale.reshape(-1, 1)).round().clamp(-LIMIT, LIMIT)
        bias = parameters.get(layer.bias, model.weights[layer.bias].detach())
        made[layer.name] = Compressed(
            layer.name, steps.to(torch.int8), scale, bias,
            rounding.range, float("nan"), rounding.factors,
        )  # fmt: skip
        taken |= {layer.name, layer.bias}
    stored = network.stored(parameters)
    others = {
        name: value.contiguous()
        for name, value in stored.items()
        if name not in taken and not torch.equal(value, model.weights[name].detach())
    }
    return Learnt(made, others, trained.curve, trained.seconds, trained.steps)
