"""Pipelines on Ray Serve: `deployment` makes an application of one.

>>> from ray import serve                                                    # doctest: +SKIP
>>> app = sparsec.ray.deployment("sentiment-analysis", "/models/m.sparsec")  # doctest: +SKIP
>>> serve.run(app, route_prefix="/predict")                                  # doctest: +SKIP

What is sent to a replica waits in the queue of `sparsec serve` and runs in its batches: Ray's own
batching (``@serve.batch``) is not needed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sparsec.arguments import speak, whole
from sparsec.errors import InputError
from sparsec.paths import user_path

if TYPE_CHECKING:
    from sparsec.serving.server.registry import Endpoint


def deployment(
    task: str,
    model_path: str | os.PathLike[str],
    *,
    num_cores: int = 1,
    max_batch: int = 32,
    max_delay_us: int = 0,
    queue_size: int = 256,
    num_replicas: int | None = None,
    autoscaling_config: Mapping[str, Any] | None = None,
    name: str | None = None,
    deployment_options: Mapping[str, Any] | None = None,
    limits: Mapping[str, Any] | None = None,
    **options: Any,
) -> Any:
    """A Ray Serve application that answers a task.

    Over HTTP it takes and gives the JSON of ``sparsec serve``'s task routes, its errors too; a
    handle's ``predict.remote(inputs)`` takes the fields of the task's input and returns those of
    its output.

    Args:
        task: as for :meth:`Pipeline.create`.
        model_path: the same; every node must be able to read it, as a folder that all share, in
            their image, or ``hf:org/name``.
        num_cores: cores of a replica; Ray places it on a node with so many CPUs.
        max_batch: sequences that run at once, at most.
        max_delay_us: microseconds that a batch that is not full waits for more.
        queue_size: sequences that may wait in a replica; more get a 503.  Ray hands a replica as
            many requests.
        num_replicas: how many there are; None: 1, or as `autoscaling_config` says.
        autoscaling_config: Ray Serve's; `target_ongoing_requests` is `max_batch` unless given: a
            replica that has a full batch is busy.
        name: of the deployment; None: the task's.
        deployment_options: further arguments of ``serve.deployment``.
        limits: of requests, as in the server's configuration file, such as `request_timeout`.
        options: further arguments of :meth:`Pipeline.create`.

    Returns:
        ``ray.serve.Application``, for ``serve.run`` or a configuration file of Ray Serve.

    Raises:
        InputError: Ray or what the server needs is not installed, or an argument is wrong.
    """
    try:
        from ray import serve
    except ImportError as missing:
        raise InputError(
            f"Ray Serve needs {missing.name or 'ray'}, which is not installed: "
            f"pip install 'sparsec[ray]'"
        ) from None
    from sparsec.serving.server.config import ServerConfig, check

    num_cores = whole("num_cores", num_cores, 1)
    batching = {"max_batch": max_batch, "max_delay_us": max_delay_us, "queue_size": queue_size}
    endpoint = {
        "name": name or task,
        "task": task,
        "model": _anywhere(model_path),
        "batching": batching,
        **{key: options.pop(key) for key in _KEYS if key in options},
        "kwargs": options,
    }
    settings: ServerConfig = check(
        {"endpoints": [endpoint], "limits": dict(limits or {})}, "deployment"
    )
    made = serve.deployment(
        _Replica,
        name=name or task,
        max_ongoing_requests=queue_size,
        ray_actor_options={"num_cpus": num_cores},
        **_scale(num_replicas, autoscaling_config, max_batch),
        **(deployment_options or {}),
    )
    return made.bind(settings.model_dump_json(), num_cores)


def _anywhere(model: str | os.PathLike[str]) -> str:
    """A path that replicas understand, whose working directory is another."""
    given = str(model)
    return given if given.startswith(("hf:", "zoo:")) else str(user_path(given).absolute())


def _scale(
    replicas: int | None, autoscaling: Mapping[str, Any] | None, max_batch: int
) -> dict[str, Any]:
    if autoscaling is None:
        return {"num_replicas": 1 if replicas is None else whole("num_replicas", replicas, 1)}
    if replicas is not None:
        raise InputError("give num_replicas or autoscaling_config, not both")
    return {"autoscaling_config": {"target_ongoing_requests": max_batch, **autoscaling}}


# Arguments that the server's configuration has outside of a task's options.
_KEYS = ("batch_size", "sequence_length", "on_nonfinite", "truncate")


class _Replica:
    """One process that answers."""

    # Ray Serve waits for it, as for any constructor.
    async def __init__(self, settings: str, num_cores: int) -> None:  # type: ignore[misc]
        from sparsec.serving.server.batching import Scheduler
        from sparsec.serving.server.config import ServerConfig
        from sparsec.serving.server.registry import Registry

        speak("json")
        config = ServerConfig.model_validate_json(settings)
        self._limits = config.limits
        self._scheduler = Scheduler(asyncio.get_running_loop())
        registry = Registry(self._scheduler, num_cores)
        await registry.apply(config.endpoints)
        (self._endpoint,) = registry.names.values()

    async def predict(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """For handles: the fields of the task's input in, those of its output out.

        Raises:
            InputError: the inputs do not fit.
        """
        from sparsec.serving.server import inference, json_text

        pipeline = self._endpoint.pipeline
        answer = await inference.predict(self._endpoint, [pipeline.validate(inputs)], self._limits)
        plain: dict[str, Any] = json.loads(json_text.dumps(answer.results[0]))
        return plain

    async def __call__(self, request: Any) -> Any:
        """A request of HTTP, as Starlette has it."""
        from starlette.responses import Response

        from sparsec.serving.server.errors import as_http

        try:
            data, headers = await self._answer(await request.body())
            return Response(data, 200, headers, "application/json")
        except Exception as error:
            shown = as_http(error)
            if shown.status >= 500:
                _log(self._endpoint, error)
            body = {"error": str(shown), "code": shown.code, "status": shown.status}
            return Response(json.dumps(body), shown.status, shown.headers, "application/json")

    async def _answer(self, body: bytes) -> tuple[bytes, dict[str, str]]:
        from sparsec.serving.server import forms, inference, json_text
        from sparsec.serving.server.errors import HttpError

        if len(body) > self._limits.body_bytes:
            raise HttpError(413, f"the body exceeds {self._limits.body_bytes} bytes")
        asked = forms.any_of_both(self._endpoint, body)
        found = await inference.predict(
            self._endpoint, asked.inputs, self._limits, pipeline=asked.pipeline
        )
        return json_text.dumps(asked.answer(found.results)), found.headers


def _log(endpoint: Endpoint, error: Exception) -> None:
    logging.getLogger("ray.serve").error("%s failed", endpoint.name, exc_info=error)
