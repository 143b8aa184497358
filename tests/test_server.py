"""`sparsec serve` as users and supervisors see it: real processes on free ports."""

from __future__ import annotations

import asyncio
import codecs
import gzip
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

import sparsec
from sparsec.serving.pipelines import Pipeline
from tests import pipelines_support
from tests.server_support import TOKEN, Server, TextModels, endpoint

AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}
TEXT = "Mary is flying from Nairobi to New York"


@pytest.fixture(scope="module")
def server(text_models: TextModels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """All tasks, one worker."""
    config = {
        "endpoints": [
            endpoint(text_models, "token-classification", name="ner"),
            endpoint(text_models, "question-answering", name="qa", route="/qa"),
            endpoint(text_models, "text-classification", name="sentiment", route="/sentiment"),
            endpoint(text_models, "zero-shot-text-classification", name="zero"),
            endpoint(text_models, "embedding", name="embedding",
                     kwargs={"extraction_strategy": "reduce_mean"}),
            endpoint(text_models, "embedding", name="arrays",
                     kwargs={"extraction_strategy": "reduce_mean", "return_numpy": True}),
            endpoint(text_models, "fill-mask", name="fill", bucketing={"sequence_lengths": [16]}),
        ],
        "limits": {"body_bytes": 200_000, "input_characters": 5000, "items": 50},
    }  # fmt: skip
    with Server(tmp_path_factory.mktemp("server"), config) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as http:
        yield http


def failure(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check that a response has the one shape of errors."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body: dict[str, Any] = response.json()
    assert set(body) == {"error", "code", "status", "request_id"}
    assert (body["status"], body["code"]) == (status, code)
    assert body["request_id"] == response.headers["x-request-id"]
    assert "Traceback" not in response.text
    return body


# ---- predictions -------------------------------------------------------------------------------

REQUESTS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "token-classification": (
        "/predict",
        [
            {"inputs": TEXT},
            {"inputs": [TEXT, "John", ""]},
            {"inputs": [["Mary", "lives"]], "is_split_into_words": True},
        ],
    ),
    "question-answering": (
        "/qa",
        [
            {"question": "Who is flying?", "context": TEXT},
            {"question": "who", "context": "東京 😀 " * 40},
        ],
    ),
    "text-classification": (
        "/sentiment",
        [{"sequences": "good movie"}, {"sequences": [["good", "bad"], ["a", "b"]]}],
    ),
    "zero-shot-text-classification": (
        "/predict/zero",
        [
            {"sequences": "a sport", "labels": ["sport", "news"]},
            {"sequences": ["x"], "labels": "a,b"},
        ],
    ),
    "fill-mask": ("/predict/fill", [{"inputs": "mary is [MASK] to york"}]),
}  # fmt: skip


@pytest.mark.parametrize("task", REQUESTS)
def test_answers_are_those_of_the_pipeline(
    task: str, text_models: TextModels, client: httpx.Client
) -> None:
    route, bodies = REQUESTS[task]
    lengths = [16] if task == "fill-mask" else None
    with Pipeline.create(task, text_models[task], sequence_length=lengths) as pipeline:
        for body in bodies:
            got = client.post(route, json=body)
            assert got.status_code == 200, got.text
            assert got.json() == json.loads(pipeline(body).model_dump_json())


def test_embeddings(text_models: TextModels, client: httpx.Client) -> None:
    got = client.post("/predict/embedding", json={"inputs": [TEXT, "a"]}).json()["embeddings"]
    with Pipeline.create(
        "embedding", text_models["embedding"], extraction_strategy="reduce_mean"
    ) as pipeline:
        assert got == [pytest.approx(row, abs=1e-6) for row in pipeline([TEXT, "a"]).embeddings]
    arrays = client.post("/predict/arrays", json={"inputs": [TEXT, "a"]}).json()["embeddings"]
    assert arrays == [pytest.approx(row, abs=1e-6) for row in got]
    tensor = {"name": "inputs", "shape": [2], "datatype": "BYTES", "data": [TEXT, "a"]}
    (output,) = client.post("/v2/models/arrays/infer", json={"inputs": [tensor]}).json()["outputs"]
    assert output["shape"] == [2, len(got[0])]
    assert output["data"] == pytest.approx([x for row in got for x in row], abs=1e-6)


def test_many_requests_at_once_get_their_own_answers(server: Server, client: httpx.Client) -> None:
    texts = [
        f"{name} is flying {'to new york ' * (i % 9)}" for i in range(60) for name in ("mary",)
    ]
    alone = [client.post("/predict", json={"inputs": text}).json() for text in texts]

    async def together() -> list[Any]:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:
            responses = await asyncio.gather(
                *(http.post("/predict", json={"inputs": text}) for text in texts)
            )
            return [response.json() for response in responses]

    for got, want in zip(asyncio.run(together()), alone, strict=True):
        ours, theirs = got["predictions"][0], want["predictions"][0]
        assert [{**r, "score": 0} for r in ours] == [{**r, "score": 0} for r in theirs]
        for a, b in zip(ours, theirs, strict=True):
            assert a["score"] == pytest.approx(b["score"], abs=1e-5)
    sizes = metrics(client)
    assert (
        sizes['sparsec_batch_size_sum{model="ner"}']
        > sizes['sparsec_batch_size_count{model="ner"}']
    )


def test_compressed_bodies(client: httpx.Client) -> None:
    body = json.dumps({"inputs": TEXT}).encode()
    headers = {"Content-Encoding": "gzip"}
    want = client.post("/predict", content=body).json()
    assert client.post("/predict", content=gzip.compress(body), headers=headers).json() == want
    failure(client.post("/predict", content=body, headers=headers), 400, "bad_request")
    cut = gzip.compress(body)[:-9]
    failure(client.post("/predict", content=cut, headers=headers), 400, "bad_request")
    bomb = gzip.compress(b" " * 10_000_000)
    failure(client.post("/predict", content=bomb, headers=headers), 413, "too_large")
    for coding in ("br", "gzip, br", "gzip, gzip, gzip"):
        refused = client.post("/predict", content=body, headers={"Content-Encoding": coding})
        failure(refused, 415, "unsupported_media_type")


def test_all_forms_of_compressed_bodies(client: httpx.Client) -> None:
    text = json.dumps({"inputs": TEXT})
    body = text.encode()
    want = client.post("/predict", content=body).json()
    raw_deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    members = b"".join(gzip.compress(body[i : i + 7]) for i in range(0, len(body), 7))
    forms = [
        ("gzip", members),
        ("GZip", members + bytes(512)),
        ("x-gzip", gzip.compress(b"") + gzip.compress(body)),
        ("deflate", zlib.compress(body)),
        ("deflate", raw_deflate.compress(body) + raw_deflate.flush()),
        ("identity, gzip", gzip.compress(body)),
        ("deflate, gzip", gzip.compress(zlib.compress(body))),
        ("gzip", gzip.compress(codecs.BOM_UTF8 + body)),
        ("gzip", gzip.compress(body + b" " * 100_000)),
    ]
    for coding, packed in forms:
        got = client.post("/predict", content=packed, headers={"Content-Encoding": coding})
        assert got.status_code == 200, (coding, got.text)
        assert got.json() == want
    for coding, packed, status in [
        ("gzip", members[:-9], 400),
        ("gzip", members + b"rest", 400),
        ("deflate", zlib.compress(body) + b"rest", 400),
        ("gzip", gzip.compress(bytes(150_000)) * 2, 413),
        ("gzip, gzip", gzip.compress(gzip.compress(bytes(1_000_000))), 413),
    ]:
        got = client.post("/predict", content=packed, headers={"Content-Encoding": coding})
        failure(got, status, "bad_request" if status == 400 else "too_large")


def test_byte_order_marks(client: httpx.Client) -> None:
    mark = codecs.BOM_UTF8
    body = json.dumps({"inputs": TEXT}).encode()
    want = client.post("/predict", content=body).json()
    assert client.post("/predict", content=mark + body).json() == want
    assert client.post("/v2/models/ner/infer", content=mark + body).json() == want
    tensor = {"name": "inputs", "shape": [1], "datatype": "BYTES"}
    text = TEXT.encode()
    data = len(text).to_bytes(4, "little") + text
    head = (
        mark
        + json.dumps(
            {"inputs": [{**tensor, "parameters": {"binary_data_size": len(data)}}]}
        ).encode()
    )
    headers = {"Inference-Header-Content-Length": str(len(head))}
    got = client.post("/v2/models/ner/infer", content=head + data, headers=headers).json()
    assert json.loads(got["outputs"][0]["data"][0]) == want["predictions"][0]


def test_a_request_of_tensors_without_tensors(client: httpx.Client) -> None:
    """Is one, whatever the task's own JSON may be at the same path."""
    for model in ("ner", "sentiment", "qa", "zero", "embedding"):
        for headers in ({}, {"Inference-Header-Content-Length": "14"}):
            path = f"/v2/models/{model}/infer"
            got = client.post(path, content=b'{"inputs": []}', headers=headers)
            assert "inputs: there are none" in failure(got, 400, "bad_request")["error"]
    assert client.post("/v2/models/sentiment/infer", json={"sequences": "good"}).status_code == 200
    body = b'{"sequences": "good"}'
    headers = {"Inference-Header-Content-Length": str(len(body))}
    got = client.post("/v2/models/sentiment/infer", content=body, headers=headers)
    assert "inputs: Field required" in failure(got, 400, "bad_request")["error"]
    numbers = {"name": "inputs", "shape": [1], "datatype": "INT64", "data": [1]}
    got = client.post("/v2/models/ner/infer", json={"inputs": [numbers]})
    assert "input inputs takes BYTES, not INT64" in failure(got, 400, "bad_request")["error"]


# ---- about the server --------------------------------------------------------------------------


def test_index_health_and_ready(client: httpx.Client) -> None:
    index = client.get("/").json()
    assert [e["route"] for e in index["endpoints"]] == [
        "/predict", "/qa", "/sentiment", "/predict/zero", "/predict/embedding",
        "/predict/arrays", "/predict/fill",
    ]  # fmt: skip
    assert index["endpoints"][0]["sequence_length"] == [16, 64]
    assert index["endpoints"][-1]["sequence_length"] == [16]
    assert client.get("/health").json() == {"live": True}
    assert client.get("/ready").json() == {"ready": True}
    head = client.head("/health")
    assert (head.status_code, head.text) == (200, "")


def metrics(client: httpx.Client) -> dict[str, float]:
    """Samples by name and labels."""
    text = client.get("/metrics").text
    rows = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in rows}


