"""Engines, pipelines, artifacts and errors in processes that are spawned, and in copies."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest

import sparsec
from sparsec import errors, runtime
from sparsec.serving.pipelines.text_classification import TextClassificationPipeline
from tests.server_support import TextModels

CONTEXT = multiprocessing.get_context("spawn")


def run_engine(engine: runtime.Engine, inputs: list[np.ndarray]) -> list[np.ndarray]:
    with engine:
        return engine.run(inputs)


def run_pipeline(pipeline: sparsec.Pipeline, text: str) -> object:
    with pipeline:
        return pipeline(text)


@pytest.mark.parametrize("kind", [sparsec.Engine, runtime.Engine])
def test_engine(
    kind: type[runtime.Engine], tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_artifact.parent)
    inputs = sparsec.generate_random_inputs(tiny_artifact, batch_size=2, length=5)
    with kind(tiny_artifact.name, 1, skip_padding=True, buckets=[8]) as engine:
        monkeypatch.chdir("/")  # the path still means the same
        again = pickle.loads(pickle.dumps(engine))
        assert type(again) is kind
        assert (again.buckets, again.num_cores, again.skip_padding) == (
            engine.buckets, engine.num_cores, engine.skip_padding,
        )  # fmt: skip
        with CONTEXT.Pool(1) as pool:
            (got,) = pool.apply(run_engine, (engine, inputs))
        (want,) = engine.run(inputs)
        (copied,) = run_engine(copy.deepcopy(engine), inputs)
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(copied, want)
        again.close()
    with pytest.raises(sparsec.EngineClosedError):
        pickle.dumps(engine)


def test_engine_of_a_model(micro_model: Path) -> None:
    options = {"buckets": np.array([4, 8]), "batch_size": np.int64(2), "target": "generic"}
    with (
        sparsec.Engine(micro_model, np.int32(1), **options) as engine,
        pickle.loads(pickle.dumps(engine)) as again,
    ):
        assert again.buckets == [4, 8] and again.artifact.path == engine.artifact.path
        assert again.artifact.target.name == "generic"


def test_pipeline(text_models: TextModels) -> None:
    with sparsec.Pipeline.create(
        "text-classification", text_models["text-classification"], num_cores=1, top_k=2
    ) as pipeline:
        want = pipeline("Paris")
        with CONTEXT.Pool(1) as pool:
            assert pool.apply(run_pipeline, (pipeline, "Paris")) == want
        assert run_pipeline(copy.copy(pipeline), "Paris") == want
        assert pipeline("Paris") == want  # a copy has a model of its own to close
        bare = TextClassificationPipeline(pipeline.model, pipeline.text, pipeline.runner)
        with pytest.raises(sparsec.InputError, match=r"made by Pipeline\.create"):
            pickle.dumps(bare)
    with pytest.raises(sparsec.EngineClosedError):
        pickle.dumps(pipeline)


def test_artifact(tiny_artifact: Path) -> None:
    artifact = sparsec.Artifact.load(tiny_artifact)
    assert pickle.loads(pickle.dumps(artifact)) == copy.deepcopy(artifact) == artifact
    with pytest.raises(TypeError):
        copy.copy(artifact.manifest).files["x"] = None  # type: ignore[index]


def test_errors() -> None:
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, Exception)]
    for kind in kinds:
        got = pickle.loads(pickle.dumps(kind("what happened")))
        assert type(got) is kind and str(got) == "what happened"
    nodes = [("n", "Op", "why")]
    error = pickle.loads(pickle.dumps(sparsec.UnsupportedError("what happened", nodes)))
    assert error.nodes == nodes


def test_a_path_that_is_gone(tiny_artifact: Path, tmp_path: Path) -> None:
    place = tmp_path / "m.sparsec"
    place.symlink_to(tiny_artifact)
    with runtime.Engine(place) as engine:
        data = pickle.dumps(engine)
    place.unlink()
    with pytest.raises(sparsec.ArtifactError, match="does not exist"):
        pickle.loads(data)
