"""The OpenAPI document of what is served right now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic.json_schema import models_json_schema

from sparsec import __version__
from sparsec.serving.pipelines.base import SENTENCE
from sparsec.serving.server import keys as api_keys
from sparsec.serving.server import openai, tei
from sparsec.serving.server.config import EndpointConfig
from sparsec.serving.server.registry import Endpoint
from sparsec.serving.server.routes import Route

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

HUB = {
    "type": "object",
    "description": "Hugging Face's JSON",
    "required": ["inputs"],
    "properties": {
        "inputs": {"description": "A text, several, or an object, as the task has it"},
        "parameters": {"type": "object", "description": "Of the task; see docs/server.md"},
    },
    "example": {"inputs": SENTENCE, "parameters": {}},
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


# Families of paths by what they are called.
FAMILIES: Mapping[str, Sequence[Route]] = {
    "OpenAI": openai.ROUTES,
    "text-embeddings-inference": tei.ROUTES,
}


def document(
    endpoints: Sequence[Endpoint], admin: bool = False, keys: bool = False, prefix: str = ""
) -> dict[str, Any]:
    """OpenAPI 3.0.3.

    Args:
        admin: whether endpoints may be added and removed.
        keys: whether predictions need an API key.
        prefix: of all paths, as clients see them; where it is not known, paths are relative to the
            document.
    """
    names = [endpoint.name for endpoint in endpoints]
    kinds = {type(e.pipeline): e.pipeline for e in endpoints}.values()
    routes = [
        (tag, row) for tag, rows in FAMILIES.items() for row in rows if _served(row, endpoints)
    ]
    models: list[tuple[Any, Any]] = []
    for pipeline in kinds:
        models += [
            (pipeline.input_schema, "validation"),
            (pipeline.output_schema, "serialization"),
        ]
    models += [(row.body, "validation") for _, row in routes if row.body]
    models.append((EndpointConfig, "validation"))
    refs, schemas = models_json_schema(models, ref_template="#/components/schemas/{model}")
    components: dict[str, Any] = {
        name: as_openapi(schema) for name, schema in schemas.get("$defs", {}).items()
    }
    components |= {"Error": ERROR, "Tensor": TENSOR, "HubRequest": HUB, **_protocol()}
    own = {e.config.route: {"post": _own(e, refs)} for e in endpoints}
    paths: dict[str, Any] = _family_paths(routes, refs, components, endpoints)
    paths |= own | _server_paths() | _model_paths(names) | _v2_paths(names)
    schemes: dict[str, Any] = {}
    if admin:
        schemes["admin"] = {"type": "http", "scheme": "bearer", "description": "The admin token"}
        paths |= _admin_paths(as_openapi(refs[EndpointConfig, "validation"]), names)
    if keys:
        schemes["key"] = {"type": "http", "scheme": "bearer", "description": "An API key"}
        _lock(paths)
    return {
        "openapi": "3.0.3",
        "info": {
            "title": "sparsec",
            "version": __version__,
            "description": "Sparse transformers on CPUs. Errors have one shape: `Error`; under "
            "/v1 they have OpenAI's.",
        },
        "servers": [{"url": prefix or "."}],
        "paths": paths,
        # Swagger UI has a button for schemes, even if there are none.
        "components": {"schemas": components, **({"securitySchemes": schemes} if schemes else {})},
    }


def _served(row: Route, endpoints: Iterable[Endpoint]) -> bool:
    kinds = row.kinds
    return not kinds or any(isinstance(e.pipeline, kinds) for e in endpoints)


def _lock(paths: dict[str, Any]) -> None:
    """Say of each operation whether it needs a key."""
    for path, methods in paths.items():
        for method, operation in methods.items():
            if not api_keys.is_open(method.upper(), path):
                operation["security"] = [{"key": []}]
                operation["responses"].setdefault("401", _failure("401"))


def _own(endpoint: Endpoint, refs: Mapping[Any, Any]) -> dict[str, Any]:
    """An endpoint's own route."""
    pipeline = endpoint.pipeline
    return _operation(
        "Predictions",
        f"{pipeline.task} by {endpoint.name}",
        f"predict_{endpoint.name}",
        as_openapi(refs[pipeline.output_schema, "serialization"]),
        body=as_openapi(refs[pipeline.input_schema, "validation"]),
        example=pipeline.example(),
    )


