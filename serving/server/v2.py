"""The routes of the Open Inference Protocol, version 2."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

from pydantic import ValidationError
from sanic import HTTPResponse, Request

from sparsec import __version__
from sparsec.serving.server import errors, inference, json_text, oip, tensors
from sparsec.serving.server.bodies import body_of, json_response
from sparsec.serving.server.config import ServerConfig
from sparsec.serving.server.errors import HttpError
from sparsec.serving.server.registry import Endpoint, Registry

Handler = Callable[[Request], Awaitable[HTTPResponse]]

#: Models have one version: what is served now.
VERSION = "1"


class Service(Protocol):
    """What these routes need to know of the server: `app.Service` has it."""

    config: ServerConfig
    registry: Registry
    ready: bool

    def not_ready(self) -> HttpError: ...


def find(service: Service, request: Request, path: str) -> dict[str, Handler]:
    """Handlers of a path under /v2 by method."""
    parts = path.split("/")[2:]
    if not parts:
        return {"GET": _server}
    if parts in (["health", "live"], ["health", "ready"]):
        return {"GET": partial(_health, service, parts[1])}
    if parts[0] != "models" or len(parts) < 2:
        return {}
    name, rest = parts[1], parts[2:]
    if len(rest) >= 2 and rest[0] == "versions":
        if rest[1] != VERSION:
            raise HttpError(404, f"model {name} has version {VERSION} only, not {rest[1]}")
        rest = rest[2:]
    if rest not in ([], ["ready"], ["infer"]):
        return {}
    endpoint = service.registry.names.get(name)
    if endpoint is None:
        if not service.ready:
            raise service.not_ready()
        raise HttpError(404, f"there is no model {name}; GET / lists them")
    request.ctx.target = endpoint
    if rest == ["infer"]:
        return {"POST": partial(_infer, service, endpoint)}
    return {"GET": partial(_ready if rest else _metadata, endpoint)}


async def _server(request: Request) -> HTTPResponse:
    return json_response(
        {"name": "sparsec", "version": __version__, "extensions": ["binary_tensor_data"]}
    )


async def _health(service: Service, what: str, request: Request) -> HTTPResponse:
    if what == "ready" and not service.ready:
        raise service.not_ready()
    return json_response({what: True})


async def _ready(endpoint: Endpoint, request: Request) -> HTTPResponse:
    return json_response({"name": endpoint.name, "ready": True})


async def _metadata(endpoint: Endpoint, request: Request) -> HTTPResponse:
    return json_response(
        {
            "name": endpoint.name,
            "versions": [VERSION],
            "platform": "sparsec",
            "inputs": tensors.inputs(endpoint.pipeline),
            "outputs": endpoint.tensors,
        }
    )


async def _infer(service: Service, endpoint: Endpoint, request: Request) -> HTTPResponse:
    request.ctx.endpoint = endpoint.name
    limits = service.config.limits
    service.registry.enter(endpoint)
    try:
        body = await body_of(request, limits.body_bytes)
        header_length = request.headers.get(oip.HEADER_LENGTH)
        try:
            wanted = oip.decode(body, header_length)
        except HttpError as error:
            # DeepSparse's server had the task's own JSON at this path.
            try:
                own = endpoint.pipeline.input_schema.model_validate_json(
                    json_text.without_mark(body)
                )
            except ValidationError:
                raise error from None
            found = await inference.predict(endpoint, [own], limits, errors.request_id(request))
            return json_response(found.results[0], headers=found.headers)
        inputs = tensors.to_inputs(endpoint.pipeline, wanted)
        found = await inference.predict(endpoint, inputs, limits, errors.request_id(request))
        answer, length = oip.encode(
            endpoint.name, wanted, tensors.from_results(endpoint.pipeline, found.results)
        )
    finally:
        service.registry.leave(endpoint)
    if length is None:
        return HTTPResponse(answer, headers=found.headers, content_type="application/json")
    return HTTPResponse(
        answer,
        headers={**found.headers, oip.HEADER_LENGTH: str(length)},
        content_type="application/octet-stream",
    )
