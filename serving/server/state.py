"""What the processes of a server share: a folder with the endpoints that are wanted, and how far
each worker is.  Files are replaced whole, so that nobody reads half of one."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparsec.serving.server.config import EndpointConfig, ServerConfig


@dataclass(frozen=True)
class Wanted:
    """The endpoints to serve.

    Attributes:
        version: grows with every change.
        endpoints: complete with names and routes.
        added: names of those that came by POST, which a reload of the file leaves alone.
        looked: grows whenever models are to be loaded again whose files have changed.
    """

    version: int
    endpoints: tuple[EndpointConfig, ...]
    added: frozenset[str] = frozenset()
    looked: int = 0


@dataclass(frozen=True)
class Status:
    """How far a worker is.

    Attributes:
        version: the newest version that it has dealt with; 0: none yet.
        error: what was wrong with that version; empty if it is served.
        exit_code: of that error.
    """

    pid: int
    version: int = 0
    error: str = ""
    exit_code: int = 0


class State:
    """The shared folder.

    Args:
        folder: private to the server's user.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @property
    def metrics(self) -> Path:
        """Where workers count."""
        return self.folder / "metrics"

    @property
    def lending(self) -> Path:
        """Where workers offer each other the constants of models."""
        return self.folder / "lending"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock under which the wanted endpoints may be changed."""
        with (self.folder / "lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    # ---- settings ------------------------------------------------------------------------------

    def write_config(self, config: ServerConfig) -> None:
        self._write("config.json", config.model_dump(mode="json"))

    def config(self) -> ServerConfig:
        return ServerConfig.model_validate(self._read("config.json"))

    # ---- endpoints -----------------------------------------------------------------------------

    def publish(self, wanted: Wanted) -> None:
        """Hold the lock meanwhile."""
        self._write(
            "endpoints.json",
            {
                "version": wanted.version,
                "endpoints": [e.model_dump(mode="json") for e in wanted.endpoints],
                "added": sorted(wanted.added),
                "looked": wanted.looked,
            },
        )

    def wanted(self) -> Wanted:
        data = self._read("endpoints.json")
        endpoints = tuple(EndpointConfig.model_validate(e) for e in data["endpoints"])
        return Wanted(data["version"], endpoints, frozenset(data["added"]), data["looked"])

    def stamp(self) -> tuple[int, int]:
        """Changes whenever the endpoints do."""
        info = (self.folder / "endpoints.json").stat()
        return info.st_ino, info.st_mtime_ns

    # ---- workers -------------------------------------------------------------------------------

    def report(self, worker: int, status: Status) -> None:
        self._write(f"worker-{worker}.json", asdict(status))

    def status(self, worker: int) -> Status | None:
        try:
            return Status(**self._read(f"worker-{worker}.json"))
        except FileNotFoundError:
            return None

    def statuses(self, workers: int) -> Sequence[Status | None]:
        return [self.status(i) for i in range(workers)]

    def forget(self, worker: int) -> None:
        """A worker is gone; its successor has not reported yet."""
        for name in (f"worker-{worker}.json", f"serving-{worker}"):
            (self.folder / name).unlink(missing_ok=True)

    def set_serving(self, worker: int) -> None:
        """A worker takes requests."""
        (self.folder / f"serving-{worker}").touch()

    def serving(self, worker: int) -> bool:
        return (self.folder / f"serving-{worker}").exists()

    def set_started(self) -> None:
        """All workers have loaded what is wanted: they may take requests."""
        (self.folder / "started").touch()

    @property
    def started(self) -> bool:
        return (self.folder / "started").exists()

    def _write(self, name: str, data: Any) -> None:
        part = self.folder / f"{name}.{os.getpid()}.part"
        part.write_text(json.dumps(data), encoding="utf-8")
        part.replace(self.folder / name)

    def _read(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))
