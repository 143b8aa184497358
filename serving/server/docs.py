"""The OpenAPI document of what is served, and a page to try it out that needs no network."""

from __future__ import annotations

import functools
import mimetypes
from collections.abc import Sequence
from typing import Any

from pydantic.json_schema import models_json_schema
from sanic import HTTPResponse, Request

from sparsec import __version__
from sparsec.serving.pipelines.base import SENTENCE
from sparsec.serving.server.config import EndpointConfig
from sparsec.serving.server.errors import HttpError
from sparsec.serving.server.registry import Endpoint

# What the page loads; everything comes from this server.
ASSETS = ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png", "favicon-16x16.png")
POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:"
)

# Links are relative: the server may be behind a proxy, under any path.
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>sparsec</title>
<link rel="stylesheet" href="FOLDER/swagger-ui.css">
<link rel="icon" type="image/png" sizes="32x32" href="FOLDER/favicon-32x32.png">
</head>
<body>
<div id="page"></div>
<script src="FOLDER/swagger-ui-bundle.js"></script>
<script src="FOLDER/start.js"></script>
</body>
</html>
"""

START = """const here = document.currentScript.src;
window.onload = () => {
  window.ui = SwaggerUIBundle({
    url: new URL("../openapi.json", here).href, dom_id: "#page", deepLinking: true,
    validatorUrl: null, defaultModelsExpandDepth: 0, tryItOutEnabled: true,
  });
};
"""

ERROR = {
    "type": "object",
    "description": "Everything that goes wrong looks like this",
    "required": ["error", "code", "status", "request_id"],
    "properties": {
        "error": {"type": "string", "description": "What happened and what to do"},
        "code": {"type": "string", "example": "invalid_input"},
        "status": {"type": "integer", "example": 422},
        "request_id": {"type": "string", "description": "Also in the log and in X-Request-ID"},
    },
}

TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "datatype": {"type": "string", "example": "BYTES"},
        "parameters": {"type": "object"},
        "data": {"type": "array", "items": {}},
    },
}


async def page(request: Request) -> HTTPResponse:
    """`GET /docs`."""
    _folder()
    text = PAGE.replace("FOLDER", "." if request.path.endswith("/") else "docs")
    return HTTPResponse(
        text, content_type="text/html; charset=utf-8", headers={"Content-Security-Policy": POLICY}
    )


async def asset(request: Request) -> HTTPResponse:
    """`GET /docs/...`: what the page loads."""
    name = request.path.rpartition("/docs/")[2]
    if name == "start.js":
        return HTTPResponse(START, content_type="text/javascript; charset=utf-8")
    if name not in ASSETS:
        raise HttpError(404, f"there is nothing at {request.path}")
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return HTTPResponse(
        _asset(name), content_type=kind, headers={"Cache-Control": "public, max-age=86400"}
    )


@functools.cache
def _asset(name: str) -> bytes:
    data: bytes = (_folder() / name).read_bytes()
    return data


def _folder() -> Any:
    try:
        from swagger_ui_bundle import swagger_ui_path
    except ImportError:
        raise HttpError(
            501, "/docs needs swagger-ui-bundle: pip install 'sparsec[serve]'; /openapi.json works"
        ) from None
    return swagger_ui_path


# ---- the document --------------------------------------------------------------------------------


def document(
    endpoints: Sequence[Endpoint], admin: bool = False, prefix: str = ""
) -> dict[str, Any]:
    """OpenAPI 3.0.3.

    Args:
        admin: whether endpoints may be added and removed.
        prefix: of all paths, as clients see them; where it is not known, paths are relative to the
            document.
    """
    kinds = {type(e.pipeline): e.pipeline for e in endpoints}.values()
    models: list[tuple[Any, Any]] = []
    for pipeline in kinds:
        models += [
            (pipeline.input_schema, "validation"),
            (pipeline.output_schema, "serialization"),
        ]
    models.append((EndpointConfig, "validation"))
    names, schemas = models_json_schema(models, ref_template="#/components/schemas/{model}")
    components: dict[str, Any] = {
        name: as_openapi(schema) for name, schema in schemas.get("$defs", {}).items()
    }
    components |= {"Error": ERROR, "Tensor": TENSOR, **_protocol()}
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        pipeline = endpoint.pipeline
        paths[endpoint.config.route] = {
            "post": _operation(
                "Predictions",
                f"{pipeline.task} by {endpoint.name}",
                f"predict_{endpoint.name}",
                as_openapi(names[pipeline.output_schema, "serialization"]),
                body=as_openapi(names[pipeline.input_schema, "validation"]),
                example=pipeline.example(),
            )
        }
    paths |= _server_paths() | _v2_paths()
    security: dict[str, Any] = {}
    if admin:
        security = {"admin": {"type": "http", "scheme": "bearer"}}
        paths |= _admin_paths(as_openapi(names[EndpointConfig, "validation"]))
    return {
        "openapi": "3.0.3",
        "info": {
            "title": "sparsec",
            "version": __version__,
            "description": "Sparse transformers on CPUs. Errors have one shape: `Error`.",
        },
        "servers": [{"url": prefix or "."}],
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": security},
    }


def as_openapi(schema: Any) -> Any:
    """A JSON schema of pydantic's as OpenAPI 3.0 has it, which is older."""
    if isinstance(schema, list):
        return [as_openapi(item) for item in schema]
    return _object_as_openapi(schema) if isinstance(schema, dict) else schema


