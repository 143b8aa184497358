"""Dynamic batching: sequences of many requests wait in a bounded queue per model and run together.

One thread per worker process runs the models, so that an idle event loop is never waited for: the
next batch is taken as soon as one is done.  It takes what is waiting, up to `max_batch`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sparsec.serving.runner import Features, Outputs, Runner
from sparsec.serving.server.config import Batching

logger = logging.getLogger("sparsec.server")


class QueueFullError(Exception):
    """The model's queue is full.

    Attributes:
        retry_after: seconds until it may have room, an estimate.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full: try again in {retry_after} s")
        self.retry_after = retry_after


class Observer(Protocol):
    """What is told about the queue; called by the loop's thread and by the inference thread."""

    def waiting(self, items: int) -> None:
        """The queue's length changed."""

    def dropped(self, items: int) -> None:
        """Sequences were cancelled before they ran."""

    def batch(self, lengths: Sequence[int], padding: int, seconds: float) -> None:
        """A batch ran."""


@dataclass
class Timing:
    """When things happened to a request's sequences, nanoseconds since 1970.

    Attributes:
        queued: they were queued.
        began, ended: the first batch with one of them began, the last one ended.
        largest: sequences of the largest of those batches.
    """

    queued: int = 0
    began: int = 0
    ended: int = 0
    largest: int = 0

    def ran(self, began: int, ended: int, batch: int) -> None:
        """A batch ran."""
        self.began = self.began or began
        self.ended = ended
        self.largest = max(self.largest, batch)


class _Ticket:
    """Sequences of one request."""

    __slots__ = ("error", "future", "items", "results", "since", "taken", "timing", "unfinished")

    def __init__(
        self,
        items: Sequence[Features],
        future: asyncio.Future[list[Outputs]],
        timing: Timing | None,
    ) -> None:
        self.timing = timing
        self.items = items
        self.future = future
        self.results: list[Outputs] = [{} for _ in items]
        self.taken = 0
        self.unfinished = len(items)
        self.error: BaseException | None = None
        self.since = time.monotonic()


class ModelQueue:
    """What waits for one model.  Made by :meth:`Scheduler.queue`."""

    def __init__(
        self, scheduler: Scheduler, runner: Runner, batching: Batching, observer: Observer
    ) -> None:
        self.runner = runner
        self.batching = batching
        self.observer = observer
        self._scheduler = scheduler
        self._tickets: deque[_Ticket] = deque()
        self._waiting = 0
        self._seconds_per_item = 0.01  # measured as batches run

    @property
    def waiting(self) -> int:
        """Sequences that wait."""
        return self._waiting

    def submit(
        self, items: Sequence[Features], timing: Timing | None = None
    ) -> asyncio.Future[list[Outputs]]:
        """Queue sequences; call it on the event loop's thread.

        Args:
            timing: is filled in meanwhile.

        Returns:
            Their outputs, in order.  Cancelling it takes what has not started out of the queue.

        Raises:
            QueueFullError: there is no room; a request larger than the queue needs it to be empty.
        """
        future = self._scheduler.loop.create_future()
        if not items:
            future.set_result([])
            return future
        room = self._scheduler.changed
        with room:
            if self._waiting and self._waiting + len(items) > self.batching.queue_size:
                wait = self._waiting * self._seconds_per_item
                raise QueueFullError(max(1, min(60, round(wait))))
            if timing is not None:
                timing.queued = time.time_ns()
            ticket = _Ticket(items, future, timing)
            self._tickets.append(ticket)
            self._waiting += len(items)
            waiting = self._waiting
            room.notify()
        self.observer.waiting(waiting)
        future.add_done_callback(lambda done: self._forget(ticket) if done.cancelled() else None)
        return future

    def _forget(self, ticket: _Ticket) -> None:
        """Drop a cancelled request's sequences that have not started."""
        with self._scheduler.changed:
            left = len(ticket.items) - ticket.taken
            if not left:
                return
            ticket.taken = len(ticket.items)
            self._tickets.remove(ticket)
            self._waiting -= left
            waiting = self._waiting
        self.observer.dropped(left)
        self.observer.waiting(waiting)

    # ---- the inference thread; the scheduler's lock is held ------------------------------------

    def due(self, now: float) -> float | None:
        """Seconds until a batch should start, 0 or less for now; None: nothing waits."""
        if not self._tickets:
            return None
        if self._waiting >= self.batching.max_batch:
            return 0.0
        return self._tickets[0].since + self.batching.max_delay_us * 1e-6 - now

    @property
    def oldest(self) -> float:
        """When the request arrived that waits longest; only if there is one."""
        return self._tickets[0].since

    def take(self) -> list[tuple[_Ticket, int]]:
        """The next batch: requests and which of their sequences."""
        batch: list[tuple[_Ticket, int]] = []
        while self._tickets and len(batch) < self.batching.max_batch:
            ticket = self._tickets[0]
            count = min(self.batching.max_batch - len(batch), len(ticket.items) - ticket.taken)
            batch += [(ticket, ticket.taken + i) for i in range(count)]
            ticket.taken += count
            if ticket.taken == len(ticket.items):
                self._tickets.popleft()
        self._waiting -= len(batch)
        return batch

    # ---- the inference thread; the lock is not held --------------------------------------------

    def run(self, batch: list[tuple[_Ticket, int]]) -> list[_Ticket]:
        """Run a batch; returns the requests that are done with it."""
        self.observer.waiting(self._waiting)
        items = [ticket.items[i] for ticket, i in batch]
        start = time.perf_counter()
        try:
            outputs: Sequence[Outputs] = self.runner.infer(items)
        except BaseException as error:
            outputs = self._one_by_one(batch, error)
        seconds = time.perf_counter() - start
        self._note(batch, seconds)
        self._seconds_per_item += 0.1 * (seconds / len(batch) - self._seconds_per_item)
        lengths = [item.length for item in items]
        self.observer.batch(lengths, self.runner.padding(lengths), seconds)
        done = []
        for (ticket, i), output in zip(batch, outputs, strict=True):
            ticket.results[i] = output
            ticket.unfinished -= 1
            if not ticket.unfinished:
                done.append(ticket)
        return done

    def _note(self, batch: list[tuple[_Ticket, int]], seconds: float) -> None:
        """Tell those who want to know when a batch ran that has just ended."""
        timings = {id(t): t.timing for t, _ in batch if t.timing is not None}
        if timings:
            ended = time.time_ns()
            for timing in timings.values():
                timing.ran(ended - round(seconds * 1e9), ended, len(batch))

    def _one_by_one(self, batch: list[tuple[_Ticket, int]], error: BaseException) -> list[Outputs]:
        """After a failure: only the request that causes it shall fail."""
        outputs: list[Outputs] = []
        alone = all(ticket is batch[0][0] for ticket, _ in batch)
        for ticket, i in batch:
            outputs.append({})
            if alone:
                ticket.error = error
            elif ticket.error is None:
                try:
                    outputs[-1] = self.runner.infer([ticket.items[i]])[0]
                except BaseException as own:
                    ticket.error = own
        return outputs


