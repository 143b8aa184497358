"""The forms that clients of other servers speak, with those clients where there are any."""

from __future__ import annotations

import asyncio
import base64
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from pydantic import ValidationError

from sparsec import Pipeline
from sparsec.serving.pipelines.base import explain
from sparsec.serving.server.openai import EmbeddingsRequest
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
            endpoint(text_models, "token-classification", name="entities", route="/entities"),
            endpoint(text_models, "question-answering", name="answers", route="/answers"),
            endpoint(text_models, "zero-shot-text-classification", name="zero", route="/zero"),
            endpoint(text_models, "fill-mask", name="fill", route="/fill"),
            endpoint(text_models, "embedding", name="states", route="/states"),
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


# ---- Open Inference Protocol V2 ------------------------------------------------------------------


def test_every_task_answers_in_tensors(server: Server, http: httpx.Client) -> None:
    """As JSON and as bytes, of the types and axes that its metadata says."""
    names = http.get("/v2/models").json()["models"]
    assert len(names) == 9
    for name in names:
        metadata = http.get(f"/v2/models/{name}").json()
        outputs = {row["name"]: row for row in metadata["outputs"]}
        fields = {
            row["name"]: ["Paris [MASK]" if name == "fill" else "Mary lives in Paris"]
            for row in metadata["inputs"]
            if not row.get("parameters", {}).get("optional")
        }
        if name == "zero":
            fields["labels"] = ["sport", "news"]
        body: dict[str, Any] = {
            "inputs": [
                {"name": field, "datatype": "BYTES", "shape": [len(texts)], "data": texts}
                for field, texts in fields.items()
            ]
        }
        answer = http.post(f"/v2/models/{name}/infer", json=body)
        assert answer.status_code == 200, (name, answer.text)
        body["parameters"] = {"binary_data_output": True}
        raw = http.post(f"/v2/models/{name}/infer", json=body)
        assert raw.status_code == 200, (name, raw.text)
        length = int(raw.headers["Inference-Header-Content-Length"])
        at = length
        described = {row["name"]: row for row in json.loads(raw.content[:length])["outputs"]}
        for row in answer.json()["outputs"]:
            known = outputs.pop(row["name"])
            assert row["datatype"] == known["datatype"]
            assert len(row["shape"]) == len(known["shape"])
            size = described[row["name"]]["parameters"]["binary_data_size"]
            data, at = raw.content[at : at + size], at + size
            if row["datatype"] == "FP32":
                np.testing.assert_array_equal(
                    np.frombuffer(data, "<f4"), np.array(row["data"], np.float32)
                )
        assert not outputs and at == len(raw.content)
    query = {"name": "query", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]}
    documents = {"name": "documents", "datatype": "BYTES", "shape": [3], "data": ["a", "b", "c"]}
    answer = http.post("/v2/models/order/infer", json={"inputs": [query, documents]})
    assert answer.status_code == 400 and "input query takes one element, not 2" in answer.text
    query |= {"shape": [1], "data": ["a"]}
    answer = http.post("/v2/models/order/infer", json={"inputs": [query, documents]})
    assert answer.json()["outputs"][0]["shape"] == [3]
    vectors = http.get("/v2/models/vectors").json()["outputs"]
    assert vectors == [{"name": "embeddings", "datatype": "FP32", "shape": [-1, -1]}]


