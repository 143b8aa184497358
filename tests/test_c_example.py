"""examples/c/main.c: a C program runs an artifact without Python, and prints what it computes."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

import sparsec
from examples.encoders import FORMS, EncoderConfig, Export, Form, write_random
from sparsec.compiler import toolchain

SOURCE = Path(__file__).parents[1] / "examples" / "c" / "main.c"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory, artifact: Path) -> Path:
    """The example, compiled as its first lines say, with the header in the artifact."""
    output = tmp_path_factory.mktemp("program") / "main"
    command = [*toolchain.find().command, "-O2", "-Wall", "-Wextra", "-Werror", f"-I{artifact}"]
    done = subprocess.run(
        [*command, str(SOURCE), "-o", str(output), "-ldl"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="module", params=FORMS)
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with 2050 words, so that the example's ids exist, for 16 tokens."""
    form: Form = request.param
    folder = tmp_path_factory.mktemp("example")
    config = EncoderConfig(layers=1, hidden=32, heads=2, intermediate=64, vocab=2050)
    model = write_random(folder / "model.onnx", config, form, Export(), seed=1, sparsity=0.5)
    return sparsec.compile(model.path, buckets=[16]).path


def test_prints_what_engine_computes(program: Path, artifact: Path) -> None:
    done = subprocess.run(
        [str(program), str(artifact / "bucket_16.so")], check=True, capture_output=True, text=True
    )
    found = re.fullmatch(
        r"model on (\w+), 16 tokens, last_hidden_state:((?: -?\d+\.\d+)+)\n", done.stdout
    )
    assert found, done.stdout
    ids = np.arange(2022, 2022 + 16)[None]
    ids[0, 0], ids[0, -1] = 101, 102
    with sparsec.Engine(artifact, num_cores=1) as engine:
        (hidden,) = engine.run([ids, np.ones_like(ids), np.zeros_like(ids)])
        assert found[1] == engine.artifact.manifest.target.name
    printed = [float(x) for x in found[2].split()]
    np.testing.assert_allclose(printed, hidden.reshape(-1)[: len(printed)], rtol=0, atol=5.1e-6)


def test_says_which_id_is_outside(program: Path, tmp_path: Path) -> None:
    config = EncoderConfig(layers=1, hidden=32, heads=2, intermediate=64, vocab=2025)
    model = write_random(tmp_path / "model.onnx", config, "fp32", Export(), seed=1, sparsity=0.5)
    library = sparsec.compile(model.path, buckets=[16]).path / "bucket_16.so"
    done = subprocess.run([str(program), str(library)], capture_output=True, text=True)
    assert done.returncode == 1
    assert re.fullmatch(
        r'input 0 has 2025 at element 3, outside the table "\S*word\S*" of 2025\n', done.stderr
    )


def test_says_what_is_wrong(program: Path, tmp_path: Path) -> None:
    for arguments in ([], [str(tmp_path / "missing.so")]):
        done = subprocess.run([str(program), *arguments], capture_output=True, text=True)
        assert done.returncode == 1
        assert "usage" in done.stderr or "missing.so" in done.stderr
