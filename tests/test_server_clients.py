"""The server under clients that others wrote: Triton's, KServe's, and a browser without network."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.server
import importlib.util
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx
import numpy as np
import pytest

from tests import docs_server
from tests.server_support import TOKEN, Server, TextModels, endpoint
from tests.shipped_models import shipped

TEXTS = ["Mary is flying from Nairobi to New York", "東京 😀", ""]


@pytest.fixture(scope="module")
def server(text_models: TextModels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = {
        "admin_token": TOKEN,
        "endpoints": [
            endpoint(text_models, "token-classification", name="ner"),
            endpoint(text_models, "question-answering", name="qa"),
            endpoint(text_models, "text-classification", name="sentiment"),
            endpoint(text_models, "zero-shot-text-classification", name="zero"),
            endpoint(text_models, "embedding", name="mean",
                     kwargs={"extraction_strategy": "reduce_mean"}),
            endpoint(text_models, "embedding", name="tokens"),
            endpoint(text_models, "fill-mask", name="fill"),
        ],
    }  # fmt: skip
    with Server(tmp_path_factory.mktemp("clients"), config) as running:
        yield running


def ask(server: Server, name: str, **body: Any) -> Any:
    """The answer at the endpoint's own route."""
    (route,) = (e["route"] for e in httpx.get(server.url).json()["endpoints"] if e["name"] == name)
    return httpx.post(server.url + route, json=body).json()


# ---- tritonclient --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def triton(server: Server) -> Iterator[Any]:
    client_ = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")
    client = client_.InferenceServerClient(server.url.removeprefix("http://"))
    yield client
    client.close()


def tensor(name: str, rows: Any, binary: bool) -> Any:
    import tritonclient.http as http

    array = np.array(rows, object)
    made = http.InferInput(name, list(array.shape), "BYTES")
    # Bytes on the wire are UTF-8; JSON has the text itself.
    encoded = np.array([text.encode() for text in array.reshape(-1)], object)
    made.set_data_from_numpy(encoded.reshape(array.shape), binary_data=binary)
    return made


def test_triton_metadata(triton: Any) -> None:
    assert triton.is_server_live() and triton.is_server_ready()
    assert triton.is_model_ready("ner") and triton.is_model_ready("ner", "1")
    assert not triton.is_model_ready("nothing") and not triton.is_model_ready("ner", "2")
    about = triton.get_server_metadata()
    assert about["name"] == "sparsec" and "binary_tensor_data" in about["extensions"]
    index = triton.get_model_repository_index()
    assert {row["name"]: row["state"] for row in index}["ner"] == "READY"
    model = triton.get_model_metadata("qa")
    assert [t["name"] for t in model["inputs"][:2]] == ["question", "context"]
    assert {t["name"]: (t["datatype"], t["shape"]) for t in model["outputs"]} == {
        "score": ("FP32", [-1]),
        "answer": ("BYTES", [-1]),
        "start": ("INT64", [-1]),
        "end": ("INT64", [-1]),
    }
    assert triton.get_model_metadata("mean")["outputs"][0]["shape"] == [-1, -1]
    assert triton.get_model_metadata("tokens")["outputs"][0]["shape"] == [-1, -1, -1]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_triton_infer(triton: Any, server: Server, binary: bool, binary_out: bool) -> None:
    import tritonclient.http as http

    def infer(model: str, *outputs: str, **inputs: Any) -> Any:
        return triton.infer(
            model,
            [tensor(name, rows, binary) for name, rows in inputs.items()],
            outputs=[http.InferRequestedOutput(name, binary_data=binary_out) for name in outputs],
            request_id="7",
        )

    def text(value: Any) -> str:
        return value.decode() if isinstance(value, bytes) else str(value)

    got = infer("ner", "predictions", inputs=TEXTS)
    assert got.get_response()["id"] == "7"
    entities = [json.loads(text(row)) for row in got.as_numpy("predictions")]
    assert entities == ask(server, "ner", inputs=TEXTS)["predictions"]

    pairs = {"question": ["who", "where?"], "context": [TEXTS[0], "Paris is new, " * 30]}
    got = infer("qa", "answer", "score", "start", "end", **pairs)
    for i, (question, context) in enumerate(zip(*pairs.values(), strict=True)):
        want = ask(server, "qa", question=question, context=context)
        assert text(got.as_numpy("answer")[i]) == want["answer"]
        assert got.as_numpy("score")[i] == pytest.approx(want["score"], abs=1e-5)
        assert (got.as_numpy("start")[i], got.as_numpy("end")[i]) == (want["start"], want["end"])
    assert got.as_numpy("start").dtype == np.int64

    got = infer("sentiment", "labels", "scores", sequences=[["good", "bad"], ["a", "b"]])
    want = ask(server, "sentiment", sequences=[["good", "bad"], ["a", "b"]])
    assert [text(row[0]) for row in got.as_numpy("labels")] == want["labels"]
    np.testing.assert_allclose(got.as_numpy("scores")[:, 0], want["scores"], atol=1e-6)

    got = infer("zero", "labels", "scores", sequences=TEXTS[:2], labels=["sport", "news", "é"])
    want = ask(server, "zero", sequences=TEXTS[:2], labels=["sport", "news", "é"])
    assert [[text(x) for x in row] for row in got.as_numpy("labels")] == want["labels"]
    np.testing.assert_allclose(got.as_numpy("scores"), want["scores"], atol=1e-6)

    got = infer("mean", "embeddings", inputs=TEXTS).as_numpy("embeddings")
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, ask(server, "mean", inputs=TEXTS)["embeddings"], atol=1e-5)


