"""The Open Inference Protocol over gRPC, with the clients of Triton and KServe, and without."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

grpc = pytest.importorskip("grpc", reason="needs grpcio: pip install '.[grpc]'")
pytest.importorskip("grpc_health", reason="needs grpcio-health-checking: pip install '.[grpc]'")

from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: E402

from sparsec.serving.server import oip, rpc  # noqa: E402
from sparsec.serving.server.errors import HttpError  # noqa: E402
from sparsec.serving.server.rpc_messages import METHODS, SERVICE, message  # noqa: E402
from tests import grpc_clients  # noqa: E402
from tests.server_support import Server, TextModels, endpoint  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
KEY = "a-key-of-tests"


# ---- messages ------------------------------------------------------------------------------------


def run_client(client: str, *arguments: str) -> str:
    """What a client prints, in a process of its own."""
    needed = {"triton": "tritonclient.grpc", "kserve": "kserve"}[client]
    if importlib.util.find_spec(needed.partition(".")[0]) is None:
        pytest.skip(f"needs {needed}: pip install '.[clients]'")
    done = subprocess.run(
        [sys.executable, "-m", "tests.grpc_clients", client, *arguments],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("client", ["triton", "kserve"])
def test_messages_are_those_of_others(client: str) -> None:
    theirs = json.loads(run_client(client, "messages"))
    own: dict[str, Any] = {}
    for method in METHODS:
        for side in ("Request", "Response"):
            own |= grpc_clients.described(message(method + side).DESCRIPTOR)
    own = json.loads(json.dumps(own))
    if client == "triton":
        assert theirs == own
    for name, fields in theirs.items():  # KServe has fewer
        assert fields.items() <= own[name].items(), name


CASES: list[tuple[str, str, Any]] = [
    ("BOOL", "bool_contents", [True, False]),
    ("INT8", "int_contents", [-128, 127]),
    ("INT16", "int_contents", [-(2**15), 2**15 - 1]),
    ("INT32", "int_contents", [-(2**31), 2**31 - 1]),
    ("INT64", "int64_contents", [-(2**63), 2**63 - 1]),
    ("UINT8", "uint_contents", [0, 255]),
    ("UINT16", "uint_contents", [0, 2**16 - 1]),
    ("UINT32", "uint_contents", [0, 2**32 - 1]),
    ("UINT64", "uint64_contents", [0, 2**64 - 1]),
    ("FP32", "fp32_contents", [0.5, float("inf")]),
    ("FP64", "fp64_contents", [1e300, -0.1]),
    ("BYTES", "bytes_contents", ["東京 😀".encode(), b""]),
]


@pytest.mark.parametrize(("kind", "where", "values"), CASES)
def test_tensors_come_through(kind: str, where: str, values: Any) -> None:
    request = message("ModelInferRequest")(model_name="m", id="7")
    tensor = request.inputs.add(name="x", datatype=kind, shape=[2, 1])
    getattr(tensor.contents, where).extend(values)
    typed = rpc.decode(request)
    array = typed.tensors["x"]
    want = [v.decode() if isinstance(v, bytes) else v for v in values]
    assert array.reshape(-1).tolist() == want and array.shape == (2, 1)
    assert typed.id == "7" and not typed.binary
    answer = rpc.encode("m", typed, {"y": array})
    assert list(getattr(answer.outputs[0].contents, where)) == values
    assert not answer.raw_output_contents and answer.id == "7"

    tensor.ClearField("contents")
    request.raw_input_contents.append(oip.to_bytes(array))
    raw = rpc.decode(request)
    assert raw.tensors["x"].tolist() == array.tolist() and raw.binary
    answer = rpc.encode("m", raw, {"y": array})
    assert list(answer.raw_output_contents) == [oip.to_bytes(array)]
    assert not answer.outputs[0].HasField("contents")
    assert (answer.outputs[0].datatype, list(answer.outputs[0].shape)) == (kind, [2, 1])


def asked(**fields: Any) -> Any:
    row = {"name": "x", "datatype": "BYTES", "shape": [1]}
    tensors = fields.pop("inputs", [{**row, "contents": {"bytes_contents": [b"a"]}}])
    return message("ModelInferRequest")(model_name="ner", inputs=tensors, **fields)


BAD = [
    (asked(inputs=[]), "inputs: there are none"),
    (asked(raw_input_contents=[b"a", b"b"]), "has 2 tensors for 1 inputs"),
    (asked(raw_input_contents=[b"\1\0\0\0a"]), "contents beside raw_input_contents"),
    (asked(inputs=[{"name": "x", "datatype": "TEXT", "shape": [1]}]), "unknown datatype 'TEXT'"),
    (asked(inputs=[{"name": "x", "datatype": "FP16", "shape": [1]}]), "of FP16 go into raw"),
    (asked(inputs=[{"name": "x", "datatype": "TEXT", "shape": [1],
                    "contents": {"bytes_contents": [b"a"]}}]), "unknown datatype 'TEXT'"),
    (asked(inputs=[{"name": "x", "datatype": "FP16", "shape": [1],
                    "contents": {"fp32_contents": [1]}}]), "of FP16 go into raw_input_contents"),
    (asked(outputs=[{"name": "y"}] * 2), "output y is asked for twice"),
    (asked(inputs=[{"name": "x", "datatype": "BYTES", "shape": [-1]}]), "extents from 0 up"),
    (asked(inputs=[{"name": "x", "datatype": "BYTES", "shape": [1] * 9}]), "up to 8 extents"),
    (asked(inputs=[{"name": "x", "datatype": "BYTES", "shape": [1],
                    "contents": {"bytes_contents": [b"\xff"]}}]), "not UTF-8"),
    (asked(inputs=[{"name": "x", "datatype": "INT8", "shape": [1],
                    "contents": {"int_contents": [300]}}]), "does not fit INT8"),
    (asked(inputs=[{"name": "x", "datatype": "INT64", "shape": [1],
                    "contents": {"int_contents": [3]}}]), "in int64_contents, not in int_contents"),
    (asked(inputs=[{"name": "x", "datatype": "INT64", "shape": [2**40, 2**40]}]), "0 elements"),
    (asked(inputs=[{"name": "x", "datatype": "BYTES", "shape": [1],
                    "contents": {"bytes_contents": [b"a"]}}] * 2), "given twice"),
]  # fmt: skip


@pytest.mark.parametrize(("request_", "text"), BAD)
def test_bad_requests(request_: Any, text: str) -> None:
    with pytest.raises(HttpError, match=text.replace("[", r"\[")) as error:
        rpc.decode(request_)
    assert error.value.status == 400


# ---- a server ------------------------------------------------------------------------------------


def address(server: Server) -> str:
    return server.wait_for(r"gRPC at (\S+);")[1]


@pytest.fixture(scope="module")
def server(text_models: TextModels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = {
        "num_workers": 2,
        "limits": {"body_bytes": 100_000},
        "endpoints": [
            endpoint(text_models, "token-classification", name="ner"),
            endpoint(text_models, "question-answering", name="qa"),
            endpoint(text_models, "embedding", name="mean",
                     kwargs={"extraction_strategy": "reduce_mean"}),
        ],
    }  # fmt: skip
    with Server(tmp_path_factory.mktemp("rpc"), config, "--grpc-port", "0") as running:
        yield running


@pytest.mark.parametrize("client", ["triton", "kserve"])
def test_clients(server: Server, client: str) -> None:
    run_client(client, address(server), server.url)


def calls(channel: Any, method: str) -> Any:
    return channel.unary_unary(
        f"/{SERVICE}/{method}",
        request_serializer=message(f"{method}Request").SerializeToString,
        response_deserializer=message(f"{method}Response").FromString,
    )


def ner(*texts: str) -> Any:
    contents = {"bytes_contents": [text.encode() for text in texts]}
    row = {"name": "inputs", "datatype": "BYTES", "shape": [len(texts)], "contents": contents}
    return message("ModelInferRequest")(model_name="ner", inputs=[row])


def test_what_stands_around_an_answer(server: Server) -> None:
    with grpc.insecure_channel(address(server)) as channel:
        infer = calls(channel, "ModelInfer")
        answer, call = infer.with_call(ner("Mary"), metadata=(("x-request-id", "my-id"),))
        assert answer.outputs[0].contents.bytes_contents and not answer.raw_output_contents
        assert dict(call.trailing_metadata())["x-request-id"] == "my-id"
        long = ner("Mary " * 90)
        with pytest.raises(grpc.RpcError) as error:
            infer(long)
        assert '"truncate": true cuts it' in error.value.details()
        long.parameters["truncate"].bool_param = True
        _, call = infer.with_call(long)
        assert dict(call.trailing_metadata())["x-truncated-texts"] == "1"
        with pytest.raises(grpc.RpcError) as error:
            infer(ner("a" * 200_000))
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.RpcError) as error:
            infer(ner(*["a"] * 300))
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "more than 256 sequences" in error.value.details()
        with pytest.raises(grpc.RpcError) as error:
            # As long an answer as may be asked for: a short one could be there in time.
            infer(ner(*["Mary " * 60] * 200), timeout=1e-3)
        assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", SERVICE):
            found = health.Check(health_pb2.HealthCheckRequest(service=name))
            assert found.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as error:
            health.Check(health_pb2.HealthCheckRequest(service="other"))
        assert error.value.code() is grpc.StatusCode.NOT_FOUND
    text = httpx.get(server.url + "/metrics").text
    assert 'sparsec_requests_total{endpoint="ner",status="200"}' in text
    assert 'sparsec_errors_total{code="too_many_items",endpoint="ner"}' in text


def test_all_workers_answer(server: Server) -> None:
    """Connections are spread; many of them at once get their own answers."""
    found: list[Any] = [None] * 16

    def ask(i: int) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(address(server), options=options) as channel:
            rows = calls(channel, "ModelInfer")(ner(f"Mary {i}", "John")).outputs[0]
            found[i] = json.loads(rows.contents.bytes_contents[0])

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(found))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for i, got in enumerate(found):
        want = httpx.post(server.url + "/predict", json={"inputs": f"Mary {i}"}).json()
        assert got == want["predictions"][0]


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced(server: Server) -> None:
    before = server.workers()
    for pid in before:
        server.kill(pid)
    limit = time.monotonic() + 120
    while True:
        assert time.monotonic() < limit, "no worker is ready"
        options = [("grpc.use_local_subchannel_pool", 1)]
        with (
            contextlib.suppress(grpc.RpcError),
            grpc.insecure_channel(address(server), options=options) as channel,
        ):
            if calls(channel, "ServerReady")(message("ServerReadyRequest")(), timeout=5).ready:
                break
        time.sleep(0.1)
    assert not set(before) & set(server.workers())


def test_keys_a_full_queue_and_the_end(text_models: TextModels, tmp_path: Path) -> None:
    batching = {"max_delay_us": 1_500_000, "max_batch": 8, "queue_size": 2}
    config = {
        "api_keys": [KEY],
        "endpoints": [endpoint(text_models, "token-classification", name="ner", batching=batching)],
    }
    with Server(tmp_path, config, "--grpc-port", "0") as server:
        channel = grpc.insecure_channel(address(server))
        infer = calls(channel, "ModelInfer")
        with pytest.raises(grpc.RpcError) as error:
            infer(ner("Mary"))
        assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert "an API key is needed" in error.value.details()
        assert calls(channel, "ServerReady")(message("ServerReadyRequest")()).ready
        with pytest.raises(grpc.RpcError) as error:
            calls(channel, "RepositoryIndex")(message("RepositoryIndexRequest")())
        assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
        key = (("authorization", f"Bearer {KEY}"),)
        first = infer.future(ner("Mary", "John"), metadata=key)
        server.wait_for_metric('sparsec_queue_items{model="ner"} 2.0')
        with pytest.raises(grpc.RpcError) as error:
            infer(ner("Paris"), metadata=key)
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "the queue is full" in error.value.details()
        assert "retry-after" in dict(error.value.trailing_metadata())
        # What was accepted is answered; nothing more is.
        server.process.send_signal(signal.SIGTERM)
        assert len(first.result(60).outputs) == 1
        with pytest.raises(grpc.RpcError) as error:
            infer(ner("Mary"), metadata=key, timeout=20)
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        channel.close()
        assert server.process.wait(60) == 0


def test_a_port_that_is_taken(server: Server, text_models: TextModels, tmp_path: Path) -> None:
    config = {"endpoints": [endpoint(text_models, "token-classification", name="ner")]}
    port = address(server).rpartition(":")[2]
    other = Server(tmp_path, config, "--grpc-port", port).start(wait=False)
    other.wait_for("choose another --grpc-port")
    assert other.process.wait(60) == 1
