"""Rows of a part answered: batches of rows of like length, each tokenized, run and finished by one
thread, as many at once as there are cores."""

from __future__ import annotations

import contextlib
import gc
import itertools
import operator
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import pyarrow as pa

from sparsec.errors import InputError, NonFiniteError
from sparsec.serving.bulk.fields import Answers, Fields, Row, joined, ordered
from sparsec.serving.bulk.rows import Rows
from sparsec.serving.pipelines import Pipeline

# Characters, and rows, of a batch: enough for full blocks of rows, and little memory.
BATCH_CHARACTERS = 1 << 14
BATCH_ROWS = 256


@dataclass(frozen=True)
class Bad:
    """A row without an answer, and why."""

    index: int
    error: InputError | NonFiniteError


@dataclass
class Answered:
    """Rows of a part and what they are answered.

    Attributes:
        rows: the rows.
        good: indices of those that have an answer, in order.
        columns: the answers, one for each of `good`.
        bad: the others, in order.
        cut: texts that were cut.
    """

    rows: Rows
    good: list[int] = field(default_factory=list)
    columns: Answers = field(default_factory=dict)
    bad: list[Bad] = field(default_factory=list)
    cut: int = 0


@dataclass(frozen=True)
class _Batch:
    indices: Sequence[int]
    columns: Answers
    bad: Sequence[Bad]
    cut: int


class Worker:
    """Answers rows.  A context manager.

    Args:
        pipeline: made for one core: each call takes one, and there are `cores` calls at a time.
        fields: what the task reads and adds.
        columns: the column of each field that is read.
        cores: calls that run at once.
        done: called with the number of rows of each batch that is done.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        fields: Fields,
        columns: Mapping[str, str],
        cores: int,
        done: Callable[[int], None] = lambda rows: None,
    ) -> None:
        self._pipeline = pipeline
        pipeline.arrays = True
        self._fields = fields
        self._columns = dict(columns)
        self._together = fields.together and not set(fields.apart) & set(columns)
        self._done = done
        # One more than may run the model: it has the next batch ready when a core is free.
        self._pool = ThreadPoolExecutor(cores + 1, "answering")
        self._running = threading.Semaphore(cores)

    def submit(self, rows: Rows) -> Pending:
        """Begin to answer rows."""
        broken = rows.broken()
        bad = [Bad(i, InputError(why.why)) for i, why in broken.items()]
        values = {name: rows.column(column) for name, column in self._columns.items()}
        names = list(values)
        lengths = [0] * len(rows)
        for column in values.values():
            lengths = list(map(operator.add, lengths, map(_length, column)))
        whole = (i for i in range(len(rows)) if i not in broken)
        order = sorted(whole, key=lengths.__getitem__, reverse=True)
        self._done(len(bad))
        futures = []
        for batch in _batches(order, lengths):
            taken = [{name: values[name][i] for name in names} for i in batch]
            futures.append(self._pool.submit(self._run, batch, taken))
        return Pending(rows, bad, futures)

    def _run(self, indices: Sequence[int], rows: Sequence[Row]) -> _Batch:
        found = self._answer(indices, rows)
        self._done(len(indices))
        return found

    def _answer(self, indices: Sequence[int], rows: Sequence[Row]) -> _Batch:
        """Answers of rows; where one is bad, of each half."""
        try:
            return self._answer_all(indices, rows)
        except (InputError, NonFiniteError) as error:
            if len(rows) == 1:
                # Places within a batch mean nothing outside.
                said = type(error)(str(error).replace(".0: ", ": ", 1))
                return _Batch((), {}, (Bad(indices[0], said),), 0)
        half = len(rows) // 2
        one = self._answer(indices[:half], rows[:half])
        two = self._answer(indices[half:], rows[half:])
        return _Batch(
            (*one.indices, *two.indices),
            _all([one.columns, two.columns]),
            (*one.bad, *two.bad),
            one.cut + two.cut,
        )

    def _answer_all(self, indices: Sequence[int], rows: Sequence[Row]) -> _Batch:
        pipeline, fields = self._pipeline, self._fields
        self._check(rows)
        groups = [rows] if self._together else [[row] for row in rows]
        jobs = [pipeline.prepare(pipeline.validate(fields.request(group))) for group in groups]
        items = [item for job in jobs for item in job.items]
        with self._running:
            outputs = pipeline.runner.infer(items)
        predictions = pipeline.conclude(jobs, outputs)
        found = [
            fields.answers(pipeline, prediction, group)
            for prediction, group in zip(predictions, groups, strict=True)
        ]
        return _Batch(indices, _all(found), (), sum(job.cut for job in jobs))

    def _check(self, rows: Sequence[Row]) -> None:
        if all(type(value) is str for row in rows for value in row.values()):
            return
        for name, value in itertools.chain.from_iterable(row.items() for row in rows):
            if value is None and name in self._fields.needed:
                raise InputError(f"{self._columns[name]} is empty")
            if self._fields.texts and not isinstance(value, (str, list)):
                raise InputError(f"{self._columns[name]} is {value!r:.80}: a text is needed")

    def close(self) -> None:
        """Stop after the batches that run."""
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@dataclass(frozen=True)
class Pending:
    """Rows that are being answered."""

    rows: Rows
    broken: Sequence[Bad]
    futures: Sequence[Future[_Batch]]

    def wait(self) -> None:
        """Wait until all is answered; errors are for :meth:`result`."""
        settle(self.futures)

    def result(self) -> Answered:
        """Wait, and put everything in the rows' order."""
        found = Answered(self.rows, bad=list(self.broken))
        batches = [future.result() for future in self.futures]
        for batch in batches:
            found.bad += batch.bad
            found.cut += batch.cut
        found.bad.sort(key=lambda bad: bad.index)
        indices = [index for batch in batches for index in batch.indices]
        order = sorted(range(len(indices)), key=indices.__getitem__)
        found.good = [indices[place] for place in order]
        some = [batch.columns for batch in batches if batch.columns]
        for name in some[0] if some else ():
            found.columns[name] = ordered([columns[name] for columns in some], order)
        return found