@pytest.mark.parametrize("binary", [True, False])
def test_triton_columns(triton: Any, server: Server, binary: bool) -> None:
    """A batch of texts with the shape [n, 1], as models of Triton have it."""
    texts = [["Mary is flying"], ["東京 😀"], ["a"]]
    cases: dict[str, dict[str, Any]] = {
        "ner": {"inputs": texts},
        "qa": {"question": [["who"], ["where"], ["who"]], "context": texts},
        "sentiment": {"sequences": texts},
        "zero": {"sequences": texts, "labels": [["sport"], ["news"]]},
        "mean": {"inputs": texts},
        "fill": {"inputs": [["[MASK] is"], ["a [MASK]"]]},
    }
    for model, inputs in cases.items():
        column = triton.infer(
            model, [tensor(name, rows, binary) for name, rows in inputs.items()],
            # What clients and proxies send to any server.
            parameters={"traceparent": "00-1", "my_flag": True, "batch_size": 3},
            priority=1, timeout=1000, headers={"X-Other": "1"},
        )  # fmt: skip
        flat = triton.infer(
            model,
            [tensor(name, [row[0] for row in rows], binary) for name, rows in inputs.items()],
        )
        outputs = [output["name"] for output in column.get_response()["outputs"]]
        assert outputs == [output["name"] for output in flat.get_response()["outputs"]]
        for name in outputs:
            got, want = column.as_numpy(name), flat.as_numpy(name)
            assert got.shape == want.shape and len(got) == len(next(iter(inputs.values())))
            assert got.tolist() == want.tolist()


def test_columns_of_words_are_words(triton: Any, server: Server) -> None:
    import tritonclient.http as http

    words = [["new-york"], ["mary"]]
    for split in (False, True):
        flag = http.InferInput("is_split_into_words", [1], "BOOL")
        flag.set_data_from_numpy(np.array([split]))
        got = triton.infer("ner", [tensor("inputs", words, True), flag]).as_numpy("predictions")
        own = words if split else [row[0] for row in words]
        want = ask(server, "ner", inputs=own, is_split_into_words=split)["predictions"]
        assert [json.loads(row) for row in got] == want


