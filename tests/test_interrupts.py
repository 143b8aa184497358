"""Ctrl-C and its like while compilers run: nothing keeps running, nothing half-written stays."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import sparsec
from sparsec import stopping
from sparsec.compiler.toolchain import Runner
from tests.shipped_models import shipped

# Seconds that anything may take on a machine that is busy with other things.
PATIENCE = 120.0

# A gcc that sleeps in a process of its own when it should compile, or link.
COMPILER = """#!/bin/sh
case "$*" in
*--version*) echo "gcc (fake) 12.2.0" ;;
*-dumpfullversion*) echo 12.2.0 ;;
*"{slow}"*) (echo $$ >> "$PIDS"; sh -c 'echo $$ >> "$PIDS"; exec sleep 300') ;;
*) for last; do :; done; : > "$last" ;;
esac
"""


def compiler(folder: Path, slow: str) -> str:
    script = folder / "fake gcc"
    script.write_text(COMPILER.format(slow=slow))
    script.chmod(0o755)
    return shlex.quote(str(script))


def wait_for(what: object, seconds: float = PATIENCE) -> None:
    limit = time.monotonic() + seconds
    while not what():  # type: ignore[operator]
        assert time.monotonic() < limit
        time.sleep(0.05)


def heed_signals() -> None:
    """Whoever started the tests may have told its children to ignore some, as ``nohup`` does."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def running(pids: Path) -> list[int]:
    """Which of the compilers' processes are there (a zombie that nobody waits for is not)."""
    found = []
    for pid in map(int, pids.read_text().split()):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        found += [pid] if state != "Z" else []
    return found


@pytest.mark.parametrize("slow", [" -c ", "-shared "])
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_compile_ends_with_its_compilers(
    slow: str, number: int, code: int, micro_model: Path, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    place = tmp_path / "place"
    place.mkdir()
    command = [sys.executable, "-m", "sparsec", "compile", str(micro_model), "--buckets", "8"]
    command += ["-o", str(place / "new" / "m.sparsec"), "--cc", compiler(tmp_path, slow)]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "PIDS": str(pids)},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_signals,
    )
    # Two of a compiler's processes: it and its child.
    wait_for(lambda: pids.exists() and len(pids.read_text().split()) >= 2)
    process.send_signal(number)
    process.send_signal(number)  # impatience must not stop the cleaning up
    said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == code
    assert said == ("sparsec: interrupted\n" if number == signal.SIGINT else "")
    wait_for(lambda: not running(pids))
    assert list(place.iterdir()) == []


def test_the_main_thread_starts_no_compiler(
    micro_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There Ctrl-C could come after a process has started and before anybody knows of it."""
    starters = []
    run = Runner.run

    def recorded(self: Runner, command: Sequence[str]) -> None:
        starters.append((command, threading.current_thread()))
        run(self, command)

    monkeypatch.setattr(Runner, "run", recorded)
    sparsec.compile(micro_model, buckets=[8], target="generic", output=tmp_path / "m.sparsec")
    assert any("-shared" in command for command, _ in starters)
    assert [command for command, by in starters if by is threading.main_thread()] == []


def test_a_signal_that_is_ignored_stays_ignored(micro_model: Path, tmp_path: Path) -> None:
    """As ``nohup`` wants it."""
    command = [sys.executable, "-m", "sparsec", "compile", str(micro_model), "--buckets", "8"]
    command += ["-o", str(tmp_path / "m.sparsec"), "--cc", compiler(tmp_path, " -c ")]
    pids = tmp_path / "pids"
    process = subprocess.Popen(
        ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *command],
        cwd=tmp_path, env={**os.environ, "PIDS": str(pids)}, stderr=subprocess.DEVNULL,
        preexec_fn=heed_signals,
    )  # fmt: skip
    wait_for(lambda: pids.exists() and len(pids.read_text().split()) >= 2)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 130


# Its main thread waits for ever while a signal goes to another thread, as the kernel may send it.
WAITER = """
import signal, sys, threading
from sparsec.stopping import unwinding
number = int(sys.argv[1])
def take():
    signal.pthread_kill(threading.get_ident(), number)
with unwinding():
    threading.Timer(0.2, take).start()
    threading.Event().wait()
"""


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
)
def test_a_signal_that_another_thread_takes_is_heeded(number: int, code: int) -> None:
    """Else Ctrl-C would be heeded when all the work is done: Python wakes the main thread only
    where it is the one that the kernel interrupts."""
    done = subprocess.run(
        [sys.executable, "-c", WAITER, str(number)],
        stderr=subprocess.DEVNULL, timeout=PATIENCE, preexec_fn=heed_signals,
    )  # fmt: skip
    assert done.returncode == code


@pytest.fixture
def heeded() -> Iterator[None]:
    """Signals as they are in a terminal, whatever whoever started the tests has said of them."""
    before = [signal.getsignal(number) for number in stopping.SIGNALS]
    heed_signals()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in zip(stopping.SIGNALS, before, strict=True):
        signal.signal(number, handler)


def test_signals_are_as_before_afterwards(heeded: None) -> None:
    before = [signal.getsignal(number) for number in stopping.SIGNALS]
    threads = threading.active_count()
    for _ in range(3):
        with stopping.unwinding():
            assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        with pytest.raises(KeyboardInterrupt), stopping.unwinding():
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(PATIENCE)
        with pytest.raises(SystemExit, match="143"), stopping.unwinding():
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(PATIENCE)
    assert [signal.getsignal(number) for number in stopping.SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert threading.active_count() == threads


def test_serve_ends_with_its_compilers(tmp_path: Path) -> None:
    pids, cache = tmp_path / "pids", tmp_path / "cache"
    model = shipped("sentiment")
    command = [sys.executable, "-m", "sparsec", "serve", "--task", "sentiment-analysis", "-q"]
    command += ["--model-path", str(model), "--port", "0", "--num-workers", "2"]
    environment = {**os.environ, "PIDS": str(pids), "CC": compiler(tmp_path, " -c ")}
    environment["XDG_CACHE_HOME"] = str(cache)
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, preexec_fn=heed_signals)
    wait_for(lambda: pids.exists() and len(pids.read_text().split()) >= 2)
    process.send_signal(signal.SIGINT)
    process.wait(PATIENCE)
    wait_for(lambda: not running(pids))
    left = [path.name for path in (cache / "sparsec").iterdir() if path.suffix != ".lock"]
    assert left == []
