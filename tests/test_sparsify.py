"""``sparsec sparsify``: from a folder and texts to a folder and a report."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import sparsec
from examples.encoders import EncoderConfig, Export, write_random
from sparsec import targets
from sparsec.cli import main
from sparsec.compiler.frontend import load_model
from sparsec.errors import ArtifactError, InputError, ModelError, NonFiniteError
from sparsec.runtime import cpu
from tests.pipelines_support import make
from tests.test_evaluate import sentences

torch = pytest.importorskip("torch")
for _package in ("onnxruntime", "sklearn", "scipy", "tokenizers", "matplotlib"):
    pytest.importorskip(_package, reason="sparsify needs it")

from sparsec.pruning import (  # noqa: E402
    channels,
    export,
    job,
    memory,
    oneshot,
    plan,
    survey,
    workspace,
)
from sparsec.pruning.engine import TorchModel  # noqa: E402
from sparsec.pruning.engine.opened import open_model  # noqa: E402
from sparsec.pruning.evaluation.parts import Latency  # noqa: E402
from sparsec.pruning.layers import linear_layers  # noqa: E402
from sparsec.pruning.outcome import Sparsified  # noqa: E402
from sparsec.pruning.planner import Plan, Planner  # noqa: E402
from sparsec.pruning.planning import Planning  # noqa: E402
from sparsec.pruning.structure import sites  # noqa: E402
from sparsec.pruning.survey import Surveyed  # noqa: E402
from sparsec.pruning.training.model import ModelNetwork  # noqa: E402
from sparsec.pruning.training.rows import RowAdam  # noqa: E402
from sparsec.pruning.training.trainer import Trainer  # noqa: E402
from sparsec.pruning.units import SurveyedSite, shapes_of  # noqa: E402
from sparsec.pruning.waiting import wait_briefly  # noqa: E402

torch.set_num_threads(1)

TEXTS = sentences(80)
ORT: dict[str, Any] = {"engine": "onnxruntime", "seconds": 0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense model")
    make(folder, "sequence-classification", labels=["bad", "good", "neither"])
    return folder


def _digest(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def half(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Sparsified:
    out = tmp_path_factory.mktemp("results") / "half"
    lines: list[str] = []
    before = _digest(model)
    made = sparsec.sparsify(
        model, texts=TEXTS, output=out, sparsity=0.5, progress=lines.append, **ORT
    )
    assert _digest(model) == before
    assert any("left" in line and "pruned" in line for line in lines)
    return made


def test_a_folder_comes_out(half: Sparsified, model: Path) -> None:
    out = half.path
    assert out is not None
    names = {path.name for path in out.iterdir()}
    assert {"model.onnx", "tokenizer.json", "config.json", "report.json", "report.html"} <= names
    assert not list(out.parent.glob(".*"))
    assert half.sparsity == pytest.approx(0.5, abs=0.01)
    assert half.reached
    assert half.texts == (64, 16)
    assert all(layer.quantized for layer in half.layers)
    assert next(iter(half.agreement)) == "agreement"
    assert Sparsified.from_json(json.loads((out / "report.json").read_text())) == half
    page = (out / "report.html").read_text()
    assert page.count("<svg") >= 2
    assert "50% of the encoder" in page
    old, new = (onnx.load(folder / "model.onnx") for folder in (model, out))
    assert [old.graph.input, old.graph.output] == [new.graph.input, new.graph.output]
    assert old.opset_import == new.opset_import
    assert "agreement" in str(half)


def test_large_models_have_their_weights_beside_them(
    half: Sparsified, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes out of a model as one file is the same in two, and goes in again as two."""
    monkeypatch.setattr(export, "INLINE_LIMIT", 1000)
    given, out = tmp_path / "given", tmp_path / "out"
    shutil.copytree(model, given)
    proto = onnx.load(given / "model.onnx")
    onnx.save(proto, given / "model.onnx", save_as_external_data=True, location="weights.bin")
    for dense, folder in ((model, out), (given, tmp_path / "again")):
        sparsec.sparsify(dense, texts=TEXTS, output=folder, sparsity=0.5, **ORT)
        assert (folder / export.DATA).stat().st_size > 50_000
        assert half.path is not None
        new, old = (onnx.load(path / "model.onnx") for path in (folder, half.path))
        pairs = zip(new.graph.initializer, old.graph.initializer, strict=True)
        for a, b in pairs:
            np.testing.assert_array_equal(numpy_helper.to_array(a), numpy_helper.to_array(b))


