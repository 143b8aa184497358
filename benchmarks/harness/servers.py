"""Servers as processes: started, waited for, weighed and ended."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

from benchmarks.harness.installs import Unavailable


@dataclass
class Running:
    """A server process.

    Attributes:
        pids: it and everything below it.
    """

    name: str
    port: int
    path: str
    process: subprocess.Popen[bytes]

    @property
    def pids(self) -> list[int]:
        found, queue = [], [self.process.pid]
        while queue:
            pid = queue.pop()
            found.append(pid)
            try:
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
            except OSError:
                continue
            queue += [int(child) for child in children.split()]
        return found

    def memory(self) -> float:
        """MiB that its processes hold and share with nobody outside."""
        total = 0
        for pid in self.pids:
            try:
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except OSError:
                continue
            found = re.search(r"^Pss: +(\d+) kB", text, re.M)
            total += int(found[1]) if found else 0
        return total / 1024


@contextlib.contextmanager
def serving(
    name: str, command: Sequence[str], port: int, path: str, ready: str
) -> Iterator[Running]:
    """Start a server and wait until `ready` answers."""
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(tempfile.TemporaryFile())
        # The CPUs are inherited from this process.
        process = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
        )
        stack.callback(_end, process)
        limit = time.monotonic() + 600
        while True:
            try:
                with urlopen(f"http://127.0.0.1:{port}{ready}", timeout=5):
                    break
            except OSError:
                if process.poll() is not None or time.monotonic() > limit:
                    log.seek(0)
                    tail = log.read().decode(errors="replace").strip().splitlines()[-3:]
                    raise Unavailable(f"{name} did not start: {' | '.join(tail)}") from None
                time.sleep(0.2)
        yield Running(name, port, path, process)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(40)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
