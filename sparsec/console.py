"""Lines for people, on streams that may be closed or lead nowhere."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Protocol, TextIO


class Live(Protocol):
    """What stands on the last line of the terminal and changes there."""

    def hide(self) -> None: ...
    def show(self) -> None: ...
    def close(self) -> None: ...


live: Live | None = None
"""The one that is there now; lines go above it."""


def say(line: str) -> None:
    """A line on standard error.  That nobody reads it is no reason to stop."""
    if sys.stderr is None:
        return
    try:
        if live is not None:
            live.hide()
        print(f"sparsec: {line}", file=sys.stderr, flush=True)
        if live is not None:
            live.show()
    except (OSError, ValueError):
        give_up(sys.stderr)


def clear() -> None:
    """Remove what stands on the last line, before something else is printed or the end."""
    if live is not None:
        with contextlib.suppress(OSError, ValueError):
            live.close()


def give_up(stream: TextIO) -> None:
    """Let what is still written to a broken stream, at exit too, go nowhere."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def open_closed() -> None:
    """Open standard streams that the process was started without.

    Otherwise they are None, and files that are opened later get their numbers.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115
