"""Finding models: artifacts, folders, files, SparseZoo's folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import sparsec
from sparsec import Pipeline, cli
from sparsec.errors import InputError, ModelError
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
    """The one nearest to float32 is taken; of unknown names the error lists them."""
    folder = tmp_path / "several"
    shutil.copytree(layout, folder)
    shutil.copy(folder / "onnx" / "model_quantized.onnx", folder / "onnx" / "model_fp16.onnx")
    assert ModelFiles.find(folder).onnx == folder / "onnx" / "model_fp16.onnx"
    for name in ("fp16", "quantized"):
        (folder / "onnx" / f"model_{name}.onnx").rename(folder / "onnx" / f"my_{name}.onnx")
    for call in (lambda: create(folder), lambda: sparsec.compile(folder, buckets=[16])):
        with pytest.raises(ModelError, match=r"onnx/my_fp16\.onnx, onnx/my_quan.*name one"):
            call()
    with create(folder / "onnx" / "my_fp16.onnx", engine_type="onnxruntime") as pipeline:
        assert pipeline("Mary").predictions
    shutil.copy(folder / "onnx" / "my_fp16.onnx", folder / "onnx" / "model.onnx")
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


# ---- lengths -------------------------------------------------------------------------------------


def test_default_lengths(model: Path, tmp_path: Path) -> None:
    """Without sequence_length, no more tokens than the model has positions for."""
    config = json.loads((model / "config.json").read_text())
    for positions, buckets in ((128, (16, 128)), (100, (16, 100)), (12, (12,))):
        given = {**config, "max_position_embeddings": positions}
        with create(model, config=given, engine_type="onnxruntime") as pipeline:
            assert pipeline.runner.buckets == buckets


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