def test_the_same_seed_gives_the_same_bytes(half: Sparsified, model: Path, tmp_path: Path) -> None:
    assert half.path is not None
    digests = [hashlib.sha256((half.path / "model.onnx").read_bytes()).hexdigest()]
    for seed in (0, 1):
        made = sparsec.sparsify(
            model, texts=TEXTS, output=tmp_path / str(seed), sparsity=0.5, seed=seed, **ORT
        )
        assert made.path is not None
        digests.append(hashlib.sha256((made.path / "model.onnx").read_bytes()).hexdigest())
    assert digests[0] == digests[1] != digests[2]


def test_stopped_at_any_moment_it_goes_on(
    half: Sparsified, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer that is done is not done again, and the result is the same."""
    out = tmp_path / "out"
    solved: list[str] = []
    real = oneshot.OneShot._solve

    def stop_at(count: int) -> None:
        def solve(self: Any, layer: Any, *rest: Any) -> Any:
            if len(solved) == count:
                raise KeyboardInterrupt
            solved.append(layer.name)
            return real(self, layer, *rest)

        monkeypatch.setattr(oneshot.OneShot, "_solve", solve)

    before = _digest(model)
    for count in (0, 3, 99):
        stop_at(count)
        if count < 99:
            with pytest.raises(KeyboardInterrupt):
                sparsec.sparsify(model, texts=TEXTS, output=out, sparsity=0.5, **ORT)
            assert not out.exists()
            assert [p.name for p in tmp_path.iterdir()] == [".out.sparsify"]
    with pytest.raises(InputError, match="earlier run with another model, other texts or options"):
        sparsec.sparsify(model, texts=TEXTS, output=out, sparsity=0.6, **ORT)
    made = sparsec.sparsify(model, texts=TEXTS, output=out, sparsity=0.5, **ORT)
    assert made.path is not None and half.path is not None
    assert len(solved) == len(set(solved)) == len(made.layers)
    assert _digest(made.path)["model.onnx"] == _digest(half.path)["model.onnx"]
    assert _digest(model) == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_below_the_gate_nothing_is_written_but_the_report(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = main(
        ["sparsify", str(model), "--texts", _file(tmp_path), "--keep", "1", "-o", str(out),
         "-t", "0", "-e", "onnxruntime", "-q", "--form", "blocks"]
    )  # fmt: skip
    found = Sparsified.from_json(json.loads((out / "report.json").read_text()))
    kept = {path.name for path in out.iterdir()} - {"report.json", "report.html"}
    assert code == (0 if found.reached else 1)
    assert bool(kept) == found.reached == (found.output is not None)


@pytest.mark.slow
@pytest.mark.optimized
def test_the_fastest_that_agrees(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = sparsec.sparsify(model, texts=TEXTS, output=out, keep=0.5, **ORT)
    assert made.reached
    assert next(iter(made.agreement.values())) >= 0.5
    assert (out / "model.onnx").exists()


def _file(folder: Path) -> str:
    path = folder / "texts.txt"
    path.write_text("\n".join(TEXTS), encoding="utf-8")
    return str(path)


def test_bytes_alone(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = ["sparsify", str(model), "--texts", _file(tmp_path), "--form", "int8"]
    arguments += ["-o", str(out), "-t", "0", "-e", "onnxruntime", "--dialect", "sparseml", "-q"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "int8: 0.0% of the encoder's 4-blocks are zero" in said
    assert "agreement of the candidate with the reference" in said
    assert main(arguments) == 8
    assert "exists; replace it with --force" in capsys.readouterr().err
    assert main([*arguments, "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dialect"] == "sparseml"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "say what is wanted"),
        ({"sparsity": 0.5, "keep": 0.9}, "give one goal, not sparsity and keep"),
        ({"sparsity": 1.0}, "sparsity must be at least 0 and below 1"),
        ({"sparsity": float("nan")}, "sparsity must be a number"),
        ({"speedup": 0.5}, "speedup must be from 1 to 100"),
        ({"keep": 1.5}, "keep must be above 0 and at most 1"),
        ({"sparsity": 0.5, "form": "rows"}, "form must be one of auto, blocks"),
        ({"sparsity": 0.5, "form": "int8"}, "form=.int8. prunes nothing"),
        ({"sparsity": 0.5, "dialect": "onnx"}, "dialect must be one of qdq, sparseml"),
        ({"sparsity": 0.5, "minutes": -1}, "minutes must be a number of at least 0"),
        ({"sparsity": 0.5, "minutes": 1, "steps": 5}, "give minutes or steps, not both"),
        ({"sparsity": 0.5, "steps": 0}, "steps must be"),
        ({"sparsity": 0.5, "target": "sse9"}, "sse9"),
        ({"sparsity": 0.5, "texts": TEXTS[:63]}, "63 texts are too few: 64 are needed"),
        ({"sparsity": 0.5, "texts": []}, "has no text: 64 or more are wanted"),
        ({"sparsity": 0.5, "max_length": 100000}, "max_length=100000 is too long"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:20],
)
def test_bad_arguments(model: Path, tmp_path: Path, given: dict[str, Any], said: str) -> None:
    arguments: dict[str, Any] = {"texts": TEXTS, "output": tmp_path / "out", **ORT, **given}
    with pytest.raises(InputError, match=said):
        sparsec.sparsify(model, **arguments)
    assert not list(tmp_path.iterdir())


def test_texts_that_are_not_utf_8(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes(b"good\n" * 70 + b"caf\xe9\n")
    with pytest.raises(InputError, match="is not UTF-8: line 71 has the byte 0xe9"):
        sparsec.sparsify(model, texts=path, output=tmp_path / "out", sparsity=0.5)


def test_models_that_are_quantized_already(half: Sparsified, tmp_path: Path) -> None:
    assert half.path is not None
    with pytest.raises(ModelError, match=r"is quantized already .qdq.: give the float model"):
        sparsec.sparsify(half.path, texts=TEXTS, output=tmp_path / "out", sparsity=0.5)


def test_dense_models_that_give_nan(tmp_path: Path) -> None:
    make(tmp_path / "dense", "sequence-classification", poison={"good": float("nan")})
    texts = ["good " + text for text in TEXTS]
    with pytest.raises(NonFiniteError, match="gives NaN or infinity in logits before anything"):
        sparsec.sparsify(tmp_path / "dense", texts=texts, output=tmp_path / "out", sparsity=0.5)


@pytest.mark.slow
def test_pruned_models_are_pruned_further(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pruned"
    shutil.copytree(model, folder)
    proto = onnx.load(folder / "model.onnx")
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.ndim == 2 and "embeddings" not in tensor.name and min(array.shape) >= 16:
            copy = np.array(array)
            copy.reshape(-1, 4)[::4] = 0
            tensor.CopyFrom(numpy_helper.from_array(copy, tensor.name))
    onnx.save(proto, folder / "model.onnx")
    made = sparsec.sparsify(folder, texts=TEXTS, output=tmp_path / "out", sparsity=0.5, **ORT)
    assert made.sparsity == pytest.approx(0.5, abs=0.01)


def test_too_little_memory_is_said_before_it_starts(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available", lambda: 1 << 20)
    with pytest.raises(InputError, match=r"GiB of memory are needed .* fewer texts .limit"):
        sparsec.sparsify(model, texts=TEXTS, output=tmp_path / "out", sparsity=0.5)
    assert not list(tmp_path.iterdir())


def test_a_full_disk(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(workspace.torch, "save", full)
    with pytest.raises(ArtifactError, match="No space left on device"):
        sparsec.sparsify(model, texts=TEXTS, output=tmp_path / "out", sparsity=0.5, **ORT)
    assert not (tmp_path / "out").exists()


def test_what_others_have_made_stays(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="was not made by sparsec sparsify"):
        sparsec.sparsify(model, texts=TEXTS, output=tmp_path, sparsity=0.5, force=True)
    assert (tmp_path / "file").read_text() == "mine"


# ---- heads and channels --------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa", "distilbert"])
@pytest.mark.parametrize("fused", [False, True], ids=["matmul", "gemm"])
def test_heads_and_channels_are_found_by_what_the_graph_does(
    tmp_path: Path, attention: Any, fused: bool
) -> None:
    config = EncoderConfig(hidden=32, heads=4, intermediate=48, attention=attention)
    form = Export(opset=20, fused=True, linear="gemm") if fused else Export()
    written = write_random(tmp_path / "model.onnx", config, export=form)
    opened = open_model(load_model(written.path))
    graph = opened.graph(opened.probe)
    layers = linear_layers(graph, opened.weights)
    found = sites(graph, layers)
    names = [layer.name for layer in layers]
    places = [(names.index(s.reader), len(s.units), s.size, len(s.makers)) for s in found]
    assert places == [(3, 4, 8, 3), (5, 48, 1, 1), (9, 4, 8, 3), (11, 48, 1, 1)]
    head = found[0].units[2]
    assert head.inputs == tuple(range(16, 24))
    assert set(head.rows.values()) == {head.inputs}
    assert set(head.rows) == set(names[:3])
    assert found[1].units[7].rows == {names[4]: (7,)}


@pytest.mark.parametrize("dialect", ["qdq", "sparseml"])
def test_heads_and_channels_go(model: Path, tmp_path: Path, dialect: str) -> None:
    made = sparsec.sparsify(
        model, texts=TEXTS, output=tmp_path / "out", sparsity=0.5, form="channels",
        dialect=dialect, **ORT,
    )  # fmt: skip
    assert made.path is not None
    assert not any("zeros in the file" in warning for warning in made.warnings)
    whole, cut = (load_model(folder) for folder in (model, made.path))
    sizes = [
        sum(int(np.prod(t.dims)) for t in m.proto.graph.initializer if len(t.dims) == 2)
        for m in (whole, cut)
    ]
    tables = sum(
        int(np.prod(t.dims)) for t in whole.proto.graph.initializer if "embeddings" in t.name
    )
    assert sizes[1] - tables < 0.65 * (sizes[0] - tables)


# ---- how much where ------------------------------------------------------------------------------


def _layers(seed: int, count: int = 4) -> list[Surveyed]:
    rng = np.random.default_rng(seed)
    ladder = (0.5, 0.75, 0.9)
    return [
        Surveyed(
            f"layer{i}", 32 * int(rng.integers(1, 4)), 64,
            {0.0: 0.0, **dict(zip(ladder, np.cumsum(rng.random(3)).tolist(), strict=True))},
        )
        for i in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_a_share_of_all_weights(seed: int) -> None:
    layers = _layers(seed)
    size = np.array([layer.outputs * layer.inputs for layer in layers])
    for wanted in (0.0, 0.3, 0.7, 0.85, 0.95):
        found = plan.by_sparsity(layers, wanted)
        share = (size * [found[layer.name] for layer in layers]).sum() / size.sum()
        assert share == pytest.approx(wanted, abs=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_a_time_is_kept_with_the_least_error(seed: int) -> None:
    import itertools

    layers = _layers(seed, 3)

    def milliseconds(n: int, k: int, density: float) -> float:
        return n * k * (0.2 + density) * 1e-3

    dense = plan.total_time(layers, {}, milliseconds)
    budget = 0.55 * dense
    found = plan.by_time(layers, budget, milliseconds)
    assert plan.total_time(layers, found, milliseconds) <= budget * 1.001
    best = min(
        sum(layer.errors[s] for layer, s in zip(layers, choice, strict=True))
        for choice in itertools.product((0.0, 0.5, 0.75, 0.9), repeat=3)
        if plan.total_time(
            layers, {a.name: s for a, s in zip(layers, choice, strict=True)}, milliseconds
        )
        <= budget
    )
    assert sum(layer.errors[found[layer.name]] for layer in layers) == pytest.approx(best, rel=1e-3)
    with pytest.raises(InputError, match="ask for less speed"):
        plan.by_time(layers, 0.01 * dense, milliseconds)


def test_a_budget_of_training_fits_the_memory_estimate(model: Path) -> None:
    from sparsec.compiler.frontend import load_model
    from sparsec.pruning.engine import TorchModel

    dense = TorchModel(load_model(model))
    assert memory.needed(dense, [], True) > memory.needed(dense, [], False) > 0
    free = memory.available()
    assert free is None or free > 0


@pytest.mark.slow
@pytest.mark.optimized
def test_a_speedup_is_measured(tmp_path: Path) -> None:
    """A model that is large enough to gain loses blocks for a speedup, which is measured: on tiles
    dense layers of this size are nearly as fast, on vectors they are not."""
    target = "avx2" if targets.AVX2 in targets.running_on(cpu.detect()) else "auto"
    from examples.encoders import EncoderConfig, write_random

    folder = tmp_path / "dense"
    make(folder, "hidden")
    config = EncoderConfig(layers=2, hidden=384, heads=6, intermediate=1536, vocab=200)
    write_random(folder / "model.onnx", config)
    found = json.loads((folder / "config.json").read_text())
    found |= {"vocab_size": 200, "max_position_embeddings": 512}
    (folder / "config.json").write_text(json.dumps(found))
    made = sparsec.sparsify(
        folder, texts=sentences(80, length=40), output=tmp_path / "out", speedup=1.3, seconds=3,
        form="blocks", target=target,
    )  # fmt: skip
    assert made.speedup is not None
    assert made.sparsity > 0.1


@pytest.mark.slow
def test_training_against_the_dense_model(model: Path, tmp_path: Path) -> None:
    made = sparsec.sparsify(
        model, texts=TEXTS, output=tmp_path / "out", sparsity=0.5, minutes=0.2, **ORT
    )
    assert made.sparsity == pytest.approx(0.5, abs=0.02)
    assert made.curve and made.steps > 0
    assert made.reached


def test_the_fastest_that_agrees_may_be_trained(model: Path, tmp_path: Path) -> None:
    """Each candidate's training is one of its own."""
    lines: list[str] = []
    made = sparsec.sparsify(
        model, texts=TEXTS, output=tmp_path / "out", keep=0.3, steps=2, form="blocks",
        progress=lines.append, **ORT,
    )  # fmt: skip
    assert made.reached and made.sparsity > 0.1 and made.steps == 2
    assert len([line for line in lines if "pruned: agreement" in line]) == job.KEEP_TRIES


@pytest.mark.parametrize("form", ["blocks", "channels"])
def test_a_training_for_a_speedup_goes_on_after_a_stop(
    form: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is measured would be another plan each time, and another training."""
    plans: list[Plan] = []

    def measured(self: Planning, planner: Planner, speedup: float) -> Plan:
        plans.append(planner.within(planner.dense / (1.2 + 0.1 * len(plans))))
        return plans[-1]

    def stopped(self: Trainer, within: int) -> None:
        raise KeyboardInterrupt

    def again(*args: object) -> None:
        raise AssertionError("this was looked at before")

    took = Latency(1.0, 1.0, 1, (8,), (1.0,))
    monkeypatch.setattr(job.Sketches, "against", lambda *args: (took, took))
    monkeypatch.setattr(Planning, "_for_speedup", measured)
    given = {"texts": TEXTS, "output": tmp_path / "out", "speedup": 1.2, "steps": 3, "form": form}
    given |= ORT
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_one", stopped)
        sparsec.sparsify(model, **given)
    monkeypatch.setattr(survey, "_look_at", again)
    monkeypatch.setattr(channels, "removal_order", again)
    made = sparsec.sparsify(model, **given)
    assert made.steps == 3 and made.sparsity > 0
    assert len(plans) == 1


@pytest.mark.parametrize(
    ("form", "steps", "gone"), [("blocks", 3000, 0.3), ("blocks", 3, 0.5), ("channels", 3000, 0.5)]
)
def test_a_training_begins_with_one_shot(
    form: str, steps: int, gone: float, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, float, float]] = []

    def look(self: Trainer) -> None:
        start = {
            name: value.detach().clone()
            for name, value in self.teacher.parameters_by_name().items()
        }
        moved = [
            float((value.detach() - start[name])[value != 0].abs().max())
            for name, value in self.student.named_values().items()
            if name in self.student.masks
        ]
        seen.append((self.student.sparsity(), self.agreement(), min(moved)))
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "train", look)
    with pytest.raises(KeyboardInterrupt):
        sparsec.sparsify(
            model, texts=TEXTS, output=tmp_path / "out", sparsity=0.5, steps=steps, form=form, **ORT
        )
    (sparsity, agreement, moved), *_ = seen
    # Channels go at once, blocks to a part where there is time.
    assert sparsity == pytest.approx(gone, abs=0.06)
    assert agreement > 0.5
    assert moved > 0  # what is left makes up for what went


@pytest.mark.parametrize(("steps", "share"), [(2999, 1.0), (3000, 0.6)])
def test_minutes_begin_as_the_steps_that_fit_into_them(
    steps: int, share: float, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so they do when it goes on: measured anew, it could be the other way."""
    fits, seen = [steps, 3001 if steps < 3000 else 1], []

    def stopped(*args: object, share: float, **more: object) -> None:
        seen.append(share)
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "steps_that_fit", lambda *args, **more: fits.pop(0))
    monkeypatch.setattr(job, "learn", stopped)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            sparsec.sparsify(
                model, texts=TEXTS, output=tmp_path / "out", sparsity=0.5, minutes=1, **ORT
            )
    assert seen == [share] * 2 and len(fits) == 1


def test_steps_that_fit_are_timed_and_teach_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, found = job.steps_that_fit, []

    def fit(dense: TorchModel, *args: Any, **more: Any) -> int:
        before = {name: weight.detach().clone() for name, weight in dense.weights.items()}
        found.append(real(dense, *args, **more))
        assert all(torch.equal(weight, before[n]) for n, weight in dense.weights.items())
        # The dense model's own weights, its table of tokens above all, take no gradients.
        assert all(weight.grad is None for weight in dense.weights.values())
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "steps_that_fit", fit)
    with pytest.raises(KeyboardInterrupt):
        sparsec.sparsify(
            model, texts=TEXTS, output=tmp_path / "out", sparsity=0.5, minutes=1, **ORT
        )
    assert found[0] > 10


