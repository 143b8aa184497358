"""Models by their names on the Hugging Face Hub: which file one stands for, in every command, with
and without a connection or the right to read.  The hub is a stand-in on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import sparsec
from sparsec import cli, hub
from sparsec.errors import InputError, ModelError, SparsecError
from sparsec.paths import VARIANTS, choose_onnx
from sparsec.serving.models import ModelFiles
from tests.hub_support import TOKEN, Hub, serving
from tests.pipelines_support import NER_LABELS, make

# The endpoint is read when huggingface_hub is imported, so each client is a process.  It makes one
# pipeline after the other, and runs commands.
CLIENT = """
import contextlib, io, json, sys
import sparsec
from sparsec import cli

def pipeline(stub):
    with sparsec.Pipeline.create("ner", stub, engine_type="onnxruntime",
                                 aggregation_strategy="max") as made:
        found = made("Mary is flying from Nairobi.").predictions[0]
        return sorted({r.entity for r in found})

def command(*words):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = cli.main(words)
    return [code, printed.getvalue()]

results = []
for job in json.loads(sys.stdin.read()):
    try:
        results.append(pipeline(job) if isinstance(job, str) else command(*job))
    except sparsec.SparsecError as error:
        results.append(type(error).__name__ + ": " + str(error))
print(json.dumps(results))
"""

Client = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make(folder, "token-classification", labels=NER_LABELS)
    return folder


def commit(name: str) -> str:
    return hashlib.sha1(name.encode()).hexdigest()


@pytest.fixture
def address(model: Path, tmp_path: Path) -> Iterator[str]:
    second = tmp_path / "second"
    shutil.copytree(model, second)
    labels = {"id2label": {str(i): f"NEW{i}" for i in range(5)}}
    (second / "config.json").write_text(json.dumps(labels))
    first = tmp_path / "first"
    shutil.copytree(model, first)
    for folder in (first, second):
        (folder / "pytorch_model.bin").write_bytes(b"weights that nobody needs")
    repositories = {
        ("acme/tiny-ner", "main"): ("a" * 40, first),
        ("acme/tiny-ner", "v2"): ("b" * 40, second),
        ("acme/private", "main"): ("c" * 40, first),
        ("acme/gated", "main"): ("d" * 40, first),
    }
    variants = {
        "quantized": ["model_quantized"], "several": ["model_q4", "model_fp16", "model_bnb4"],
        "unusual": ["encoder", "decoder"], "torch": [],
    }  # fmt: skip
    for name, files in variants.items():
        shutil.copytree(model, folder := tmp_path / name)
        (folder / "onnx").mkdir()
        for file in files:
            shutil.copy(folder / "model.onnx", folder / "onnx" / f"{file}.onnx")
        (folder / "model.onnx").unlink()
        repositories[f"acme/{name}", "main"] = (commit(name), folder)
    private = {"acme/private": "RepoNotFound", "acme/gated": "GatedRepo"}
    with serving(repositories, private) as where:
        yield where


@pytest.fixture
def variables(address: str, tmp_path: Path) -> dict[str, str]:
    """The environment of a client."""
    pytest.importorskip("huggingface_hub", reason="downloading needs it: pip install .[hub]")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    return {
        **kept,
        "HF_ENDPOINT": address,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_ETAG_TIMEOUT": "5",
        "NO_PROXY": "*",
    }


@pytest.fixture
def client(variables: dict[str, str], tmp_path: Path) -> Client:
    def run(*jobs: str | Sequence[str], **more: str) -> list[Any]:
        done = subprocess.run(
            [sys.executable, "-c", CLIENT], input=json.dumps(jobs), cwd=tmp_path,
            capture_output=True, text=True, env={**variables, **more}, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        names = [job for job in jobs if isinstance(job, str) and job.startswith("hf:acme/")]
        assert done.stderr.count("sparsec: fetching ") >= len(names)
        found: list[Any] = json.loads(done.stdout)
        run.said = done.stderr  # type: ignore[attr-defined]
        return found

    return run


def downloads() -> list[str]:
    return [line for line in Hub.log if line.startswith("GET acme")]


def test_download_once(client: Client, model: Path, tmp_path: Path) -> None:
    main, second, plain = client("hf:acme/tiny-ner", "hf:acme/tiny-ner@v2", str(model))
    assert main == plain and plain
    assert all(label.startswith("NEW") for label in second)
    assert len(downloads()) == len(set(downloads()))
    assert not any("pytorch" in line for line in Hub.log)
    snapshots = tmp_path / "home" / "hub" / "models--acme--tiny-ner" / "snapshots"
    assert (snapshots / ("b" * 40)).is_dir()
    # Again: nothing is downloaded; and without the server, what is in the cache will do.
    before = len(downloads())
    assert client("hf:acme/tiny-ner") == [main]
    assert len(downloads()) == before
    for offline in ({"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}):
        again, gone, other = client(
            "hf:acme/tiny-ner", "hf:acme/other", "hf:acme/tiny-ner/onnx/model_q8.onnx", **offline
        )
        assert again == main
        why = "HF_HUB_OFFLINE is set" if "HF_HUB_OFFLINE" in offline else "cannot be reached"
        assert gone.startswith("ModelError: cannot fetch acme/other from the Hugging Face Hub: ")
        assert why in gone and "the cache does not have the model" in gone
        assert "acme/tiny-ner has no file onnx/model_q8.onnx in the cache" in other


def test_errors(client: Client) -> None:
    missing, revision, wrong, private, gated, torch = client(
        "hf:acme/none", "hf:acme/tiny-ner@v9", "hf:not//valid", "hf:acme/private",
        "hf:acme/gated", "hf:acme/torch",
    )  # fmt: skip
    start = "ModelError: cannot fetch acme/{} from the Hugging Face Hub: "
    assert missing.startswith(start.format("none") + "there is none, or it is private: log in")
    assert private.startswith(start.format("private") + "there is none, or it is private")
    assert "hf auth login" in private and "HF_TOKEN" in private
    assert gated.startswith(start.format("gated") + "its owner decides who may read it")
    assert revision == "ModelError: acme/tiny-ner on the Hugging Face Hub has no revision v9"
    assert wrong.startswith("InputError: 'hf:not//valid' is no name of a model: they are like hf:")
    assert "has no .onnx file: export it" in torch and "optimum-cli" in torch
    assert downloads() == []
    mine, open_now = client("hf:acme/private", "hf:acme/gated", HF_TOKEN=TOKEN)
    assert mine == open_now and "PER" in mine


def test_which_file(client: Client) -> None:
    """A repository without model.onnx: the variant that comes first, or the one that is named."""
    only, first, named, choose, none = client(
        "hf:acme/quantized", "hf:acme/several", "hf:acme/several/onnx/model_q4.onnx@main",
        "hf:acme/unusual", "hf:acme/several/onnx/model_q8.onnx",
    )  # fmt: skip
    assert only == first == named and "PER" in only
    assert choose.startswith("ModelError: acme/unusual on the Hugging Face Hub has no model.onnx")
    assert "onnx/decoder.onnx, onnx/encoder.onnx: name one, as hf:acme/unusual/onnx/de" in choose
    assert none.startswith("ModelError: acme/several has no file onnx/model_q8.onnx on the Hugging")
    assert "it has onnx/model_bnb4.onnx, onnx/model_fp16.onnx, onnx/model_q4.onnx" in none
    assert not any("bnb4" in line or "coder" in line for line in downloads())
    said = client.said  # type: ignore[attr-defined]
    assert "sparsec: acme/several has no model.onnx: onnx/model_fp16.onnx it is" in said
    assert "acme/quantized has no model.onnx" not in said


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (["model.onnx", "onnx/model.onnx"], "model.onnx"),
        (["onnx/model_quantized.onnx", "onnx/model.onnx"], "onnx/model.onnx"),
        (["onnx/model_q4.onnx", "onnx/model_int8.onnx"], "onnx/model_int8.onnx"),
        (["onnx/model_O4.onnx", "onnx/model_O2.onnx"], "onnx/model_O2.onnx"),
        (["onnx/model_int8.onnx", "model_fp16.onnx"], "model_fp16.onnx"),
        (["onnx/model_int8.onnx", "model_int8.onnx"], "model_int8.onnx"),
        (["onnx/odd.onnx", "README.md", "other/model.onnx"], "onnx/odd.onnx"),
        (["onnx/odd.onnx", "onnx/even.onnx"], None),
        (["other/model.onnx"], None),
        ([], None),
    ],
)
def test_rule(files: list[str], chosen: str | None) -> None:
    assert choose_onnx(files) == choose_onnx(reversed(files)) == chosen


def test_rule_is_documented() -> None:
    page = Path(__file__).resolve().parents[1] / "docs" / "models.md"
    listed = re.findall(r"`(model\w*)\.onnx`", page.read_text(encoding="utf-8"))
    assert tuple(dict.fromkeys(listed)) == VARIANTS


def test_commands(client: Client, tmp_path: Path) -> None:
    """Each that takes a model takes it by its name; what is written lands in the working folder."""
    name = "hf:acme/tiny-ner"
    quick = ["-s", "sync", "-t", "0.05", "-w", "0", "-i", "[1,16]"]
    made, inspected, packed, engine, peer = client(
        ["compile", name, "--buckets", "16", "--target", "generic"],
        ["inspect", f"{name}@main", "--json"],
        ["inspect", "tiny-ner.sparsec", "--json"],
        ["benchmark", name, *quick, "--json"],
        ["benchmark", name, "-e", "onnxruntime", *quick],
    )  # fmt: skip
    assert made == [0, "tiny-ner.sparsec\n"]
    assert inspected[0] == 0 and json.loads(inspected[1])["path"] == f"{name}@main"
    assert "tokenizer.json" in json.loads(packed[1])["files"]
    assert json.loads(engine[1])["orig_model_path"] == name
    assert peer[0] == 0 and f"Original Model Path: {name}\n" in peer[1]
    (again,) = client(["compile", name, "--buckets", "16"])
    assert again[0] == 6 and "tiny-ner.sparsec exists" in client.said  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "words",
    [
        "buckets TEXTS --max-length 16 --model",
        "sparsify --texts TEXTS --form int8 -o OUT",
        "evaluate --texts TEXTS --against",
    ],
)
def test_commands_that_ask_the_hub(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rest, where a model takes long: up to the moment when it is fetched."""
    pytest.importorskip("torch", reason="sparsify needs it")

    def fetch(name: str, progress: Any = None) -> Path:
        raise ModelError(f"wanted {name}")

    monkeypatch.setattr(hub, "fetch", fetch)
    texts = tmp_path / "texts.txt"
    texts.write_text("Mary is in Nairobi\n" * 80)
    places = {"TEXTS": str(texts), "OUT": str(tmp_path / "out")}
    command = [places.get(word, word) for word in words.split()]
    name = "hf:acme/tiny-ner/onnx/model_int8.onnx@v2"
    command += [name, name] if "evaluate" in command else [name]
    assert cli.main(command) == 3
    assert f"error: wanted {name}" in capsys.readouterr().err


