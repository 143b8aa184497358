"""Lines of progress that a bar can be made of, and the bar."""

from __future__ import annotations

import sys
from typing import Any

from sparsec import console


class Step(str):
    """A line of progress that also says how far some work is.

    Attributes:
        work: what is done, in a word or two.
        done, total: how many of its parts are done, of how many.
        figures: what else to show, such as ``{"loss": "0.0123"}``.
    """

    __slots__ = ("done", "figures", "total", "work")

    work: str
    done: int
    total: int
    figures: dict[str, str]

    def __new__(cls, line: str, work: str, done: int, total: int, **figures: str) -> Step:
        made = super().__new__(cls, line)
        made.work, made.done, made.total, made.figures = work, done, total, figures
        return made


class Bar:
    """Shows lines of progress on a terminal: a :class:`Step` as a bar with the time left, which
    vanishes when all is done; other lines above it."""

    def __init__(self) -> None:
        self._work = ""
        self._shown: Any = None

    def __call__(self, line: str) -> None:
        if not isinstance(line, Step):
            console.say(line)
            return
        try:
            self._show(line)
        except (OSError, ValueError):  # nobody reads it, which is no reason to stop
            console.give_up(sys.stderr)

    def _show(self, step: Step) -> None:
        if self._shown is None or self._work != step.work:
            self._begin(step)
        if step.figures:
            self._shown.set_postfix(step.figures, refresh=False)
        self._shown.update(step.done - self._shown.n)
        if step.done >= step.total:
            self.close()

    def _begin(self, step: Step) -> None:
        from tqdm import tqdm

        self.close()
        self._work = step.work
        # What was done before, by a run that was interrupted, took none of this one's time.
        self._shown = tqdm(
            total=step.total, initial=step.done, desc=f"sparsec: {step.work}",
            leave=False, dynamic_ncols=True, file=sys.stderr,
        )  # fmt: skip
        console.live = self

    def close(self) -> None:
        """Remove the bar."""
        if self._shown is not None:
            self._shown.close()
            self._shown = None
        if console.live is self:
            console.live = None

    def hide(self) -> None:
        """Make room for a line."""
        self._shown.clear()

    def show(self) -> None:
        """Draw the bar again, below the line."""
        self._shown.refresh()