# ---- what is wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "input: List should have at least 1 item after validation, not 0"),
        ("", "input: String should have at least 1 character"),
        (5, "input: Input should be a valid string or a valid list"),
        (["a", 5], "input.1: Input should be a valid string"),
        ([[-1]], "input.0.0: Input should be greater than or equal to 0"),
        ([[]], "input.0: List should have at least 1 item after validation, not 0"),
        ([1.5], "input.0: Input should be a valid integer, got a number with a fractional part"),
    ],
)
def test_of_several_forms_the_nearest_is_spoken_of(given: Any, said: str) -> None:
    with pytest.raises(ValidationError) as error:
        EmbeddingsRequest.model_validate({"input": given})
    assert explain(error.value).startswith(said) and ";" not in explain(error.value)


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
    # The only endpoint that can answer need not be named.
    body = {"input": TEXTS[0], "encoding_format": "base64", "dimensions": 8}
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
    cell = len('{"index":100,"value":},') + 11
    for path in ("/embed_sparse", "/sparse", "/models/sparse"):
        sparse = http.post(path, json={"inputs": texts[:8]})
        assert len(sparse.content) < 8 * 160 * cell, path


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"model": "vectors"}, 400, "input: Field required"),
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
    want = vectors(TEXTS).embeddings
    # The client asks for base64 and decodes it, unless it is told otherwise.
    for options in ({}, {"encoding_format": "float"}):
        answer = client.embeddings.create(model="vectors", input=TEXTS, **options)
        got = np.array([row.embedding for row in answer.data], np.float32)
        np.testing.assert_array_equal(got, want)
    assert answer.usage.total_tokens > 0
    answer = client.embeddings.create(model="vectors", input=TEXTS[0], dimensions=8)
    np.testing.assert_array_equal(np.array(answer.data[0].embedding, np.float32), want[0, :8])
    ids = vectors.prepare(vectors.parse(TEXTS[0])).items[0].arrays["input_ids"].tolist()
    for given in (ids, [ids, ids]):
        answer = client.embeddings.create(model="vectors", input=given)
        for row in answer.data:
            np.testing.assert_allclose(row.embedding, want[0], atol=1e-6)
    assert {"vectors", "mood"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("vectors").owned_by == "sparsec"
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
        client.embeddings.create(model="gpt", input="a")
    with pytest.raises(openai.NotFoundError, match="no model gpt"):
        client.models.retrieve("gpt")
    with pytest.raises(openai.BadRequestError, match="82 tokens and 64 fit"):
        client.embeddings.create(model="vectors", input=LONG)


# ---- those that others build on it ---------------------------------------------------------------


def test_langchain(server: Server, vectors: Pipeline) -> None:
    module = pytest.importorskip(
        "langchain_openai", reason="needs langchain-openai: pip install '.[clients]'"
    )
    client = module.OpenAIEmbeddings(
        base_url=server.url + "/v1", api_key="none", model="vectors",
        check_embedding_ctx_length=False,
    )  # fmt: skip
    texts = [TEXTS[0], TEXTS[2]]
    want = vectors(texts).embeddings
    np.testing.assert_array_equal(np.array(client.embed_documents(texts), np.float32), want)
    np.testing.assert_array_equal(np.array(client.embed_query(texts[0]), np.float32), want[0])


def test_llama_index(server: Server, vectors: Pipeline) -> None:
    module = pytest.importorskip(
        "llama_index.embeddings.openai", reason="needs it: pip install '.[clients]'"
    )
    client = module.OpenAIEmbedding(
        api_base=server.url + "/v1", api_key="none", model_name="vectors"
    )
    texts = [TEXTS[0], TEXTS[2]]
    want = vectors(texts).embeddings
    got = client.get_text_embedding_batch(texts)
    np.testing.assert_array_equal(np.array(got, np.float32), want)
    got = client.get_query_embedding(texts[1])
    np.testing.assert_array_equal(np.array(got, np.float32), want[1])


def test_haystack(server: Server, vectors: Pipeline) -> None:
    haystack = pytest.importorskip("haystack", reason="needs haystack-ai: pip install '.[clients]'")
    from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
    from haystack.utils import Secret

    options = {
        "api_base_url": server.url + "/v1", "api_key": Secret.from_token("none"),
        "model": "vectors",
    }  # fmt: skip
    texts = [TEXTS[0], TEXTS[2]]
    want = vectors(texts).embeddings
    answer = OpenAITextEmbedder(**options).run(texts[0])
    np.testing.assert_array_equal(np.array(answer["embedding"], np.float32), want[0])
    assert answer["meta"]["usage"]["total_tokens"] > 0
    documents = [haystack.Document(content=text) for text in texts]
    found = OpenAIDocumentEmbedder(**options, progress_bar=False).run(documents)["documents"]
    got = np.array([document.embedding for document in found], np.float32)
    np.testing.assert_array_equal(got, want)


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
    values = np.array(vector.values, np.float32)
    np.testing.assert_array_equal(np.array([cell["value"] for cell in row], np.float32), values)
    single = http.post("/predict", json={"inputs": "good movie"}).json()
    many = http.post("/predict", json={"inputs": [["good movie"], ["Mary", "John"]]}).json()
    assert single == many[0] and {cell["label"] for cell in single} == {"negative", "positive"}
    raw = http.post("/predict", json={"inputs": "good movie", "raw_scores": True}).json()
    assert [cell["label"] for cell in raw] == [cell["label"] for cell in single]
    powers = np.exp([cell["score"] for cell in raw])
    scores = [cell["score"] for cell in single]
    np.testing.assert_allclose(powers / powers.sum(), scores, rtol=1e-5)
    (tokens,) = http.post("/tokenize", json={"inputs": "Mary flying"}).json()
    assert [cell["text"] for cell in tokens] == ["[CLS]", "Mary", "fly", "ing", "[SEP]"]
    assert tokens[1] == {"id": tokens[1]["id"], "text": "Mary", "special": False,
                         "start": 0, "stop": 4}  # fmt: skip
    info = http.get("/info").json()
    assert info["max_input_length"] == 64 and info["model_type"] == {
        "embedding": {"pooling": "mean"}
    }


def test_the_document_has_all_of_these(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    # Without keys there is nothing to authorize: Swagger UI shows a button for an empty object.
    assert "securitySchemes" not in document["components"]
    schemas = document["components"]["schemas"]
    assert schemas["EmbeddingsRequest"]["properties"]["model"]["enum"] == ["vectors"]
    paths = document["paths"]
    for path in ("/v1/embeddings", "/v1/rerank", "/embed", "/embed_sparse", "/rerank", "/predict",
                 "/tokenize", "/v2/repository/index"):  # fmt: skip
        example = paths[path]["post"]["requestBody"]["content"]["application/json"]["example"]
        answer = http.post(path, json=example)
        assert answer.status_code == 200, (path, answer.text)
    for path in ("/v1/models", "/info", "/v2/models"):
        assert "get" in paths[path] and http.get(path).status_code == 200


def test_routes_of_ones_own_come_first(text_models: TextModels, tmp_path: Path) -> None:
    config = {"endpoints": [endpoint(text_models, "text-classification", name="mood")]}
    with Server(tmp_path, config) as server, server.client() as client:
        body = {"sequences": "good movie"}
        assert "labels" in client.post("/predict", json=body).json()
        failed = client.post("/embed", json={"inputs": "a"})
        assert failed.status_code == 404 and "no endpoint of the task" in failed.json()["error"]


# ---- Hugging Face --------------------------------------------------------------------------------


def test_the_client_of_hugging_face(server: Server, text_models: TextModels) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub: pip install .[hub]")
    client = hub.InferenceClient(token="none")
    text = TEXTS[0]

    def at(name: str, path: str = "/models/") -> dict[str, str]:
        return {"model": server.url + path + name}

    with Pipeline.create("text-classification", text_models["text-classification"]) as pipeline:
        best = pipeline(text)
    for where in (at("mood"), at("mood", "/")):
        rows = client.text_classification(text, **where, top_k=2)
        assert (rows[0].label, pytest.approx(rows[0].score)) == (best.labels[0], best.scores[0])
        assert len(rows) == 2
    rows = client.text_classification(text, **at("mood"), function_to_apply="none")
    assert sum(row.score for row in rows) != pytest.approx(1)

    with Pipeline.create(
        "ner", text_models["token-classification"], aggregation_strategy="max"
    ) as ner:
        (want,) = ner(text).predictions
    for where in (at("entities"), at("entities", "/")):
        found = client.token_classification(text, **where, aggregation_strategy="max")
        assert [row.entity_group for row in found] == [row.entity for row in want]
        assert [(row.start, row.end) for row in found] == [(row.start, row.end) for row in want]
        single = client.token_classification(
            text, **where, aggregation_strategy="none", ignore_labels=[]
        )
        assert [row.word for row in single] == ["mary", "lives", "in", "paris"]

    question = {"question": "Who?", "context": text}
    with Pipeline.create("qa", text_models["question-answering"]) as qa:
        answer = qa(**question)
    for where in (at("answers"), at("answers", "/")):
        got = client.question_answering(**question, **where, max_answer_len=15)
        assert (got.answer, got.start, got.end) == (answer.answer, answer.start, answer.end)
        several = client.question_answering(**question, **where, top_k=2)
        assert len(several) == 2 and several[0].answer == answer.answer

    labels = ["sport", "news"]
    with Pipeline.create("zero-shot", text_models["zero-shot-text-classification"]) as zero:
        chosen = zero(sequences=text, labels=labels, hypothesis_template="It is {}.")
    rows = client.zero_shot_classification(
        text, labels, hypothesis_template="It is {}.", **at("zero", "/")
    )
    assert [row.label for row in rows] == chosen.labels
    assert [row.score for row in rows] == pytest.approx(chosen.scores)

    filled = client.fill_mask("[MASK] lives in Paris", **at("fill"), top_k=3)
    assert len(filled) == 3 and filled[0].score >= filled[1].score
    filled = client.fill_mask("[MASK] lives in Paris", **at("fill", "/"), targets=["Mary", "John"])
    assert {row.token_str.strip().lower() for row in filled} == {"mary", "john"}


def test_the_client_of_hugging_face_gets_vectors(
    server: Server, vectors: Pipeline, text_models: TextModels
) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub: pip install .[hub]")
    client = hub.InferenceClient(token="none")
    want = vectors(TEXTS).embeddings
    for path in ("/models/vectors", "/models/vectors/pipeline/feature-extraction"):
        got = client.feature_extraction(TEXTS, model=server.url + path)
        np.testing.assert_array_equal(got, want)
        got = client.feature_extraction(TEXTS[0], model=server.url + path)
        np.testing.assert_allclose(got, want[:1], rtol=1e-6)
    unit = vectors(inputs=TEXTS, normalize=True).embeddings
    for path in ("/embed", "/models/vectors"):
        got = client.feature_extraction(TEXTS, normalize=True, model=server.url + path)
        np.testing.assert_array_equal(got, unit)
    for path in ("/vectors", "/models/vectors/pipeline/sentence-similarity"):
        got = client.sentence_similarity(TEXTS[0], TEXTS[1:], model=server.url + path)
        assert got == pytest.approx((unit[1:] @ unit[0]).tolist(), abs=1e-6)
    with Pipeline.create("embedding", text_models["embedding"]) as pipeline:
        states = pipeline(TEXTS[0]).embeddings
    got = client.feature_extraction(TEXTS[0], model=server.url + "/models/states")
    np.testing.assert_array_equal(got, np.array(states, np.float32))
    long = client.feature_extraction(LONG, truncate=True, model=server.url + "/models/vectors")
    assert long.shape == (1, 32)
    with pytest.raises(hub.errors.HfHubHTTPError, match="82 tokens and 64 fit"):
        client.feature_extraction(LONG, model=server.url + "/models/vectors")


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/entities", {"inputs": "a", "parameters": {"x": 1}}, 422, "parameters.x is not known"),
        ("/entities", {"inputs": "a", "parameters": 3}, 422, "parameters must be an object"),
        ("/entities", {"inputs": "a", "other": 3}, 422, "other: Extra inputs"),
        ("/models/entities", {"inputs": "a", "other": 3}, 422, "parameters.other is not known"),
        ("/models/entities", {"text": "a"}, 422, 'send {"inputs"'),
        ("/models/entities", ["a"], 422, 'send {"inputs"'),
        ("/models/entities", {"inputs": 3}, 422, "inputs"),
        ("/models/answers", {"inputs": []}, 422, "there are none"),
        ("/models/zero", {"inputs": "a"}, 422, "labels: needed"),
        ("/models/none", {"inputs": "a"}, 404, "no model none"),
        ("/models/fill/pipeline/ner", {"inputs": "a"}, 404, "fill is no model for ner"),
    ],
)
def test_what_is_wrong_in_hugging_faces_json(
    http: httpx.Client, path: str, body: Any, status: int, message: str
) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == status and message in answer.json()["error"], answer.text