def test_nulls_and_scalars(server: Server) -> None:
    url = server.url + "/v2/models/ner/infer"
    one = {"name": "inputs", "shape": [1], "datatype": "BYTES", "data": ["Mary"]}
    want = httpx.post(url, json={"inputs": [one]}).json()
    nothing = {"parameters": None, "outputs": None, "id": None}
    for body in (
        {"inputs": [one], **nothing},
        {"inputs": [{**one, "parameters": None}], "outputs": []},
        {"inputs": [{**one, "parameters": {"binary_data_size": None, "content_type": "str"}}]},
        {"inputs": [one], "outputs": [{"name": "predictions", "parameters": None}]},
        {"inputs": [one], "parameters": {"is_split_into_words": None, "x": {"y": [1]}}},
        {"inputs": [{**one, "shape": []}]},
        {"inputs": [{**one, "shape": [1, 1, 1], "data": [[["Mary"]]]}], "more": 1},
    ):
        answer = httpx.post(url, json=body)
        assert answer.status_code == 200, (body, answer.text)
        assert answer.json() == want
    wrong = httpx.post(url, json={"inputs": [one], "parameters": 3})
    assert wrong.status_code == 400


def test_triton_sees_errors(triton: Any) -> None:
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException, match="there is no model nothing"):
        triton.infer("nothing", [tensor("inputs", ["a"], True)])
    with pytest.raises(InferenceServerException, match="there is no input 'text'; there are i"):
        triton.infer("ner", [tensor("text", ["a"], True)])
    with pytest.raises(InferenceServerException, match="input context is missing"):
        triton.infer("qa", [tensor("question", ["a"], True)])
    with pytest.raises(InferenceServerException, match="equally many rows"):
        triton.infer("qa", [tensor("question", ["a"], True), tensor("context", ["a", "b"], True)])
    with pytest.raises(InferenceServerException, match="different numbers of tokens"):
        triton.infer("tokens", [tensor("inputs", ["a", "a b c"], True)])


def test_triton_compression(triton: Any) -> None:
    inputs = [tensor("inputs", TEXTS, True)]
    plain = triton.infer("ner", inputs).as_numpy("predictions")
    for algorithm in ("gzip", "deflate"):
        packed = triton.infer("ner", inputs, request_compression_algorithm=algorithm)
        assert (packed.as_numpy("predictions") == plain).all()


# ---- kserve --------------------------------------------------------------------------------------


def test_kserve(server: Server) -> None:
    kserve = pytest.importorskip("kserve", reason="needs kserve")

    async def run() -> None:
        config = kserve.RESTConfig(protocol="v2")
        async with kserve.InferenceRESTClient(config) as client:
            assert await client.is_server_live(server.url)
            assert await client.is_server_ready(server.url)
            assert await client.is_model_ready(server.url, "ner")
            assert not await client.is_model_ready(server.url, "nothing")
            for binary in (False, True):
                inputs = kserve.InferInput("inputs", [len(TEXTS)], "BYTES")
                texts = np.array([text.encode() for text in TEXTS], object)
                inputs.set_data_from_numpy(texts, binary_data=binary)
                request = kserve.InferRequest(
                    "ner", [inputs], request_id="9",
                    parameters={"binary_data_output": True} if binary else None,
                )  # fmt: skip
                answer = await client.infer(server.url, request, model_name="ner")
                assert answer.id == "9"
                rows = answer.outputs[0].as_numpy().tolist()
                texts = [row.decode() if isinstance(row, bytes) else row for row in rows]
                want = ask(server, "ner", inputs=TEXTS)["predictions"]
                assert [json.loads(text) for text in texts] == want
            with pytest.raises(httpx.HTTPStatusError, match="there is no model nothing"):
                await client.infer(server.url, request, model_name="nothing")

    asyncio.run(run())


# ---- a browser -----------------------------------------------------------------------------------

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


