"""Milliseconds of models at the lengths of the texts, measured in turns."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from sparsec.pruning.blocks import BLOCK, expand
from sparsec.pruning.evaluation import tasks, timing
from sparsec.pruning.evaluation.models import Contender, Found, Progress, find
from sparsec.pruning.evaluation.parts import Latency
from sparsec.pruning.evaluation.texts import Sample
from sparsec.pruning.layers import Layer
from sparsec.pruning.oneshot import Compressed, Form, plain_form
from sparsec.pruning.ranges import Range
from sparsec.pruning.splitting import best_blocks

_ANY_RANGE = Range(0.05, 128, 0, 255, 0.0)


def sketch(layer: Layer, stored: Tensor, form: Form) -> Compressed:
    """A layer as it will be as far as time goes: the same channels and the same share of blocks
    gone, the smallest."""
    weights = plain_form(layer, stored.detach()).float()
    rows, columns = form.places(weights.shape)
    left = weights[rows[:, None], columns]
    keep = best_blocks(pad(left, (0, -left.shape[1] % BLOCK)), form.sparsity, BLOCK, "layer")
    mask = torch.zeros_like(weights, dtype=torch.bool)
    mask[rows[:, None], columns] = expand(keep, BLOCK, left.shape[1])
    scale = weights.abs().amax(1).clamp_min(1e-8) / 127
    steps = (weights / scale[:, None]).round().clamp(-127, 127)
    # No block that is kept may round to nothing.
    steps = torch.where((steps == 0) & mask, torch.ones_like(steps), steps) * mask
    return Compressed(
        layer.name, steps.to(torch.int8), scale, torch.zeros(len(weights)), _ANY_RANGE,
        float("nan"),
    )  # fmt: skip


def measure(
    folders: Sequence[Path],
    reference: Found,
    samples: Sequence[Sample],
    lengths: Sequence[int],
    longest: int,
    *,
    threads: int | None,
    seconds: float,
    progress: Progress | None = None,
) -> tuple[Latency, ...]:
    """Latencies of compiled models, on texts of all lengths, one at a time.

    Args:
        folders: with ``model.onnx``; each is compiled for this machine.
        reference: whose tokenizer and configuration they have.
        samples: texts.
        lengths: their tokens.
        longest: tokens after which they are cut.
        threads: None: all usable cores.
        seconds: how long to measure.
    """
    name = tasks.of_model(reference)
    task = tasks.make(name, None, 0)
    options = task.options(reference, samples)
    with ExitStack() as stack:
        models = []
        for folder in folders:
            found = find(str(folder), "sparsec", reference.files.tokenizer, reference, progress)
            models.append(
                stack.enter_context(
                    Contender(found, task.pipeline, options, lengths, longest, threads, progress)
                )
            )
        kept = list(task.settle(models[0], models[0], samples))
        jobs = [task.prepare(models[0], sample).items[0] for sample in kept]
        tokens = [item.length for item in jobs]
        once = _once(models, jobs)
        chosen = timing.choose(tokens, seconds, once)
        sides = [
            [lambda model=model, item=jobs[i]: model.run([item]) for i in chosen]
            for model in models
        ]
        return timing.measure(sides, [tokens[i] for i in chosen], seconds)


def _once(models: Sequence[Contender], jobs: Sequence[object]) -> float:
    """Seconds that a text takes in all models together, about; they are warm then."""
    import time

    few = list(jobs)[:: max(1, len(jobs) // 8)]
    for _ in range(2):
        start = time.perf_counter()
        for model in models:
            for item in few:
                model.run([item])  # type: ignore[list-item]
        took = time.perf_counter() - start
    return took / len(few)