def _object_as_openapi(schema: dict[str, Any]) -> dict[str, Any]:
    made = {key: as_openapi(value) for key, value in schema.items()}
    if isinstance(made.get("properties"), dict):
        # Names of properties are not keywords.
        made["properties"] = {k: as_openapi(v) for k, v in schema["properties"].items()}
    if "const" in made:
        made["enum"] = [made.pop("const")]
    if "examples" in made:
        made["example"] = made.pop("examples")[0]
    for bound, inclusive in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(made.get(bound), (int, float)) and not isinstance(made[bound], bool):
            made[inclusive], made[bound] = made[bound], True
    if "prefixItems" in made:
        made["items"] = {"anyOf": made.pop("prefixItems")}
    made.pop("propertyNames", None)
    choices = made.get("anyOf")
    if isinstance(choices, list) and {"type": "null"} in choices:
        del made["anyOf"]
        made |= _nullable([choice for choice in choices if choice != {"type": "null"}])
    if "$ref" in made and len(made) > 1:  # 3.0 ignores what stands beside a reference
        made["allOf"] = [{"$ref": made.pop("$ref")}]
    return made


def _nullable(choices: list[Any]) -> dict[str, Any]:
    """One of several schemas, or null."""
    if len(choices) > 1:
        return {"anyOf": choices, "nullable": True}
    if "$ref" in choices[0]:
        return {"allOf": choices, "nullable": True}
    return {**choices[0], "nullable": True}


def _operation(
    tag: str,
    summary: str,
    identity: str,
    answer: Any = None,
    *,
    body: Any = None,
    example: Any = None,
    status: str = "200",
    failures: Sequence[str] = (),
    parameters: Sequence[Any] = (),
) -> dict[str, Any]:
    error = {"$ref": "#/components/schemas/Error"}
    responses: dict[str, Any] = {
        status: {
            "description": "OK",
            "content": {"application/json": {"schema": answer or {"type": "object"}}},
        }
    }
    for code in failures or (("400", "413", "422", "503", "504") if body else ("503",)):
        responses[code] = {
            "description": FAILURES[code],
            "content": {"application/json": {"schema": error}},
        }
    operation: dict[str, Any] = {
        "tags": [tag],
        "summary": summary,
        "operationId": identity,
        "responses": responses,
    }
    if parameters:
        operation["parameters"] = list(parameters)
    if body is not None:
        content: dict[str, Any] = {"schema": body}
        if example is not None:
            content["example"] = example
        operation["requestBody"] = {"required": True, "content": {"application/json": content}}
    return operation


