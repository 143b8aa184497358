"""The parts of a run on the nodes of a Ray cluster.

Ray Data reads parts in tasks and hands each to an actor, of which every node has one; the actor has
the model, which is put into the object store once.  What a node that dies was doing is done again
by another: parts are numbered, and are written whole by whoever has them.
"""

from __future__ import annotations

import contextlib
import logging
import math
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from sparsec.arguments import Speech, argument, speak, speech
from sparsec.errors import InputError, SparsecError
from sparsec.serving.bulk import fields as tasks
from sparsec.serving.bulk.encoding import Done, Encoded
from sparsec.serving.bulk.model_files import Packed
from sparsec.serving.bulk.output import Output
from sparsec.serving.bulk.parts import Part, Plan, Reader
from sparsec.serving.bulk.progress import Meter
from sparsec.serving.bulk.work import Work
from sparsec.serving.bulk.worker import (
    Worker,
    quick_switches,
    rare_collections,
    serial_tokenizers,
)
from sparsec.serving.pipelines import Pipeline

# CPUs of a node that its actor leaves to the tasks that read: without, none would ever run.
READING = 0.25


@dataclass(frozen=True)
class Nodes:
    """The actors of a cluster.

    Attributes:
        actors: how many.
        cpus: what each asks Ray for.
        cores: threads of each.
    """

    actors: int
    cpus: float
    cores: int

    @classmethod
    def of(cls, cpus: Sequence[float], num_cores: int | None = None) -> Nodes:
        """One for each node; several for nodes that are larger than the smallest.

        Args:
            cpus: of each node.
            num_cores: cores of an actor, where the caller says so.

        Raises:
            InputError: there is no CPU.
        """
        usable = [float(count) for count in cpus if count >= 1]
        if not usable:
            raise InputError("the Ray cluster has no node with a CPU")
        each = min(usable) if num_cores is None else float(num_cores)
        if each > max(usable):
            raise InputError(
                f"{argument('num_cores', num_cores)}: no node of the Ray cluster has so many"
            )
        actors = sum(int(count // each) for count in usable)
        return cls(actors, each - READING, math.ceil(each))


def run(
    address: str,
    work: Work,
    plan: Plan,
    pipeline: Pipeline,
    missing: Sequence[Part],
    out: Output,
    meter: Meter,
    num_cores: int | None,
    options: Mapping[str, Any],
) -> None:
    """Answer parts on a cluster.

    Args:
        address: of the cluster, as ``ray.init`` takes it.
        pipeline: as this machine has made it.
        missing: the parts that are to be answered.
        meter: told of parts that are done.
        num_cores: cores of each node; None: all.
        options: what the pipeline was made with.

    Raises:
        InputError: Ray is not installed, there is no such cluster, or a row is bad.
        SparsecError: a node cannot run the model.
    """
    ray = _ray(address)
    packed = ray.put(Packed.of(pipeline, options))
    nodes = Nodes.of([node["Resources"].get("CPU", 0) for node in _alive(ray)], num_cores)
    store = None if out.place.local else out
    answers = (
        ray.data.read_datasource(
            _source(plan, missing),
            override_num_blocks=max(1, len(missing)),
            num_cpus=READING,
        )
        .map_batches(
            _Actor,
            fn_constructor_args=(packed, work, nodes.cores, store, speech()),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=nodes.actors),
            num_cpus=nodes.cpus,
        )
        .iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=2)
    )
    rows = {part.number: part.rows for part in missing}
    for batch in answers if missing else ():
        for answer in batch.column("answer").to_pylist():
            number, part = pickle.loads(answer)
            if isinstance(part, SparsecError):
                raise part
            if store is None:
                out.store(number, part)
            meter.add(rows[number])


def _ray(address: str) -> Any:
    """Ray, connected.

    Raises:
        InputError: it is not installed, or there is no such cluster.
    """
    try:
        import ray
        import ray.data
    except ImportError as missing:
        raise InputError(
            f"running on a cluster needs {missing.name or 'ray'}, which is not installed: "
            f"pip install 'sparsec[ray]'"
        ) from None
    if not ray.is_initialized():
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(f"cannot reach the Ray cluster {address}: {error}") from error
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray


def _alive(ray: Any) -> Iterator[Mapping[str, Any]]:
    return (node for node in ray.nodes() if node["Alive"])


def _source(plan: Plan, missing: Sequence[Part]) -> Any:
    """The parts that are to be read, as Ray Data's source: a task each."""
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    # What only this module knows travels with the tasks: nodes need no more than sparsec.
    class Parts(Datasource):  # type: ignore[misc]
        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, parallelism: int, *given: Any, **named: Any) -> list[Any]:
            nothing = BlockMetadata(num_rows=1, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(_reading(plan, part), nothing) for part in missing]

    return Parts()


def _reading(plan: Plan, part: Part) -> Callable[[], list[pa.Table]]:
    sources, columns = plan.sources, plan.columns

    def read() -> list[pa.Table]:
        try:
            with Reader(sources, columns) as reader:
                found: Any = reader.read(part)
        except SparsecError as error:
            found = error
        return [_table("part", (part.number, found))]

    return read


def _table(name: str, value: Any) -> pa.Table:
    """A row with one object."""
    return pa.table({name: pa.array([pickle.dumps(value, protocol=5)], pa.large_binary())})


class _Actor:
    """Has the model, and answers parts.  What is wrong is an answer as well: doing it again would
    not help."""

    def __init__(
        self, packed: Any, work: Work, cores: int, store: Output | None, speech: Speech
    ) -> None:
        import ray

        speak(speech)
        self._work, self._store = work, store
        self._settings = contextlib.ExitStack()
        self._settings.enter_context(serial_tokenizers())
        self._settings.enter_context(quick_switches())
        self._settings.enter_context(rare_collections())
        self._wrong: SparsecError | None = None
        try:
            pipeline = ray.get(packed).make(1)
        except SparsecError as error:
            self._wrong = error
        else:
            self._worker = Worker(pipeline, tasks.of(pipeline), work.columns, cores)

    def __call__(self, batch: pa.Table) -> pa.Table:
        (part,) = batch.column("part").to_pylist()
        number, rows = pickle.loads(part)
        return _table("answer", (number, self._answer(number, rows)))

    def _answer(self, number: int, rows: Any) -> Encoded | SparsecError:
        if isinstance(rows, SparsecError) or self._wrong is not None:
            return self._wrong or rows
        try:
            found = self._work.encoded(self._worker.submit(rows))
            if self._store is None:
                return found
            self._store.store(number, found)
        except SparsecError as error:
            return error
        return Encoded(b"", b"", Done(0, 0, 0))