class Browser:
    """Chromium without a network, driven by its DevTools protocol.  A context manager."""

    def __init__(self, folder: Path) -> None:
        found = [path for name in BROWSERS if (path := shutil.which(name))]
        if not found:
            pytest.skip("needs Chromium")
        self.requests: list[str] = []
        self._folder = folder
        self._number = 0
        self._process = subprocess.Popen(
            [
                found[0], "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
                "--disable-dev-shm-usage", "--disable-background-networking",
                # No name resolves and nothing but this machine is reached.
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                "--no-proxy-server", "--window-size=1200,1600", "--remote-debugging-port=0",
                f"--user-data-dir={folder}", "about:blank",
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(folder)},
        )  # fmt: skip

    def __enter__(self) -> Browser:
        from websockets.sync.client import connect

        port_file = self._folder / "DevToolsActivePort"
        self.wait(lambda: port_file.exists() and len(port_file.read_text().split()) == 2)
        port = port_file.read_text().split()[0]
        (page,) = (
            target
            for target in httpx.get(f"http://127.0.0.1:{port}/json/list").json()
            if target["type"] == "page"
        )
        self._stack = contextlib.ExitStack()
        self._socket = self._stack.enter_context(
            connect(page["webSocketDebuggerUrl"], max_size=None, open_timeout=30)
        )
        for domain in ("Network", "Page", "Runtime"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()
        self._process.kill()
        self._process.wait()

    def call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv(timeout=60))
            if answer.get("method") == "Network.requestWillBeSent":
                self.requests.append(answer["params"]["request"]["url"])
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    @staticmethod
    def wait(condition: Any, seconds: float = 60) -> Any:
        limit = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < limit, "the page does not get there"
            time.sleep(0.1)
        return value

    def screenshot(self, path: Path) -> None:
        data = self.call("Page.captureScreenshot", captureBeyondViewport=False)["data"]
        path.write_bytes(base64.b64decode(data))


# What /docs shows is of a package that an older environment may lack.
needs_swagger = pytest.mark.skipif(
    not importlib.util.find_spec("flask_swagger_ui"),
    reason="needs flask-swagger-ui: pip install '.[serve]'",
)


@needs_swagger
def test_docs_work_without_a_network(server: Server, tmp_path: Path) -> None:
    pytest.importorskip("websockets.sync.client", reason="needs websockets")
    with Browser(tmp_path / "profile") as browser:
        browser.call("Page.navigate", url=server.url + "/docs")
        block = "document.querySelector('#operations-Predictions-predict_ner')"
        browser.wait(lambda: browser.run(f"{block} !== null"))
        count = browser.run("document.querySelectorAll('.opblock').length")
        document = httpx.get(server.url + "/openapi.json").json()
        assert count == sum(len(methods) for methods in document["paths"].values()) > 20
        browser.run(f"{block}.querySelector('.opblock-summary-control').click()")
        browser.wait(lambda: browser.run(f"{block}.querySelector('textarea') !== null"))
        assert "Nairobi" in browser.run(f"{block}.querySelector('textarea').value")
        browser.run(f"{block}.querySelector('.execute').click()")
        live = f"{block}.querySelector('.live-responses-table')"
        browser.wait(lambda: browser.run(f"{live} !== null"))
        assert (
            browser.run(f"{live}.querySelector('.response .response-col_status').innerText")[:3]
            == "200"
        )
        assert "predictions" in browser.run(f"{live}.innerText")
        browser.run(f"{block}.scrollIntoView()")
        picture = os.environ.get("SPARSEC_SCREENSHOT")
        browser.screenshot(Path(picture) if picture else tmp_path / "docs.png")
        foreign = [
            url
            for url in browser.requests
            if not url.startswith((server.url + "/", "data:", "about:", "blob:"))
        ]
        assert browser.requests and not foreign