FAILURES = {
    "400": "Not JSON, or not as the protocol says",
    "401": "No admin token, or a wrong one",
    "403": "The server was started without an admin token",
    "404": "No such endpoint",
    "409": "The name or route is taken",
    "413": "The body is too large",
    "422": "Wrong fields or values",
    "503": "Not ready, or the queue is full: try again after Retry-After seconds",
    "504": "No answer within the time limit",
}


def _server_paths() -> dict[str, Any]:
    def get(summary: str, identity: str, kind: str = "application/json") -> dict[str, Any]:
        operation = _operation("Server", summary, identity)
        if kind != "application/json":
            operation["responses"]["200"]["content"] = {kind: {"schema": {"type": "string"}}}
        return {"get": operation}

    return {
        "/": get("What is served", "index"),
        "/health": get("The process is alive", "health"),
        "/ready": get("Models are loaded and warm", "ready"),
        "/metrics": get("Counters, for Prometheus", "metrics", "text/plain"),
    }


def _v2_paths() -> dict[str, Any]:
    def ref(name: str) -> dict[str, str]:
        return {"$ref": f"#/components/schemas/{name}"}

    model = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    tag = "Open Inference Protocol"
    paths = {
        "/v2": {"get": _operation(tag, "Server metadata", "v2_server")},
        "/v2/health/live": {"get": _operation(tag, "The process is alive", "v2_live")},
        "/v2/health/ready": {"get": _operation(tag, "All models are ready", "v2_ready")},
    }
    version = {"name": "version", "in": "path", "required": True, "schema": {"enum": ["1"]}}
    for stem, suffix, given in (
        ("/v2/models/{model}", "", [model]),
        ("/v2/models/{model}/versions/{version}", "_version", [model, version]),
    ):
        paths[stem] = {
            "get": _operation(
                tag, "Inputs and outputs of a model", f"v2_model{suffix}",
                ref("ModelMetadata"), failures=("404",), parameters=given,
            )
        }  # fmt: skip
        paths[f"{stem}/ready"] = {
            "get": _operation(
                tag, "Whether a model is ready", f"v2_model_ready{suffix}",
                failures=("404",), parameters=given,
            )
        }  # fmt: skip
        paths[f"{stem}/infer"] = {
            "post": _operation(
                tag, "Run a model on tensors", f"v2_infer{suffix}",
                ref("InferResponse"), body=ref("InferRequest"),
                failures=("400", "404", "413", "422", "503", "504"), parameters=given,
            )
        }  # fmt: skip
    return paths


def _protocol() -> dict[str, Any]:
    tensors = {"type": "array", "items": {"$ref": "#/components/schemas/Tensor"}}
    return {
        "InferRequest": {
            "type": "object",
            "required": ["inputs"],
            "properties": {
                "id": {"type": "string"},
                "parameters": {"type": "object"},
                "inputs": tensors,
                "outputs": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["name"],
                        "properties": {
                            "name": {"type": "string"},
                            "parameters": {"type": "object"},
                        },
                    },
                },
            },
            "example": {
                "inputs": [
                    {
                        "name": "inputs",
                        "shape": [1],
                        "datatype": "BYTES",
                        "data": [SENTENCE],
                    }
                ]
            },
        },
        "InferResponse": {
            "type": "object",
            "properties": {
                "model_name": {"type": "string"},
                "model_version": {"type": "string"},
                "id": {"type": "string"},
                "outputs": tensors,
            },
        },
        "ModelMetadata": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "versions": {"type": "array", "items": {"type": "string"}},
                "platform": {"type": "string"},
                "inputs": tensors,
                "outputs": tensors,
            },
        },
    }


def _admin_paths(config: Any) -> dict[str, Any]:
    add = _operation(
        "Endpoints", "Load a model and serve it", "add_endpoint",
        body=config, status="201", failures=("401", "409", "422"),
        example={"task": "token-classification", "model": "model.sparsec", "route": "/ner"},
    )  # fmt: skip
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    remove = _operation(
        "Endpoints", "Serve an endpoint no more", "remove_endpoint",
        failures=("401", "404"), parameters=[name],
    )  # fmt: skip
    for operation in (add, remove):
        operation["security"] = [{"admin": []}]
    return {"/endpoints": {"post": add}, "/endpoints/{name}": {"delete": remove}}
