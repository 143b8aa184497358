"""One request's way through an endpoint: check, tokenize, wait for the model, answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel

from sparsec.errors import NonFiniteError
from sparsec.serving.pipelines.base import Job, Pipeline
from sparsec.serving.runner import Features, Outputs
from sparsec.serving.server.batching import QueueFullError, Timing
from sparsec.serving.server.config import Limits
from sparsec.serving.server.errors import HttpError
from sparsec.serving.server.registry import Endpoint
from sparsec.serving.server.tracing import tracing

logger = logging.getLogger("sparsec.server")

T = TypeVar("T")

# The header of a response for which texts were cut: how many.
TRUNCATED = "x-truncated-texts"

# Texts of more characters, and predictions on more tokens, are worth a trip to another thread:
# shorter ones take less time on the event loop than the trip does.
INLINE_CHARACTERS = 8192
INLINE_TOKENS = 4096
# What a sequence costs besides the tokenizing of its text, in characters of that.
SEQUENCE_CHARACTERS = 128

# Threads that tokenize long texts, and the requests that wait for them or are there; both belong to
# a worker, and the number to its event loop.
HEAVY_THREADS = 2
_heavy = ThreadPoolExecutor(HEAVY_THREADS, "tokenizing")
_heavy_waiting = 0


def check(pipeline: Pipeline, inputs: Sequence[BaseModel], limits: Limits) -> int:
    """Hold the inputs against the limits; returns their characters.

    Raises:
        HttpError: 422, a text is too long, or there are too many.
    """
    if sum(pipeline.count(one) for one in inputs) > limits.items:
        raise _too_many(limits)
    characters = 0
    for one in inputs:
        for text in _texts(one.__dict__):
            if len(text) > limits.input_characters:
                raise HttpError(
                    422,
                    f"a text has {len(text)} characters; at most {limits.input_characters} are "
                    f"accepted",
                    "input_too_long",
                )
            characters += len(text) + 1
    return characters


def _too_many(limits: Limits) -> HttpError:
    message = f"the request makes more than {limits.items} sequences: send it in parts"
    return HttpError(422, message, "too_many_items")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, BaseModel):
        yield from _texts(value.__dict__)


@dataclass(frozen=True)
class Answer:
    """Predictions, one for each input; how many texts were cut for them; how many tokens ran."""

    results: list[BaseModel]
    truncated: int = 0
    tokens: int = 0

    @property
    def headers(self) -> dict[str, str]:
        """What tells a client that texts were cut."""
        return {TRUNCATED: str(self.truncated)} if self.truncated else {}


async def predict(
    endpoint: Endpoint,
    inputs: Sequence[BaseModel],
    limits: Limits,
    request_id: str = "",
    pipeline: Pipeline | None = None,
) -> Answer:
    """Predictions for inputs that belong to one request and run together.

    Args:
        pipeline: the endpoint's under other options (:meth:`Endpoint.varied`); None: its own.

    Raises:
        HttpError: too much was asked for, the queue is full, or time ran out.
        InputError: the inputs make no sense for the task.
        NonFiniteError: the model gave NaN or infinity, and that is an error at this endpoint.
    """
    pipeline = pipeline or endpoint.pipeline
    characters = check(pipeline, inputs, limits)
    with deadline(limits.request_timeout):
        prepare = _prepare(pipeline, inputs, limits)
        # A sequence costs something besides its text, which several may share.
        sequences = sum(pipeline.count(one) for one in inputs)
        if characters + SEQUENCE_CHARACTERS * sequences > INLINE_CHARACTERS:
            jobs = await _heavily(prepare, limits)
        else:
            jobs = prepare()
        items = [item for job in jobs for item in job.items]
        outputs = await _run(endpoint, items)

        def finish() -> list[BaseModel]:
            try:
                return pipeline.conclude(jobs, outputs, warn)
            except NonFiniteError:
                endpoint.metrics.nonfinite()
                raise

        def warn(wrong: NonFiniteError) -> None:
            endpoint.metrics.nonfinite()
            fields = {"request_id": request_id, "endpoint": endpoint.name}
            logger.warning("%s", wrong, extra={"fields": fields})

        tokens = sum(item.length for item in items)
        results = await _away(finish, tokens > INLINE_TOKENS)
        if endpoint.data_log:
            for one, job, result in zip(inputs, jobs, results, strict=True):
                endpoint.data_log.record(request_id, one, job.items, result)
        truncated = sum(job.cut for job in jobs)
        endpoint.metrics.truncated(truncated)
        return Answer(results, truncated, tokens)


def _prepare(
    pipeline: Pipeline, inputs: Sequence[BaseModel], limits: Limits
) -> Callable[[], list[Job]]:
    def prepare() -> list[Job]:
        jobs, count = [], 0
        for one in inputs:
            job = pipeline.prepare(one)
            count += len(job.items)
            if count > limits.items:
                raise _too_many(limits)
            jobs.append(job)
        return jobs

    return prepare


async def _run(endpoint: Endpoint, items: Sequence[Features]) -> list[Outputs]:
    timing = Timing() if tracing.on and items else None
    try:
        outputs = await endpoint.queue.submit(items, timing)
    except QueueFullError as full:
        raise HttpError(
            503, str(full), "queue_full", {"Retry-After": str(full.retry_after)}
        ) from None
    if timing is not None:
        tracing.ran(endpoint.name, len(items), timing)
    return outputs


async def _heavily(work: Callable[[], T], limits: Limits) -> T:
    """Do it in one of few threads of its own: what is heavy leaves the loop, the other threads and
    most of the cores to the other requests.

    Raises:
        HttpError: 503, too many wait.
    """
    global _heavy_waiting
    if _heavy_waiting >= limits.heavy_requests:
        raise HttpError(
            503, "too many requests with long texts are waiting", "queue_full", {"Retry-After": "1"}
        )
    _heavy_waiting += 1
    try:
        return await asyncio.get_running_loop().run_in_executor(_heavy, work)
    finally:
        _heavy_waiting -= 1


async def _away(work: Callable[[], T], away: bool) -> T:
    """Do it here, or in a thread of the default pool."""
    if not away:
        return work()
    return await asyncio.get_running_loop().run_in_executor(None, work)


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Cancel what is inside after a time.

    Raises:
        HttpError: 504, time ran out.
    """
    task = asyncio.current_task()
    assert task is not None
    late = False

    def stop() -> None:
        nonlocal late
        late = True
        task.cancel()

    handle = asyncio.get_running_loop().call_later(seconds, stop)
    try:
        yield
    except asyncio.CancelledError:
        if not late:
            raise
        if hasattr(task, "uncancel"):  # from Python 3.11 on
            task.uncancel()
        raise HttpError(504, f"no answer within {seconds:g} s", "timeout") from None
    finally:
        handle.cancel()
