"""The main process of a server: binds the socket, starts workers, watches them and the
configuration file.  It imports neither Sanic nor a model."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import logging
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import sparsec
from sparsec.errors import InputError, SparsecError
from sparsec.scratch import private_folder
from sparsec.serving.server import sockets, tracing
from sparsec.serving.server.config import EndpointConfig, ServerConfig, complete, load
from sparsec.serving.server.cores import split
from sparsec.serving.server.keys import Keys
from sparsec.serving.server.state import State, Wanted

logger = logging.getLogger("sparsec.server")

# How often workers and files are looked at, seconds.
POLL = 0.2
# A worker that dies is replaced after this time, which doubles up to LONGEST while that goes on.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
# A worker that lived longer than this starts with the first pause again.
STABLE = 60.0
# What workers get to clean up when the server ends without them.
LAST_WORDS = 5.0


class ServerError(SparsecError):
    """A server cannot start, or its workers cannot."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass
class _Slot:
    """A worker's place."""

    number: int
    cpus: tuple[int, ...]
    cores: int
    process: subprocess.Popen[bytes] | None = None
    born: float = 0.0
    pause: float = FIRST_PAUSE
    again: float = field(default=0.0)


class Supervisor:
    """Runs a server until SIGTERM or SIGINT.

    Args:
        config: its settings.
        config_file: watched if `hot_reload`; SIGHUP reads it again in any case.
        hot_reload: follow changes of the file.  Models whose own files have changed meanwhile are
            loaded again at either.
        overrides: settings that replace the file's.
        tell: called with lines for people; None: workers say nothing either.
    """

    def __init__(
        self,
        config: ServerConfig,
        config_file: Path | None = None,
        hot_reload: bool = False,
        overrides: dict[str, object] | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.config = config
        self.config_file = config_file
        self.hot_reload = hot_reload
        self._overrides = overrides or {}
        self._quiet = tell is None
        self._tell = tell or (lambda line: None)
        self._stopping = False
        self._reload = False
        self._file_stamp: tuple[int, int, int] | None = None
        self._rpc = ""

    def run(self) -> int:
        """Serve; returns the exit code.

        Raises:
            InputError: the file of API keys cannot be read; gRPC or traces
                are wanted and not installed.
            AddressError: the address is taken.
            ServerError: a model cannot be loaded at the start.
        """
        Keys(self.config.api_keys, self.config.api_keys_file)  # what is wrong is said now
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(sockets.listen(self.config.host, self.config.port))
            if self.config.otlp_endpoint and (lacking := tracing.missing()):
                raise InputError(lacking)
            if self.config.grpc_port is not None:
                self._reserve(stack)
            folder = private_folder("sparsec-serve-")
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            # Cleaners of temporary folders leave alone what is locked.
            lock = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_SH)
            self.state = State(folder)
            self.state.metrics.mkdir()
            self.state.lending.mkdir()
            self.state.write_config(self.config)
            self.state.publish(Wanted(1, self.config.endpoints))
            self._file_stamp = self._stamp()
            wake = stack.enter_context(self._signals())
            # Workers stop when this end closes, however this process ends.
            lifeline, own_end = os.pipe()
            stack.callback(os.close, own_end)
            stack.callback(os.close, lifeline)
            slots = [
                _Slot(i, cpus, cores)
                for i, (cpus, cores) in enumerate(
                    split(self.config.num_workers, self.config.num_cores)
                )
            ]
            try:
                return self._serve(slots, listener, lifeline, wake)
            finally:
                _kill(slots)

    def _reserve(self, stack: contextlib.ExitStack) -> None:
        """Hold the port of gRPC, at which workers listen."""
        for module in ("grpc", "grpc_health"):
            if importlib.util.find_spec(module) is None:
                raise InputError(f"gRPC needs {module}: pip install 'sparsec[grpc]'")
        assert self.config.grpc_port is not None
        holder = stack.enter_context(sockets.reserve(self.config.host, self.config.grpc_port))
        self._rpc = sockets.text(holder)

    def _serve(
        self, slots: Sequence[_Slot], listener: socket.socket, lifeline: int, wake: int
    ) -> int:
        where = f"http://{sockets.text(listener)}"
        for slot in slots:
            self._start(slot, listener, lifeline)
        announced = False
        while not self._stopping:
            _wait(wake, POLL if announced else POLL / 10)
            for slot in slots:
                self._look_after(slot, listener, lifeline)
            if not self.state.started and all(self._is_up(slot) for slot in slots):
                self.state.set_started()
            # Not before all of them have seen that: who waits for this line asks at once.
            if not announced and all(self.state.serving(slot.number) for slot in slots):
                announced = True
                names = ", ".join(f"{e.route} ({e.task})" for e in self.config.endpoints)
                rpc = f"; gRPC at {self._rpc}" if self._rpc else ""
                names = names or "no endpoints yet"
                self._tell(f"ready at {where}: {names}{rpc}; see {where}/docs")
            if self.state.started and (self._reload or self._file_changed()):
                self._reload = False
                self._read_again()
        # Workers have it too, and close it once they took what was waiting.
        listener.close()
        return self._stop(slots)

    # ---- workers ---------------------------------------------------------------------------------

    def _start(self, slot: _Slot, listener: socket.socket, lifeline: int) -> None:
        self.state.forget(slot.number)
        environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(self.state.metrics)}
        if self.config.otlp_endpoint:
            environment[tracing.ENDPOINT] = self.config.otlp_endpoint
        arguments = [
            str(self.state.folder), str(slot.number), str(listener.fileno()), str(lifeline),
            ",".join(map(str, slot.cpus)), str(slot.cores), str(int(self._quiet)), self._rpc,
        ]  # fmt: skip
        slot.process = subprocess.Popen(
            [sys.executable, "-c", _worker_code(), *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            pass_fds=(listener.fileno(), lifeline),
        )
        slot.born = time.monotonic()

    def _is_up(self, slot: _Slot) -> bool:
        status = self.state.status(slot.number)
        return status is not None and status.version > 0 and not status.error

    def _look_after(self, slot: _Slot, listener: socket.socket, lifeline: int) -> None:
        """Replace a worker that died."""
        now = time.monotonic()
        if slot.process is None:
            if now >= slot.again:
                self._start(slot, listener, lifeline)
            return
        code = slot.process.poll()
        if code is None:
            return
        status = self.state.status(slot.number)
        if not self.state.started:
            if status is not None and status.error:
                raise ServerError(status.error, status.exit_code or 1)
            raise ServerError(f"worker {slot.number} ended with code {code} while it started")
        from prometheus_client import multiprocess

        multiprocess.mark_process_dead(slot.process.pid, str(self.state.metrics))  # type: ignore[no-untyped-call]
        if now - slot.born > STABLE:
            slot.pause = FIRST_PAUSE
        logger.error(
            "worker %d ended with code %d: starting another in %g s", slot.number, code, slot.pause
        )
        slot.process, slot.again = None, now + slot.pause
        slot.pause = min(LONGEST_PAUSE, slot.pause * 2)

    def _stop(self, slots: Sequence[_Slot]) -> int:
        """Let workers finish what they accepted."""
        self._tell("stopping")
        running = [slot.process for slot in slots if slot.process is not None]
        for process in running:
            process.terminate()
        limit = time.monotonic() + self.config.limits.drain_timeout + 5
        codes = set()
        for process in running:
            try:
                codes.add(process.wait(max(0.0, limit - time.monotonic())))
            except subprocess.TimeoutExpired:
                logger.error("a worker did not end within the drain timeout")
                codes.add(1)
        # SIGTERM may come before a worker can handle it; nothing is lost then.
        return 0 if codes <= {0, -signal.SIGTERM} or not self.state.started else 1

    # ---- the configuration file ------------------------------------------------------------------

    def _stamp(self) -> tuple[int, int, int] | None:
        if self.config_file is None:
            return None
        try:
            info = self.config_file.stat()
        except OSError:
            return None
        return info.st_ino, info.st_mtime_ns, info.st_size

    def _file_changed(self) -> bool:
        if not self.hot_reload:
            return False
        stamp = self._stamp()
        # An editor may be between removing and writing it.
        if stamp is None or stamp == self._file_stamp:
            return False
        self._file_stamp = stamp
        return True

    def _read_again(self) -> None:
        try:
            new = self.config
            if self.config_file is not None:
                new = load(self.config_file, **self._overrides)
            with self.state.locked():
                old = self.state.wanted()
                added = [e for e in old.endpoints if e.name in old.added]
                endpoints = tuple(complete([*new.endpoints, *added]))
                # Also if they are the same: the files of their models may not be.
                self.state.publish(Wanted(old.version + 1, endpoints, old.added, old.looked + 1))
        except (InputError, ValueError) as error:
            logger.error("the configuration stays as it is: %s", error)
            return
        fixed = [
            name
            for name in ServerConfig.model_fields
            if name != "endpoints" and getattr(new, name) != getattr(self.config, name)
        ]
        if fixed:
            logger.warning("%s: a restart is needed to change this", ", ".join(fixed))
        logger.info("configuration read again: %s", _names(endpoints))

    # ---- signals ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _signals(self) -> Iterator[int]:
        """Handle signals; yields what becomes readable when one comes."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        os.set_blocking(reader, False)

        def stop(signum: int, frame: FrameType | None) -> None:
            self._stopping = True

        def reload(signum: int, frame: FrameType | None) -> None:
            self._reload = True

        handlers = {signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGHUP: reload}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        try:
            yield reader
        finally:
            signal.set_wakeup_fd(previous)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(reader)
            os.close(writer)


def _worker_code() -> str:
    """What a worker runs.  It imports from where this process does, and never from the working
    directory, which Python would put first."""
    here = Path.cwd()
    ours = Path(sparsec.__file__).resolve().parents[1]
    path = [
        entry
        for entry in sys.path
        if entry and ((found := Path(entry).resolve()) != here or found == ours)
    ]
    start = "from sparsec.serving.server.worker import start; start(sys.argv[1:])"
    return f"import sys; sys.path[:] = {path!r}; {start}"


def _names(endpoints: Sequence[EndpointConfig]) -> str:
    return ", ".join(e.name for e in endpoints) or "no endpoints"


def _wait(wake: int, seconds: float) -> None:
    """Sleep until a signal comes or the time is over."""
    if select.select([wake], [], [], seconds)[0]:
        with contextlib.suppress(BlockingIOError):
            os.read(wake, 4096)


def _kill(slots: Sequence[_Slot]) -> None:
    """End what is still running, which may have compilers of its own to end."""
    running = [s.process for s in slots if s.process is not None and s.process.poll() is None]
    for process in running:
        process.terminate()
    limit = time.monotonic() + LAST_WORDS
    for process in running:
        try:
            process.wait(max(0.0, limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