def _all(parts: Sequence[Answers]) -> Answers:
    """Columns of parts, those without rows left out, one after the other."""
    some = [part for part in parts if part]
    return {name: joined([part[name] for part in some]) for name in some[0]} if some else {}


def settle(futures: Sequence[Future[Any]]) -> None:
    """Wait until all are done.

    A signal may come meanwhile and raise.  In the waits of `concurrent.futures` that can release a
    lock which a worker holds, and the worker ends in a traceback; the queue here is all in C.
    """
    done: SimpleQueue[Future[Any]] = SimpleQueue()
    for future in futures:
        future.add_done_callback(done.put)
    for _ in futures:
        done.get()


def _length(value: Any) -> int:
    """Characters of a text, or of those in a list."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, (list, tuple)):
        return sum(len(part) + 1 for part in value if isinstance(part, str))
    return 0


def _batches(order: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Rows in batches, the longest first."""
    batch: list[int] = []
    room = 0
    for i in order:
        if batch and (len(batch) == BATCH_ROWS or room < lengths[i]):
            yield batch
            batch = []
        if not batch:
            room = BATCH_CHARACTERS
        batch.append(i)
        room -= max(lengths[i], 1)
    if batch:
        yield batch


@contextlib.contextmanager
def serial_tokenizers() -> Iterator[None]:
    """Keep the tokenizer from starting threads of its own: batches run in parallel already."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextlib.contextmanager
def quick_switches() -> Iterator[None]:
    """Let a thread that waits for Python's lock have it soon: one that comes back from the model
    would keep its core idle for the usual 5 ms while another one tokenizes."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, 0.0005))
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@contextlib.contextmanager
def rare_collections() -> Iterator[None]:
    """Look for cycles of objects after 100,000 new ones, not after 700: rows come and go by the
    thousand, and none of them is in a cycle."""
    before = gc.get_threshold()
    if before[0]:
        gc.set_threshold(max(before[0], 100_000), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextlib.contextmanager
def system_memory() -> Iterator[None]:
    """Let Arrow take memory where numpy does: its own pool gives what a part has used back to the
    system, which clears it for the next one."""
    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(before)
