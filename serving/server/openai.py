"""OpenAI's routes for embeddings and models, which are KServe's first protocol's too, and the ones
for reranking that go with them.

Sources: https://platform.openai.com/docs/api-reference/embeddings, and for reranking
https://docs.cohere.com/reference/rerank and https://api.jina.ai/redoc.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sanic import HTTPResponse, Request

from sparsec.serving.pipelines.base import SENTENCE, Pipeline, explain
from sparsec.serving.pipelines.rerank import RerankInput, RerankPipeline
from sparsec.serving.pipelines.sentence_embedding import (
    SentenceEmbeddingPipeline,
    SentenceEmbeddingTokens,
)
from sparsec.serving.server import errors, inference, json_text, routes
from sparsec.serving.server.bodies import body_of, json_response
from sparsec.serving.server.errors import HttpError
from sparsec.serving.server.registry import Endpoint
from sparsec.serving.server.routes import Route
from sparsec.serving.server.v2 import Handler, Service, model

_Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class EmbeddingsRequest(BaseModel):
    """The body of `POST /v1/embeddings`; what is not known is of no meaning here."""

    model_config = ConfigDict(extra="ignore")

    # Left out where only one endpoint can answer.
    model: str | None = None
    input: (
        Annotated[str, Field(min_length=1)]
        | _Ids
        | Annotated[list[str], Field(min_length=1)]
        | Annotated[list[_Ids], Field(min_length=1)]
    )
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    # Not OpenAI's.
    truncate: bool | None = None
    prompt_name: str | None = None


# What the forms of reranking start with.
RERANK = {"query": "Who flies to Lima?", "documents": [SENTENCE, "The soup was cold."]}


class Document(BaseModel):
    text: str


class RerankRequest(BaseModel):
    """The body of `POST /v1/rerank`."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    query: str
    documents: Annotated[list[str | Document], Field(min_length=1)]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool = False
    # Not Cohere's.
    truncate: bool | None = None


def is_own(path: str) -> bool:
    """Whether a path is one of these, so that errors have OpenAI's form."""
    return path.startswith("/v1/") and not path.endswith(":predict")


def find(service: Service, path: str) -> dict[str, Handler]:
    """Handlers of a path under /v1 by method."""
    if path.startswith("/v1/models/"):
        return {"GET": partial(_model, service, path.removeprefix("/v1/models/"))}
    return routes.find(ROUTES, service, path)


def failure(request: Request, error: Exception) -> HTTPResponse:
    """What went wrong, as OpenAI's clients read it: ``{"error": {"message", "type", ...}}``."""
    found = errors.response(request, error)
    shown = errors.as_http(error)
    kind = "invalid_request_error" if shown.status < 500 else "server_error"
    found.body = json_text.dumps(
        {"error": {"message": str(shown), "type": kind, "param": None, "code": shown.code}}
    )
    # Clients take a 422 for no mistake of theirs.
    found.status = 400 if found.status == 422 else found.status
    return found


def choose(service: Service, name: str | None, kind: type[Any]) -> Endpoint:
    """The endpoint of a task that a request means: by its name, its model's, or the only one.

    Raises:
        HttpError: 404, there is none; 400, there are several and none is named; 503, not ready.
    """
    endpoints = [e for e in service.registry.names.values() if isinstance(e.pipeline, kind)]
    if name is not None:
        found = [e for e in endpoints if name in (e.name, e.config.model)]
        found = found or [e for e in endpoints if name == e.describe()["model"]]
        endpoints = found
    if len(endpoints) == 1:
        return endpoints[0]
    if not service.ready:
        raise service.not_ready()
    if endpoints:
        names = ", ".join(e.name for e in endpoints)
        raise HttpError(400, f"several endpoints can do this: name one of {names} as model")
    wanted = f"no model {name!r} for" if name is not None else "no endpoint of"
    raise HttpError(
        404, f"there is {wanted} the task {kind.task}; GET /v1/models lists them", "model_not_found"
    )


async def parsed(service: Service, request: Request, kind: type[Any]) -> Any:
    """A request's body as a model of pydantic.

    Raises:
        HttpError: it is none.
    """
    body = await body_of(request, service.config.limits.body_bytes)
    try:
        return kind.model_validate_json(json_text.without_mark(body))
    except ValidationError as error:
        raise HttpError(400, explain(error), "invalid_json") from None


