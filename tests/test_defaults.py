"""Tasks without a model, and models without a task."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from sparsec import Pipeline, cli
from sparsec.errors import InputError
from sparsec.serving.defaults import MODELS, default_model, guess_task
from sparsec.serving.models import ModelFiles
from sparsec.serving.pipelines import base
from sparsec.serving.server import config
from tests.pipelines_support import NER_LABELS, TEXTS, make
from tests.server_support import TASKS, Server, TextModels
from tests.shipped_models import MODELS as SHIPPED
from tests.shipped_models import shipped

# What each task's example is answered with, or a part of that.
ANSWERS = {
    "fill-mask": "",
    "question-answering": "mary",
    "rerank": '[{"index":0,',
    "sentence-embedding": "",
    "sparse-embedding": "",
    "text-classification": "positive",
    "token-classification": "nairobi",
    "transformers_embedding_extraction": "",
    "zero-shot-text-classification": "",
}

# Of tasks that share a model, the one that it is for.
GUESSED = set(MODELS) - {"transformers_embedding_extraction", "sparse-embedding"}


# ---- default models ------------------------------------------------------------------------------


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    """sparsec-models, as if it were installed from the clone."""
    module = ModuleType("sparsec_models")
    module.FOLDER = SHIPPED  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sparsec_models", module)


@pytest.mark.parametrize("task", sorted(MODELS))
def test_each_default_model_answers(task: str, package: None) -> None:
    shipped(MODELS[task])
    assert default_model(task) == SHIPPED / MODELS[task]
    for model in (None, "default"):
        with Pipeline.create(task, model, engine_type="onnxruntime") as pipeline:
            answer = pipeline(**pipeline.example())
        assert ANSWERS[task] in answer.model_dump_json().lower()
    # The file says itself what it is for.
    (first, *_) = [other for other in GUESSED if MODELS[other] == MODELS[task]]
    assert guess_task(ModelFiles.find(default_model(task)))[0] == first


def test_vectors_of_like_texts_are_near(package: None) -> None:
    """The texts are none that the model was trained on."""
    shipped("embedding")
    texts = [
        "A man is playing the guitar on stage.", "Someone is performing music with a guitar.",
        "Two children are building a sandcastle at the beach.", "Kids play with sand by the sea.",
        "The stock market fell sharply on Monday.", "Shares lost value at the start of the week.",
    ]  # fmt: skip
    with Pipeline.create("sentence-embedding", engine_type="onnxruntime") as pipeline:
        vectors = pipeline(texts).embeddings
    near = vectors @ vectors.T - 2 * np.eye(len(texts))
    assert near.argmax(1).tolist() == [1, 0, 3, 2, 5, 4]
    # Unit length, as 2_Normalize in its modules.json says.
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_aliases_have_the_model_too(package: None) -> None:
    shipped("sentiment")
    with Pipeline.create(task="sentiment-analysis", engine_type="onnxruntime") as pipeline:
        assert pipeline("The food was great").labels == ["positive"]


def test_every_task_has_a_model(package: None) -> None:
    ours = {t.task for t in base.tasks().values() if t.__module__.startswith("sparsec.")}
    assert ours == set(MODELS)


def test_tasks_of_others_have_none() -> None:
    with pytest.raises(InputError, match=r"^count has no default model, which fill-mask, .* have"):
        default_model("count")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sparsec_models", None)
    with pytest.raises(InputError, match=r"pip install 'sparsec\[models\]'"):
        Pipeline.create("ner")
    with pytest.raises(InputError, match=r"pip install 'sparsec\[models\]'"):
        config.check({"endpoints": [{"task": "ner"}]}, "file")


def test_a_package_without_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = ModuleType("sparsec_models")
    module.FOLDER = tmp_path  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sparsec_models", module)
    with pytest.raises(InputError, match="was built where the models are not"):
        Pipeline.create("ner")


def test_endpoints_without_a_model(package: None) -> None:
    shipped("ner")
    for more in ({}, {"model": "default"}):
        settings = config.check({"endpoints": [{"task": "NER", **more}]}, "file")
        assert settings.endpoints[0].model == str(SHIPPED / "ner")
    with pytest.raises(InputError, match="unknown task 'nerr'"):
        config.check({"endpoints": [{"task": "nerr"}]}, "file")
    with pytest.raises(InputError, match=r"endpoints\[0\]\.task: is missing"):
        config.check({"endpoints": [{}]}, "file")


# ---- guessing ------------------------------------------------------------------------------------


def files(folder: Path, config: dict[str, Any], modules: list[str] = ()) -> ModelFiles:  # type: ignore[assignment]
    if modules:
        rows = [{"type": f"sentence_transformers.models.{m}", "path": m} for m in modules]
        (folder / "modules.json").write_text(json.dumps(rows))
    (folder / "tokenizer.json").touch()
    return ModelFiles(folder / "model.onnx", folder / "tokenizer.json", config)


@pytest.mark.parametrize(
    ("config", "modules", "task"),
    [
        ({"architectures": ["BertForTokenClassification"]}, [], "token-classification"),
        ({"architectures": ["RobertaForQuestionAnswering"]}, [], "question-answering"),
        ({"architectures": ["DistilBertForMaskedLM"]}, [], "fill-mask"),
        ({"architectures": ["BertForPreTraining"]}, [], "fill-mask"),
        ({"architectures": ["BertForSequenceClassification"]}, [], "text-classification"),
        (
            {
                "architectures": ["DebertaV2ForSequenceClassification"],
                "id2label": {"0": "ENTAILMENT", "1": "NEUTRAL", "2": "CONTRADICTION"},
            },
            [],
            "zero-shot-text-classification",
        ),
        (
            {
                "architectures": ["XLMRobertaForSequenceClassification"],
                "id2label": {"0": "LABEL_0"},
            },
            [],
            "rerank",
        ),
        ({"architectures": ["BertForSequenceClassification"], "num_labels": 1}, [], "rerank"),
        ({"architectures": ["BertModel"]}, [], "sentence-embedding"),
        ({"architectures": ["BertModel"]}, ["Transformer", "Pooling"], "sentence-embedding"),
        (
            {"architectures": ["BertForMaskedLM"]},
            ["MLMTransformer", "SpladePooling"],
            "sparse-embedding",
        ),
    ],
)
def test_task_by_files(
    config: dict[str, Any], modules: list[str], task: str, tmp_path: Path
) -> None:
    found, why = guess_task(files(tmp_path, config, modules))
    assert found == task
    assert (config["architectures"][0] in why) != bool(modules)


@pytest.mark.parametrize(
    "task", ["text-classification", "question-answering", "fill-mask", "sentence-embedding"]
)
def test_task_by_outputs(task: str, tmp_path: Path) -> None:
    """config.json says nothing: outputs do."""
    head, settings = TASKS[task]
    make(tmp_path, head, **settings)
    assert guess_task(ModelFiles.find(tmp_path))[0] == task


def test_task_by_an_artifacts_outputs(text_models: TextModels) -> None:
    task = "token-classification"
    assert guess_task(ModelFiles.find(text_models[task]))[0] == task


def test_nothing_says_the_task(
    micro_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path, "token-classification", labels=NER_LABELS)
    (tmp_path / "config.json").write_text('{"architectures": ["Odd"]}')
    shutil.copy(micro_model / "model.onnx", tmp_path)
    assert cli.main(["serve", str(tmp_path)]) == 8
    error = capsys.readouterr().err
    assert "says what it is for" in error and "--task" in error


# ---- serve ---------------------------------------------------------------------------------------


def test_serve_a_model(tmp_path: Path) -> None:
    """The task is guessed, the tokenizer is elsewhere, and an option is of the task's type."""
    folder = tmp_path / "model"
    make(folder, "token-classification", labels=NER_LABELS)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.move(folder / name, tmp_path / name)
    server = Server(tmp_path / "server", {})
    server.arguments = [
        str(folder), "--tokenizer", str(tmp_path), "--engine-type", "onnxruntime",
        "--option", "aggregation_strategy=simple", "--option", "ignore-labels=O,PER",
    ]  # fmt: skip
    with server, server.client() as client:
        assert any(
            "the task is token-classification: it gives scores for each token; --task" in line
            for line in server.lines
        )
        answer = client.post("/predict", json={"inputs": TEXTS[0]}).json()
    engine = {"tokenizer": tmp_path, "engine_type": "onnxruntime"}
    wanted = {"aggregation_strategy": "simple", "ignore_labels": ["O", "PER"]}
    with Pipeline.create("ner", folder, **engine, **wanted) as pipeline:
        (want,) = pipeline(TEXTS[0]).predictions
    with Pipeline.create("ner", folder, **engine, aggregation_strategy="simple") as pipeline:
        assert pipeline(TEXTS[0]).predictions != [want]
    assert [row["word"] for row in answer["predictions"][0]] == [row.word for row in want]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what to serve: a model"),
        (["MODEL", "--model-path", "other"], "two models"),
        (["MODEL", "--option", "top=3"], "token-classification has no option 'top'; it has aggr"),
        (["MODEL", "--option", "stride=x"], "stride: Input should be a valid integer"),
        (["MODEL", "--option", "stride=1", "--option", "stride=2"], "stride is given twice"),
        (["MODEL", "--task", "nerr"], "unknown task 'nerr'"),
        (["--config-file", "x.yaml", "MODEL", "--option", "a=b"], "MODEL, --option: the config"),
    ],
)
def test_serve_refuses(
    arguments: list[str],
    message: str,
    text_models: TextModels,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = str(text_models["token-classification"])
    assert cli.main(["serve", *(model if a == "MODEL" else a for a in arguments)]) == 8
    assert message in capsys.readouterr().err


def test_an_option_needs_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["serve", "m", "--option", "=3"])
    assert "'=3' is not like top_k=3" in capsys.readouterr().err


