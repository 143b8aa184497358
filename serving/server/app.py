"""The HTTP side of a worker: Sanic reads requests, one table says who answers them.

Routes come and go while the server runs, so Sanic's router has a single one, for everything.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any, Protocol

from pydantic import ValidationError
from sanic import HTTPResponse, Request, Sanic
from sanic.application.state import ApplicationServerInfo
from sanic.http import Http
from sanic.http.constants import HTTP

from sparsec import __version__
from sparsec.serving.pipelines.base import explain
from sparsec.serving.server import docs, errors, forms, json_text, metrics, openai, openapi, tei, v2
from sparsec.serving.server.bodies import body_of, json_response
from sparsec.serving.server.config import EndpointConfig, ServerConfig, clean_prefix
from sparsec.serving.server.errors import HttpError
from sparsec.serving.server.keys import Keys, is_open
from sparsec.serving.server.metrics import RequestMetrics
from sparsec.serving.server.registry import Endpoint, Registry
from sparsec.serving.server.tracing import UNSEEN, tracing

Handler = Callable[[Request], Awaitable[HTTPResponse]]

# Seconds after which Sanic gives a request or a response up.
LONG = 3600.0

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class Admin(Protocol):
    """Changes the endpoints of all workers."""

    async def add(self, config: EndpointConfig) -> EndpointConfig: ...

    async def remove(self, name: str) -> None: ...


class Service:
    """What the handlers need to know.

    Attributes:
        ready: the endpoints are loaded and warm; false again while draining.
        draining: connections are to be closed after their response.
        active: requests being answered.
    """

    def __init__(self, config: ServerConfig, registry: Registry, admin: Admin) -> None:
        self.config = config
        self.registry = registry
        self.admin = admin
        self.ready = False
        self.draining = False
        self.active = 0
        self.metrics = RequestMetrics("")
        self.keys = Keys(config.api_keys, config.api_keys_file)
        self.fixed: dict[str, dict[str, Handler]] = {
            "/": {"GET": self.index},
            "/health": {"GET": self.health},
            "/ready": {"GET": self.readiness},
            "/metrics": {"GET": self.prometheus},
            "/openapi.json": {"GET": self.openapi},
            "/docs": {"GET": docs.page},
            "/endpoints": {
                "GET": self.index,
                "POST": self.add_endpoint,
                "DELETE": self.remove_endpoint,
            },
        }

    # ---- who answers ---------------------------------------------------------------------------

    def path(self, request: Request) -> str:
        """A request's path as it is named here: no slash at its end, nothing of a proxy's."""
        path: str = request.path
        if len(path) > 1:
            path = path.rstrip("/") or "/"
        root = self.config.root_path
        if root and (path == root or path.startswith(root + "/")):
            path = path[len(root) :] or "/"
        return path

    def find(self, request: Request, path: str) -> dict[str, Handler]:
        """Handlers of a path by method; none if there is no such path."""
        endpoint = self.registry.routes.get(path)
        if endpoint is not None:
            request.ctx.target = endpoint
            return {"POST": self.predict}
        if path in self.fixed:
            return self.fixed[path]
        if path.startswith("/docs/"):
            return {"GET": docs.asset}
        if path.startswith("/endpoints/"):
            return {"DELETE": self.remove_endpoint}
        if path == "/v2" or path.startswith("/v2/"):
            return v2.find(self, request, path)
        return forms.find(self, path) or openai.find(self, path) or tei.find(self, path)

    def prefix(self, request: Request) -> str:
        """What stands before our paths as the client sees them."""
        given = request.headers.get("x-forwarded-prefix", "").split(",")[0]
        return clean_prefix(given) or self.config.root_path

    async def dispatch(self, request: Request, path: str = "") -> HTTPResponse:
        """Answer any request."""
        request.ctx.path = path = self.path(request)
        if not tracing.on or path in UNSEEN:
            return await self._dispatch(request)
        with tracing.request(request.method, request.headers) as span:
            response = await self._dispatch(request)
            target: Endpoint | None = request.ctx.target
            known = target is not None and path == target.config.route
            span.done(
                response.status >= 500,
                {
                    "http.request.method": request.method,
                    "http.response.status_code": response.status,
                    "url.path": request.path,
                    "sparsec.request_id": errors.request_id(request),
                    **({"http.route": path} if known else {}),
                    **({"sparsec.endpoint": target.name} if target else {}),
                    **({"error.type": request.ctx.code} if request.ctx.code else {}),
                },
                f"{request.method} {path}" if response.status not in (401, 404) else "",
            )
            return response

    async def _dispatch(self, request: Request) -> HTTPResponse:
        start = perf_counter()
        ctx = request.ctx
        ctx.target = None
        ctx.code = ""
        self.active += 1
        metrics.IN_FLIGHT.inc()
        try:
            response = await self._answer(request)
        except Exception as error:
            failure = openai.failure if openai.is_own(ctx.path) else errors.response
            response = failure(request, error)
        finally:
            self.active -= 1
            metrics.IN_FLIGHT.dec()
        target: Endpoint | None = ctx.target
        counted = target.metrics if target else self.metrics
        counted.done(response.status, ctx.code, perf_counter() - start)
        response.headers[errors.REQUEST_ID] = errors.request_id(request)
        self._allow_origin(request, response)
        if self.draining and isinstance(request.stream, Http):
            request.stream.keep_alive = False
        if self.config.access_log:
            errors.log_access(request, response, perf_counter() - start)
        return response

    async def _answer(self, request: Request) -> HTTPResponse:
        path = request.ctx.path
        if not is_open(request.method, path) and (why := self.keys.refusal(request.headers.get)):
            raise HttpError(401, why, headers={"WWW-Authenticate": "Bearer"})
        methods = self.find(request, path)
        if not methods:
            if request.method == "POST" and not self.ready:
                raise self.not_ready()
            raise HttpError(404, f"there is nothing at {request.path}; GET / lists the endpoints")
        handler = methods.get("GET" if request.method == "HEAD" else request.method)
        if handler is not None:
            return await handler(request)
        allow = sorted({*methods, "OPTIONS", *(["HEAD"] if "GET" in methods else [])})
        if request.method == "OPTIONS":
            return HTTPResponse(status=204, headers={"Allow": ", ".join(allow)})
        raise HttpError(
            405,
            f"{request.path} takes {', '.join(sorted(methods))}, not {request.method}",
            headers={"Allow": ", ".join(allow)},
        )

    def not_ready(self) -> HttpError:
        """The error while models are loaded, or the server stops."""
        doing = "stopping" if self.draining else "loading its models"
        return HttpError(503, f"the server is {doing}", "not_ready", {"Retry-After": "1"})

    def _allow_origin(self, request: Request, response: HTTPResponse) -> None:
        allowed = self.config.cors_origins
        if not allowed:
            return
        response.headers["Vary"] = "Origin"
        origin = request.headers.get("origin", "")
        if not origin or not ("*" in allowed or origin in allowed):
            return
        response.headers["Access-Control-Allow-Origin"] = "*" if "*" in allowed else origin
        if request.method == "OPTIONS":
            response.headers["Access-Control-Allow-Methods"] = response.headers.get("Allow", "")
            response.headers["Access-Control-Allow-Headers"] = request.headers.get(
                "access-control-request-headers", ""
            )
            response.headers["Access-Control-Max-Age"] = "600"

    # ---- predictions ---------------------------------------------------------------------------

    async def predict(self, request: Request) -> HTTPResponse:
        """An endpoint's own route."""
        return await forms.respond(self, request.ctx.target, request, forms.any_of_both)

    # ---- about the server ----------------------------------------------------------------------

    async def index(self, request: Request) -> HTTPResponse:
        """What is served."""
        prefix = self.prefix(request)
        return json_response(
            {
                "server": "sparsec",
                "version": __version__,
                "status": "alive",  # what clients of KServe's first protocol look for
                "ready": self.ready,
                "docs": f"{prefix}/docs",
                **({"root_path": prefix} if prefix else {}),
                "endpoints": [e.describe() for e in self.registry.routes.values()],
            }
        )

    async def health(self, request: Request) -> HTTPResponse:
        """The process is alive."""
        return json_response({"live": True})

    async def readiness(self, request: Request) -> HTTPResponse:
        """Requests will be answered."""
        if not self.ready:
            raise self.not_ready()
        return json_response({"ready": True})

    async def prometheus(self, request: Request) -> HTTPResponse:
        """Counters of all workers."""
        loop = asyncio.get_running_loop()
        text = await loop.run_in_executor(None, metrics.render)
        return HTTPResponse(text, content_type=metrics.CONTENT_TYPE_LATEST)

    async def openapi(self, request: Request) -> HTTPResponse:
        """The OpenAPI document of what is served right now."""
        document = openapi.document(
            list(self.registry.routes.values()),
            admin=self.config.admin_token is not None,
            keys=self.keys.needed,
            prefix=self.prefix(request),
        )
        return json_response(document)

    # ---- endpoints come and go -----------------------------------------------------------------

    async def add_endpoint(self, request: Request) -> HTTPResponse:
        """Load a model and serve it, in all workers."""
        self._authorize(request)
        try:
            body = await body_of(request, self.config.limits.body_bytes)
            config = EndpointConfig.model_validate_json(json_text.without_mark(body))
        except ValidationError as error:
            raise HttpError(422, explain(error)) from None
        made = await self.admin.add(config)
        endpoint = self.registry.names.get(made.name)
        return json_response(endpoint.describe() if endpoint else made.model_dump(), 201)

    async def remove_endpoint(self, request: Request) -> HTTPResponse:
        """Serve an endpoint no more, in all workers; named in the path, or by a body with name
        or route."""
        self._authorize(request)
        name = request.path.rstrip("/").removeprefix("/endpoints").strip("/")
        if not name:
            try:
                body = await body_of(request, self.config.limits.body_bytes)
                wanted = json.loads(body.decode("utf-8-sig"))
                name = wanted.get("name") or ""
                route = wanted.get("route")
            except (ValueError, AttributeError, RecursionError):
                raise HttpError(400, 'send {"name": ...} or {"route": ...}') from None
            if (
                not name
                and isinstance(route, str)
                and "/" + route.strip("/") in (self.registry.routes)
            ):
                name = self.registry.routes["/" + route.strip("/")].name
        if not isinstance(name, str) or name not in self.registry.names:
            raise HttpError(
                404, f"there is no endpoint {name or 'of that route'}; GET / lists them"
            )
        await self.admin.remove(name)
        return json_response({"removed": name})

    def _authorize(self, request: Request) -> None:
        token = self.config.admin_token
        if token is None:
            raise HttpError(403, "endpoints are fixed: start the server with an admin token")
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(
            given.encode("utf-8", "replace"), f"Bearer {token}".encode("utf-8", "replace")
        ):
            raise HttpError(
                401,
                "send the admin token: Authorization: Bearer TOKEN",
                headers={"WWW-Authenticate": "Bearer"},
            )


def create_app(service: Service) -> Sanic[Any, Any]:
    """The Sanic application of a worker."""
    limits = service.config.limits
    app: Sanic[Any, Any] = Sanic(
        "sparsec", error_handler=errors.JsonErrors(service.metrics), configure_logging=False
    )
    app.config.update(
        {
            "REQUEST_MAX_SIZE": limits.body_bytes,
            # Connections and predictions have limits of their own, which say what happened;
            # compiling a model for /endpoints takes long.
            "READ_TIMEOUT": limits.request_timeout,
            "REQUEST_TIMEOUT": LONG,
            "RESPONSE_TIMEOUT": LONG,
            "KEEP_ALIVE_TIMEOUT": limits.keep_alive,
            "FALLBACK_ERROR_FORMAT": "json",
            "ACCESS_LOG": False,
        }
    )
    # `create_server` leaves this out; without, each response has an empty Alt-Svc header.
    app.state.server_info.append(ApplicationServerInfo(settings={"version": HTTP.VERSION_1}))
    for uri in ("/", "/<path:path>"):
        app.add_route(service.dispatch, uri, methods=METHODS, name=f"all{len(uri)}")
    return app