async def run(
    service: Service,
    request: Request,
    endpoint: Endpoint,
    inputs: BaseModel,
    pipeline: Pipeline | None = None,
) -> inference.Answer:
    """A prediction of an endpoint, counted as its own; `pipeline`: under other options."""
    request.ctx.target = endpoint
    request.ctx.endpoint = endpoint.name
    service.registry.enter(endpoint)
    try:
        return await inference.predict(
            endpoint, [inputs], service.config.limits, errors.request_id(request), pipeline
        )
    finally:
        service.registry.leave(endpoint)


def texts_or_ids(given: Any) -> SentenceEmbeddingTokens:
    """What is to be embedded: a text, texts, tokens of a text, or of several."""
    if isinstance(given, str):
        return SentenceEmbeddingTokens(inputs=[given])
    if isinstance(given[0], int):
        return SentenceEmbeddingTokens(inputs=[""], ids=[given])
    if isinstance(given[0], str):
        return SentenceEmbeddingTokens(inputs=given)
    return SentenceEmbeddingTokens(inputs=[""] * len(given), ids=given)


async def _embeddings(service: Service, request: Request) -> HTTPResponse:
    wanted = await parsed(service, request, EmbeddingsRequest)
    endpoint = choose(service, wanted.model, SentenceEmbeddingPipeline)
    given = texts_or_ids(wanted.input).model_copy(
        update={
            "dimensions": wanted.dimensions,
            "truncate": wanted.truncate,
            "prompt_name": wanted.prompt_name,
        }
    )
    found = await run(service, request, endpoint, given)
    vectors: NDArray[np.float32] = found.results[0].embeddings  # type: ignore[attr-defined]
    rows: Sequence[Any] = list(vectors)
    if wanted.encoding_format == "base64":
        little = vectors.astype("<f4", copy=False)
        rows = [base64.b64encode(row.tobytes()).decode("ascii") for row in little]
    return json_response(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)
            ],
            "model": endpoint.name,
            "usage": {"prompt_tokens": found.tokens, "total_tokens": found.tokens},
        },
        headers=found.headers,
    )


async def _rerank(service: Service, request: Request) -> HTTPResponse:
    return await rerank(service, request, await parsed(service, request, RerankRequest))


async def rerank(service: Service, request: Request, wanted: RerankRequest) -> HTTPResponse:
    """Documents in order, in Cohere's and Jina's form."""
    endpoint = choose(service, wanted.model, RerankPipeline)
    texts = [d if isinstance(d, str) else d.text for d in wanted.documents]
    found = await run(
        service, request, endpoint,
        RerankInput(
            query=wanted.query, documents=texts, top_k=wanted.top_n, truncate=wanted.truncate
        ),
    )  # fmt: skip
    results = [
        {
            "index": row.index,
            "relevance_score": row.score,
            **({"document": {"text": texts[row.index]}} if wanted.return_documents else {}),
        }
        for row in found.results[0].ranking  # type: ignore[attr-defined]
    ]
    return json_response(
        {
            "id": f"rerank-{secrets.token_hex(8)}",
            "model": endpoint.name,
            "results": results,
            "usage": {"total_tokens": found.tokens},
            "meta": {"tokens": {"input_tokens": found.tokens}},
        },
        headers=found.headers,
    )


def _row(endpoint: Endpoint) -> dict[str, Any]:
    """A model, as OpenAI has it, and what KServe's first protocol has at the same path."""
    return {
        "id": endpoint.name,
        "object": "model",
        "created": endpoint.loaded,
        "owned_by": "sparsec",
        "name": endpoint.name,
        "ready": True,
    }


async def _models(service: Service, request: Request) -> HTTPResponse:
    rows = [_row(endpoint) for endpoint in service.registry.names.values()]
    names = list(service.registry.names)
    return json_response({"object": "list", "data": rows, "models": names})


async def _model(service: Service, name: str, request: Request) -> HTTPResponse:
    return json_response(_row(model(service, name, code="model_not_found")))


ROUTES = (
    Route(
        "/v1/embeddings", "POST", _embeddings, "Vectors of texts", (SentenceEmbeddingPipeline,),
        EmbeddingsRequest, {"input": SENTENCE},
    ),
    Route("/v1/models", "GET", _models, "The models"),
    Route(
        "/v1/rerank", "POST", _rerank, "Documents in order, in Cohere's and Jina's form",
        (RerankPipeline,), RerankRequest, RERANK,
    ),
)  # fmt: skip
