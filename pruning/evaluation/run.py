"""``sparsec.evaluate``: two models, some texts, what differs and what it buys."""

from __future__ import annotations

import datetime
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from sparsec import __version__
from sparsec.arguments import argument, whole
from sparsec.errors import InputError
from sparsec.pruning.evaluation import tasks, timing
from sparsec.pruning.evaluation.models import (
    USUAL_LENGTH,
    Contender,
    Found,
    Progress,
    count_tokens,
    find,
)
from sparsec.pruning.evaluation.parts import Example, Latency, Model, Texts
from sparsec.pruning.evaluation.result import Evaluation
from sparsec.pruning.evaluation.task import Findings, Task
from sparsec.pruning.evaluation.texts import WANTED, Fields, Sample, read
from sparsec.runtime import cpu
from sparsec.serving.pipelines.base import ENGINES
from sparsec.serving.runner import Features, nonfinite

EXAMPLES = 10
"""Texts that are shown, those on which the models agree least."""

SECONDS = 5.0

_ENGINES = {"deepsparse": "sparsec", "ort": "onnxruntime"}

_SAME = 0.99
"""Agreement from which on a text is no example of a difference."""


def evaluate(
    candidate: str | os.PathLike[str],
    *,
    against: str | os.PathLike[str],
    texts: str | os.PathLike[str] | Sequence[Any],
    labels: str | os.PathLike[str] | Sequence[Any] | None = None,
    task: str | None = None,
    engine: str = "sparsec",
    reference_engine: str = "sparsec",
    tokenizer: str | os.PathLike[str] | None = None,
    text_field: str | Sequence[str] | None = None,
    label_field: str | None = None,
    pooling: str | None = None,
    max_length: int | None = None,
    limit: int | None = None,
    num_cores: int | None = None,
    seconds: float = SECONDS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Compare a model with the one that it is to replace.

    Args:
        candidate, against: the two models, each a folder with ``model.onnx`` and a tokenizer, an
            .onnx file beside its tokenizer, an artifact, or ``hf:org/name``.  A candidate without
            tokenizer or configuration has the reference's.
        texts: a file of lines, JSON lines or Parquet (``-``: standard input), or a list of texts,
            pairs, and mappings as in JSON lines.
        labels: a file with a label for each text, or a list; None: the texts' own, if they have
            any.
        task: one of ``embeddings``, ``text-classification``, ``multi-label-classification``,
            ``regression``, ``token-classification``, ``question-answering``, ``fill-mask``,
            ``outputs``, or another name of these; None: the reference's config.json says it, or
            its outputs do.
        engine, reference_engine: ``sparsec`` or ``onnxruntime``.
        tokenizer: both models' ``tokenizer.json`` or its folder, if not beside them.
        text_field, label_field: fields to read of JSON lines and Parquet, two text fields for
            pairs; None: the usual names.
        pooling: of embeddings, ``mean``, ``cls`` or ``max``; None: what the model's folder says,
            else ``mean``.
        max_length: tokens after which texts are cut; None: what both models take, at most 512
            where neither says.
        limit: texts to read at most.
        num_cores: threads; None: all usable cores.
        seconds: how long to measure latency, about; 0: not at all.
        seed: of everything that is drawn at random.
        progress: called with lines of progress; None: one line when something is compiled.

    Raises:
        InputError: an argument is wrong, there are no texts, labels or outputs do not fit, or a
            package is not installed.
        ModelError: a model is missing or damaged.  Besides, what compiling and loading raise.
    """
    _need_packages()
    settings = _Settings(
        task=None if task is None else tasks.named(task),
        engines=(_engine("engine", engine), _engine("reference_engine", reference_engine)),
        pooling=pooling,
        max_length=None if max_length is None else whole("max_length", max_length, 4),
        num_cores=None if num_cores is None else whole("num_cores", num_cores, 1),
        seconds=_seconds(seconds),
        seed=whole("seed", seed, 0),
        progress=progress,
    )
    fields = (text_field,) if isinstance(text_field, str) else text_field
    names = Fields(None if fields is None else tuple(fields), label_field)
    samples = read(texts, labels, names, None if limit is None else whole("limit", limit, 1))
    given = None if tokenizer is None else os.fspath(tokenizer)
    reference = find(os.fspath(against), settings.engines[1], given, progress=progress)
    other = find(os.fspath(candidate), settings.engines[0], given, reference, progress)
    source = "texts" if not isinstance(texts, (str, os.PathLike)) else os.fspath(texts)
    return _run(other, reference, samples, source, settings)


@dataclass(frozen=True)
class _Settings:
    """Arguments of :func:`evaluate`, checked; engines are the candidate's and the reference's."""

    task: str | None
    engines: tuple[str, str]
    pooling: str | None
    max_length: int | None
    num_cores: int | None
    seconds: float
    seed: int
    progress: Progress | None

    def tell(self, line: str) -> None:
        if self.progress is not None:
            self.progress(line)


def _need_packages() -> None:
    missing = [name for name in ("scipy", "sklearn") if find_spec(name) is None]
    if missing:
        raise InputError(
            f"evaluation needs {', '.join(missing)}, which is not installed: "
            f"pip install 'sparsec[evaluate]'"
        )


def _engine(name: str, value: str) -> str:
    engine = _ENGINES.get(str(value).lower(), str(value).lower())
    if engine not in ENGINES:
        raise InputError(f"{argument(name)} must be one of {', '.join(ENGINES)}, not {value!r}")
    return engine


def _seconds(value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise InputError(f"{argument('seconds')} must be a number of at least 0, not {value!r}")
    return float(value)


def _run(
    candidate: Found,
    reference: Found,
    samples: Sequence[Sample],
    source: str,
    settings: _Settings,
) -> Evaluation:
    name = settings.task or tasks.of_model(reference)
    task = tasks.make(name, settings.pooling, settings.seed)
    lengths = count_tokens(reference.text, samples)
    longest = _max_length(candidate, reference, settings.max_length, max(lengths))
    options = task.options(reference, samples)
    warnings = []
    if len(samples) < WANTED:
        warnings.append(
            f"{len(samples)} texts are few: figures vary by chance; {WANTED} or more are wanted"
        )
    with ExitStack() as stack:
        models = [
            stack.enter_context(
                Contender(
                    found, task.pipeline, options, lengths, longest, settings.num_cores,
                    settings.progress,
                )
            )
            for found in (reference, candidate)
        ]  # fmt: skip
        shortest = min(model.max_length for model in models)
        for model in models:
            model.max_length = model.pipeline.max_length = shortest
        kept = task.settle(models[0], models[1], samples)
        if len(kept) < len(samples):
            warnings.append(f"{len(samples) - len(kept)} texts are left out: they have no gap")
        answers = _answers(task, models, kept, settings)
        latencies: Sequence[Latency | None] = (None, None)
        if settings.seconds > 0:
            latencies = measured = _latencies(models, answers, settings)
            warnings += filter(None, [timing.disturbed(measured)])
        found = _compare(task, kept, answers)
        described = [
            Model(
                path=model.found.path,
                engine=model.found.engine,
                file_bytes=model.found.file_bytes,
                artifact_bytes=model.artifact_bytes,
                buckets=model.buckets,
                latency=latency,
                scores=dict(scores),
                nonfinite=sum(bool(wrong) for wrong in said),
            )
            for model, latency, scores, said in zip(
                models, latencies, found.scores, answers.wrong, strict=True
            )
        ]
    for who, said in zip(("reference", "candidate"), answers.wrong, strict=True):
        if any(said):
            first = next(filter(None, said))
            warnings.append(
                f"the {who} gives NaN or infinity for {sum(map(bool, said))} of {len(kept)} texts, "
                f"which are left out of all figures; the first: {first}"
            )
    longer = sum(length > shortest for length in lengths)
    return Evaluation(
        task=name,
        agreement=found.agreement,
        candidate=described[1],
        reference=described[0],
        texts=Texts(
            source=source,
            count=len(kept),
            labelled=bool(found.scores[0]),
            max_length=shortest,
            longer=longer,
            shortest=min(lengths),
            median=int(np.median(lengths)),
            longest=max(lengths),
        ),
        per_text=tuple(answers.spread(found.per_text)),
        examples=_examples(kept, answers, found),
        plots=tuple(found.plots),
        warnings=(*warnings, *found.warnings),
        machine=_machine(settings.num_cores),
        versions=_versions(settings.engines),
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


def _max_length(candidate: Found, reference: Found, given: int | None, longest: int) -> int:
    """Tokens after which texts are cut.

    Raises:
        InputError: a model does not take as many as are asked for.
    """
    limits = [found.longest for found in (candidate, reference) if found.longest is not None]
    most = min(limits, default=None)
    if given is not None:
        if most is not None and given > most:
            raise InputError(
                f"{argument('max_length', given)} is too long: the models take {most} tokens"
            )
        return given
    return most if most is not None else min(USUAL_LENGTH, max(longest, 16))


@dataclass(frozen=True)
class _Answers:
    """What both models say.

    Attributes:
        rows: what is kept of the two answers to each text; None where one is no number.
        wrong: of each model and text, what is no number in its outputs; empty if all are.
        items: of each model and text, the first sequence.
        seconds: of the reference and the candidate together, for a text's first sequence.
    """

    rows: list[Any]
    wrong: tuple[list[str], list[str]]
    items: tuple[list[Features], list[Features]]
    seconds: float

    @property
    def finite(self) -> list[int]:
        """Texts for which both models give numbers."""
        return [i for i, row in enumerate(self.rows) if row is not None]

    def spread(self, values: Sequence[float]) -> list[float]:
        """Values of the finite texts as values of all."""
        found = [math.nan] * len(self.rows)
        for i, value in zip(self.finite, values, strict=True):
            found[i] = value
        return found


def _answers(
    task: Task[Any, Any],
    models: Sequence[Contender],
    samples: Sequence[Sample],
    settings: _Settings,
) -> _Answers:
    answers = _Answers([], ([], []), ([], []), 0.0)
    step = max(1, len(samples) // 10)
    took = []
    for number, sample in enumerate(samples):
        if number % step == 0:
            settings.tell(f"{number} of {len(samples)} texts compared")
        found = []
        sequences, start = 0, time.perf_counter()
        for model, items, wrong in zip(models, answers.items, answers.wrong, strict=True):
            job = task.prepare(model, sample)
            outputs = model.run(job.items)
            items.append(job.items[0])
            sequences += len(job.items)
            said = nonfinite(outputs, model.pipeline.reads)
            wrong.append(said)
            if not said:
                found.append(task.read(model, sample, job, outputs))
        took.append(2 * (time.perf_counter() - start) / sequences)
        answers.rows.append(task.pair(sample, *found) if len(found) == 2 else None)
    return _Answers(answers.rows, answers.wrong, answers.items, float(np.median(took)))


def _latencies(
    models: Sequence[Contender], answers: _Answers, settings: _Settings
) -> tuple[Latency, ...]:
    tokens = [item.length for item in answers.items[0]]
    chosen = timing.choose(tokens, settings.seconds, answers.seconds)
    settings.tell(f"measuring {len(chosen)} texts")
    sides = [
        [lambda model=model, item=items[i]: model.run([item]) for i in chosen]
        for model, items in zip(models, answers.items, strict=True)
    ]
    return timing.measure(sides, [tokens[i] for i in chosen], settings.seconds)


def _compare(task: Task[Any, Any], samples: Sequence[Sample], answers: _Answers) -> Findings:
    finite = answers.finite
    if not finite:
        # Nothing to compare: every figure is no number.
        return Findings(dict.fromkeys(task.agreement, math.nan), [], [])
    return task.compare([samples[i] for i in finite], [answers.rows[i] for i in finite])


def _examples(samples: Sequence[Sample], answers: _Answers, found: Findings) -> tuple[Example, ...]:
    """The texts of least agreement, each once."""
    order = np.argsort(np.asarray(found.per_text), kind="stable")
    made: dict[str, Example] = {}
    for k in order:
        agreement = float(found.per_text[k])
        if agreement >= _SAME or len(made) == EXAMPLES:
            break
        said = found.said[k]
        sample = samples[answers.finite[k]]
        both = sample.text if sample.pair is None else f"{sample.text} — {sample.pair}"
        text = said.text or both
        made.setdefault(text, Example(text, said.reference, said.candidate, said.label, agreement))
    return tuple(made.values())


def _machine(num_cores: int | None) -> str:
    info = cpu.detect()
    cores = min(num_cores or info.cores, info.cores)
    return f"{info.brand or info.arch}, {cores} core{'s' if cores > 1 else ''}"


def _versions(engines: Sequence[str]) -> Mapping[str, str]:
    found = {"sparsec": __version__}
    if "onnxruntime" in engines:
        import onnxruntime

        found["onnxruntime"] = onnxruntime.__version__
    return found