def test_options_are_of_the_tasks_types() -> None:
    def parsed(task: str, **given: str) -> dict[str, Any]:
        return base.parse_options(base.find(task), given.items())

    assert parsed("ner", stride="7", aggregation_strategy="first") == {
        "stride": 7, "aggregation_strategy": "first",
    }  # fmt: skip
    assert parsed("ner", ignore_labels='["O"]') == {"ignore_labels": ["O"]}
    assert parsed("ner", ignore_labels="O,1") == {"ignore_labels": ["O", "1"]}
    assert parsed("fill-mask", top_k="3") == {"top_k": 3}
    assert parsed("sentence-embedding", normalize="true") == {"normalize": True}
    assert parsed("sentence-embedding", prompt_name="1") == {"prompt_name": "1"}
    assert parsed("sentence-embedding", prompt_name="null") == {"prompt_name": None}


# ---- the package ---------------------------------------------------------------------------------


def test_the_package_holds_the_models(tmp_path: Path) -> None:
    """What its build puts in: all models, and nothing else."""
    shipped("ner")
    code = (
        "from setuptools import Distribution\n"
        "d = Distribution(); d.parse_config_files()\n"
        "b = d.get_command_obj('build_py'); b.ensure_finalized()\n"
        "print(*(f for _, _, _, files in b.data_files for f in files), sep='\\n')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=SHIPPED, capture_output=True, text=True, check=True
    )
    expected = {
        f"{folder}/{name}"
        for folder in MODELS.values()
        for name in ("model.onnx", "config.json", "tokenizer.json")
    }
    sentences = ("modules.json", "sentence_bert_config.json", "1_Pooling/config.json")
    expected |= {"README.md", *(f"embedding/{name}" for name in sentences)}
    assert set(done.stdout.split()) == expected