class Prefix:
    """A proxy that serves a server under a path, as nginx or Traefik may: it takes the prefix off,
    or leaves it, and may tell of it.  A context manager."""

    def __init__(self, url: str, prefix: str, strip: bool, tell: bool) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                path = self.path
                if not path.startswith(prefix + "/"):
                    self.send_error(404)
                    return
                headers = {"X-Forwarded-Prefix": prefix} if tell else {}
                answer = httpx.request(
                    self.command, url + (path[len(prefix) :] if strip else path),
                    content=self.rfile.read(size), headers=headers,
                )  # fmt: skip
                self.send_response(answer.status_code)
                for name in ("content-type", "content-security-policy"):
                    if name in answer.headers:
                        self.send_header(name, answer.headers[name])
                self.send_header("Content-Length", str(len(answer.content)))
                self.end_headers()
                self.wfile.write(answer.content)

            do_POST = do_GET

            def log_message(self, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}{prefix}"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> str:
        self._thread.start()
        return self.url

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def links(page: str, url: str) -> list[str]:
    """Where a page's links lead."""
    return [urljoin(url, link) for link in re.findall(r'(?:href|src)="([^"]+)"', page)]


@needs_swagger
@pytest.mark.parametrize(("strip", "tell"), [(True, False), (True, True), (False, False)])
def test_docs_behind_a_prefix(
    text_models: TextModels, tmp_path: Path, server: Server, strip: bool, tell: bool
) -> None:
    with contextlib.ExitStack() as stack:
        if not strip:
            config = {"endpoints": [endpoint(text_models, "token-classification", name="ner")]}
            server = stack.enter_context(Server(tmp_path, config, "--root-path", "/a/models/"))
        url = stack.enter_context(Prefix(server.url, "/a/models", strip, tell))
        for page in (url + "/docs", url + "/docs/"):
            answer = httpx.get(page)
            found = links(answer.text, page)
            assert len(found) == 4
            for link in found:
                assert httpx.get(link).status_code == 200, link
        assert 'new URL("../openapi.json", here)' in httpx.get(url + "/docs/start.js").text
        document = httpx.get(url + "/openapi.json").json()
        # A server's relative address starts at the document.
        base = urljoin(url + "/openapi.json", document["servers"][0]["url"]).rstrip("/")
        assert base == url
        (path,) = (p for p, methods in document["paths"].items() if "predict_ner" in str(methods))
        assert httpx.post(base + path, json={"inputs": "Mary"}).status_code == 200
        index = httpx.get(url + "/").json()
        if tell or not strip:
            assert index["docs"] == "/a/models/docs" and index["root_path"] == "/a/models"
        assert httpx.get(server.url + "/docs").status_code == 200


def test_a_prefix_that_is_no_path_is_ignored(server: Server) -> None:
    for bad in ('/a"onload=x', "http://x", "/a/../b?c", "//evil.test"):
        index = httpx.get(server.url, headers={"X-Forwarded-Prefix": bad}).json()
        assert index["docs"] in ("/docs", "/evil.test/docs"), index


def test_openapi_is_valid(server: Server) -> None:
    document = httpx.get(server.url + "/openapi.json").json()
    validator = pytest.importorskip("openapi_spec_validator", reason="needs openapi-spec-validator")
    validator.validate(document)
    body = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"] == {"$ref": "#/components/schemas/TokenClassificationInput"}
    names = ["ner", "qa", "sentiment", "zero", "mean", "tokens", "fill"]
    for path in ("/v2/models/{model}/infer", "/models/{model}", "/v1/models/{model}:predict"):
        (model,) = document["paths"][path]["post"]["parameters"]
        assert model["schema"]["enum"] == names, path
    assert list(document["components"]["securitySchemes"]) == ["admin"]
    assert not any("/embed" in path for path in document["paths"])  # nothing answers that here
    # What the forms start with is accepted.
    for path, methods in document["paths"].items():
        operation = methods.get("post", {})
        if operation and "{" not in path and path != "/endpoints":
            example = operation["requestBody"]["content"]["application/json"]["example"]
            assert httpx.post(server.url + path, json=example).status_code == 200, path


# ---- documentation -------------------------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_the_guide_prints_what_it_says(tmp_path: Path, shared_cache: Path) -> None:
    shipped("ner")
    page = docs_server.PAGE.read_text(encoding="utf-8")
    got = docs_server.rendered(page, tmp_path)
    assert docs_server.rounded(got) == docs_server.rounded(page)
