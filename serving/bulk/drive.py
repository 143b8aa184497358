"""`sparsec.run`: files of texts in, the same rows with answers out."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

import sparsec
from sparsec.arguments import argument, whole
from sparsec.errors import InputError
from sparsec.runtime import cpu
from sparsec.serving.bulk import fields as tasks
from sparsec.serving.bulk import files, parts
from sparsec.serving.bulk.encoding import Schema, collision
from sparsec.serving.bulk.files import Location
from sparsec.serving.bulk.output import Output, describe
from sparsec.serving.bulk.parts import Part, Plan, Reader
from sparsec.serving.bulk.progress import Meter, Progress, duration, speed
from sparsec.serving.bulk.work import Work
from sparsec.serving.bulk.worker import (
    Pending,
    Worker,
    quick_switches,
    rare_collections,
    serial_tokenizers,
    settle,
    system_memory,
)
from sparsec.serving.defaults import guess_task
from sparsec.serving.models import ModelFiles
from sparsec.serving.pipelines import Pipeline

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

# Sequences that run together: what the layers of an ONNX model are cut for.
BATCH = 32

# Parts that are read ahead, so that no core waits for the last batches of a part, and parts that
# are being written.
_AHEAD = 2
_WRITING = 2


@dataclass(frozen=True)
class RunSummary:
    """What a run has done.

    Attributes:
        output: where the answers are.
        rows: rows with an answer.
        bad: rows without, which are in the file for bad rows.
        truncated: texts that were cut.
        resumed: rows that were done before this run.
        seconds: what this run took, without finding and compiling the model.
    """

    output: str
    rows: int
    bad: int
    truncated: int
    resumed: int
    seconds: float

    def __str__(self) -> str:
        new = self.rows + self.bad - self.resumed
        details = [f"{self.bad:,} bad"] if self.bad else []
        details += [f"{self.truncated:,} texts cut"] if self.truncated else []
        details += [f"{self.resumed:,} done before"] if self.resumed else []
        inside = f" ({', '.join(details)})" if details else ""
        rate = f", {speed(new / self.seconds)}" if new and self.seconds else ""
        return f"{self.output}: {self.rows:,} rows{inside} in {duration(self.seconds)}{rate}"


def run(
    inputs: Paths,
    output: str | os.PathLike[str],
    *,
    task: str | type[Pipeline] | None = None,
    model: str | os.PathLike[str] | None = None,
    columns: str | Mapping[str, str] | None = None,
    prefix: str = "",
    input_format: str | None = None,
    output_format: str | None = None,
    delimiter: str | None = None,
    bad_rows: str | os.PathLike[str] | None = None,
    part_rows: int | None = None,
    num_cores: int | None = None,
    ray: str | None = None,
    force: bool = False,
    progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> RunSummary:
    """Answer every row of files and write the rows, with the answers as further columns, in the
    order of the inputs.

    Rows are answered in parts, each of which is written whole or not at all: after any end of the
    process the same call goes on with the first part that is missing.

    Args:
        inputs: files of Parquet, CSV, JSON lines or plain text (a text a line), folders of such,
            and patterns as ``data/*.parquet``; paths, or URLs that fsspec knows.
        output: a file, by its name's end (``.parquet``, ``.csv``, ``.jsonl``), else a folder of
            parts; a path or URL.
        task: as for :meth:`Pipeline.create`; None: what the model's files say.
        model: the `model_path` of :meth:`Pipeline.create`; None: the task's own, of the package
            ``sparsec-models``.
        columns: the column that has the text, or columns by what the task calls them, such as
            ``{"question": "q", "context": "passage"}``; by default ``text``, of question answering
            ``question`` and ``context``, of rerank ``query`` and ``documents``.
        prefix: what the names of the answer's columns begin with.
        input_format: ``parquet``, ``csv``, ``jsonl`` or ``text``; None: by the names' ends.
        output_format: ``parquet``, ``csv`` or ``jsonl``; None: by the name's end, else as the
            input.
        delimiter: of CSV; None: a comma, a tab in ``.tsv``.
        bad_rows: a file of JSON lines for rows that cannot be answered; None: the first one is an
            error.
        part_rows: rows of a part; None: 16384, 4096 where answers are vectors, fewer where rows
            are large.
        num_cores: cores to use, of each node with `ray`; None: all usable ones.
        ray: address of a Ray cluster whose nodes do the work, such as ``auto``, or ``local``.
        force: replace what is at `output`.
        progress: called twice a second with how far the run is.
        options: further arguments of :meth:`Pipeline.create`.

    Raises:
        InputError: an argument is wrong, a file cannot be read or written, or a row is bad.
        TooLongError: a text has too many tokens, and neither `truncate` nor `bad_rows` is given.
        NonFiniteError: the same of numbers, with ``on_nonfinite="error"``.
        ModelError: as for :meth:`Pipeline.create`.
    """
    sources = files.find(_names(inputs), _checked(input_format, files.FORMATS), delimiter)
    place, kind, single = describe(os.fspath(output), output_format, sources[0].kind)
    side = None if bad_rows is None else Location.of(os.fspath(bad_rows))
    for written in (place, side):
        if written is not None and written.path in [source.place.path for source in sources]:
            raise InputError(f"{written.name} is one of the inputs: choose another output")
    if part_rows is not None:
        part_rows = whole("part_rows", part_rows, 1)
    if task is None:
        task = _guessed(model, options)
    # A call on each core, instead of calls that all cores share: no core waits for another.
    cores = cpu.usable_cores()[0] if num_cores is None else whole("num_cores", num_cores, 1)
    options = {"batch_size": BATCH, **options}
    with (
        serial_tokenizers(),
        quick_switches(),
        rare_collections(),
        system_memory(),
        Pipeline.create(task, model, num_cores=1, **options) as pipeline,
    ):
        started = time.monotonic()
        fields = tasks.of(pipeline)
        wanted = tasks.columns(fields, pipeline.task, _by_field(columns), None)
        texts = set(wanted.values()) if fields.texts else ()
        plan = parts.plan(sources, part_rows or fields.part_rows, kind, texts)
        # Of JSON lines only what is there is known: of no rows nothing.
        known = plan.columns is not None and (plan.rows or sources[0].kind != "jsonl")
        there = set(plan.columns.names) if plan.columns is not None and known else None
        read = tasks.columns(fields, pipeline.task, _by_field(columns), there)
        answers = pa.schema([
            (prefix + name, kind) for name, kind in fields.types(pipeline, set(read)).items()
        ])  # fmt: skip
        if there and (both := there & set(answers.names)):
            raise collision(both)
        schema = Schema(kind, plan.columns, answers, single)
        settings = _settings(pipeline, plan, read, schema, part_rows, options)
        work = Work(sources, read, schema, prefix, side is not None)
        out = Output(place, schema, settings, side, force)
        try:
            before = out.done()
            missing = [part for part in plan.parts if part.number not in before]
            resumed = sum(part.rows for part in plan.parts if part.number in before)
            with Meter(plan.rows, resumed, progress) as meter:
                if ray is None:
                    with (
                        Worker(pipeline, fields, read, cores, meter.add) as worker,
                        Reader(sources, plan.columns) as reader,
                    ):
                        _here(work, worker, reader, missing, out)
                else:
                    from sparsec.serving.bulk import cluster

                    cluster.run(ray, work, plan, pipeline, missing, out, meter, num_cores, options)
            found = out.done()
            if len(found) < len(plan.parts):
                raise InputError(
                    f"{place.name}: parts are missing that were written: does something else write "
                    f"there? Repeat the command to go on"
                )
            out.finish(found)
            done = list(found.values())
        finally:
            out.close()
    return RunSummary(
        place.name,
        sum(part.rows for part in done),
        sum(part.bad for part in done),
        sum(part.cut for part in done),
        resumed,
        time.monotonic() - started,
    )


def _here(work: Work, worker: Worker, reader: Reader, missing: Sequence[Part], out: Output) -> None:
    """Answer parts on this machine: some are read and answered while others are written."""
    answering: deque[tuple[Part, Pending]] = deque()
    writing: deque[Future[None]] = deque()

    def write(part: Part, pending: Pending) -> None:
        out.store(part.number, work.encoded(pending))

    def keep_up(room: int) -> None:
        """Wait until no more than `room` parts are being written."""
        while len(writing) > room:
            settle([writing[0]])
            writing.popleft().result()

    def pass_on(room: int) -> None:
        """Have parts written until no more than `room` are answered."""
        while len(answering) > room:
            part, pending = answering.popleft()
            pending.wait()
            writing.append(writer.submit(write, part, pending))
            keep_up(_WRITING)

    writer = ThreadPoolExecutor(1, "writing")
    try:
        for part in missing:
            answering.append((part, worker.submit(reader.read(part))))
            pass_on(_AHEAD)
        pass_on(0)
        keep_up(0)
    finally:
        writer.shutdown(cancel_futures=True)


def _guessed(model: str | os.PathLike[str] | None, options: Mapping[str, Any]) -> str:
    """The task that a model's files say it is for."""
    if model is None:
        raise InputError(
            f"say what answers: a model ({argument('model')}), or a task that has one of its own "
            f"({argument('task')})"
        )
    places = {name: options.get(name) for name in ("tokenizer", "config", "zoo_dir")}
    return guess_task(ModelFiles.find(model, **places))[0]


def _names(inputs: Paths) -> list[str]:
    given = [inputs] if isinstance(inputs, (str, os.PathLike)) else inputs
    return [os.fspath(name) for name in given]


def _checked(kind: str | None, known: Sequence[str]) -> str | None:
    if kind is not None and kind not in known:
        raise InputError(f"a format must be one of {', '.join(known)}, not {kind!r}")
    return kind


def _by_field(columns: str | Mapping[str, str] | None) -> Mapping[str, str]:
    if columns is None:
        return {}
    return {"": columns} if isinstance(columns, str) else columns


def _settings(
    pipeline: Pipeline,
    plan: Plan,
    columns: Mapping[str, str],
    schema: Schema,
    part_rows: int | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """All that the output's rows depend on, as JSON values."""
    return {
        "sparsec": sparsec.__version__,
        "task": pipeline.task,
        "model": pipeline.model.digest(),
        "options": {name: repr(value) for name, value in options.items()},
        "inputs": [source.stamp() for source in plan.sources],
        "parts": len(plan.parts),
        "part_rows": part_rows,
        "columns": dict(columns),
        "format": schema.kind,
        "answers": schema.answers.names,
    }
