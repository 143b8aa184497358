"""Bodies as a task's inputs, and its predictions as the client wants them: the task's own JSON, or
Hugging Face's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import BaseModel, ValidationError
from sanic import HTTPResponse, Request

from sparsec.serving.pipelines import hub
from sparsec.serving.pipelines.base import Pipeline, explain
from sparsec.serving.server import errors, inference, json_text
from sparsec.serving.server.bodies import body_of, json_response
from sparsec.serving.server.errors import HttpError
from sparsec.serving.server.registry import Endpoint
from sparsec.serving.server.v2 import Handler, Service, model


@dataclass(frozen=True)
class Asked:
    """What a body asks of an endpoint.

    Attributes:
        pipeline: the endpoint's, under the options that the body has.
        inputs: of the task; they run together.
        answer: makes plain data of the predictions for them.
    """

    pipeline: Pipeline
    inputs: Sequence[BaseModel]
    answer: Callable[[Sequence[BaseModel]], Any]


Read = Callable[[Endpoint, bytes], Asked]


def any_of_both(endpoint: Endpoint, body: bytes) -> Asked:
    """A body of the task's own JSON, or of Hugging Face's where it can be nothing else.

    Raises:
        HttpError: 400 if it is not JSON, 422 if it is not what the task takes.
    """
    pipeline = endpoint.pipeline
    try:
        own = pipeline.input_schema.model_validate_json(json_text.without_mark(body))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise HttpError(400, first["msg"], "invalid_json") from None
        data = plain(body)
        if hub.is_one(data):
            return _hub(endpoint, data)
        raise HttpError(422, explain(error)) from None
    return Asked(pipeline, [own], lambda results: results[0])


def hugging_face(endpoint: Endpoint, body: bytes) -> Asked:
    """A body of Hugging Face's JSON.

    Raises:
        HttpError: 400 if it is not JSON.
        InputError: it is not what the task takes.
    """
    return _hub(endpoint, plain(body))


def instances(endpoint: Endpoint, body: bytes) -> Asked:
    """A body of KServe's first protocol: ``instances``, each as Hugging Face's ``inputs``, and
    `parameters`, if any, as there.

    Raises:
        HttpError: 400 if it is not JSON, or has no list of instances.
        InputError: an instance is not what the task takes.
    """
    data = plain(body)
    values = data.get("instances") if isinstance(data, Mapping) else None
    if not isinstance(values, list) or not values:
        raise HttpError(400, 'send {"instances": [...]}, with at least one')
    request = hub.of_values(endpoint.pipeline, values, data.get("parameters") or {})
    return Asked(
        endpoint.varied(request.options),
        request.inputs,
        lambda results: {"predictions": request.answers(results)},
    )


def _hub(endpoint: Endpoint, data: Any) -> Asked:
    request = hub.read(endpoint.pipeline, data)
    return Asked(endpoint.varied(request.options), request.inputs, request.answer)


def plain(body: bytes) -> Any:
    """A body of JSON.

    Raises:
        HttpError: 400, it is none.
    """
    try:
        return orjson.loads(json_text.without_mark(body))
    except orjson.JSONDecodeError as error:
        raise HttpError(400, f"the body is not JSON: {error}", "invalid_json") from None


async def respond(
    service: Service, endpoint: Endpoint, request: Request, read: Read
) -> HTTPResponse:
    """An endpoint's answer to a body."""
    request.ctx.target = endpoint
    request.ctx.endpoint = endpoint.name
    limits = service.config.limits
    service.registry.enter(endpoint)
    try:
        asked = read(endpoint, await body_of(request, limits.body_bytes))
        found = await inference.predict(
            endpoint, asked.inputs, limits, errors.request_id(request), asked.pipeline
        )
        return json_response(asked.answer(found.results), headers=found.headers)
    finally:
        service.registry.leave(endpoint)


def find(service: Service, path: str) -> dict[str, Handler]:
    """Handlers of a path by method: ``/models/NAME`` and ``/models/NAME/pipeline/TASK`` of Hugging
    Face, ``/v1/models/NAME:predict`` of KServe."""
    parts = path.split("/")[1:]
    if parts[:2] == ["v1", "models"] and len(parts) == 3 and parts[2].endswith(":predict"):
        return {"POST": _handler(service, parts[2].removesuffix(":predict"), instances)}
    if parts[0] == "models" and len(parts) == 2:
        return {"POST": _handler(service, parts[1], hugging_face)}
    if parts[0] == "models" and len(parts) == 4 and parts[2] == "pipeline":
        return {"POST": _handler(service, parts[1], hugging_face, parts[3])}
    return {}


def _handler(service: Service, name: str, read: Read, task: str = "") -> Handler:
    async def handler(request: Request) -> HTTPResponse:
        endpoint = model(service, name)
        if task and task not in _tasks(endpoint.pipeline):
            known = ", ".join(_tasks(endpoint.pipeline))
            raise HttpError(404, f"{name} is no model for {task}; it is for {known}")
        return await respond(service, endpoint, request, read)

    return handler


def _tasks(pipeline: Pipeline) -> list[str]:
    """What a pipeline's task is called in paths."""
    return sorted({*pipeline.hub.names, pipeline.task, *pipeline.aliases})