def test_surveys_of_heads_and_channels_are_kept(model: Path, tmp_path: Path) -> None:
    dense = TorchModel(load_model(model))
    found = sites(dense.opened.graph(dense.opened.probe), dense.layers)
    work = workspace.Workspace(tmp_path / "out", {}, False)
    assert not work.sites(found, dense.layers)
    kept = {
        site.reader: SurveyedSite(
            site, tuple(range(len(site.units))), {len(site.units): 0.0, 1: 0.5},
            shapes_of(site, dense.layers),
        )
        for site in found[:2]
    }  # fmt: skip
    work.keep_sites(kept)
    assert work.sites(found, dense.layers) == kept


@pytest.mark.slow
def test_as_many_steps_give_the_same_bytes(model: Path, tmp_path: Path) -> None:
    written = []
    for name in ("one", "two"):
        made = sparsec.sparsify(
            model, texts=TEXTS, output=tmp_path / name, sparsity=0.5, steps=6, **ORT
        )
        assert made.steps == 6
        written.append((tmp_path / name / "model.onnx").read_bytes())
    assert written[0] == written[1]


WORDS = "embeddings.word_embeddings.weight"


def _tables(folder: Path) -> dict[str, np.ndarray]:
    proto = onnx.load(folder / "model.onnx")
    return {
        t.name: numpy_helper.to_array(t) for t in proto.graph.initializer if "embeddings" in t.name
    }


