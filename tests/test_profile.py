"""``--profile``: counters compiled in on request, and read back as a table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import sparsec
from examples.encoders import EncoderConfig, write_random
from sparsec.cli import main
from sparsec.cli.profile import Counters
from sparsec.errors import InputError

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
    assert counters.core.clock > 1e8


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