def test_hub_code_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (
        lambda: sparsec.Pipeline.create("ner", "hf:acme/tiny"),
        lambda: sparsec.Engine("hf:acme/tiny"),
        lambda: sparsec.compile("hf:acme/tiny"),
    ):
        with pytest.raises(SparsecError, match=r"pip install 'sparsec\[hub\]'"):
            call()


@pytest.mark.parametrize(
    "name",
    [
        "hf:",
        "hf:a",
        "hf:a/b/",
        "hf:a/b@",
        "hf:a/../c.onnx",
        "hf:a/b/model.bin",
        "hf:/b",
        "hf:a/b/c",
    ],
)
def test_no_names(name: str) -> None:
    with pytest.raises(InputError, match="is no name of a model"):
        hub.fetch(name)


def test_a_hub_cannot_send_machine_code(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    """An artifact in a downloaded folder is not taken for the model."""
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="pip install .[hub]")
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    (folder / "evil.sparsec").mkdir()
    files = ["manifest.json"]
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *a, **k: files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: str(folder))
    with pytest.raises(ModelError, match=r"has no model\.onnx; it has no \.onnx file"):
        sparsec.Pipeline.create("ner", "hf:acme/tiny")
    files.append("model.onnx")
    shutil.copytree(model, folder, dirs_exist_ok=True)
    assert not ModelFiles.find("hf:acme/tiny").is_artifact
    with sparsec.Engine("hf:acme/tiny", buckets=[8], target="generic") as engine:
        assert engine.artifact.path.is_relative_to(own_cache)
    assert cli.main(["inspect", "hf:acme/tiny"]) == 0
