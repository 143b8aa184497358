"""The routes of text-embeddings-inference (1.8), for clients that speak its form.

Each stands for the only endpoint of its task; endpoints with routes of the same names come first.
Source: https://huggingface.github.io/text-embeddings-inference.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sanic import HTTPResponse, Request

from sparsec import __version__
from sparsec.errors import InputError
from sparsec.serving.pipelines.base import SENTENCE, Pipeline, explain
from sparsec.serving.pipelines.rerank import RerankInput, RerankPipeline
from sparsec.serving.pipelines.sentence_embedding import SentenceEmbeddingPipeline
from sparsec.serving.pipelines.sparse_embedding import (
    SparseEmbeddingInput,
    SparseEmbeddingPipeline,
)
from sparsec.serving.pipelines.text_classification import (
    TextClassificationInput,
    TextClassificationPipeline,
)
from sparsec.serving.server import json_text, openai, routes
from sparsec.serving.server.bodies import body_of, json_response
from sparsec.serving.server.errors import HttpError
from sparsec.serving.server.routes import Route
from sparsec.serving.server.v2 import Handler, Service

_Texts = str | Annotated[list[str], Field(min_length=1)]
_Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore")

    truncate: bool | None = None
    truncation_direction: Literal["Left", "Right", "left", "right"] | None = None


class EmbedRequest(_Body):
    """The body of `POST /embed`."""

    inputs: _Texts | _Ids | Annotated[list[_Ids], Field(min_length=1)]
    normalize: bool = True
    prompt_name: str | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None


class EmbedSparseRequest(_Body):
    """The body of `POST /embed_sparse`."""

    inputs: _Texts


class TextsRerankRequest(_Body):
    """The body of `POST /rerank`."""

    query: str
    texts: Annotated[list[str], Field(min_length=1)]
    raw_scores: bool = False
    return_text: bool = False


class PredictRequest(_Body):
    """The body of `POST /predict`: a text, a pair, or a list of lists of one or two texts."""

    inputs: str | list[str] | list[list[str]]
    raw_scores: bool = False


class TokenizeRequest(_Body):
    """The body of `POST /tokenize`."""

    inputs: _Texts
    add_special_tokens: bool = True
    prompt_name: str | None = None


def find(service: Service, path: str) -> dict[str, Handler]:
    """Handlers of a path by method."""
    return routes.find(ROUTES, service, path)


async def _embed(service: Service, request: Request) -> HTTPResponse:
    wanted = await openai.parsed(service, request, EmbedRequest)
    endpoint = openai.choose(service, None, SentenceEmbeddingPipeline)
    given = openai.texts_or_ids(wanted.inputs).model_copy(
        update={
            "normalize": wanted.normalize,
            "dimensions": wanted.dimensions,
            "prompt_name": wanted.prompt_name,
            "truncate": _truncate(wanted),
        }
    )
    found = await openai.run(service, request, endpoint, given)
    return json_response(found.results[0].embeddings, headers=found.headers)  # type: ignore[attr-defined]


async def _embed_sparse(service: Service, request: Request) -> HTTPResponse:
    wanted = await openai.parsed(service, request, EmbedSparseRequest)
    endpoint = openai.choose(service, None, SparseEmbeddingPipeline)
    given = SparseEmbeddingInput(inputs=wanted.inputs, truncate=_truncate(wanted))
    found = await openai.run(service, request, endpoint, given)
    rows = [
        [{"index": i, "value": value} for i, value in zip(row.indices, row.values, strict=True)]
        for row in found.results[0].embeddings  # type: ignore[attr-defined]
    ]
    return json_response(rows, headers=found.headers)


async def _rerank(service: Service, request: Request) -> HTTPResponse:
    """In this form, or with ``documents`` in Cohere's and Jina's."""
    body = json_text.without_mark(await body_of(request, service.config.limits.body_bytes))
    try:
        wanted = TextsRerankRequest.model_validate_json(body)
    except ValidationError as error:
        try:
            other = openai.RerankRequest.model_validate_json(body)
        except ValidationError:
            raise HttpError(422, explain(error)) from None
        return await openai.rerank(service, request, other)
    endpoint = openai.choose(service, None, RerankPipeline)
    given = RerankInput(
        query=wanted.query,
        documents=wanted.texts,
        raw_scores=wanted.raw_scores,
        truncate=_truncate(wanted),
    )
    found = await openai.run(service, request, endpoint, given)
    rows = [
        {
            "index": row.index,
            "score": row.score,
            **({"text": wanted.texts[row.index]} if wanted.return_text else {}),
        }
        for row in found.results[0].ranking  # type: ignore[attr-defined]
    ]
    return json_response(rows, headers=found.headers)


async def _predict(service: Service, request: Request) -> HTTPResponse:
    wanted = await openai.parsed(service, request, PredictRequest)
    endpoint = openai.choose(service, None, TextClassificationPipeline)
    pipeline = endpoint.varied({"function_to_apply": "none"} if wanted.raw_scores else {})
    single = not (isinstance(wanted.inputs, list) and isinstance(wanted.inputs[0], list))
    rows = [wanted.inputs] if single else wanted.inputs
    given = TextClassificationInput.model_construct(
        sequences=[[row] if isinstance(row, str) else row for row in rows],
        truncate=_truncate(wanted),
    )
    found = await openai.run(service, request, endpoint, given, pipeline)
    result: Any = found.results[0]
    answers = []
    for labels, scores in zip(result.labels, result.scores, strict=True):
        pairs = [(labels, scores)] if isinstance(labels, str) else zip(labels, scores, strict=True)
        answers.append([{"score": score, "label": label} for label, score in pairs])
    return json_response(answers[0] if single else answers, headers=found.headers)


async def _tokenize(service: Service, request: Request) -> HTTPResponse:
    wanted = await openai.parsed(service, request, TokenizeRequest)
    pipeline = _first(service).pipeline
    before = pipeline.model.sentence.prompt(wanted.prompt_name) if wanted.prompt_name else ""
    texts = [wanted.inputs] if isinstance(wanted.inputs, str) else wanted.inputs
    if sum(map(len, texts)) > service.config.limits.input_characters:
        raise HttpError(
            422,
            f"the texts have more than {service.config.limits.input_characters} characters",
            "input_too_long",
        )
    rows = []
    for text in texts:
        encoding = pipeline.text.encode(before + text)
        if wanted.add_special_tokens:
            encoding = pipeline.text.join(encoding)
        parts = zip(
            encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets,
            strict=True,
        )  # fmt: skip
        rows.append(
            [
                {
                    "id": number,
                    "text": token if special else (before + text)[start:end],
                    "special": bool(special),
                    "start": None if special else start,
                    "stop": None if special else end,
                }
                for number, token, special, (start, end) in parts
            ]
        )
    return json_response(rows)


async def _info(service: Service, request: Request) -> HTTPResponse:
    endpoint = _first(service)
    pipeline, limits = endpoint.pipeline, service.config.limits
    return json_response(
        {
            "model_id": endpoint.describe()["model"],
            "model_sha": endpoint.hash,
            "model_dtype": "float32",
            "model_type": _model_type(pipeline),
            "max_concurrent_requests": endpoint.config.batching.queue_size,
            "max_input_length": pipeline.max_length,
            "max_batch_tokens": endpoint.config.batching.max_batch * pipeline.max_length,
            "max_batch_requests": endpoint.config.batching.max_batch,
            "max_client_batch_size": limits.items,
            "auto_truncate": endpoint.config.truncate,
            "tokenization_workers": 1,
            "version": __version__,
            "sha": None,
            "docker_label": None,
        }
    )


def _model_type(pipeline: Pipeline) -> dict[str, Any]:
    if isinstance(pipeline, SentenceEmbeddingPipeline):
        return {"embedding": {"pooling": pipeline.settings.pooling.modes[0]}}
    if isinstance(pipeline, SparseEmbeddingPipeline):
        return {"embedding": {"pooling": "splade"}}
    if isinstance(pipeline, RerankPipeline):
        return {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}}
    names = dict(pipeline.model.config.get("id2label") or {})
    return {
        "classifier": {
            "id2label": {str(i): name for i, name in names.items()},
            "label2id": {name: int(i) for i, name in names.items()},
        }
    }


def _first(service: Service) -> Any:
    """The endpoint that the server is about, by its first one."""
    for endpoint in service.registry.routes.values():
        return endpoint
    if not service.ready:
        raise service.not_ready()
    raise HttpError(404, "there is no endpoint")


def _truncate(wanted: _Body) -> bool | None:
    """Which side is cut is the tokenizer's to say.

    Raises:
        InputError: the other is asked for.
    """
    if wanted.truncate and str(wanted.truncation_direction).lower() == "left":
        raise InputError("truncation_direction: the side is the tokenizer's truncation_side")
    return wanted.truncate


ROUTES = (
    Route(
        "/embed", "POST", _embed, "Vectors of texts", (SentenceEmbeddingPipeline,), EmbedRequest,
        {"inputs": SENTENCE},
    ),
    Route(
        "/embed_sparse", "POST", _embed_sparse, "Sparse vectors of texts",
        (SparseEmbeddingPipeline,), EmbedSparseRequest, {"inputs": SENTENCE},
    ),
    Route(
        "/rerank", "POST", _rerank, "Texts in order; also in Cohere's and Jina's form",
        (RerankPipeline,), TextsRerankRequest,
        {"query": openai.RERANK["query"], "texts": openai.RERANK["documents"]},
    ),
    Route(
        "/predict", "POST", _predict, "Labels of texts", (TextClassificationPipeline,),
        PredictRequest, {"inputs": SENTENCE},
    ),
    Route(
        "/tokenize", "POST", _tokenize, "Tokens of texts", (), TokenizeRequest,
        {"inputs": SENTENCE},
    ),
    Route("/info", "GET", _info, "What is served"),
)  # fmt: skip