class Scheduler:
    """The inference thread of a worker and the queues that it serves, oldest request first.

    Args:
        loop: the event loop that requests come from.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.changed = threading.Condition()
        self._queues: list[ModelQueue] = []
        self._stopping = False
        self._thread = threading.Thread(target=self._serve, name="inference", daemon=True)
        self._thread.start()

    def queue(self, runner: Runner, batching: Batching, observer: Observer) -> ModelQueue:
        """A queue for one more model."""
        queue = ModelQueue(self, runner, batching, observer)
        with self.changed:
            self._queues.append(queue)
        return queue

    def remove(self, queue: ModelQueue) -> None:
        """Serve a queue no more; it must be empty."""
        with self.changed:
            self._queues.remove(queue)

    def close(self) -> None:
        """End the thread, after the batch that it runs."""
        with self.changed:
            self._stopping = True
            self.changed.notify()
        self._thread.join()

    def _next(self) -> tuple[ModelQueue, list[tuple[_Ticket, int]]] | None:
        """Wait for a batch; None: the end."""
        with self.changed:
            while not self._stopping:
                now = time.monotonic()
                waits = [(d, q) for q in self._queues if (d := q.due(now)) is not None]
                ready = [queue for delay, queue in waits if delay <= 0]
                if ready:
                    queue = min(ready, key=lambda q: q.oldest)
                    return queue, queue.take()
                self.changed.wait(min((delay for delay, _ in waits), default=None))
        return None

    def _serve(self) -> None:
        while (work := self._next()) is not None:
            queue, batch = work
            try:
                done = queue.run(batch)
            except Exception as error:  # an observer's: the requests must not wait for ever
                logger.exception("batching failed")
                done = []
                for ticket, _ in batch:
                    ticket.error = error
                    if ticket not in done:
                        done.append(ticket)
            if done:
                self._tell(_deliver, done)

    def _tell(self, call: Callable[..., Any], *args: Any) -> None:
        try:
            self.loop.call_soon_threadsafe(call, *args)
        except RuntimeError:  # the loop is closed: nobody waits any more
            logger.debug("results came after the end")


def _deliver(done: list[_Ticket]) -> None:
    for ticket in done:
        if ticket.future.done():
            continue
        if ticket.error is not None:
            ticket.future.set_exception(ticket.error)
        else:
            ticket.future.set_result(ticket.results)
