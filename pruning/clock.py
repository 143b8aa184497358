"""Time that is left, as a reader takes it in."""

from __future__ import annotations

import time


class Clock:
    """How long what is left will take."""

    def __init__(self, steps: int) -> None:
        self.steps, self.done, self.began = steps, 0, time.monotonic()

    def left(self) -> str:
        """One more is done; the time for the others, in words."""
        self.done += 1
        each = (time.monotonic() - self.began) / self.done
        return clock(each * max(0, self.steps - self.done))


def clock(seconds: float) -> str:
    """A time in words that a reader takes in at a glance: 50 s, 12 min, 1 h 05 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"
