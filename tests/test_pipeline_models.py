"""Finding models: artifacts, folders, files, SparseZoo's folders, a hub (a local fake of one)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

import sparsec
from sparsec import Pipeline, cli
from sparsec.errors import InputError, ModelError, SparsecError
from sparsec.serving.models import ModelFiles
from sparsec.serving.text import Text
from tests.pipelines_support import CONFIG, NER_LABELS, TEXTS, make, vocabulary


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make(folder, "token-classification", labels=NER_LABELS)
    return folder


def create(path: Any, **options: Any) -> Pipeline:
    return Pipeline.create("ner", path, aggregation_strategy="first", **options)


def test_all_forms_of_one_model(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Folder, file, artifact, a model and its tokenizer apart; the same answers from all."""
    buckets = [16, 64]
    with create(model, sequence_length=buckets) as pipeline:
        want = pipeline(TEXTS)
    said = capfd.readouterr()
    assert said.err.count("\n") == 1 and "compiling" in said.err and not said.out
    with create(model, sequence_length=buckets) as pipeline:
        assert pipeline.model.labels(5) == NER_LABELS
    assert not capfd.readouterr().err
    artifact = sparsec.compile(model, buckets=buckets, output=tmp_path / "a.sparsec").path
    apart = tmp_path / "apart"
    apart.mkdir()
    shutil.copy(model / "model.onnx", apart / "other.onnx")
    hub = tmp_path / "hub" / "onnx"
    shutil.copytree(model, hub)
    for name in ("tokenizer.json", "config.json", "tokenizer_config.json"):
        (hub / name).rename(hub.parent / name)
    lines: list[str] = []
    for path, options in (
        (model / "model.onnx", {"sequence_length": buckets}),
        (artifact, {}),
        (tmp_path / "hub", {"sequence_length": (64, 16, 16)}),
        (
            apart / "other.onnx",
            {"tokenizer": model, "config": model, "sequence_length": buckets},
        ),
        (
            apart / "other.onnx",
            {
                "tokenizer": model / "tokenizer.json",
                "config": json.loads((model / "config.json").read_text()),
                "sequence_length": buckets,
            },
        ),
    ):
        with create(path, progress=lines.append, **options) as pipeline:
            assert pipeline.runner.buckets == (16, 64)
            assert pipeline(TEXTS) == want
    with create(artifact, sequence_length=64) as pipeline:
        assert pipeline.runner.buckets == (64,)
    with pytest.raises(ModelError, match="compiled already"):
        create(artifact, engine_type="onnxruntime")
    with pytest.raises(InputError, match="32"):
        create(artifact, sequence_length=32)


