"""What all processes of a test run share: what one of them has compiled, the others need not."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest


def folder(factory: pytest.TempPathFactory, name: str) -> Path:
    """A folder of the test run; of all of its processes, if there are several."""
    base = factory.getbasetemp()
    found = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"shared-{name}"
    found.mkdir(exist_ok=True)
    return found


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold a lock that the system drops if the process dies."""
    with file.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
