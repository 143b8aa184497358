"""The endpoints of one worker: loaded, warmed up, swapped as a whole, and given up when idle."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sparsec.console import say
from sparsec.errors import ModelError
from sparsec.serving.models import ModelFiles
from sparsec.serving.pipelines import Pipeline
from sparsec.serving.runner import Features, Runner
from sparsec.serving.server import metrics, tensors
from sparsec.serving.server.batching import ModelQueue, Scheduler
from sparsec.serving.server.config import EndpointConfig
from sparsec.serving.server.datalog import DataLog
from sparsec.serving.server.metrics import ModelMetrics, RequestMetrics

logger = logging.getLogger("sparsec.server")

T = TypeVar("T")

# How often a model is loaded whose files change meanwhile.
ATTEMPTS = 3

# Pipelines of an endpoint that are kept for requests with options of their own.
VARIANTS = 32

# Tokens of the largest batch that a model is warmed up with.
WARM_TOKENS = 8192

# Options of a pipeline that decide what model is run and how.
_MODEL_OPTIONS = ("engine_type", "tokenizer", "config", "zoo_dir")


@dataclass
class _Shared:
    """A model's queue and how many endpoints use it."""

    key: str
    queue: ModelQueue
    uses: int = 0


class Endpoint:
    """A pipeline that answers requests at a route.

    Attributes:
        hash: of the contents of its model's files, 16 hexadecimal digits.
        tensors: its outputs as the Open Inference Protocol describes them.
        loaded: when, in seconds since 1970.
        active: requests that it is answering; it is given up only when there are none.
    """

    def __init__(
        self, config: EndpointConfig, pipeline: Pipeline, shared: _Shared, digest: str
    ) -> None:
        self.config = config
        self.hash = digest
        self.served = metrics.SERVED.labels(config.name, Path(config.model).name, digest)
        self.pipeline = pipeline
        self.metrics = RequestMetrics(config.name)
        recorded = config.data_logging
        self.data_log = DataLog(config.name, pipeline, recorded) if recorded else None
        self.tensors = tensors.outputs(pipeline)
        self.loaded = int(time.time())
        self.active = 0
        self.retired = False
        self._shared = shared
        self._varied = functools.lru_cache(VARIANTS)(
            lambda options: pipeline.varied(**json.loads(options))
        )

    def varied(self, options: Mapping[str, Any]) -> Pipeline:
        """Its pipeline under other options of the task, which are plain data.

        Raises:
            InputError: an option has a wrong value.
        """
        if not options:
            return self.pipeline
        return self._varied(json.dumps(options, sort_keys=True))

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def queue(self) -> ModelQueue:
        return self._shared.queue

    @property
    def shared(self) -> _Shared:
        return self._shared

    def describe(self) -> dict[str, Any]:
        """What `GET /` tells."""
        return {
            "name": self.config.name,
            "route": self.config.route,
            "task": self.pipeline.task,
            "model": Path(self.config.model).name,
            "hash": self.hash,
            "sequence_length": list(self.pipeline.runner.buckets),
            "batching": self.config.batching.model_dump(),
            "v2": f"/v2/models/{self.config.name}/infer",
        }