@pytest.fixture(scope="module")
def layout(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the hub has models for other runtimes: no model.onnx, and all else one folder up."""
    folder = tmp_path_factory.mktemp("layout")
    (folder / "onnx").mkdir()
    for file in model.iterdir():
        inside = "onnx/model_quantized.onnx" if file.suffix == ".onnx" else file.name
        shutil.copy(file, folder / inside)
    return folder


def test_a_model_one_folder_down(
    model: Path, layout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Folder, inner folder, file, artifact of each; by all commands."""
    with create(model, sequence_length=16, truncate=True) as pipeline:
        want = pipeline(TEXTS)
    file = layout / "onnx" / "model_quantized.onnx"
    for path in (layout, layout / "onnx", file):
        for engine in ("sparsec", "onnxruntime"):
            with create(path, sequence_length=16, engine_type=engine, truncate=True) as pipeline:
                assert pipeline.model.config["max_position_embeddings"] == 128
                if engine == "sparsec":
                    assert pipeline(TEXTS) == want
        limit = sparsec.generate_random_inputs(path, 50, 100)[0].max()
        assert CONFIG.vocab - 20 < limit < CONFIG.vocab
    for path in (layout, layout / "onnx"):
        artifact = sparsec.compile(
            path, buckets=[16], output=tmp_path / "packed.sparsec", force=True
        )
        assert (artifact.path / "tokenizer.json").is_file()
        assert (artifact.path / "config.json").is_file()
        with create(artifact.path, truncate=True) as pipeline:
            assert pipeline(TEXTS) == want
    # Of the file alone: the tokenizer lies beside it.
    alone = sparsec.compile(file, buckets=[16], output=tmp_path / "alone.sparsec", force=True)
    assert (alone.path / "tokenizer.json").is_file()
    with create(alone.path, truncate=True) as pipeline:
        assert pipeline(TEXTS) == want
    capsys.readouterr()
    for engine in ("sparsec", "onnxruntime"):
        short = ["-s", "sync", "-t", "0.05", "-w", "0", "-i", "[1,16]"]
        assert cli.main(["benchmark", str(layout), "-e", engine, *short]) == 0
    assert cli.main(["inspect", str(layout)]) == 0
    assert "model_quantized" in capsys.readouterr().out


def test_several_models_in_a_folder(layout: Path, tmp_path: Path) -> None:
    """None of them has the usual name: the error lists them, and one may be named."""
    folder = tmp_path / "several"
    shutil.copytree(layout, folder)
    shutil.copy(folder / "onnx" / "model_quantized.onnx", folder / "onnx" / "model_fp16.onnx")
    for call in (lambda: create(folder), lambda: sparsec.compile(folder, buckets=[16])):
        with pytest.raises(ModelError, match=r"onnx/model_fp16\.onnx, onnx/model_quan.*name one"):
            call()
    with create(folder / "onnx" / "model_fp16.onnx", engine_type="onnxruntime") as pipeline:
        assert pipeline("Mary").predictions
    shutil.copy(folder / "onnx" / "model_fp16.onnx", folder / "onnx" / "model.onnx")
    assert ModelFiles.find(folder).onnx == folder / "onnx" / "model.onnx"


def test_missing_files(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        create(tmp_path / "nothing")
    with pytest.raises(ModelError, match="neither an artifact nor a folder"):
        create(tmp_path)
    shutil.copy(model / "model.onnx", tmp_path)
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        create(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="is not a tokenizer"):
        create(tmp_path)
    shutil.copy(model / "tokenizer.json", tmp_path)
    for content in ("[]", "{"):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ModelError, match="is not a configuration"):
            create(tmp_path)


def test_vocabulary_alone(model: Path, tmp_path: Path) -> None:
    """Old models have a vocab.txt and no tokenizer.json."""
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary()) + "\n")
    old = Text.load(ModelFiles(tmp_path, tmp_path / "vocab.txt", {}))
    new = Text.load(ModelFiles(model, model / "tokenizer.json", {}))
    for text in TEXTS:
        a, b = (t.join(t.encode(text), t.encode("new york")) for t in (old, new))
        assert (a.ids, a.offsets, a.type_ids) == (b.ids, b.offsets, b.type_ids)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    cased = Text.load(ModelFiles(tmp_path, tmp_path / "vocab.txt", {}))
    assert cased.encode("Mary").tokens == ["[UNK]"]


# ---- zoo: ----------------------------------------------------------------------------------------


