"""API keys: who gets in, from where keys come, and how they change."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sparsec import InputError
from sparsec.serving.server.config import ServerConfig, check
from sparsec.serving.server.keys import Keys, is_open
from tests.server_support import TOKEN, Server, TextModels, endpoint

FIRST, SECOND, THIRD = "first-key", "second-key-0123", "third+key/=~"


def passes(keys: Keys, **headers: str) -> bool:
    return not keys.refusal({k.replace("_", "-"): v for k, v in headers.items()}.get)


# ---- units ---------------------------------------------------------------------------------------


def test_without_keys_everybody_passes() -> None:
    keys = Keys()
    assert not keys.needed and passes(keys) and passes(keys, authorization="Bearer x")


def test_where_a_key_may_be() -> None:
    keys = Keys([FIRST, SECOND])
    for key in (FIRST, SECOND):
        assert passes(keys, authorization=f"Bearer {key}")
        assert passes(keys, authorization=f"bearer   {key} ")
        assert passes(keys, x_api_key=key) and passes(keys, api_key=key)
        assert passes(keys, authorization="Basic abc", x_api_key=key)
    for wrong in ({}, {"authorization": FIRST}, {"authorization": "Bearer"},
                  {"authorization": f"Bearer {FIRST}x"}, {"authorization": f"Bearer {FIRST[:-1]}"},
                  {"x_api_key": ""}, {"authorization": f"Bearer {FIRST.upper()}"},
                  {"authorization": f"Basic {FIRST}"}, {"x_api_key": "kéy\udc80"},
                  {"authorization": "Bearer wrong-key", "x_api_key": FIRST}):  # fmt: skip
        assert not passes(keys, **wrong), wrong
    assert "is needed" in keys.refusal({}.get)
    assert "is not known" in keys.refusal({"x-api-key": "other"}.get)


def test_a_file_of_keys(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# of the team\n\n  {FIRST}  # until May\n{SECOND}\n")
    keys = Keys([THIRD], file)
    assert all(passes(keys, x_api_key=key) for key in (FIRST, SECOND, THIRD))

    def write(text: str) -> None:
        part = tmp_path / "part"
        part.write_text(text)
        part.replace(file)
        keys.refresh()

    write(SECOND)
    assert not passes(keys, x_api_key=FIRST) and passes(keys, x_api_key=SECOND)
    # What is wrong changes nothing; what is empty lets nobody in.
    write(f"{FIRST}\nshort\n")
    assert passes(keys, x_api_key=SECOND) and not passes(keys, x_api_key=FIRST)
    file.unlink()
    keys.refresh()
    assert passes(keys, x_api_key=SECOND)
    write("# none\n")
    assert not passes(keys, x_api_key=SECOND) and passes(keys, x_api_key=THIRD)
    assert not any(key in caplog.text for key in (FIRST, SECOND, THIRD, "short"))


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "short\n", f"{FIRST} {SECOND}\n", "kéy-kéy-kéy\n"]
)
def test_files_that_are_none(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(InputError, match="keys") as error:
        Keys((), file)
    assert FIRST not in str(error.value)
    with pytest.raises(InputError, match="cannot read"):
        Keys((), tmp_path / "nothing")


def test_settings_do_not_show_keys() -> None:
    with pytest.raises(InputError, match="key 2 must have 8") as error:
        check({"api_keys": [FIRST, "a b"]}, "config.yaml")
    assert FIRST not in str(error.value) and "a b" not in str(error.value)
    assert ServerConfig(api_keys=(FIRST,)).api_keys == (FIRST,)


def test_what_needs_no_key() -> None:
    for path in ("/health", "/ready", "/metrics", "/docs", "/docs/a.js", "/openapi.json",
                 "/v2/health/live", "/v2/models/a/ready",
                 "/v2/models/a/versions/1/ready"):  # fmt: skip
        assert is_open("GET", path), path
    for method, path in (("POST", "/predict"), ("GET", "/"), ("GET", "/v1/models"), ("GET", "/x"),
                         ("POST", "/v2/models/a/infer"), ("GET", "/v2/models/a/b/ready"),
                         ("GET", "/endpoints"), ("GET", "/docs2")):  # fmt: skip
        assert not is_open(method, path), path
        assert is_open("OPTIONS", path)
    assert is_open("POST", "/endpoints") and is_open("DELETE", "/endpoints/a")


# ---- a server ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("keys") / "keys"
    made.write_text(SECOND + "\n")
    return made


@pytest.fixture(scope="module")
def server(
    text_models: TextModels, tmp_path_factory: pytest.TempPathFactory, file: Path
) -> Iterator[Server]:
    config: dict[str, Any] = {
        "num_workers": 2,
        "admin_token": TOKEN,
        "endpoints": [
            endpoint(text_models, "token-classification", name="ner"),
            endpoint(text_models, "sentence-embedding", name="vectors"),
        ],
    }
    flags = ("--api-key", FIRST, "--api-keys-file", str(file))
    with Server(tmp_path_factory.mktemp("server"), config, *flags) as running:
        yield running


ASKED = [
    ("POST", "/predict", {"inputs": "Mary"}),
    ("POST", "/models/ner", {"inputs": "Mary"}),
    ("POST", "/v1/embeddings", {"model": "vectors", "input": "Mary"}),
    ("POST", "/v1/models/ner:predict", {"instances": ["Mary"]}),
    ("POST", "/v2/models/ner/infer",
     {"inputs": [{"name": "inputs", "shape": [1], "datatype": "BYTES", "data": ["Mary"]}]}),
    ("POST", "/v2/repository/index", {}),
    ("POST", "/embed", {"inputs": "Mary"}),
    ("GET", "/v1/models", None),
    ("GET", "/", None),
    ("GET", "/info", None),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body"), ASKED)
def test_predictions_need_a_key(server: Server, method: str, path: str, body: Any) -> None:
    with server.client() as client:
        for key in (FIRST, SECOND):
            answer = client.request(method, path, json=body, headers={"X-API-Key": key})
            assert answer.status_code == 200, answer.text
        for headers in (
            {},
            {"Authorization": "Bearer wrong-key"},
            {"Authorization": f"Bearer {TOKEN}"},
        ):
            answer = client.request(method, path, json=body, headers=headers)
            assert answer.status_code == 401, answer.text
            assert answer.headers["www-authenticate"] == "Bearer"
            error = answer.json()["error"]
            if path.startswith("/v1/") and not path.endswith(":predict"):
                assert error["code"] == "unauthorized" and "Bearer KEY" in error["message"]
            else:
                assert "Bearer KEY" in error and answer.json()["code"] == "unauthorized"


def test_probes_and_scrapes_need_none(server: Server) -> None:
    with server.client() as client:
        for path in ("/health", "/ready", "/metrics", "/openapi.json", "/v2/health/ready",
                     "/v2/models/ner/ready"):  # fmt: skip
            assert client.get(path).status_code == 200, path
        # What is not there is not told to strangers, and changes want another token.
        assert client.get("/nothing").status_code == 401
        key = {"Authorization": f"Bearer {FIRST}"}
        assert client.get("/nothing", headers=key).status_code == 404
        assert client.delete("/endpoints/none", headers=key).status_code == 401
        token = {"Authorization": f"Bearer {TOKEN}"}
        assert client.delete("/endpoints/none", headers=token).status_code == 404


def test_clients_send_keys(server: Server) -> None:
    openai = pytest.importorskip("openai", reason="needs openai: pip install '.[clients]'")
    options = {"base_url": server.url + "/v1", "max_retries": 0}
    client = openai.OpenAI(api_key=FIRST, **options)
    assert client.embeddings.create(model="vectors", input="a").data
    with pytest.raises(openai.AuthenticationError, match="this API key is not known"):
        openai.OpenAI(api_key="wrong-key", **options).models.list()
    hub = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub: pip install .[hub]")
    found = hub.InferenceClient(server.url + "/models/vectors", token=SECOND)
    assert found.feature_extraction("a").shape == (1, 32)
    with pytest.raises(hub.errors.HfHubHTTPError, match="401"):
        hub.InferenceClient(server.url + "/models/vectors", token="wrong-key").feature_extraction(
            "a"
        )


def test_the_file_is_followed_by_all_workers(server: Server, file: Path) -> None:
    def status(key: str) -> set[int]:
        found = set()
        for _ in range(12):  # a connection each, so that both workers are asked
            answer = httpx.get(server.url + "/v1/models", headers={"X-API-Key": key})
            found.add(answer.status_code)
        return found

    assert status(SECOND) == {200} and status(THIRD) == {401}
    file.write_text(THIRD)
    limit = time.monotonic() + 20
    while status(THIRD) != {200} and time.monotonic() < limit:
        time.sleep(0.1)
    assert status(THIRD) == {200} and status(SECOND) == {401} and status(FIRST) == {200}
    file.write_text(SECOND)
    limit = time.monotonic() + 20
    while status(SECOND) != {200} and time.monotonic() < limit:
        time.sleep(0.1)
    assert not any(key in line for key in (FIRST, SECOND, THIRD) for line in server.lines)


def test_keys_of_the_environment(text_models: TextModels, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sparsec", "serve", "--port", "0", "--task", "ner"]
    command += ["--model-path", str(text_models["token-classification"])]
    for value, message in (("short", "key 1 must have 8"), (f"{FIRST},b", "key 2 must have 8")):
        done = subprocess.run(
            command, env={**os.environ, "SPARSEC_API_KEYS": value}, capture_output=True, text=True
        )
        assert done.returncode == 8 and message in done.stderr and FIRST not in done.stderr
    done = subprocess.run(
        [*command, "--api-keys-file", str(tmp_path / "none")], capture_output=True, text=True
    )
    assert done.returncode == 8 and "cannot read the API keys" in done.stderr
