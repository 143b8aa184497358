"""Clients that load an HTTP server, and what they see."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.harness.servers import Running

CONNECTIONS = 32


@dataclass
class Load:
    """What a client saw.

    Attributes:
        seconds: from the first request to the last response.
        latencies: milliseconds of the responses with status 200.
        refused: milliseconds of those with status 503.
        statuses: how many of each; 0 for no response in time or at all.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds if self.seconds else 0.0

    def percentile(self, share: float) -> float:
        return float(np.percentile(self.latencies, share)) if self.latencies else float("nan")

    def to_json(self) -> dict[str, Any]:
        return {
            "seconds": round(self.seconds, 3),
            "rate": round(self.rate, 2),
            "p50_ms": round(self.percentile(50), 3),
            "p99_ms": round(self.percentile(99), 3),
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "p99_refused_ms": (
                round(float(np.percentile(self.refused, 99)), 3) if self.refused else None
            ),
        }


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection with one request at a time, and as little work as possible."""

    def __init__(self) -> None:
        self.buffer = b""
        self.answer: asyncio.Future[int] | None = None
        self.closed = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, rest = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.I)
        if length is None or len(rest) < int(length[1]):
            return
        self.buffer = b""
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(int(head[9:12]))

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(0)

    async def ask(self, request: bytes, timeout: float) -> int:
        """The status of the response; 0 if there is none."""
        loop = asyncio.get_running_loop()
        self.answer = loop.create_future()
        self.transport.write(request)
        try:
            return await asyncio.wait_for(self.answer, timeout)
        except asyncio.TimeoutError:
            self.transport.abort()
            self.closed = True
            return 0


class Client:
    """Requests to a server from this process.

    Args:
        timeout: seconds until a request counts as lost.
    """

    def __init__(self, server: Running, payloads: Sequence[bytes], timeout: float = 30.0) -> None:
        self.port = server.port
        self.timeout = timeout
        self.requests = [
            b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (server.path.encode(), len(body), body)
            for body in payloads
        ]
        self._idle: list[Connection] = []
        self._sent = 0

    async def _one(self, load: Load) -> None:
        loop = asyncio.get_running_loop()
        while self._idle and self._idle[-1].closed:
            self._idle.pop()
        request = self.requests[self._sent % len(self.requests)]
        self._sent += 1
        start = time.perf_counter()
        try:
            if self._idle:
                connection = self._idle.pop()
            else:
                _, connection = await loop.create_connection(Connection, "127.0.0.1", self.port)
            status = await connection.ask(request, self.timeout)
        except OSError:
            load.statuses[0] += 1
            return
        elapsed = 1e3 * (time.perf_counter() - start)
        load.statuses[status] += 1
        if status == 200:
            load.latencies.append(elapsed)
        elif status == 503:
            load.refused.append(elapsed)
        if not connection.closed:
            self._idle.append(connection)

    async def _closed(self, connections: int, seconds: float, count: int | None) -> Load:
        load, start = Load(), time.perf_counter()
        end = start + seconds
        left = count

        async def run() -> None:
            nonlocal left
            while time.perf_counter() < end and (left is None or left > 0):
                if left is not None:
                    left -= 1
                await self._one(load)

        await asyncio.gather(*(run() for _ in range(connections)))
        load.seconds = time.perf_counter() - start
        self._close()
        return load

    def keep_busy(self, connections: int, seconds: float = 1e9, count: int | None = None) -> Load:
        """The next request of a connection follows its last response."""
        return _run(self._closed(connections, seconds, count))

    async def _paced(self, rate: float, seconds: float) -> Load:
        load, start = Load(), time.perf_counter()
        tasks: set[asyncio.Task[None]] = set()
        for i in range(round(rate * seconds)):
            delay = start + i / rate - time.perf_counter()
            if delay > 0:
                await asyncio.sleep(delay)
            task = asyncio.create_task(self._one(load))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if tasks:
            await asyncio.wait(tasks)
        load.seconds = time.perf_counter() - start
        self._close()
        return load

    def at_rate(self, rate: float, seconds: float) -> Load:
        """Requests leave evenly, whatever comes back."""
        return _run(self._paced(rate, seconds))

    def _close(self) -> None:
        for connection in self._idle:
            connection.transport.abort()
        self._idle.clear()


def _run(work: Any) -> Load:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    loop = uvloop.new_event_loop()
    try:
        load: Load = loop.run_until_complete(work)
        return load
    finally:
        loop.close()


def wrk(server: Running, payloads: Sequence[bytes], seconds: float) -> dict[str, float] | None:
    """Throughput and latencies as wrk sees them at 32 connections; None if it is not installed."""
    program = shutil.which("wrk")
    if program is None:
        return None
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        quoted = ", ".join(json.dumps(body.decode()) for body in payloads)
        script.write(
            f"local bodies = {{{quoted}}}\nlocal i = 0\n"
            'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\n'
            "request = function()\n  i = i + 1\n"
            "  return wrk.format(nil, nil, nil, bodies[i % #bodies + 1])\nend\n"
            "done = function(summary, latency, requests)\n"
            "  io.write(string.format('RESULT %d %d %d %f %f\\n', summary.requests,\n"
            "    summary.duration, summary.errors.status + summary.errors.timeout +\n"
            "    summary.errors.read + summary.errors.connect,\n"
            "    latency:percentile(50), latency:percentile(99)))\nend\n"
        )
        script.flush()
        url = f"http://127.0.0.1:{server.port}{server.path}"
        done = subprocess.run(
            [program, "-t1", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}s", "--timeout", "30s",
             "-s", script.name, url],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    found = re.search(r"RESULT (\d+) (\d+) (\d+) (\S+) (\S+)", done.stdout)
    assert found, done.stdout
    requests, micros, failed, p50, p99 = map(float, found.groups())
    return {
        "rate": (requests - failed) / micros * 1e6,
        "errors": failed,
        "p50_ms": p50 / 1e3,
        "p99_ms": p99 / 1e3,
    }
