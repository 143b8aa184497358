"""The forms that clients of other servers speak, with those clients where there are any."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from sparsec import Pipeline
from tests.server_support import Server, TextModels, endpoint

TEXTS = ["Mary lives in Paris", "", "John works at acme ."]
LONG = "good movie " * 40


@pytest.fixture(scope="module")
def server(text_models: TextModels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = {
        "endpoints": [
            endpoint(text_models, "sentence-embedding", name="vectors", route="/vectors"),
            endpoint(text_models, "sparse-embedding", name="sparse", route="/sparse"),
            endpoint(text_models, "rerank", name="order", route="/order"),
            endpoint(text_models, "text-classification", name="mood", route="/mood",
                     kwargs={"top_k": None}),
        ]
    }  # fmt: skip
    with Server(tmp_path_factory.mktemp("wires"), config) as running:
        yield running


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def vectors(text_models: TextModels) -> Iterator[Pipeline]:
    with Pipeline.create("sentence-embedding", text_models["sentence-embedding"]) as pipeline:
        yield pipeline


# ---- OpenAI --------------------------------------------------------------------------------------


def test_embeddings(http: httpx.Client, vectors: Pipeline) -> None:
    want = vectors(TEXTS).embeddings
    answer = http.post("/v1/embeddings", json={"model": "vectors", "input": TEXTS}).json()
    got = np.array([row["embedding"] for row in answer["data"]], np.float32)
    np.testing.assert_array_equal(got, want)  # to the last bit, by few digits
    assert answer["object"] == "list" and answer["model"] == "vectors"
    assert [row["index"] for row in answer["data"]] == [0, 1, 2]
    tokens = sum(item.length for item in vectors.prepare(vectors.parse(TEXTS)).items)
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    body = {"model": "vectors", "input": TEXTS[0], "encoding_format": "base64", "dimensions": 8}
    (row,) = http.post("/v1/embeddings", json=body).json()["data"]
    got = np.frombuffer(base64.b64decode(row["embedding"]), "<f4")
    np.testing.assert_array_equal(got, want[0, :8])
    # Tokens that the client has made.
    item = vectors.prepare(vectors.parse(TEXTS[0])).items[0]
    ids = item.arrays["input_ids"].tolist()
    for given in (ids, [ids, ids]):
        rows = http.post("/v1/embeddings", json={"model": "vectors", "input": given}).json()["data"]
        for row in rows:
            np.testing.assert_allclose(row["embedding"], want[0], atol=1e-6)


def test_a_small_answer_takes_few_bytes(http: httpx.Client, vectors: Pipeline) -> None:
    texts = ["Mary"] * 64
    answer = http.post("/v1/embeddings", json={"model": "vectors", "input": texts})
    assert len(answer.content) < 64 * (32 * 13 + 60)
    short = http.post(
        "/v1/embeddings", json={"model": "vectors", "input": texts, "encoding_format": "base64"}
    )
    assert len(short.content) < 64 * (32 * 4 * 4 / 3 + 80)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"input": "a"}, 400, "model: Field required"),
        ({"model": "vectors", "input": []}, 400, "input"),
        ({"model": "vectors", "input": ""}, 400, "input"),
        ({"model": "none", "input": "a"}, 404, "no model 'none'"),
        ({"model": "mood", "input": "a"}, 404, "no model 'mood'"),
        ({"model": "vectors", "input": LONG}, 400, "82 tokens and 64 fit"),
        ({"model": "vectors", "input": [99999]}, 400, "ids from 0 to 159"),
        ({"model": "vectors", "input": "a", "dimensions": 99}, 400, "32 elements"),
        ({"model": "vectors", "input": "a", "encoding_format": "int8"}, 400, "encoding_format"),
    ],
)
def test_errors_have_openais_form(
    http: httpx.Client, body: dict[str, Any], status: int, message: str
) -> None:
    answer = http.post("/v1/embeddings", json=body)
    error = answer.json()["error"]
    assert answer.status_code == status and message in error["message"]
    assert error["type"] == "invalid_request_error" and set(error) == {
        "message", "type", "param", "code",
    }  # fmt: skip
    assert answer.headers["x-request-id"]


def test_cut_if_asked(http: httpx.Client) -> None:
    body = {"model": "vectors", "input": [LONG, "a"], "truncate": True}
    answer = http.post("/v1/embeddings", json=body)
    assert answer.status_code == 200 and answer.headers["x-truncated-texts"] == "1"
    assert answer.json()["usage"]["prompt_tokens"] == 64 + 3


def test_the_client_of_openai(server: Server, vectors: Pipeline) -> None:
    openai = pytest.importorskip("openai", reason="needs openai: pip install '.[clients]'")
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    answer = client.embeddings.create(model="vectors", input=TEXTS)
    got = np.array([row.embedding for row in answer.data], np.float32)
    np.testing.assert_array_equal(got, vectors(TEXTS).embeddings)
    assert answer.usage.total_tokens > 0
    assert {"vectors", "mood"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("vectors").owned_by == "sparsec"
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
        client.embeddings.create(model="gpt", input="a")
    with pytest.raises(openai.BadRequestError, match="82 tokens and 64 fit"):
        client.embeddings.create(model="vectors", input=LONG)


# ---- reranking -----------------------------------------------------------------------------------


def test_rerank(http: httpx.Client, text_models: TextModels) -> None:
    query, texts = "Who lives in Paris?", ["Mary lives in Paris", "sport", "good weather"]
    with Pipeline.create("rerank", text_models["rerank"]) as pipeline:
        want = pipeline(query=query, documents=texts).ranking
        logits = pipeline(query=query, documents=texts, raw_scores=True).ranking
    assert [row.index for row in want] == [row.index for row in logits]
    for row, raw in zip(want, logits, strict=True):
        assert row.score == pytest.approx(1 / (1 + math.exp(-raw.score)), rel=1e-6)
    for path in ("/v1/rerank", "/rerank"):
        body = {"model": "order", "query": query, "documents": [*texts[:2], {"text": texts[2]}],
                "top_n": 2, "return_documents": True}  # fmt: skip
        rows = http.post(path, json=body).json()["results"]
        assert [row["index"] for row in rows] == [row.index for row in want[:2]]
        scores = [row.score for row in want[:2]]
        assert [row["relevance_score"] for row in rows] == pytest.approx(scores, rel=1e-6)
        assert rows[0]["document"] == {"text": texts[want[0].index]}
    rows = http.post("/rerank", json={"query": query, "texts": texts, "return_text": True}).json()
    assert [row["index"] for row in rows] == [row.index for row in want]
    assert rows[0]["text"] == texts[want[0].index]
    raw = http.post("/rerank", json={"query": query, "texts": texts, "raw_scores": True}).json()
    assert [row["score"] for row in raw] == pytest.approx([row.score for row in logits], rel=1e-5)
    assert http.post("/rerank", json={"query": query}).status_code == 422


# ---- text-embeddings-inference -------------------------------------------------------------------


def test_the_forms_of_text_embeddings_inference(
    http: httpx.Client, vectors: Pipeline, text_models: TextModels
) -> None:
    want = vectors(inputs=TEXTS, normalize=True).embeddings
    got = http.post("/embed", json={"inputs": TEXTS}).json()
    np.testing.assert_array_equal(np.array(got, np.float32), want)
    got = http.post("/embed", json={"inputs": TEXTS[0], "normalize": False, "dimensions": 4}).json()
    np.testing.assert_allclose(got, vectors(TEXTS[0]).embeddings[:, :4], rtol=1e-6)
    assert http.post("/embed", json={"inputs": LONG}).status_code == 422
    assert http.post("/embed", json={"inputs": LONG, "truncate": True}).status_code == 200
    (row,) = http.post("/embed_sparse", json={"inputs": "Mary"}).json()
    with Pipeline.create("splade", text_models["sparse-embedding"]) as pipeline:
        (vector,) = pipeline("Mary").embeddings
    assert [cell["index"] for cell in row] == vector.indices
    assert [cell["value"] for cell in row] == pytest.approx(vector.values)
    single = http.post("/predict", json={"inputs": "good movie"}).json()
    many = http.post("/predict", json={"inputs": [["good movie"], ["Mary", "John"]]}).json()
    assert single == many[0] and {cell["label"] for cell in single} == {"negative", "positive"}
    (tokens,) = http.post("/tokenize", json={"inputs": "Mary flying"}).json()
    assert [cell["text"] for cell in tokens] == ["[CLS]", "Mary", "fly", "ing", "[SEP]"]
    assert tokens[1] == {"id": tokens[1]["id"], "text": "Mary", "special": False,
                         "start": 0, "stop": 4}  # fmt: skip
    info = http.get("/info").json()
    assert info["max_input_length"] == 64 and info["model_type"] == {
        "embedding": {"pooling": "mean"}
    }


def test_routes_of_ones_own_come_first(text_models: TextModels, tmp_path: Path) -> None:
    config = {"endpoints": [endpoint(text_models, "text-classification", name="mood")]}
    with Server(tmp_path, config) as server, server.client() as client:
        body = {"sequences": "good movie"}
        assert "labels" in client.post("/predict", json=body).json()
        failed = client.post("/embed", json={"inputs": "a"})
        assert failed.status_code == 404 and "no endpoint of the task" in failed.json()["error"]