def _store_words_as_halves(path: Path) -> None:
    """words (float16) -> Gather -> Cast -> what read the Gather"""
    proto = onnx.load(path)
    for tensor in proto.graph.initializer:
        if tensor.name == WORDS:
            array = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(array, WORDS))
    nodes = list(proto.graph.node)
    (at,) = (i for i, node in enumerate(nodes) if WORDS in node.input)
    result = nodes[at].output[0]
    nodes[at].output[0] = "words_half"
    nodes.insert(at + 1, helper.make_node("Cast", ["words_half"], [result], to=TensorProto.FLOAT))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    onnx.save(proto, path)


def _share_words(path: Path) -> None:
    """words -> Transpose -> the product of the head, whose own matrix is the same"""
    proto = onnx.load(path)
    stored = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    (head,) = (
        name
        for name, array in stored.items()
        if array.shape == stored[WORDS].T.shape and np.array_equal(array, stored[WORDS].T)
    )
    for node in proto.graph.node:
        node.input[:] = ["words_turned" if name == head else name for name in node.input]
    kept = [t for t in proto.graph.initializer if t.name != head]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    turn = helper.make_node("Transpose", [WORDS], ["words_turned"], perm=[1, 0])
    proto.graph.node.insert(0, turn)
    onnx.save(proto, path)


