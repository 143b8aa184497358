"""Workers that take turns, so that whatever else the machine does meets all engines alike."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

SCRIPT = Path(__file__).with_name("worker.py")

# Thread pools spin for a while after their last run: let them go to sleep before the next turn.
PAUSE = 0.1


class WorkerError(Exception):
    """A worker could not do what it was asked, or ended."""


class Worker:
    """A process that holds one engine with one model and one shape.

    Args:
        python: the interpreter that has the engine.
        log: where the engine's own words go.
        cpus: the CPUs it may run on.
        timeout: seconds to wait for any answer.
    """

    def __init__(self, python: str, log: Path, cpus: Sequence[int], timeout: float = 900) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        threads = str(len(cpus))
        env = {
            **os.environ,
            "BENCH_CPUS": ",".join(map(str, cpus)),
            "OMP_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": "1",
        }
        # Each interpreter has packages of its own.
        for name in ("PYTHONPATH", "PYTHONHOME"):
            env.pop(name, None)
        self.timeout = timeout
        self.log = log
        with log.open("w", encoding="utf-8") as sink:
            self.process = subprocess.Popen(
                [python, str(SCRIPT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                env=env,
            )

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Send a request and return the answer.

        Raises:
            WorkerError: the worker failed, ended, or did not answer in time.
        """
        pipe_in, pipe_out = self.process.stdin, self.process.stdout
        assert pipe_in is not None and pipe_out is not None
        try:
            pipe_in.write(json.dumps({"do": do, **request}).encode() + b"\n")
            pipe_in.flush()
        except BrokenPipeError:
            raise WorkerError(self._epitaph()) from None
        if not select.select([pipe_out], [], [], self.timeout)[0]:
            self.close()
            raise WorkerError(f"no answer to {do!r} in {self.timeout:.0f} s")
        line = pipe_out.readline()
        if not line:
            raise WorkerError(self._epitaph())
        answer: dict[str, Any] = json.loads(line)
        if not answer.pop("ok"):
            # Results are published: they name no folder of this machine.
            raise WorkerError(answer["error"].replace(f"{self.log.parent.parent}{os.sep}", ""))
        return answer

    def _epitaph(self) -> str:
        code = self.process.wait()
        said = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"ended with {code}: {said[-1][:200] if said else 'it said nothing'}"

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            # What a dead worker did not read is still in the buffer.
            with suppress(BrokenPipeError):
                if pipe:
                    pipe.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True)
class Slice:
    """How long a turn is: at least `runs` and `seconds`, cut off after `longest` seconds."""

    rounds: int = 5
    runs: int = 10
    seconds: float = 0.5
    longest: float = 10.0


def take_turns(
    workers: Mapping[str, Worker], turn: Slice
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Measure all workers, one slice each in every round.

    The order rotates from round to round: nobody always follows the same neighbour.

    Returns:
        Latencies in seconds over all rounds, and why a worker failed, both by worker.
    """
    names = list(workers)
    times: dict[str, list[float]] = {name: [] for name in names}
    failed: dict[str, str] = {}
    for number in range(turn.rounds):
        shift = number % max(1, len(names))
        for name in names[shift:] + names[:shift]:
            if name in failed:
                continue
            time.sleep(PAUSE)
            try:
                answer = workers[name].ask(
                    "run", runs=turn.runs, seconds=turn.seconds, longest=turn.longest
                )
            except WorkerError as error:
                failed[name] = str(error)
                del times[name]
                continue
            times[name] += answer["latencies"]
    return times, failed