class Registry:
    """Endpoints by route and by name.

    All methods but those that say otherwise belong to the event loop's thread.

    Args:
        scheduler: runs the models.
        num_cores: threads that a call of a model may use.
        quiet: no lines about compiling.
    """

    def __init__(
        self, scheduler: Scheduler, num_cores: int | None = None, quiet: bool = False
    ) -> None:
        self.scheduler = scheduler
        self.routes: dict[str, Endpoint] = {}
        self.names: dict[str, Endpoint] = {}
        self.version = 0
        self._num_cores = num_cores
        self._quiet = quiet
        self._shared: dict[str, _Shared] = {}
        self._busy = asyncio.Lock()
        self._preloaded: dict[str, Endpoint] = {}

    async def preload(self, config: EndpointConfig) -> None:
        """Load an endpoint that a later :meth:`apply` will ask for.

        Raises:
            SparsecError: it cannot be loaded.
        """
        async with self._busy:
            key = _identity(config)
            if key not in self._preloaded:
                self._preloaded[key] = await self._load(config)

    async def forget(self, config: EndpointConfig) -> None:
        """Give up what was preloaded and not used."""
        async with self._busy:
            endpoint = self._preloaded.pop(_identity(config), None)
            if endpoint:
                self._retire(endpoint)

    async def apply(
        self, wanted: Sequence[EndpointConfig], version: int = 0, look: bool = False
    ) -> None:
        """Serve exactly these endpoints, all of them or, after an error, the same as before.

        Requests that an endpoint accepted are answered by it, however the table changes.

        Args:
            look: load those again whose models' files have other contents than when they were
                loaded.

        Raises:
            SparsecError: one cannot be loaded.
        """
        async with self._busy:
            kept = {_identity(e.config): e for e in self.routes.values()}
            ready: list[Endpoint] = []
            loaded: list[Endpoint] = []
            try:
                for config in wanted:
                    endpoint = kept.get(_identity(config))
                    if endpoint and look and endpoint.hash != await _away(_digest, config):
                        endpoint = None
                    endpoint = endpoint or self._preloaded.pop(_identity(config), None)
                    if endpoint is None:
                        endpoint = await self._load(config)
                        loaded.append(endpoint)
                    ready.append(endpoint)
            except BaseException:
                for endpoint in loaded:
                    self._retire(endpoint)
                raise
            before = list(self.routes.values())
            gone = [e for e in before if e not in ready]
            self.routes = {e.config.route: e for e in ready}
            self.names = {e.config.name: e for e in ready}
            self.version = version
            for endpoint in gone:
                endpoint.served.dec()
                self._retire(endpoint)
            for endpoint in ready:
                if endpoint not in before:
                    endpoint.served.inc()
                    fields = {"endpoint": endpoint.name, "hash": endpoint.hash}
                    logger.info(
                        "%s serves %s, contents %s",
                        endpoint.name, endpoint.config.model, endpoint.hash,
                        extra={"fields": fields},
                    )  # fmt: skip

    def enter(self, endpoint: Endpoint) -> None:
        """A request begins."""
        endpoint.active += 1

    def leave(self, endpoint: Endpoint) -> None:
        """A request ended."""
        endpoint.active -= 1
        if endpoint.retired and not endpoint.active:
            self._give_up(endpoint)

    def close(self) -> None:
        """Give everything up; no request may be active."""
        for endpoint in self.routes.values():
            self._retire(endpoint)
        self.routes, self.names = {}, {}

    def _retire(self, endpoint: Endpoint) -> None:
        endpoint.retired = True
        if not endpoint.active:
            self._give_up(endpoint)

    def _give_up(self, endpoint: Endpoint) -> None:
        if endpoint.data_log:
            endpoint.data_log.close()
        shared = endpoint.shared
        shared.uses -= 1
        if shared.uses == 0:
            del self._shared[shared.key]
            self.scheduler.remove(shared.queue)
            # It may have to wait for a batch whose requests were all cancelled.
            self.scheduler.loop.run_in_executor(None, shared.queue.runner.close)

    async def _load(self, config: EndpointConfig) -> Endpoint:
        for _ in range(ATTEMPTS):
            digest = await _away(_digest, config)
            pipeline = await _away(self._make, config)
            if digest == await _away(_digest, config):
                break
            pipeline.close()  # its files were replaced meanwhile
        else:
            raise ModelError(f"{config.model} changes while it is loaded: try again later")
        key = _model_key(config, pipeline, digest)
        shared = self._shared.get(key)
        if shared is None:
            shared = _Shared(
                key,
                self.scheduler.queue(pipeline.runner, config.batching, ModelMetrics(config.name)),
            )
            self._shared[key] = shared
        else:
            mine, pipeline.runner = pipeline.runner, shared.queue.runner
            mine.close()
        shared.uses += 1
        try:
            return await _away(Endpoint, config, pipeline, shared, digest)
        except BaseException:
            shared.uses -= 1
            if not shared.uses:
                del self._shared[key]
                self.scheduler.remove(shared.queue)
                shared.queue.runner.close()
            raise

    def _make(self, config: EndpointConfig) -> Pipeline:
        """Load and warm up; in a thread of its own."""
        options = dict(config.kwargs)
        if config.lengths is not None:
            options["sequence_length"] = config.lengths
        pipeline = Pipeline.create(
            config.task,
            config.model,
            batch_size=config.batch_size,
            num_cores=self._num_cores,
            on_nonfinite=config.on_nonfinite,
            truncate=config.truncate,
            progress=None if self._quiet else say,
            **options,
        )
        pipeline.arrays = True
        try:
            warm_up(pipeline.runner, config.batching.max_batch)
        except BaseException:
            pipeline.close()
            raise
        return pipeline


def warm_up(runner: Runner, max_batch: int) -> None:
    """Run every bucket once, and the largest batch: memory is taken and pages are read now."""
    for bucket in runner.buckets:
        runner.infer([features(runner, bucket)])
    last = runner.buckets[-1]
    runner.infer([features(runner, last)] * min(max_batch, max(1, WARM_TOKENS // last)))


def features(runner: Runner, length: int) -> Features:
    """A sequence of one token repeated, for any text model."""
    arrays = {
        name: (np.ones if "mask" in name.lower() else np.zeros)(length, np.int64)
        for name in runner.input_names
    }
    return Features(arrays, length)


def _identity(config: EndpointConfig) -> str:
    return config.model_dump_json()


def _digest(config: EndpointConfig) -> str:
    """What an endpoint's model is made of, in short."""
    given = {name: config.kwargs.get(name) for name in ("tokenizer", "config", "zoo_dir")}
    return ModelFiles.find(config.model, **given).digest()[:16]


async def _away(work: Callable[..., T], *args: Any) -> T:
    """Do it in a thread of the default pool."""
    return await asyncio.get_running_loop().run_in_executor(None, work, *args)


def _model_key(config: EndpointConfig, pipeline: Pipeline, digest: str) -> str:
    """Endpoints with equal keys share a runner and its queue."""
    return json.dumps(
        [
            str(Path(pipeline.model.path).resolve()),
            digest,
            pipeline.runner.buckets,
            config.batch_size,
            config.batching.model_dump(),
            {name: config.kwargs[name] for name in _MODEL_OPTIONS if name in config.kwargs},
        ],
        sort_keys=True,
        default=str,
    )