def test_options_of_a_request_are_its_own(http: httpx.Client) -> None:
    body = {"inputs": TEXTS[0], "parameters": {"aggregation_strategy": "none"}}
    plain = {"inputs": TEXTS[0]}
    before = http.post("/entities", json=plain).content
    for _ in range(2):
        assert "entity" in http.post("/entities", json=body).json()[0]
        assert "entity_group" in http.post("/entities", json=plain | {"options": {}}).json()[0]
    assert http.post("/entities", json=plain).content == before


# ---- KServe's first protocol ---------------------------------------------------------------------


def test_kserves_first_protocol(server: Server, http: httpx.Client, vectors: Pipeline) -> None:
    rows = http.post("/v1/models/mood:predict", json={"instances": TEXTS}).json()["predictions"]
    assert len(rows) == 3 and {cell["label"] for cell in rows[0]} == {"negative", "positive"}
    answer = http.post("/v1/models/vectors:predict", json={"instances": TEXTS}).json()
    np.testing.assert_array_equal(
        np.array(answer["predictions"], np.float32), vectors(TEXTS).embeddings
    )
    pair = {"question": "Who?", "context": TEXTS[0]}
    (found,) = http.post("/v1/models/answers:predict", json={"instances": [pair]}).json()[
        "predictions"
    ]
    assert found == http.post("/answers", json=pair).json()
    body = {"instances": ["a"], "parameters": {"candidate_labels": ["x", "y"]}}
    (found,) = http.post("/v1/models/zero:predict", json=body).json()["predictions"]
    assert set(found) == {"sequence", "labels", "scores"}
    assert http.get("/v1/models/mood").json()["ready"] is True
    assert {"mood", "zero"} <= set(http.get("/v1/models").json()["models"])
    for path, sent, status, message in (
        ("/v1/models/mood:predict", {"instances": []}, 400, "at least one"),
        ("/v1/models/mood:predict", {"inputs": ["a"]}, 400, "instances"),
        ("/v1/models/mood:predict", {"instances": [3]}, 422, "sequences"),
        ("/v1/models/none:predict", {"instances": ["a"]}, 404, "no model none"),
    ):
        failed = http.post(path, json=sent)
        assert failed.status_code == status and message in failed.json()["error"], failed.text


