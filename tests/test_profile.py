"""``--profile``: counters compiled in on request, and read back as a table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import sparsec
from examples.encoders import EncoderConfig, write_random
from sparsec.cli import main
from sparsec.cli.profile import Counters
from sparsec.errors import InputError
from tests.frontend_support import FLOAT, model_proto, node

CONFIG = EncoderConfig(layers=1, hidden=32, heads=2, intermediate=64, vocab=50, max_position=32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profile") / "model.onnx"
    write_random(path, CONFIG, "sparseml", sparsity=0.5)
    return path


def test_counts_every_kernel_call(model: Path, tmp_path: Path) -> None:
    artifact = sparsec.compile(model, buckets=[16], output=tmp_path / "p.sparsec", profile=True)
    with sparsec.Engine(artifact) as engine:
        counters = Counters(engine, 16)
        inputs = sparsec.generate_random_inputs(artifact, batch_size=2, length=16)
        counters.reset()
        assert all(row.milliseconds == 0 for row in counters.rows(2))
        for _ in range(20):
            engine.run(inputs)
        rows = counters.rows(2)
    assert len(rows) == len(artifact.manifest.buckets[0].kernels)
    linear = [row for row in rows if row.kernel.startswith("linear_i8")]
    assert len(linear) == 6
    for row in linear:
        assert row.milliseconds > 0 and row.rate is not None and row.limit is not None
        assert 0 < row.limit < 1.5  # a share of what the core was measured to reach
    core = counters.core
    # No core is this fast, and none does more than two vectors of 16 lanes a cycle.
    assert 3e8 < core.clock < 7e9
    assert core.dot4 / core.clock < 2.5 and core.fma / core.clock < 2.5


def test_models_without_a_sequence_axis(tmp_path: Path) -> None:
    """What is counted are rows of the batch, whatever they stand for."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((128, 64)).astype(np.float32),
        "k": rng.standard_normal((8, 128, 3)).astype(np.float32),
    }
    nodes = [
        node("Conv", "image k", "seen"),  # [batch, 8, 16]
        node("Flatten", "seen", "flat"),
        node("MatMul", "flat w", "y"),
    ]
    image = ("image", FLOAT, ["batch", 128, 18])
    path = tmp_path / "model.onnx"
    onnx.save(model_proto(nodes, [image], [("y", FLOAT, ["batch", 64])], weights), path)
    artifact = sparsec.compile(path, output=tmp_path / "p.sparsec", profile=True)
    assert artifact.buckets == (0,)
    with sparsec.Engine(artifact, num_cores=1) as engine:
        counters = Counters(engine, 0)
        for _ in range(20):
            engine.run([np.ones((32, 128, 18), np.float32)])
        counted = [row for row in counters.rows(32) if row.rate is not None]
    done = {row.kernel: row.rate * row.milliseconds / 1e3 for row in counted if row.rate}
    (conv,) = (n for kernel, n in done.items() if kernel == "general_conv")
    (linear,) = (n for kernel, n in done.items() if kernel.startswith("linear_f32"))
    assert conv == pytest.approx(32 * 8 * 16 * 128 * 3 / 16)
    assert linear == pytest.approx(128 * 64 * 32 / 16)
    assert all(row.limit is not None and 0 < row.limit < 1.5 for row in counted)


def test_an_artifact_without_counters_says_so(model: Path, tmp_path: Path) -> None:
    artifact = sparsec.compile(model, buckets=[16], output=tmp_path / "plain.sparsec")
    with sparsec.Engine(artifact) as engine, pytest.raises(InputError, match="--profile"):
        Counters(engine, 16)


def test_benchmark_prints_the_table(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    command = ["benchmark", str(model), "-s", "sync", "-i", "[1,16]", "-t", "0.1", "-w", "0"]
    assert main([*command, "--profile", "-x", str(out)]) == 0
    text = capsys.readouterr().out
    assert "MAC/cycle" in text and "/encoder/layer.0/intermediate" in text
    rows = json.loads(out.read_text())["profile"]
    assert {"name", "kernel", "shape", "sparsity", "milliseconds", "limit"} <= rows[0].keys()
    assert main([*command[:3], "async", *command[4:], "--profile"]) == InputError.exit_code