def _family_paths(
    routes: Iterable[tuple[str, Route]],
    refs: Mapping[Any, Any],
    components: dict[str, Any],
    endpoints: Sequence[Endpoint],
) -> dict[str, Any]:
    """The paths of other servers' forms.  Where a body names a model, it is one of those that can
    answer."""
    paths: dict[str, Any] = {}
    for tag, row in routes:
        fitting = [e.name for e in endpoints if not row.kinds or isinstance(e.pipeline, row.kinds)]
        body, example = None, dict(row.example)
        if row.body is not None:
            reference = refs[row.body, "validation"]
            body = as_openapi(reference)
            properties = components[reference["$ref"].rpartition("/")[2]]["properties"]
            if "model" in properties:
                properties["model"] = _enum(fitting)
                example = {"model": fitting[0], **example}
        # Lists are answers too.
        paths.setdefault(row.path, {})[row.method.lower()] = _operation(
            tag, row.summary, _identity(row), {}, body=body, example=example or None,
            failures=("400", "404", "413", "422", "503", "504") if body else (),
        )  # fmt: skip
    return paths


def _identity(row: Route) -> str:
    return row.path.strip("/").replace("/", "_")


def _enum(names: Sequence[str]) -> dict[str, Any]:
    """One of the models that are served."""
    return {"type": "string", **({"enum": list(names)} if names else {})}


def _model(names: Sequence[str], field: str = "model") -> dict[str, Any]:
    return {"name": field, "in": "path", "required": True, "schema": _enum(names)}


def _model_paths(names: Sequence[str]) -> dict[str, Any]:
    """What goes by a model's name and is neither an endpoint's own nor of the second protocol."""
    given, failures = [_model(names)], ("400", "404", "413", "422", "503", "504")
    hub = {"$ref": "#/components/schemas/HubRequest"}
    instances = {
        "type": "object",
        "required": ["instances"],
        "properties": {
            "instances": {"type": "array", "items": {}, "minItems": 1},
            "parameters": {"type": "object"},
        },
        "example": {"instances": [SENTENCE]},
    }
    predictions = {
        "type": "object",
        "properties": {"predictions": {"type": "array", "items": {}}},
    }
    return {
        "/models/{model}": {
            "post": _operation(
                "Hugging Face", "A task in Hugging Face's JSON", "hub_model", {},
                body=hub, failures=failures, parameters=given,
            )
        },
        "/v1/models/{model}": {
            "get": _operation(
                "OpenAI", "A model", "openai_model", failures=("404",), parameters=given
            )
        },
        "/v1/models/{model}:predict": {
            "post": _operation(
                "KServe, first protocol", "Predictions for instances", "v1_predict", predictions,
                body=instances, failures=failures, parameters=given,
            )
        },
    }  # fmt: skip


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
    schema = {"type": "object"} if answer is None else answer
    responses: dict[str, Any] = {
        status: {"description": "OK", "content": {"application/json": {"schema": schema}}}
    }
    for code in failures or (("400", "413", "422", "503", "504") if body else ("503",)):
        responses[code] = _failure(code)
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


def _failure(code: str) -> dict[str, Any]:
    error = {"$ref": "#/components/schemas/Error"}
    return {
        "description": FAILURES[code],
        "content": {"application/json": {"schema": error}},
    }


FAILURES = {
    "400": "Not JSON, or not as the protocol says",
    "401": "No API key or admin token, or a wrong one",
    "403": "The server was started without an admin token",
    "404": "No such endpoint or model",
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


def _v2_paths(names: Sequence[str]) -> dict[str, Any]:
    def ref(name: str) -> dict[str, str]:
        return {"$ref": f"#/components/schemas/{name}"}

    model = _model(names)
    tag = "Open Inference Protocol"
    paths = {
        "/v2": {"get": _operation(tag, "Server metadata", "v2_server")},
        "/v2/health/live": {"get": _operation(tag, "The process is alive", "v2_live")},
        "/v2/health/ready": {"get": _operation(tag, "All models are ready", "v2_ready")},
        "/v2/models": {"get": _operation(tag, "Names of the models", "v2_models")},
        "/v2/repository/index": {
            "post": _operation(
                tag, "The models and their states", "v2_repository",
                {"type": "array", "items": {"type": "object"}},
                body={"type": "object", "properties": {"ready": {"type": "boolean"}}},
                example={"ready": True}, failures=("400",),
            )
        },
    }  # fmt: skip
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


def _admin_paths(config: Any, names: Sequence[str]) -> dict[str, Any]:
    add = _operation(
        "Endpoints", "Load a model and serve it", "add_endpoint",
        body=config, status="201", failures=("401", "409", "422"),
        example={"task": "token-classification", "model": "model.sparsec", "route": "/ner"},
    )  # fmt: skip
    remove = _operation(
        "Endpoints", "Serve an endpoint no more", "remove_endpoint",
        failures=("401", "404"), parameters=[_model(names, "name")],
    )  # fmt: skip
    for operation in (add, remove):
        operation["security"] = [{"admin": []}]
    return {"/endpoints": {"post": add}, "/endpoints/{name}": {"delete": remove}}