def test_kserves_client_of_the_first_protocol(server: Server) -> None:
    kserve = pytest.importorskip("kserve", reason="needs kserve: pip install '.[clients]'")

    async def run() -> None:
        config = kserve.RESTConfig(protocol="v1")
        async with kserve.InferenceRESTClient(config) as client:
            assert await client.is_server_live(server.url)
            assert await client.is_model_ready(server.url, "mood")
            with pytest.raises(httpx.HTTPStatusError, match="no model none"):
                await client.is_model_ready(server.url, "none")
            answer = await client.infer(server.url, {"instances": TEXTS}, model_name="mood")
            assert len(answer["predictions"]) == 3

    asyncio.run(run())


def test_repository(http: httpx.Client) -> None:
    names = [row["name"] for row in http.get("/").json()["endpoints"]]
    assert http.get("/v2/models").json() == {"models": names}
    rows = http.post("/v2/repository/index", json={}).json()
    assert rows == http.post("/v2/repository/index", json={"ready": True}).json()
    assert rows == http.post("/v2/repository/index").json()
    assert [row["name"] for row in rows] == names
    assert {(row["version"], row["state"], row["reason"]) for row in rows} == {("1", "READY", "")}
    assert http.post("/v2/repository/index", json={"ready": "yes please"}).status_code == 400
    assert http.get("/v2/repository/index").status_code == 405
