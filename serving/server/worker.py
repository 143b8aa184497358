"""One worker process: an event loop with Sanic, a thread that runs the models.

The supervisor calls :func:`start` with FOLDER NUMBER SOCKET PIPE CPUS CORES QUIET RPC.  When the
pipe's other end closes, the supervisor is gone and the worker drains.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

import uvloop

from sparsec.arguments import speak
from sparsec.errors import SparsecError
from sparsec.runtime import share
from sparsec.serving.server import errors
from sparsec.serving.server.app import Service, create_app
from sparsec.serving.server.batching import Scheduler
from sparsec.serving.server.config import EndpointConfig, complete
from sparsec.serving.server.errors import HttpError
from sparsec.serving.server.registry import Registry
from sparsec.serving.server.state import State, Status, Wanted
from sparsec.serving.server.tracing import tracing
from sparsec.serving.server.wire import Connection

if TYPE_CHECKING:
    from sparsec.serving.server.rpc import RpcServer

logger = logging.getLogger("sparsec.server")

# How often a worker looks whether other endpoints are wanted, seconds.
POLL = 0.2
# How long to wait for the other workers to follow a change.
FOLLOW = 600.0
# A thread that wants the interpreter gets it after this time: the inference thread comes back from
# a batch while the event loop parses, and the default of 5 ms is longer than many batches.
SWITCH = 0.0005


class Worker:
    """A worker process.

    Args:
        state: the shared folder.
        number: which worker this is, from 0.
        cores: threads that a call of a model may use.
        quiet: no lines about compiling.
        rpc: host and port for gRPC, shared by all workers; "": none.
    """

    def __init__(
        self, state: State, number: int, cores: int, quiet: bool = False, rpc: str = ""
    ) -> None:
        self.state = state
        self.number = number
        self.config = state.config()
        self.loop = asyncio.get_event_loop()
        self.scheduler = Scheduler(self.loop)
        # Of several workers that want the same model, one compiles and the others wait.
        self.registry = Registry(self.scheduler, cores, quiet=quiet or number > 0)
        self.service = Service(self.config, self.registry, self)
        self.rpc = _rpc(self.service, rpc) if rpc else None
        self.stop = asyncio.Event()
        self._changing = asyncio.Lock()
        self._stamp = (0, 0)
        self._looked = 0

    async def serve(self, listener: socket.socket) -> int:
        """Run until told to stop; returns the exit code."""
        # Sanic wants to be told of its server's start and stop step by step; see `create_server`.
        app = create_app(self.service)
        server: Any = await app.create_server(
            protocol=Connection, sock=listener, return_asyncio_server=True, backlog=1024,
            asyncio_server_kwargs={"start_serving": False},
        )  # fmt: skip
        await server.startup()
        await server.before_start()
        # The first workers answer /health while they load; one that replaces a dead worker leaves
        # requests to the others until it is ready.
        first = not self.state.started
        if first:
            await self._take_requests(server)
        code = await self._load()
        if not code:
            # What is there now stays: it need not be looked at again and again.
            gc.collect()
            gc.freeze()
            if not first:
                await self._take_requests(server)
            follower = asyncio.create_task(self._follow())
            await self.stop.wait()
            follower.cancel()
        await self._drain(server)
        return code

    async def _take_requests(self, server: Any) -> None:
        await server.start_serving()
        await server.after_start()
        if self.rpc:
            await self.rpc.start()

    async def _load(self) -> int:
        """Load the endpoints that are wanted at the start; returns the exit code if that fails."""
        loading = asyncio.create_task(self._apply())
        stopping = asyncio.create_task(self.stop.wait())
        await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not loading.done():
            # Compiling and loading happen in a thread that cannot be interrupted.
            self._report(Status(os.getpid()))
            return 0
        status = loading.result()
        return status.exit_code

    async def _apply(self) -> Status:
        """Serve what is wanted, and report."""
        async with self._changing:
            self._stamp = self.state.stamp()
            wanted = self.state.wanted()
            status = Status(os.getpid(), wanted.version)
            try:
                await self.registry.apply(
                    wanted.endpoints, wanted.version, wanted.looked > self._looked
                )
                self._looked = wanted.looked
            except SparsecError as error:
                status = Status(os.getpid(), wanted.version, str(error), error.exit_code)
            except Exception as error:
                logger.exception("an endpoint cannot be loaded")
                text = f"{type(error).__name__}: {error}"
                status = Status(os.getpid(), wanted.version, text, 1)
            self._report(status)
            return status

    def on_pipe(self, pipe: int) -> None:
        """Nothing is ever written: readable means that the supervisor is gone."""
        self.loop.remove_reader(pipe)
        self.stop.set()

    def _report(self, status: Status) -> None:
        self.state.report(self.number, status)

    async def _follow(self) -> None:
        """Get ready when all workers are, and serve other endpoints when they are wanted."""
        while True:
            if not self.service.ready and self.state.started:
                self.service.ready = True
                if self.rpc:
                    await self.rpc.set_health(True)
                self.state.set_serving(self.number)
            if self.state.stamp() != self._stamp:
                status = await self._apply()
                if status.error:
                    logger.error(
                        "endpoints stay as they are: %s", status.error,
                        extra={"fields": {"worker": self.number}},
                    )  # fmt: skip
            self.service.keys.refresh()
            await asyncio.sleep(POLL if self.service.ready else POLL / 10)

    async def _drain(self, server: Any) -> None:
        """Not ready; answer what was accepted; close."""
        service, limit = self.service, time.monotonic() + self.config.limits.drain_timeout
        service.ready = False
        service.draining = True
        # Connections that the kernel has accepted already are ours: take them before closing.
        await asyncio.sleep(0.05)
        server.close()
        calls = asyncio.create_task(self._drain_rpc())
        while time.monotonic() < limit:
            for connection in list(server.connections):
                connection.close_if_idle()
            if not server.connections and not service.active:
                break
            await asyncio.sleep(0.02)
        else:
            left = service.active
            logger.error("%d requests were not answered within the drain timeout", left)
            for connection in list(server.connections):
                connection.abort()
            await asyncio.sleep(0)
        await calls
        await self.loop.run_in_executor(None, tracing.stop)
        await server.before_stop()
        self.registry.close()
        await server.after_stop()

    async def _drain_rpc(self) -> None:
        if self.rpc:
            await self.rpc.stop(self.config.limits.drain_timeout)

    # ---- POST and DELETE /endpoints --------------------------------------------------------------

    async def add(self, config: EndpointConfig) -> EndpointConfig:
        """Serve one more endpoint in all workers.

        Raises:
            HttpError: its name or route is taken, or another worker could not load it.
            SparsecError: it cannot be loaded.
        """
        config = self._completed(config)
        try:
            await self.registry.preload(config)
        except SparsecError as error:
            raise HttpError(422, f"the endpoint cannot be loaded: {error}") from error
        try:
            wanted = await self._publish(lambda old: self._with(old, config))
        except BaseException:
            await self.registry.forget(config)
            raise
        problem = await self._followed(wanted.version)
        if problem:
            await self._publish(lambda old: _without(old, config.name))
            raise HttpError(500, f"another worker could not load it: {problem}")
        return config

    async def remove(self, name: str) -> None:
        """Serve an endpoint no more, in any worker."""
        wanted = await self._publish(lambda old: _without(old, name))
        await self._followed(wanted.version)

    def _completed(self, config: EndpointConfig) -> EndpointConfig:
        others = self.state.wanted().endpoints
        try:
            return complete([*others, config])[-1]
        except ValueError as error:
            raise HttpError(409, str(error)) from None

    def _with(self, old: Wanted, config: EndpointConfig) -> Wanted:
        try:
            endpoints = complete([*old.endpoints, config])
        except ValueError as error:
            raise HttpError(409, str(error)) from None
        added = old.added | {config.name}
        return replace(old, version=old.version + 1, endpoints=tuple(endpoints), added=added)

    async def _publish(self, change: Callable[[Wanted], Wanted]) -> Wanted:
        """Change what is wanted, and follow."""

        def write() -> Wanted:
            with self.state.locked():
                new = change(self.state.wanted())
                self.state.publish(new)
                return new

        wanted = await self.loop.run_in_executor(None, write)
        await self._apply()
        return wanted

    async def _followed(self, version: int) -> str:
        """Wait until all workers have dealt with a version; what went wrong in one of them."""
        limit = time.monotonic() + FOLLOW
        while time.monotonic() < limit:
            statuses = self.state.statuses(self.config.num_workers)
            known = [s for s in statuses if s is not None and s.version >= version]
            if problem := next((s.error for s in known if s.error), ""):
                return problem
            if len(known) == len(statuses):
                return ""
            await asyncio.sleep(POLL / 4)
        return f"no answer within {FOLLOW:g} s"


def _without(old: Wanted, name: str) -> Wanted:
    endpoints = tuple(e for e in old.endpoints if e.name != name)
    added = old.added - {name}
    return replace(old, version=old.version + 1, endpoints=endpoints, added=added)


def _rpc(service: Service, address: str) -> RpcServer:
    from sparsec.serving.server.rpc import RpcServer  # which needs the extra `grpc`

    return RpcServer(service, address)


def main(argv: list[str]) -> int:
    """Run a worker."""
    folder, number, descriptor, pipe, cpus, cores, quiet, rpc = argv
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the supervisor
    errors.configure_logging()
    sys.setswitchinterval(SWITCH)
    if cpus:
        os.sched_setaffinity(0, {int(number) for number in cpus.split(",")})
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    state = State(folder)
    tracing.start()
    share(state.lending)
    worker = Worker(state, int(number), int(cores), quiet=quiet == "1", rpc=rpc)
    loop.add_signal_handler(signal.SIGTERM, worker.stop.set)
    loop.add_reader(int(pipe), worker.on_pipe, int(pipe))
    return loop.run_until_complete(worker.serve(socket.socket(fileno=int(descriptor))))


def start(argv: list[str]) -> NoReturn:
    """Be a worker process."""
    speak("json")
    code = main(argv)
    logging.shutdown()
    # Threads of the default pool may be compiling: nothing waits for them.
    if "sparsec.compiler" in sys.modules:
        sys.modules["sparsec.compiler"].abandon()
    os._exit(code)