def test_zoo_stubs(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stub = "zoo:nlp/ner/tiny-80"
    monkeypatch.delenv("SPARSEZOO_MODELS_PATH", raising=False)
    with pytest.raises(
        InputError, match=r"SparseZoo is gone.*SPARSEZOO_MODELS_PATH.*nlp/ner/tiny-80"
    ):
        create(stub)
    with pytest.raises(ModelError, match=r"SparseZoo is gone.*has no model"):
        create(stub, zoo_dir=tmp_path)
    for bad in ("zoo:../x", "zoo:", "zoo:/"):
        with pytest.raises(InputError, match="no stub"):
            create(bad, zoo_dir=tmp_path)
    capfd.readouterr()
    shutil.copytree(model, tmp_path / "tiny-80" / "deployment")
    monkeypatch.setenv("SPARSEZOO_MODELS_PATH", str(tmp_path))
    with create(stub, engine_type="onnxruntime") as pipeline:
        assert pipeline.model.path == tmp_path / "tiny-80" / "deployment"
    assert capfd.readouterr().err.count("\n") == 1
    shutil.copytree(model, tmp_path / "nlp" / "ner" / "tiny-80")
    with create(stub, engine_type="onnxruntime", zoo_dir=tmp_path) as pipeline:
        assert pipeline.model.path == tmp_path / "nlp" / "ner" / "tiny-80"


# ---- hf: -----------------------------------------------------------------------------------------


def etag(data: bytes) -> str:
    """What git calls a file."""
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


class Hub(BaseHTTPRequestHandler):
    """The part of the Hugging Face Hub that downloading a repository needs."""

    repositories: dict[tuple[str, str], tuple[str, Path]]
    log: list[str]

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = unquote(self.path.partition("?")[0]).strip("/")
        self.log.append(f"{self.command} {path}")
        parts = path.split("/")
        if parts[:2] == ["api", "models"]:
            name = "/".join(parts[2:4])
            kind, revision = parts[4:6] if len(parts) > 5 else ("revision", "main")
            found = next(
                (
                    there
                    for (other, label), there in self.repositories.items()
                    if name == other and revision in (label, there[0])
                ),
                None,
            )
            if found is None:
                known = any(name == other for other, _ in self.repositories)
                self.fail("RevisionNotFound" if known else "RepoNotFound")
                return
            commit, folder = found
            files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
            info: Any = {
                "_id": "1", "id": name, "modelId": name, "sha": commit, "private": False,
                "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": [],
                "siblings": [{"rfilename": str(file)} for file in files],
            }  # fmt: skip
            if kind == "tree":  # newer clients list files by this
                info = [
                    {
                        "type": "file",
                        "path": str(file),
                        "size": (folder / file).stat().st_size,
                        "oid": etag((folder / file).read_bytes()),
                    }
                    for file in files
                ]
            self.send(json.dumps(info).encode(), {"Content-Type": "application/json"}, body)
            return
        name, rest = "/".join(parts[:2]), parts[2:]
        if rest[:1] != ["resolve"]:
            self.fail("RepoNotFound")
            return
        for (other, revision), (commit, folder) in self.repositories.items():
            file = folder.joinpath(*rest[2:])
            if name == other and rest[1] in (revision, commit) and file.is_file():
                data = file.read_bytes()
                self.send(data, {"ETag": f'"{etag(data)}"', "X-Repo-Commit": commit}, body)
                return
        self.fail("EntryNotFound")

    def send(self, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(200)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def fail(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def hub(model: Path, tmp_path: Path) -> Iterator[ThreadingHTTPServer]:
    second = tmp_path / "second"
    shutil.copytree(model, second)
    (second / "config.json").write_text(
        json.dumps({"id2label": {str(i): f"NEW{i}" for i in range(5)}})
    )
    for folder in (first := tmp_path / "first", second):
        if not folder.exists():
            shutil.copytree(model, folder)
        (folder / "pytorch_model.bin").write_bytes(b"weights that nobody needs")
    Hub.repositories = {
        ("acme/tiny-ner", "main"): ("a" * 40, first),
        ("acme/tiny-ner", "v2"): ("b" * 40, second),
    }
    for name, variants in (("quantized", ["quantized"]), ("several", ["fp16", "q4"])):
        shutil.copytree(model, folder := tmp_path / name)
        (folder / "onnx").mkdir()
        for variant in variants:
            shutil.copy(folder / "model.onnx", folder / "onnx" / f"model_{variant}.onnx")
        (folder / "model.onnx").unlink()
        Hub.repositories[f"acme/{name}", "main"] = (hashlib.sha1(name.encode()).hexdigest(), folder)
    Hub.log = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


CLIENT = """
import json, sys
import sparsec
results = []
for stub in sys.argv[1:]:
    try:
        with sparsec.Pipeline.create("ner", stub, engine_type="onnxruntime",
                                     aggregation_strategy="max") as pipeline:
            found = pipeline("Mary is flying from Nairobi.").predictions[0]
            results.append(sorted({r.entity for r in found}))
    except sparsec.SparsecError as error:
        results.append(type(error).__name__ + ": " + str(error))
print(json.dumps(results))
"""


def test_hub(hub: ThreadingHTTPServer, model: Path, tmp_path: Path) -> None:
    """The endpoint is read when huggingface_hub is imported: each client is a process."""
    pytest.importorskip("huggingface_hub", reason="downloading needs it: pip install .[hub]")
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}",
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_ETAG_TIMEOUT": "5",
        "NO_PROXY": "*",
    }

    def client(*stubs: str) -> list[Any]:
        done = subprocess.run(
            [sys.executable, "-c", CLIENT, *stubs],
            capture_output=True, text=True, env=environment, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("sparsec: fetching ") == len(
            [s for s in stubs if s.startswith("hf:")]
        )
        found: list[Any] = json.loads(done.stdout)
        return found

    main, second, plain = client("hf:acme/tiny-ner", "hf:acme/tiny-ner@v2", str(model))
    assert main == plain and plain
    assert all(label.startswith("NEW") for label in second)
    downloads = [line for line in Hub.log if line.startswith("GET acme")]
    assert len(downloads) == len(set(downloads))
    assert not any("pytorch" in line for line in Hub.log)
    assert (
        tmp_path / "home" / "hub" / "models--acme--tiny-ner" / "snapshots" / ("b" * 40)
    ).is_dir()

    missing, revision, wrong = client("hf:acme/none", "hf:acme/tiny-ner@v9", "hf:not//valid")
    assert missing.startswith("ModelError: cannot fetch acme/none from the Hugging Face Hub: 404")
    assert revision.startswith("ModelError: cannot fetch acme/tiny-ner at v9 from")
    assert wrong.startswith("InputError: 'hf:not//valid' is no name of a model")

    # A repository without model.onnx: its only one, or the one that is named, and no other.
    Hub.log.clear()
    only, named, choose, none = client(
        "hf:acme/quantized",
        "hf:acme/several/onnx/model_q4.onnx@main",
        "hf:acme/several",
        "hf:acme/several/onnx/model_q8.onnx",
    )
    assert only == named == main
    assert choose.startswith("ModelError: acme/several on the Hugging Face Hub has no model.onnx")
    assert "onnx/model_fp16.onnx, onnx/model_q4.onnx: name one, as hf:acme/several/onnx/" in choose
    assert none.startswith("ModelError: acme/several on the Hugging Face Hub has no file onnx/mod")
    assert not any("fp16" in line for line in Hub.log)

    # Again: nothing is downloaded; and without the server, what is in the cache will do.
    before = len([line for line in Hub.log if line.startswith("GET acme")])
    assert client("hf:acme/tiny-ner") == [main]
    assert len([line for line in Hub.log if line.startswith("GET acme")]) == before
    environment["HF_ENDPOINT"] = "http://127.0.0.1:9"
    assert client("hf:acme/tiny-ner") == [main]
    assert client("hf:acme/quantized", "hf:acme/several/onnx/model_q4.onnx") == [main, main]
    (gone,) = client("hf:acme/other")
    assert gone.startswith("ModelError: cannot fetch acme/other from the Hugging Face Hub: ")


def test_hub_code_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(SparsecError, match=r"pip install 'sparsec\[hub\]'"):
        create("hf:acme/tiny")


def test_default_lengths(model: Path, tmp_path: Path) -> None:
    """Without sequence_length, no more tokens than the model has positions for."""
    config = json.loads((model / "config.json").read_text())
    for positions, buckets in ((128, (16, 128)), (100, (16, 100)), (12, (12,))):
        given = {**config, "max_position_embeddings": positions}
        with create(model, config=given, engine_type="onnxruntime") as pipeline:
            assert pipeline.runner.buckets == buckets
    with pytest.raises(InputError, match="model_path is needed"):
        Pipeline.create("ner")


def test_lengths_above_the_configuration(model: Path) -> None:
    """Where no table of positions ends, the configuration does not say what is too long."""
    config = json.loads((model / "config.json").read_text()) | {"max_position_embeddings": 64}
    free = [
        {"model_type": "deberta-v2", "position_biased_input": False},
        {"model_type": "modernbert"},
        {"model_type": "t5"},
        {"model_type": "bert", "position_embedding_type": "alibi"},
    ]
    for more in free:
        given = {**config, **more}
        with create(model, config=given, engine_type="onnxruntime", sequence_length=96) as pipeline:
            assert pipeline.max_length == 96
        with create(model, config=given, engine_type="onnxruntime") as pipeline:
            assert pipeline.runner.buckets == (16, 128, 512)
    for more in ({"model_type": "bert"}, {"model_type": "deberta-v2"}):
        with pytest.raises(InputError, match="96 is too long: the model has positions for 64"):
            create(model, config={**config, **more}, sequence_length=96)


def test_a_hub_cannot_send_machine_code(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An artifact in a downloaded folder is not taken for the model."""
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="pip install .[hub]")
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    (folder / "evil.sparsec").mkdir()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: str(folder))
    with pytest.raises(ModelError, match="neither an artifact nor a folder"):
        create("hf:acme/tiny")
    shutil.copytree(model, folder, dirs_exist_ok=True)
    assert not ModelFiles.find("hf:acme/tiny").is_artifact
