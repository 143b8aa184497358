"""Other people's gRPC clients against a server.

    python -m tests.grpc_clients triton|kserve ADDRESS URL     assertions
    python -m tests.grpc_clients triton|kserve messages        their messages, as JSON

Each in a process of its own: two packages may not bring messages of the same names.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import httpx
import numpy as np

TEXTS = ["Mary is flying from Nairobi to New York", "東京 😀", ""]


def described(kind: Any, rows: dict[str, Any] | None = None) -> dict[str, Any]:
    """Every field of a message and of those inside, by name."""
    rows = {} if rows is None else rows
    if kind.full_name in rows:
        return rows
    rows[kind.full_name] = {
        field.name: (
            field.number,
            field.type,
            field.is_repeated,
            field.message_type.full_name if field.message_type else "",
            field.containing_oneof.name if field.containing_oneof else "",
        )
        for field in kind.fields
    }
    for field in kind.fields:
        if field.message_type:
            described(field.message_type, rows)
    return rows


def messages(module: Any, methods: list[str]) -> dict[str, Any]:
    """Those of the methods that the module has."""
    rows: dict[str, Any] = {}
    for method in methods:
        for side in ("Request", "Response"):
            if found := getattr(module, method + side, None):
                described(found.DESCRIPTOR, rows)
    return rows


def triton(address: str, url: str) -> None:
    """Triton's client."""
    import tritonclient.grpc as client
    from tritonclient.utils import InferenceServerException

    def tensor(name: str, rows: Any) -> Any:
        array = np.array([text.encode() for text in np.array(rows, object).reshape(-1)], object)
        made = client.InferInput(name, list(np.shape(rows)), "BYTES")
        made.set_data_from_numpy(array.reshape(np.shape(rows)))
        return made

    server = client.InferenceServerClient(address)
    assert server.is_server_live() and server.is_server_ready()
    assert server.is_model_ready("ner") and server.is_model_ready("ner", "1")
    assert not server.is_model_ready("nothing") and not server.is_model_ready("ner", "2")
    assert server.get_server_metadata().name == "sparsec"
    over_http = httpx.get(url + "/v2/models/qa").json()
    about = server.get_model_metadata("qa", as_json=True)
    assert [row["name"] for row in about["inputs"]] == [r["name"] for r in over_http["inputs"]]
    index = server.get_model_repository_index()
    assert {(row.name, row.version, row.state) for row in index.models} == {
        (name, "1", "READY") for name in ("ner", "qa", "mean")
    }
    got = server.infer(
        "ner", [tensor("inputs", TEXTS)], request_id="7",
        outputs=[client.InferRequestedOutput("predictions")],
        parameters={"my_flag": True, "a": 3, "c": "x"}, client_timeout=60,
    )  # fmt: skip
    want = httpx.post(url + "/predict", json={"inputs": TEXTS}).json()["predictions"]
    assert [json.loads(row) for row in got.as_numpy("predictions")] == want
    assert got.get_response().id == "7"
    pair = {"question": ["who", "where?"], "context": [TEXTS[0], "Paris is new, " * 30]}
    got = server.infer("qa", [tensor(name, rows) for name, rows in pair.items()])
    assert got.as_numpy("start").dtype == np.int64 and got.as_numpy("score").dtype == np.float32
    got = server.infer("mean", [tensor("inputs", [[text] for text in TEXTS])])
    want = httpx.post(url + "/predict/mean", json={"inputs": TEXTS}).json()["embeddings"]
    np.testing.assert_array_equal(got.as_numpy("embeddings"), np.array(want, np.float32))
    for model, inputs, outputs, code, text in (
        ("nothing", [tensor("inputs", ["a"])], None, "NOT_FOUND", "no model nothing"),
        ("ner", [tensor("text", ["a"])], None, "INVALID_ARGUMENT", "no input 'text'"),
        ("qa", [tensor("question", ["a"])], None, "INVALID_ARGUMENT", "input context is missing"),
        ("ner", [tensor("inputs", ["Mary " * 90])], None, "INVALID_ARGUMENT", "64 fit"),
        ("ner", [tensor("inputs", ["a"])], ["y"], "INVALID_ARGUMENT", "no output y"),
    ):
        wanted = outputs and [client.InferRequestedOutput(name) for name in outputs]
        try:
            server.infer(model, inputs, outputs=wanted)
        except InferenceServerException as error:
            assert error.status() == f"StatusCode.{code}" and text in str(error), error
        else:
            raise AssertionError(f"no error: {text}")
    server.close()


def kserve(address: str, url: str) -> None:
    """KServe's client."""
    import kserve as client

    async def run() -> None:
        server = client.InferenceGRPCClient(address)
        assert await server.is_server_live() and await server.is_server_ready()
        assert await server.is_model_ready("ner")
        inputs = client.InferInput("inputs", [len(TEXTS)], "BYTES")
        texts = np.array([text.encode() for text in TEXTS], object)
        inputs.set_data_from_numpy(texts, binary_data=False)
        answer = await server.infer(client.InferRequest("ner", [inputs], request_id="9"))
        want = httpx.post(url + "/predict", json={"inputs": TEXTS}).json()["predictions"]
        rows = answer.outputs[0].as_numpy().tolist()
        assert [json.loads(row) for row in rows] == want and answer.id == "9"
        await server.close()

    asyncio.run(run())


def main(name: str, *arguments: str) -> None:
    """What the command line asks for."""
    if arguments != ("messages",):
        {"triton": triton, "kserve": kserve}[name](*arguments)
        return
    from sparsec.serving.server.rpc_messages import METHODS

    if name == "triton":
        from tritonclient.grpc import service_pb2 as module
    else:
        from kserve.protocol.grpc import grpc_predict_v2_pb2 as module
    print(json.dumps(messages(module, list(METHODS))))


if __name__ == "__main__":
    main(*sys.argv[1:])
