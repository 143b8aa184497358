"""Real servers for tests: started as a process on a free port, stopped at the end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import yaml

import sparsec
from tests import pipelines_support, shared

TOKEN = "a-token-of-tests"

#: A program that serves the model of its argument and stops after one answer, then says how.
ONE_ANSWER = """
import re, signal, subprocess, sys, urllib.request
command = [sys.executable, "-m", "sparsec", "serve", "--task", "text-classification"]
command += ["--model-path", sys.argv[1], "--port", "0"]
server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
said = ""
for line in server.stderr:
    said += line
    if where := re.search(r"ready at (\\S+):", line):
        request = urllib.request.Request(where[1] + "/predict", b'{"sequences": "a"}')
        print(urllib.request.urlopen(request).read().decode())
        server.send_signal(signal.SIGINT)
print(server.wait(), said)
"""

# Head of the encoder and settings of each task's model.
TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "token-classification": (
        "token-classification", {"labels": pipelines_support.NER_LABELS},
    ),
    "question-answering": ("question-answering", {}),
    "text-classification": (
        "sequence-classification", {"labels": ["negative", "positive"]},
    ),
    "zero-shot-text-classification": (
        "sequence-classification", {"labels": ["contradiction", "neutral", "entailment"]},
    ),
    "embedding": ("hidden", {}),
    "sentence-embedding": ("hidden", {}),
    "sparse-embedding": ("masked-lm", {}),
    "fill-mask": ("masked-lm", {}),
    "rerank": ("sequence-classification", {"labels": ["LABEL_0"]}),
}  # fmt: skip


class TextModels:
    """Artifacts of small random models by task, compiled when first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __getitem__(self, task: str) -> Path:
        folder = self._folder / task
        artifact = folder / "model.sparsec"
        with shared.locked(self._folder / f"{task}.lock"):
            if not artifact.exists():
                head, settings = TASKS[task]
                pipelines_support.make(folder, head, **settings)
                sparsec.compile(folder, buckets=[16, 64], output=artifact, target="generic")
        return artifact


class Server:
    """``sparsec serve`` with a configuration file.  A context manager.

    Attributes:
        url: where it answers.
        lines: what it wrote to standard error.
        config_file: its file, which may be written again.
    """

    def __init__(
        self, folder: Path, config: dict[str, Any], *flags: str, cwd: Path | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.config_file = folder / "config.yaml"
        self.write(config)
        self.lines: list[str] = []
        self._flags = flags
        self._cwd = cwd
        self.arguments = ["--config-file", str(self.config_file)]
        self.url = ""

    def write(self, config: dict[str, Any]) -> None:
        """Replace the file in one step."""
        part = self.config_file.with_suffix(".part")
        part.write_text(yaml.safe_dump(config))
        part.replace(self.config_file)

    def start(self, wait: bool = True) -> Server:
        """Start the process; `wait` for it to be ready."""
        command = [sys.executable, "-m", "sparsec", "serve", "--port", "0"]
        self.process = subprocess.Popen(
            [*command, *self.arguments, *self._flags],
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            cwd=self._cwd,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if wait:
            found = self.wait_for(r"ready at (http://\S+):")
            self.url = found[1]
        return self

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    def wait_for(self, pattern: str, seconds: float = 180) -> re.Match[str]:
        """The first line that matches."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            for line in list(self.lines):
                if found := re.search(pattern, line):
                    return found
            if self.process.poll() is not None and not self._reader.is_alive():
                break
            time.sleep(0.02)
        raise AssertionError(f"no {pattern!r} in\n" + "\n".join(self.lines))

    def log(self) -> Iterator[dict[str, Any]]:
        """The lines that are JSON."""
        for line in list(self.lines):
            if line.startswith("{"):
                yield json.loads(line)

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, **options)

    def wait_for_metric(self, line: str, seconds: float = 60) -> None:
        """Wait until /metrics has a line."""
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            if line in httpx.get(self.url + "/metrics").text.splitlines():
                return
            time.sleep(0.02)
        raise AssertionError(f"no {line!r} in /metrics")

    def kill(self, pid: int) -> None:
        """End one of its workers at once."""
        assert pid in self.workers()
        os.kill(pid, signal.SIGKILL)

    def workers(self) -> list[int]:
        """Process ids of the workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it; returns the exit code."""
        if self.process.poll() is None:
            os.kill(self.process.pid, number)
        code = self.process.wait(timeout=60)
        self._reader.join(timeout=10)
        return code

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise


def endpoint(models: TextModels, task: str, **more: Any) -> dict[str, Any]:
    """An entry of a configuration file."""
    # DeepSparse's spelling.
    return {"task": task.replace("-", "_"), "model": str(models[task]), **more}
