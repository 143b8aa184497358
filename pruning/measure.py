"""Milliseconds of models at the lengths of the texts, measured in turns."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from sparsec.pruning.blocks import BLOCK
from sparsec.pruning.evaluation import tasks, timing
from sparsec.pruning.evaluation.models import Contender, Found, Progress, find
from sparsec.pruning.evaluation.parts import Latency
from sparsec.pruning.evaluation.texts import Sample
from sparsec.pruning.layers import Layer
from sparsec.pruning.oneshot import Compressed, plain_form
from sparsec.pruning.ranges import Range

_ANY_RANGE = Range(0.05, 128, 0, 255, 0.0)


def sketch(layer: Layer, stored: Tensor, sparsity: float) -> Compressed:
    """A layer as it will be as far as time goes: the same share of blocks pruned, the smallest."""
    weights = plain_form(layer, stored.detach()).float()
    rows, width = weights.shape
    padded = torch.nn.functional.pad(weights, (0, -width % BLOCK)).reshape(rows, -1, BLOCK)
    size = padded.square().sum(-1).flatten()
    gone = size.argsort(stable=True)[: round(sparsity * size.numel())]
    keep = torch.ones_like(size, dtype=torch.bool)
    keep[gone] = False
    mask = keep.view(rows, -1).repeat_interleave(BLOCK, dim=1)[:, :width]
    scale = weights.abs().amax(1).clamp_min(1e-8) / 127
    steps = (weights / scale[:, None]).round().clamp(-127, 127)
    # No block that is kept may round to nothing.
    steps = torch.where((steps == 0) & mask, torch.ones_like(steps), steps) * mask
    return Compressed(
        layer.name, steps.to(torch.int8), scale, torch.zeros(rows), _ANY_RANGE, float("nan")
    )


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
