"""The routes of the Open Inference Protocol, version 2."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

import orjson
from pydantic import BaseModel, ValidationError
from sanic import HTTPResponse, Request

from sparsec import __version__
from sparsec.serving.pipelines.base import explain
from sparsec.serving.server import errors, inference, json_text, oip, tensors
from sparsec.serving.server.bodies import body_of, json_response
from sparsec.serving.server.config import ServerConfig
from sparsec.serving.server.errors import HttpError
from sparsec.serving.server.registry import Endpoint, Registry

Handler = Callable[[Request], Awaitable[HTTPResponse]]

#: Models have one version: what is served now.
VERSION = "1"
EXTENSIONS = ("binary_tensor_data", "model_repository")


class Service(Protocol):
    """What these routes need to know of the server: `app.Service` has it."""

    config: ServerConfig
    registry: Registry
    ready: bool

    def not_ready(self) -> HttpError: ...


def find(service: Service, request: Request, path: str) -> dict[str, Handler]:
    """Handlers of a path under /v2 by method."""
    parts = path.split("/")[2:]
    about = _about_server(service, parts)
    if about:
        return about
    if parts[0] != "models" or len(parts) < 2:
        return {}
    name, rest, version = parts[1], parts[2:], ""
    if len(rest) >= 2 and rest[0] == "versions":
        version, rest = rest[1], rest[2:]
    if rest not in ([], ["ready"], ["infer"]):
        return {}
    endpoint = model(service, name, version)
    request.ctx.target = endpoint
    if rest == ["infer"]:
        return {"POST": partial(_infer, service, endpoint)}
    return {"GET": partial(_ready if rest else _metadata, endpoint)}


def model(service: Service, name: str, version: str = "", code: str = "") -> Endpoint:
    """A model by its name and version; an empty one is any.

    Args:
        code: of the error if there is none.

    Raises:
        HttpError: 404, there is none; 503, not ready.
    """
    if version not in ("", VERSION):
        raise HttpError(404, f"model {name} has version {VERSION} only, not {version}")
    endpoint = service.registry.names.get(name)
    if endpoint is None:
        if not service.ready:
            raise service.not_ready()
        raise HttpError(404, f"there is no model {name}; GET / lists them", code)
    return endpoint


def _about_server(service: Service, parts: list[str]) -> dict[str, Handler]:
    if not parts:
        return {"GET": _server}
    if parts in (["health", "live"], ["health", "ready"]):
        return {"GET": partial(_health, service, parts[1])}
    if parts == ["models"]:
        return {"GET": partial(_models, service)}
    if parts == ["repository", "index"]:
        return {"POST": partial(_repository, service)}
    return {}


async def _server(request: Request) -> HTTPResponse:
    return json_response(
        {"name": "sparsec", "version": __version__, "extensions": list(EXTENSIONS)}
    )


async def _health(service: Service, what: str, request: Request) -> HTTPResponse:
    if what == "ready" and not service.ready:
        raise service.not_ready()
    return json_response({what: True})


async def _models(service: Service, request: Request) -> HTTPResponse:
    return json_response({"models": [row["name"] for row in repository(service)]})


async def _repository(service: Service, request: Request) -> HTTPResponse:
    body = await body_of(request, service.config.limits.body_bytes)
    try:
        wanted = _Index.model_validate_json(json_text.without_mark(body) or b"{}")
    except ValidationError as error:
        raise HttpError(400, explain(error)) from None
    return json_response(repository(service, wanted.ready))


class _Index(BaseModel):
    """The body of `POST /v2/repository/index`."""

    ready: bool = False


def repository(service: Service, ready: bool = False) -> list[dict[str, str]]:
    """The models as Triton's repository has them: name, version, state, and why it is so.

    Args:
        ready: those only that answer requests.
    """
    if service.ready:
        return [_entry(name, "READY", "") for name in service.registry.names]
    if ready:
        return []
    names = list(service.registry.names) or [e.name for e in service.config.endpoints]
    why = str(service.not_ready())
    return [_entry(name, "UNAVAILABLE", why) for name in names]


def _entry(name: str, state: str, reason: str) -> dict[str, str]:
    return {"name": name, "version": VERSION, "state": state, "reason": reason}


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
            own = None if header_length else _own(endpoint, body)
            if own is None:
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


def _own(endpoint: Endpoint, body: bytes) -> BaseModel | None:
    """A body of the task's own JSON, which DeepSparse's server had at this path; None: it is none.
    Empty `inputs` are the protocol's: no tensors."""
    plain = json_text.without_mark(body)
    try:
        own = endpoint.pipeline.input_schema.model_validate_json(plain)
    except ValidationError:
        return None
    return None if orjson.loads(plain).get("inputs") == [] else own
