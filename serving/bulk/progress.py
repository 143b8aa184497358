"""How far a run is, how fast, and how long it will take."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

# Seconds that the rate is of.
_WINDOW = 30.0

# Seconds between two reports.
_PERIOD = 0.5


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        rows: done so far, by earlier runs of the same command too.
        total: rows of the inputs.
        rate: rows a second, lately; 0 while nothing is known.
    """

    rows: int
    total: int
    rate: float

    @property
    def seconds_left(self) -> float | None:
        """At that rate; None while that is not known."""
        return (self.total - self.rows) / self.rate if self.rate else None

    def __str__(self) -> str:
        share = 100 * self.rows / self.total if self.total else 100.0
        left = "" if self.seconds_left is None else f", {duration(self.seconds_left)} left"
        return f"{self.rows:,} of {self.total:,} rows ({share:.1f} %), {speed(self.rate)}{left}"


def duration(seconds: float) -> str:
    """A time in two units at most."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, hours = whole // 60, whole // 3600
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {whole % 60} s"


def speed(rate: float) -> str:
    """Rows a second."""
    return f"{rate:,.0f} rows/s" if rate >= 10 else f"{rate:.2g} rows/s"


class Meter:
    """Counts rows, from any thread, and tells of them from one of its own.  A context manager.

    Args:
        total: rows of the inputs.
        done: rows that earlier runs have done.
        tell: called about twice a second, and at the end; None: nobody is told.
    """

    def __init__(self, total: int, done: int, tell: Callable[[Progress], None] | None) -> None:
        self._total, self._rows = total, done
        self._tell = tell
        self._lock = threading.Lock()
        self._seen: deque[tuple[float, int]] = deque([(time.monotonic(), done)])
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._report, name="progress", daemon=True)

    def add(self, rows: int) -> None:
        """So many rows more are done."""
        with self._lock:
            self._rows += rows

    def now(self) -> Progress:
        """How far it is."""
        with self._lock:
            rows = self._rows
        moment = time.monotonic()
        self._seen.append((moment, rows))
        while len(self._seen) > 2 and moment - self._seen[0][0] > _WINDOW:
            self._seen.popleft()
        since, before = self._seen[0]
        rate = (rows - before) / (moment - since) if moment > since else 0.0
        return Progress(rows, self._total, rate)

    def _report(self) -> None:
        assert self._tell is not None
        while not self._stop.wait(_PERIOD):
            self._tell(self.now())

    def __enter__(self) -> Meter:
        if self._tell is not None:
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        if self._tell is not None:
            self._thread.join()
            self._tell(self.now())