@pytest.mark.parametrize("storage", ["fp32", "fp16"])
def test_rows_of_tables_that_were_trained_are_written(
    storage: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those, in the type in which the table is stored, and no others."""
    folder = tmp_path / "dense"
    shutil.copytree(model, folder)
    if storage == "fp16":
        _store_words_as_halves(folder / "model.onnx")
    moved: set[int] = set()
    real = RowAdam.step

    def step(self: RowAdam, rate: float) -> None:
        grad = self._tables[WORDS].grad
        assert grad is not None
        grad = grad.coalesce()
        moved.update(grad.indices()[0][grad.values().any(1)].tolist())
        real(self, rate)

    monkeypatch.setattr(RowAdam, "step", step)
    made = sparsec.sparsify(
        folder, texts=TEXTS, output=tmp_path / "out", sparsity=0.5, form="channels", steps=4, **ORT
    )
    assert made.path is not None
    old, new = _tables(folder)[WORDS], _tables(made.path)[WORDS]
    assert new.dtype == old.dtype
    assert set((new != old).any(1).nonzero()[0].tolist()) == moved
    assert 0 < len(moved) < len(old)


def test_a_table_that_a_head_shares_stays(tmp_path: Path) -> None:
    folder = tmp_path / "dense"
    make(folder, "masked-lm")
    _share_words(folder / "model.onnx")
    network = ModelNetwork(TorchModel(load_model(folder)))
    assert network.fixed == (WORDS,) and WORDS not in network.tables and network.tables
    made = sparsec.sparsify(
        folder, texts=TEXTS, output=tmp_path / "out", sparsity=0.5, form="channels", steps=2, **ORT
    )
    assert made.path is not None
    old, new = _tables(folder), _tables(made.path)
    assert np.array_equal(old.pop(WORDS), new.pop(WORDS))
    assert all((new[name] != old[name]).any() for name in network.tables)


@pytest.mark.parametrize("given", [None, "PASSIVE"])
def test_threads_wait_briefly_unless_told_otherwise(
    given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    if given:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    wait_briefly()
    assert os.environ["OMP_WAIT_POLICY"] == (given or "ACTIVE")
    assert ("GOMP_SPINCOUNT" in os.environ) == (given is None)