def test_metrics(client: httpx.Client) -> None:
    before = metrics(client)
    for _ in range(3):
        client.post("/sentiment", json={"sequences": "good movie"})
    client.post("/sentiment", json={"wrong": 1})
    after = metrics(client)

    def grew(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    assert grew('sparsec_requests_total{endpoint="sentiment",status="200"}') == 3
    assert grew('sparsec_requests_total{endpoint="sentiment",status="422"}') == 1
    assert grew('sparsec_errors_total{code="invalid_input",endpoint="sentiment"}') == 1
    assert grew('sparsec_request_seconds_count{endpoint="sentiment"}') == 4
    assert grew('sparsec_tokens_total{kind="real",model="sentiment"}') == 3 * 4
    assert after['sparsec_tokens_total{kind="padding",model="sentiment"}'] == 0
    assert after['sparsec_queue_items{model="sentiment"}'] == 0
    assert after["sparsec_requests_in_flight"] == 1  # the one that asks


def test_texts_that_are_too_long(client: httpx.Client) -> None:
    """Refused; cut where the request says so, which the answer and the metrics tell."""
    long, name = "good movie " * 40, 'sparsec_truncated_texts_total{endpoint="sentiment"}'
    refused = failure(client.post("/sentiment", json={"sequences": long}), 422, "input_too_long")
    assert "the text has 82 tokens and 64 fit" in refused["error"]
    # Each form is told what it can say.
    wire = {"name": "sequences", "shape": [1], "datatype": "BYTES", "data": [long]}
    for path, form in {
        "/sentiment": {"sequences": long},
        "/models/sentiment": {"inputs": long},
        "/v1/models/sentiment:predict": {"instances": [long]},
        "/v2/models/sentiment/infer": {"inputs": [wire]},
    }.items():
        refused = failure(client.post(path, json=form), 422, "input_too_long")
        assert '64 fit: "truncate": true cuts it' in refused["error"], path
        nested = path != "/sentiment"
        more = {"parameters": {"truncate": True}} if nested else {"truncate": True}
        assert client.post(path, json={**form, **more}).status_code == 200, path
    before = metrics(client)[name]
    body = {"sequences": [long, "good", long], "truncate": True}
    answer = client.post("/sentiment", json=body)
    assert answer.status_code == 200 and len(answer.json()["labels"]) == 3
    assert answer.headers["x-truncated-texts"] == "2"
    tensors = {"inputs": [wire], "parameters": {"truncate": True}}
    answer = client.post("/v2/models/sentiment/infer", json=tensors)
    assert answer.status_code == 200 and answer.headers["x-truncated-texts"] == "1"
    assert metrics(client)[name] - before == 3
    answer = client.post("/sentiment", json={"sequences": "good"})
    assert "x-truncated-texts" not in answer.headers


def test_request_ids(client: httpx.Client, server: Server) -> None:
    given = client.get("/nothing", headers={"X-Request-ID": "abc-1"})
    assert failure(given, 404, "not_found")["request_id"] == "abc-1"
    made = failure(client.get("/nothing", headers={"X-Request-ID": 'a"b c'}), 404, "not_found")
    assert made["request_id"] not in ('a"b c', "abc-1")
    server.wait_for(made["request_id"])
    line = next(row for row in server.log() if row.get("request_id") == "abc-1")
    assert (line["status"], line["path"], line["level"]) == (404, "/nothing", "warning")


# ---- what is refused -----------------------------------------------------------------------------


def test_unknown_routes_and_methods(client: httpx.Client) -> None:
    for path in ("/x", "/predict/x", "/v2/models/x/y", "/v2/x", "/docs/../x", "/docs/x", "/%ff"):
        failure(client.get(path), 404, "not_found")
    for method in ("GET", "PUT", "PATCH", "DELETE"):
        response = client.request(method, "/predict")
        failure(response, 405, "method_not_allowed")
        assert response.headers["allow"] == "OPTIONS, POST"
    failure(client.post("/health"), 405, "method_not_allowed")
    failure(client.request("BREW", "/predict"), 405, "method_not_allowed")
    options = client.options("/predict")
    assert (options.status_code, options.headers["allow"]) == (204, "OPTIONS, POST")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"{", 400, "invalid_json"),
        (b'{"inputs": "\xff"}', 400, "invalid_json"),
        (b'{"inputs": "\\ud800"}', 400, "invalid_json"),
        ('{"inputs": "a"}'.encode("utf-16"), 400, "invalid_json"),
        (b"[" * 10_000, 400, "invalid_json"),
        (b"[]", 422, "invalid_input"),
        (b"null", 422, "invalid_input"),
        (b"{}", 422, "invalid_input"),
        (b'{"inputs": 5}', 422, "invalid_input"),
        (b'{"inputs": "a", "more": 1}', 422, "invalid_input"),
        (json.dumps({"inputs": "a" * 5001}).encode(), 422, "input_too_long"),
        (json.dumps({"inputs": ["a"] * 51}).encode(), 422, "too_many_items"),
        (b'{"inputs": "' + b"a" * 200_000 + b'"}', 413, "too_large"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_bad_bodies(client: httpx.Client, body: bytes, status: int, code: str) -> None:
    failure(client.post("/predict", content=body), status, code)


def test_tasks_say_what_is_wrong(client: httpx.Client) -> None:
    error = failure(client.post("/predict/fill", json={"inputs": "no mask"}), 422, "invalid_input")
    assert "[MASK]" in error["error"]
    failure(client.post("/predict/zero", json={"sequences": "a"}), 422, "invalid_input")
    many = {"sequences": ["a"] * 10, "labels": "a," * 10}
    failure(client.post("/predict/zero", json=many), 422, "too_many_items")
    long = {"question": "who", "context": "mary " * 900}
    assert client.post("/qa", json=long).status_code == 200


CHUNKED = b"POST /predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"


def raw(server: Server, data: bytes) -> bytes:
    """What comes back on a connection of its own."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        parts = []
        try:
            while part := connection.recv(65536):
                parts.append(part)
        except ConnectionResetError:
            pass
    return b"".join(parts)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"NONSENSE\r\n\r\n", 400),
        (b"GET / HTTP/3.7\r\n\r\n", 400),
        (b"GET /\xe4 HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nx: " + b"a" * 20_000 + b"\r\n\r\n", 431),
        (b"POST /predict HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400),
        (b"POST /predict HTTP/1.1\r\nContent-Length: -5\r\n\r\n", 400),
        (b"POST /predict HTTP/1.1\r\nContent-Length: 999999999\r\n\r\n", 413),
        (b"POST /predict HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\na", 400),
        (b"POST /predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST /predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n", 400),
        (b"POST /predict HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (CHUNKED + b"0\r\n" + b"a: b\r\n" * 4000 + b"\r\n", 431),
        (CHUNKED + b"1" * 5000, 400),
        (CHUNKED + b"%x\r\n" % 300_000, 413),
        (CHUNKED + b"fffffffffffffff\r\n", 413),
        (b"POST /predict HTTP/1.1\r\nContent-Length : 5\r\n\r\nabcde", 400),
        (b"POST /predict HTTP/1.1\r\nA: b\nContent-Length: 5\r\n\r\nabcde", 400),
        (b"POST /predict HTTP/1.1\r\nContent-Length: 5\r\n\r\nabc", 400),
        (b"POST /predict HTT", 400),
        (b"POST /predict HTTP/1.1\r\nExpect: cake\r\nContent-Length: 1\r\n\r\na", 417),
    ],
    ids=lambda value: repr(value)[:44],
)
def test_broken_http(server: Server, data: bytes, status: int) -> None:
    head, _, body = raw(server, data).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), head
    assert set(json.loads(body)) == {"error", "code", "status", "request_id"}


@pytest.mark.parametrize("size", [200_001, 30_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_clients_see_that_a_body_is_too_large(
    server: Server, client: httpx.Client, size: int, chunked: bool
) -> None:
    """However the client sends: it writes all of the body before it reads the answer."""
    pieces = [b"a" * 100_000] * (size // 100_000) + [b"a" * (size % 100_000)]
    body = iter(pieces) if chunked else b"".join(pieces)
    failure(client.post("/predict", content=body), 413, "too_large")
    host = server.url.removeprefix("http://")
    for _ in range(3):
        connection = http.client.HTTPConnection(host, timeout=30)
        connection.request(
            "POST", "/predict", iter(pieces) if chunked else b"".join(pieces),
            encode_chunked=chunked, headers={"Transfer-Encoding": "chunked"} if chunked else {},
        )  # fmt: skip
        answer = connection.getresponse()
        assert answer.status == 413 and json.loads(answer.read())["code"] == "too_large"
        connection.close()
    assert client.get("/health").status_code == 200


def test_a_body_that_is_too_large_is_not_asked_for(server: Server) -> None:
    head = b"POST /predict HTTP/1.1\r\nExpect: 100-continue\r\n"
    large = head + b"Content-Length: 999999\r\n\r\n"
    assert raw(server, large).startswith(b"HTTP/1.1 413 ")
    body = json.dumps({"inputs": "a"}).encode()
    fits = head + b"Content-Length: %d\r\n\r\n" % len(body)
    first, second, *_ = raw(server, fits + body).split(b"\r\n\r\n")
    assert first == b"HTTP/1.1 100 Continue" and second.startswith(b"HTTP/1.1 200 ")
    # The answer comes before the client has sent anything but the head, and again when it sends
    # the body all the same.
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(large)
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
        connection.sendall(b"a" * 999_999)
        assert connection.recv(65536) == b""


@pytest.mark.parametrize(
    "request_",
    [
        CHUNKED + b"%s0\r\n\r\n",
        CHUNKED + b"%s0\r\nChecksum: abc\r\nMore: x\r\n\r\n",
        CHUNKED + b"%s000;last=yes\r\nChecksum: abc\r\n\r\n",
        CHUNKED.replace(b"chunked", b" Chunked ").replace(b"coding", b"CODING")
        + b'%s0;note="%b"\r\n\r\n' % (b"%s", b"x" * 200),
        b"\r\n\r\n" + CHUNKED + b"%s0\r\n\r\n",
    ],
    ids=["plain", "trailers", "extension", "spelling", "empty lines"],
)
def test_chunked_bodies(server: Server, request_: bytes) -> None:
    body = json.dumps({"inputs": TEXT}).encode()
    chunks = b"".join(b"%X ;a=b\r\n%b\r\n" % (len(p), p) for p in (body[:9], body[9:]))
    got = raw(server, request_.replace(b"%s", chunks) + b"GET /health HTTP/1.1\r\n\r\n")
    # What follows is the next request.
    assert [part[:12] for part in got.split(b"HTTP/1.1 ")] == [b"", *[b"200 OK\r\nx-re"] * 2]
    assert b'"predictions"' in got and got.endswith(b'{"live":true}')


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
FIELDS = st.sampled_from(["inputs", "sequences", "question", "context", "labels", "id", "outputs"])
ROUTES = ["/predict", "/qa", "/sentiment", "/predict/zero", "/predict/fill"]
V2 = [f"/v2/models/{name}/infer" for name in ("ner", "qa", "zero", "embedding")]
TENSOR = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["inputs", "question", "context", "sequences", "labels", "x"]),
        "shape": st.lists(st.integers(-1, 3), max_size=3) | JSON,
        "datatype": st.sampled_from(["BYTES", "INT64", "FP32", "BOOL", "FP16", "X"]),
    },
    optional={"data": JSON | st.lists(st.text(), max_size=3), "parameters": JSON},
)


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    route=st.sampled_from(ROUTES + V2),
    body=st.binary(max_size=60)
    | st.dictionaries(FIELDS, JSON, max_size=4).map(lambda x: json.dumps(x).encode())
    | st.lists(TENSOR, max_size=3).map(lambda x: json.dumps({"inputs": x}).encode()),
    headers=st.dictionaries(
        st.sampled_from(["Content-Encoding", "Inference-Header-Content-Length", "X-Request-ID"]),
        st.sampled_from(["gzip", "deflate", "0", "7", "-1", "99999999999999999999", "a" * 300]),
    ),
)
def test_hostile_requests(
    client: httpx.Client, route: str, body: bytes, headers: dict[str, str]
) -> None:
    response = client.post(route, content=body, headers=headers)
    if response.status_code != 200:
        assert 400 <= response.status_code < 500, (response.text, body)
        failure(response, response.status_code, response.json()["code"])


# ---- endpoints come and go -----------------------------------------------------------------------


class Load:
    """Requests without a pause from threads, until told to stop; every answer is kept."""

    def __init__(self, server: Server, route: str, threads: int = 4) -> None:
        self.statuses: list[int] = []
        self.failures: list[str] = []
        self._server, self._route = server, route
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def _run(self) -> None:
        with self._server.client() as http:
            while not self._stop.is_set():
                try:
                    response = http.post(self._route, json={"inputs": TEXT})
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                    return
                self.statuses.append(response.status_code)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_endpoints_come_and_go_in_all_workers(text_models: TextModels, tmp_path: Path) -> None:
    ner = endpoint(text_models, "token-classification")
    config = {"num_workers": 2, "admin_token": TOKEN, "endpoints": [ner]}
    with Server(tmp_path, config) as server, server.client() as client:
        assert len(server.workers()) == 2
        new = {**ner, "name": "second", "route": "/second"}
        failure(client.post("/endpoints", json=new), 401, "unauthorized")
        wrong = {"Authorization": "Bearer wrong"}
        failure(client.post("/endpoints", json=new, headers=wrong), 401, "unauthorized")
        failure(client.post("/endpoints", json={}, headers=AUTHORIZED), 422, "invalid_input")
        missing = {**new, "model": str(tmp_path / "nothing")}
        failure(client.post("/endpoints", json=missing, headers=AUTHORIZED), 422, "invalid_input")
        with Load(server, "/predict") as load:
            for _ in range(3):
                made = client.post("/endpoints", json=new, headers=AUTHORIZED)
                assert made.status_code == 201, made.text
                # New connections reach both workers.
                for _ in range(12):
                    assert (
                        httpx.post(server.url + "/second", json={"inputs": "a"}).status_code == 200
                    )
                failure(client.post("/endpoints", json=new, headers=AUTHORIZED), 409, "conflict")
                gone = client.delete("/endpoints/second", headers=AUTHORIZED)
                assert gone.json() == {"removed": "second"}
                for _ in range(12):
                    assert (
                        httpx.post(server.url + "/second", json={"inputs": "a"}).status_code == 404
                    )
        assert not load.failures and set(load.statuses) == {200}
        body = json.dumps({"route": "/predict"})
        assert client.request("DELETE", "/endpoints", content=body, headers=AUTHORIZED).json() == {
            "removed": "token-classification-0"
        }
        failure(client.delete("/endpoints/nothing", headers=AUTHORIZED), 404, "not_found")
        assert server.stop() == 0


def test_without_a_token_endpoints_are_fixed(client: httpx.Client) -> None:
    failure(client.post("/endpoints", json={}), 403, "forbidden")
    failure(client.delete("/endpoints/ner", headers=AUTHORIZED), 403, "forbidden")


def test_hot_reload_drops_no_request(text_models: TextModels, tmp_path: Path) -> None:
    ner = endpoint(text_models, "token-classification", name="ner")
    more = endpoint(text_models, "text-classification", name="more", route="/more")
    config = {"num_workers": 2, "endpoints": [ner]}
    with Server(tmp_path, config, "--hot-reload-config") as server, server.client() as client:

        def until(route: str, status: int) -> None:
            limit = time.monotonic() + 30
            while time.monotonic() < limit:
                got = {
                    httpx.post(server.url + route, json={"inputs": "a"}).status_code
                    for _ in range(8)
                }
                if got == {status}:
                    return
            raise AssertionError(f"{route} does not give {status} but {got}")

        with Load(server, "/predict") as load:
            for _ in range(2):
                server.write({**config, "endpoints": [ner, more]})
                until("/more", 200)
                # An endpoint that changes is replaced while it is in use.
                changed = {**ner, "batching": {"max_batch": 4}}
                server.write({**config, "endpoints": [changed]})
                until("/more", 404)
                server.lines.clear()
                server.write({**config, "endpoints": [ner, {**more, "rout": "/x"}]})
                error = server.wait_for("endpoints.1..rout: unknown key; did you mean route")
                assert f"{server.config_file}:" in error.string
        assert not load.failures and set(load.statuses) == {200}
        assert client.get("/").json()["endpoints"][0]["batching"]["max_batch"] == 4


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("artifact", "SIGHUP"),
        ("onnx", "touch"),
        pytest.param("artifact", "touch", marks=pytest.mark.slow),
        pytest.param("onnx", "SIGHUP", marks=pytest.mark.slow),
        pytest.param("artifact", "SIGHUP without a file", marks=pytest.mark.slow),
        pytest.param("onnx", "SIGHUP without a file", marks=pytest.mark.slow),
    ],
)
def test_a_model_replaced_in_place_is_served(
    text_models: TextModels, tmp_path: Path, kind: str, how: str
) -> None:
    labels = ["negative", "positive"]
    folder = tmp_path / "model"

    def make(seed: int) -> float:
        """Put a model into the place; returns its score."""
        new = tmp_path / f"new-{seed}"
        pipelines_support.make(new, "sequence-classification", seed=seed, labels=labels)
        if kind == "artifact":
            output = folder / "model.sparsec"
            folder.mkdir(exist_ok=True)
            sparsec.compile(new, buckets=[16, 64], output=output, target="generic", force=True)
            place = output
        else:
            shutil.copytree(new, folder, dirs_exist_ok=True)
            place = folder
        with Pipeline.create("sentiment", place, sequence_length=16) as pipeline:
            return float(pipeline("good movie").scores[0])

    old = make(1)
    model = folder / "model.sparsec" if kind == "artifact" else folder
    entry = {"task": "sentiment", "model": str(model), "name": "s", "sequence_length": [16, 64]}
    config = {"endpoints": [entry]}
    flags = ["--hot-reload-config"] if how == "touch" else []
    server = Server(tmp_path / "server", config, *flags)
    if how == "SIGHUP without a file":
        server.arguments = ["--task", "sentiment", "--model-path", str(model)]
        server.arguments += ["--sequence-length", "16,64"]
    with server, server.client() as client:
        name = client.get("/").json()["endpoints"][0]["name"]

        def score(text: str = "good movie") -> float:
            got: float = client.post("/predict", json={"sequences": text}).json()["scores"][0]
            return got

        def nudge() -> None:
            if how == "touch":
                server.config_file.touch()
            else:
                server.process.send_signal(signal.SIGHUP)

        first = client.get("/").json()["endpoints"][0]["hash"]
        assert score() == pytest.approx(old, abs=1e-6)
        server.wait_for(f"{name} serves .*{first}")
        with Load(server, "/predict") as load:
            new = make(2)
            assert abs(new - old) > 1e-3 and score() == pytest.approx(old, abs=1e-6)
            nudge()
            limit = time.monotonic() + 60
            while client.get("/").json()["endpoints"][0]["hash"] == first:
                assert time.monotonic() < limit
                time.sleep(0.05)
        assert not load.failures and set(load.statuses) == {200}
        second = client.get("/").json()["endpoints"][0]["hash"]
        server.wait_for(f"{name} serves .*{second}")
        assert score() == pytest.approx(new, abs=1e-6)
        # Short and long texts, which are other buckets, are answered by the same model.
        with Pipeline.create("sentiment", model, sequence_length=[16, 64]) as pipeline:
            for text in ("good", "good movie " * 20):
                assert score(text) == pytest.approx(pipeline(text).scores[0], abs=1e-6)
        served = {k: v for k, v in metrics(client).items() if k.startswith("sparsec_served_models")}
        assert {re.search('hash="(.*?)"', k)[1]: v for k, v in served.items()} == {  # type: ignore[index]
            first: 0, second: 1,
        }  # fmt: skip
        # Nothing has changed: nothing is loaded again.
        lines = len([line for line in server.lines if " serves " in line])
        nudge()
        server.lines.append("mark")
        limit = time.monotonic() + 20
        while not any("read again" in x for x in server.lines[server.lines.index("mark") :]):
            assert time.monotonic() < limit
            time.sleep(0.05)
        time.sleep(0.5)
        assert len([line for line in server.lines if " serves " in line]) == lines


# ---- start, stop, overload -----------------------------------------------------------------------


def test_sigterm_finishes_what_was_accepted(text_models: TextModels, tmp_path: Path) -> None:
    slow = {"max_batch": 64, "max_delay_us": 4_000_000, "queue_size": 100}
    config = {
        "num_workers": 2,
        "endpoints": [endpoint(text_models, "token-classification", batching=slow)],
    }
    with Server(tmp_path, config) as server, ThreadPoolExecutor(8) as pool:

        def ask(_: int) -> httpx.Response:
            return httpx.post(server.url + "/predict", json={"inputs": TEXT}, timeout=30)

        answers = [pool.submit(ask, i) for i in range(8)]
        with server.client() as client:  # all are waiting for a batch to fill
            limit = time.monotonic() + 20
            while metrics(client)["sparsec_requests_in_flight"] < 1 + len(answers):
                assert time.monotonic() < limit
                time.sleep(0.05)
        assert not any(answer.done() for answer in answers)
        server.process.send_signal(signal.SIGTERM)
        assert [answer.result().status_code for answer in answers] == [200] * 8
        assert {answer.result().headers["connection"] for answer in answers} == {"close"}
        assert server.stop() == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(server.url + "/health")


def test_drain_has_a_limit(text_models: TextModels, tmp_path: Path) -> None:
    slow = {"max_batch": 64, "max_delay_us": 10_000_000}
    config = {
        "endpoints": [endpoint(text_models, "token-classification", batching=slow)],
        "limits": {"drain_timeout": 0.5},
    }
    with Server(tmp_path, config) as server, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.post, server.url + "/predict", json={"inputs": "a"}, timeout=30)
        with server.client() as client:
            while not any(
                k.startswith("sparsec_queue_items") and n for k, n in metrics(client).items()
            ):
                time.sleep(0.05)
        start = time.monotonic()
        server.stop()
        assert time.monotonic() - start < 5
        assert isinstance(answer.exception(), httpx.HTTPError)
        server.wait_for("not answered within the drain timeout")


def test_a_full_queue_answers_at_once(text_models: TextModels, tmp_path: Path) -> None:
    slow = {"max_batch": 64, "max_delay_us": 3_000_000, "queue_size": 4}
    config = {"endpoints": [endpoint(text_models, "token-classification", batching=slow)]}
    with Server(tmp_path, config) as server, ThreadPoolExecutor(12) as pool:

        def ask(_: int) -> tuple[httpx.Response, float]:
            response = httpx.post(server.url + "/predict", json={"inputs": "a"}, timeout=30)
            return response, time.monotonic()

        answers = list(pool.map(ask, range(12)))
        refused = [(r, at) for r, at in answers if r.status_code != 200]
        assert len(refused) == 8
        for response, _ in refused:
            failure(response, 503, "queue_full")
            assert int(response.headers["retry-after"]) >= 1
        # None of them waited for a batch.
        assert max(at for _, at in refused) < min(at for r, at in answers if r.status_code == 200)
        # A request larger than the queue still runs when nobody waits.
        many = httpx.post(server.url + "/predict", json={"inputs": ["a"] * 20}, timeout=30)
        assert len(many.json()["predictions"]) == 20


def test_cancelled_requests_leave_the_queue(text_models: TextModels, tmp_path: Path) -> None:
    slow = {"max_batch": 64, "max_delay_us": 10_000_000, "queue_size": 4}
    config = {
        "endpoints": [endpoint(text_models, "token-classification", name="ner", batching=slow)],
        "limits": {"request_timeout": 4.0},
    }
    with Server(tmp_path, config) as server, server.client() as client:
        start = time.monotonic()
        for _ in range(2):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(server.url + "/predict", json={"inputs": ["a", "b"]}, timeout=0.2)
        while metrics(client).get('sparsec_dropped_items_total{model="ner"}') != 4:
            assert time.monotonic() < start + 3.5  # before their time is over
            time.sleep(0.05)
        assert metrics(client)['sparsec_queue_items{model="ner"}'] == 0
        failure(client.post("/predict", json={"inputs": "a"}), 504, "timeout")
        assert metrics(client)['sparsec_dropped_items_total{model="ner"}'] == 5


def test_a_client_that_closes_its_side_gets_its_answer(
    text_models: TextModels, tmp_path: Path
) -> None:
    slow = {"max_batch": 64, "max_delay_us": 400_000}
    slower = {"max_batch": 64, "max_delay_us": 1_600_000}
    ner = endpoint(text_models, "token-classification")
    config = {
        "endpoints": [
            {**ner, "route": "/slow", "name": "slow", "batching": slow},
            {**ner, "route": "/slower", "name": "slower", "batching": slower},
        ]
    }
    body = json.dumps({"inputs": TEXT}).encode()
    with Server(tmp_path, config) as server:
        for version in (b"1.0", b"1.1"):
            head = b"HTTP/%b\r\nContent-Length: %d\r\n\r\n" % (version, len(body))
            got = raw(server, b"POST /slow " + head + body)
            assert got.startswith(b"HTTP/1.1 200 ") and b'"predictions"' in got
        # Who waits longer is asked whether it is there: an interim answer that HTTP allows.
        asked, _, got = raw(server, b"POST /slower " + head + body).partition(b"\r\n\r\n")
        assert asked == b"HTTP/1.1 100 Continue"
        assert got.startswith(b"HTTP/1.1 200 ") and b'"predictions"' in got


@pytest.mark.parametrize(
    "start",
    [
        b"POST /predict HTTP/1.1\r\nContent-Length: 100\r\n\r\n{",
        CHUNKED + b"5\r\nab",
        b"POST /predict HTTP/1.1\r\nContent-Le",
        b"GET /health HTTP/1.1\r\nContent-Length: 100\r\n\r\n{",
    ],
    ids=["body", "chunks", "head", "get"],
)
@pytest.mark.parametrize("trickle", [False, True])
def test_requests_that_never_end(impatient: Server, start: bytes, trickle: bool) -> None:
    host, port = impatient.url.removeprefix("http://").split(":")
    before = len(impatient.lines)
    with socket.create_connection((host, int(port)), timeout=0.2) as connection:
        connection.sendall(start)
        began, got, ended = time.monotonic(), b"", False
        while not ended:
            assert time.monotonic() < began + 15
            try:
                piece = connection.recv(65536)
                got, ended = got + piece, not piece
            except TimeoutError:
                if trickle:
                    connection.sendall(b"a")
    head, _, body = got.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ") and b"connection: close" in head
    assert json.loads(body)["code"] == "request_timeout"
    assert "did not end within 1 s" in json.loads(body)["error"]
    impatient.wait_for(json.loads(body)["request_id"])
    said = impatient.lines[before:]
    assert len(said) == 1, said
    assert "traceback" not in "".join(said)


@pytest.fixture(scope="module")
def impatient(
    text_models: TextModels, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    config = {
        "endpoints": [endpoint(text_models, "token-classification")],
        "limits": {"request_timeout": 1.0},
    }
    with Server(tmp_path_factory.mktemp("impatient"), config) as running:
        yield running


def test_names_of_the_former_zoo(text_models: TextModels, tmp_path: Path) -> None:
    folder = text_models["token-classification"].parent
    config = {"endpoints": [{"task": "ner", "model": f"zoo:nlp/{folder.name}"}]}
    with Server(tmp_path, config, "--zoo-dir", str(folder.parent)) as server:
        with server.client() as http:
            assert http.post("/predict", json={"inputs": TEXT}).status_code == 200
        assert any("SparseZoo is gone" in line for line in server.lines)


def test_ready_only_after_loading(text_models: TextModels, tmp_path: Path) -> None:
    model = text_models["token-classification"].parent  # compiled when the server starts
    config = {"endpoints": [{"task": "ner", "model": str(model), "sequence_length": 32}]}
    server = Server(tmp_path, config)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server._flags = ("--port", str(port))
    server.url = f"http://127.0.0.1:{port}"
    server.start(wait=False)
    try:
        seen, refused = [], 0
        limit = time.monotonic() + 60
        while time.monotonic() < limit:
            try:
                ready = httpx.get(server.url + "/ready", timeout=10)
                health = httpx.get(server.url + "/health", timeout=10)
            except httpx.TransportError:
                time.sleep(0.01)
                continue
            assert health.status_code == 200
            seen.append(ready.status_code)
            if ready.status_code == 200:
                break
            failure(ready, 503, "not_ready")
            for response in (
                httpx.get(server.url + "/v2/health/ready"),
                httpx.post(server.url + "/predict", json={"inputs": "a"}),
            ):
                if response.status_code != 200:  # it may have got ready meanwhile
                    failure(response, 503, "not_ready")
                    refused += 1
            time.sleep(0.02)
        assert seen[-1] == 200 and refused > 2
        assert httpx.post(server.url + "/predict", json={"inputs": "a"}).status_code == 200
    finally:
        assert server.stop() == 0


def test_a_dead_worker_is_replaced(text_models: TextModels, tmp_path: Path) -> None:
    config = {
        "num_workers": 2,
        "endpoints": [endpoint(text_models, "token-classification", name="ner")],
    }
    with Server(tmp_path, config) as server:
        before = server.workers()
        os.kill(before[0], signal.SIGKILL)
        server.wait_for("worker 0 ended with code -9: starting another")
        limit = time.monotonic() + 30
        while len(server.workers()) < 2 and time.monotonic() < limit:
            # The other one answers meanwhile.
            assert httpx.post(server.url + "/predict", json={"inputs": "a"}).status_code == 200
        time.sleep(1)
        for _ in range(20):
            assert httpx.post(server.url + "/predict", json={"inputs": "a"}).status_code == 200
        assert server.workers() != before
        assert server.stop() == 0


def test_workers_share_a_model_and_end_with_the_supervisor(
    text_models: TextModels, tmp_path: Path
) -> None:
    config = {"num_workers": 2, "endpoints": [endpoint(text_models, "token-classification")]}
    with Server(tmp_path, config) as server:
        workers = server.workers()
        constants = [
            {line.split()[4] for line in maps.splitlines() if "memfd:weights-" in line}
            for maps in (Path(f"/proc/{pid}/maps").read_text() for pid in workers)
        ]
        assert len(constants[0]) == 1 and constants[0] == constants[1]  # one copy in memory
        server.process.kill()
        limit = time.monotonic() + 20
        while any(Path(f"/proc/{pid}").exists() for pid in workers):
            assert time.monotonic() < limit
            time.sleep(0.05)


def test_metrics_add_up_over_workers(text_models: TextModels, tmp_path: Path) -> None:
    config = {
        "num_workers": 2,
        "endpoints": [endpoint(text_models, "token-classification", name="ner")],
    }
    with Server(tmp_path, config) as server:
        answered = {
            httpx.post(server.url + "/predict", json={"inputs": "mary is"}).status_code
            for _ in range(40)
        }
        assert answered == {200}
        with server.client() as client:
            total = metrics(client)
        assert total['sparsec_requests_total{endpoint="ner",status="200"}'] == 40
        assert total['sparsec_tokens_total{kind="real",model="ner"}'] == 40 * 4


def test_failures_at_the_start(
    text_models: TextModels, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def run(*flags: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "sparsec", "serve", "--port", "0", *flags]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stderr

    code, said = run()
    assert code == 8 and "say what to serve: a model" in said and "--config-file" in said
    code, said = run("--task", "ner", "--model-path", str(tmp_path / "nothing"))
    assert code != 0 and "does not exist" in said and "Traceback" not in said
    code, said = run("--task", "walk", "--model-path", str(text_models["token-classification"]))
    assert code == 8 and "unknown task 'walk'" in said
    file = tmp_path / "c.yaml"
    file.write_text("endpoints:\n  - task: ner\n    model: x\n    modle: x\n")
    code, said = run("--config-file", str(file))
    assert code == 8
    assert f"{file}:4: endpoints[0].modle: unknown key; did you mean model?" in said
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        model = str(text_models["token-classification"])
        code, said = run("--port", port, "--task", "ner", "--model-path", model)
        assert code == 1 and "choose another --port" in said


# ---- browsers ------------------------------------------------------------------------------------


def test_no_origin_is_allowed_by_default(client: httpx.Client) -> None:
    headers = {"Origin": "http://x.test", "Access-Control-Request-Method": "POST"}
    for response in (
        client.options("/predict", headers=headers),
        client.post("/predict", json={"inputs": "a"}, headers=headers),
    ):
        assert not [name for name in response.headers if name.startswith("access-control")]


def test_origins_that_are_allowed(text_models: TextModels, tmp_path: Path) -> None:
    config = {
        "cors_origins": ["http://x.test"],
        "endpoints": [endpoint(text_models, "token-classification")],
    }
    with Server(tmp_path, config) as server, server.client() as client:
        ours, other = {"Origin": "http://x.test"}, {"Origin": "http://y.test"}
        allowed = client.options("/predict", headers=ours).headers
        assert allowed["access-control-allow-origin"] == "http://x.test"
        assert "POST" in allowed["access-control-allow-methods"]
        answer = client.post("/predict", json={"inputs": "a"}, headers=ours).headers
        assert answer["access-control-allow-origin"] == "http://x.test"
        assert answer["vary"] == "Origin"
        refused = client.post("/predict", json={"inputs": "a"}, headers=other).headers
        assert "access-control-allow-origin" not in refused


# ---- data_logging --------------------------------------------------------------------------------


def test_data_logging(text_models: TextModels, tmp_path: Path) -> None:
    plain, full = tmp_path / "plain.jsonl", tmp_path / "full.jsonl"
    task = "text-classification"
    config = {
        "endpoints": [
            endpoint(text_models, task, name="a", route="/a", data_logging={}),
            endpoint(text_models, task, name="b", route="/b", data_logging={"file": str(plain)}),
            endpoint(
                text_models, task, name="c", route="/c",
                data_logging={"file": str(full), "text": True, "statistics": ["input_tokens"],
                              "frequency": 2},
            ),
        ]
    }  # fmt: skip
    secret = "mary is very secret"
    with Server(tmp_path, config) as server, server.client() as client:
        for route in "abc":
            for _ in range(2):
                body = {"sequences": [secret, "good"]}
                answer = client.post(f"/{route}", json=body).json()
        found = metrics(client)
    label = answer["labels"][0]
    same = sum(other == label for other in answer["labels"])
    assert found['sparsec_input_characters_sum{endpoint="a"}'] == 2 * (len(secret) + 4)
    assert found['sparsec_input_tokens_count{endpoint="a"}'] == 4
    assert found[f'sparsec_labels_total{{endpoint="a",label="{label}"}}'] == 2 * same
    assert found['sparsec_score_count{endpoint="a"}'] == 4
    assert 'sparsec_score_count{endpoint="b"}' not in found
    assert "secret" not in plain.read_text()
    lines = [json.loads(line) for line in plain.read_text().splitlines()]
    assert len(lines) == 2
    assert lines[0]["input_characters"] == [len(secret), 4]
    assert sum(lines[0]["label_counts"].values()) == sum(lines[0]["score_histogram"].values()) == 2
    (line,) = [json.loads(line) for line in full.read_text().splitlines()]
    assert line["inputs"]["sequences"] == body["sequences"] and line["outputs"] == answer
    assert "label_counts" not in line


# ---- outputs that are no numbers ---------------------------------------------------------------


def test_nan_and_infinity_are_said(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    pipelines_support.make(folder, "hidden", poison={"bad": float("nan")})
    ner = tmp_path / "ner"
    labels = pipelines_support.NER_LABELS
    pipelines_support.make(ner, "token-classification", poison={"bad": np.nan}, labels=labels)
    engine = {"engine_type": "onnxruntime"}
    means = {**engine, "extraction_strategy": "reduce_mean"}
    shared = {"task": "embedding", "model": str(folder), "kwargs": means}
    config = {
        "endpoints": [
            {**shared, "name": "warn", "route": "/warn"},
            {**shared, "name": "error", "route": "/error", "on_nonfinite": "error"},
            {**shared, "name": "ignore", "route": "/ignore", "on_nonfinite": "ignore"},
            {"task": "ner", "model": str(ner), "name": "ner", "route": "/ner",
             "data_logging": {"file": str(tmp_path / "log"), "text": True},
             "kwargs": {**engine, "ignore_labels": []}},
        ]
    }  # fmt: skip

    def strict(text: str | bytes) -> Any:
        def no(constant: str) -> None:
            raise AssertionError(f"{constant} is not JSON")

        return json.loads(text, parse_constant=no)

    body = {"inputs": ["mary", "bad"]}
    tensor = {"name": "inputs", "shape": [2], "datatype": "BYTES", "data": body["inputs"]}
    with Server(tmp_path / "server", config) as server, server.client() as client:
        for name in ("warn", "ignore"):
            good, bad = strict(client.post(f"/{name}", json=body).text)["embeddings"]
            assert None not in good and set(bad) == {None}
        answer = strict(client.post("/v2/models/warn/infer", json={"inputs": [tensor]}).text)
        data = np.array(answer["outputs"][0]["data"], np.float32).reshape(2, -1)
        assert np.isfinite(data[0]).all() and np.isnan(data[1]).all()
        binary = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
        raw_answer = client.post("/v2/models/warn/infer", json=binary)
        size = int(raw_answer.headers["inference-header-content-length"])
        same = np.frombuffer(raw_answer.content[size:], "<f4").reshape(data.shape)
        np.testing.assert_array_equal(same, data)
        error = failure(client.post("/error", json=body), 500, "nonfinite")
        assert "NaN" in error["error"] and "on_nonfinite" in error["error"]
        assert client.post("/error", json={"inputs": "mary"}).status_code == 200
        entities = strict(client.post("/ner", json=body).text)["predictions"]
        assert entities[1][0]["score"] is None
        answer = strict(client.post("/v2/models/ner/infer", json={"inputs": [tensor]}).text)
        assert strict(answer["outputs"][0]["data"][1])[0]["score"] is None
        for line in (tmp_path / "log").read_text().splitlines():
            strict(line)
        counted = {
            name: metrics(client).get(f'sparsec_nonfinite_requests_total{{endpoint="{name}"}}', 0)
            for name in ("warn", "error", "ignore", "ner")
        }
        assert counted == {"warn": 3, "error": 1, "ignore": 0, "ner": 2}
        said = [line for line in server.log() if " NaN and " in line["message"]]
    assert [(line["level"], line["endpoint"]) for line in said] == [
        *[("warning", "warn")] * 3, ("warning", "error"), *[("warning", "ner")] * 2,
    ]  # fmt: skip
    assert not any("traceback" in line for line in said)


# ---- the load test -------------------------------------------------------------------------------


@pytest.mark.slow
def test_load_test_runs(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    flags = ["--preset", "tiny", "--seconds", "1", "--requests", "500", "--cores", "1"]
    flags += ["--rounds", "2"]
    folders = ["--cache", str(tmp_path / "cache"), "--results", str(tmp_path)]
    command = [sys.executable, "benchmarks/serve.py", *flags, *folders, "--port", port]
    root = Path(__file__).resolve().parents[1]
    subprocess.run(command, check=True, cwd=root, timeout=300)
    result = json.loads((tmp_path / "serve-tiny-128.json").read_text())
    rounds = result["servers"]["sparsec"]["rounds"]
    assert len(rounds) == 2 and all(set(r["half"]["statuses"]) == {"200"} for r in rounds)
    assert result["soak"]["requests"] == 500 and set(result["soak"]["statuses"]) == {"200"}
    assert set(result["servers"]["sparsec"]["double"]["statuses"]) <= {"200", "503"}
    assert "of our engine" in (tmp_path / "serve-tiny-128.md").read_text()


# ---- a tokenizer that does not belong to the model ----------------------------------------------


def test_a_token_that_the_model_does_not_have(tmp_path: Path) -> None:
    """Its request is refused with what is wrong; those that wait with it are answered."""
    source = tmp_path / "model"
    config, _ = pipelines_support.make(
        source, "sequence-classification", labels=["negative", "positive"]
    )
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.add_tokens([f"zebra{i}" for i in range(config.vocab)])
    last = f"zebra{config.vocab - 1}"
    number = tokenizer.token_to_id(last)
    tokenizer.save(str(source / "tokenizer.json"))
    known = json.loads((source / "config.json").read_text())
    del known["vocab_size"]  # else the pipeline itself knows
    (source / "config.json").write_text(json.dumps(known))
    artifact = sparsec.compile(source, buckets=[16], target="generic").path
    said = rf"input 'input_ids' has {number} at \[\d+, 2\], outside the table .* of {config.vocab} "
    pipeline = Pipeline.create(task="text-classification", model_path=str(artifact))
    with pytest.raises(sparsec.InputError, match=said):
        pipeline(sequences=f"a {last}")
    alone = pipeline(sequences="good movie").model_dump()
    config_file = {"endpoints": [{"task": "text_classification", "model": str(artifact)}]}
    with Server(tmp_path / "server", config_file) as running, running.client() as http:

        def ask(text: str) -> httpx.Response:
            return http.post("/predict", json={"sequences": text})

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, [f"a {last}", "good movie"] * 8))
    for wrong, right in zip(answers[::2], answers[1::2], strict=True):
        assert re.search(said, failure(wrong, 422, "invalid_input")["error"])
        assert right.status_code == 200
        np.testing.assert_allclose(right.json()["scores"], alone["scores"], rtol=1e-5)
