"""Denormal numbers are 0 in compiled code; the caller's floating-point mode stays as it is."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import numpy as np
import pytest

import sparsec
from sparsec.compiler import toolchain
from sparsec.runtime import cpu
from tests.frontend_support import FLOAT, model_proto, node

ROOT = Path(__file__).parents[1]
WIDTH = BATCH = 256  # enough for two threads

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="only x86 has MXCSR"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The square roots of what a layer passes on unchanged."""
    path = tmp_path_factory.mktemp("roots") / "model.onnx"
    nodes = [node("MatMul", "x w", "same"), node("Sqrt", "same", "y")]
    sides = [("x", FLOAT, ["batch", WIDTH])], [("y", FLOAT, ["batch", WIDTH])]
    proto = model_proto(nodes, *sides, {"w": np.eye(WIDTH, dtype=np.float32)})
    path.write_bytes(proto.SerializeToString())
    return path


def roots(x: np.ndarray) -> np.ndarray:
    """What the model computes, float32, where denormal numbers are 0."""
    return np.sqrt(np.where(np.abs(x) < np.finfo(np.float32).tiny, np.float32(0), x))


@pytest.mark.parametrize("target", sorted({cpu.detect().targets()[0], "generic"}))
def test_callers_keep_their_mode(model: Path, tmp_path: Path, target: str) -> None:
    """On both of a caller's own threads, and results depend on none of that."""
    program = tmp_path / "float_mode"
    done = subprocess.run(
        [
            *(*toolchain.find().command, "-O1", "-Wall", "-Wextra", "-Werror"),
            *(f"-I{ROOT / 'templates'}", str(ROOT / "tests" / "float_mode.c")),
            *("-o", str(program), "-ldl", "-lpthread"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    made = sparsec.compile(model, output=tmp_path / "a.sparsec", target=target).path
    (library,) = made.glob("bucket_*.so")
    done = subprocess.run([str(program), str(library)], capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr)
    place = np.arange(BATCH * WIDTH, dtype=np.uint64)
    bits = np.where(place % 4, 0x3F800000 + 1000003 * place % 0x800000, 0x7FFFFF - place)
    x = bits.astype(np.uint32).view(np.float32)
    have = np.array([int(line, 16) for line in done.stdout.split()], np.uint32).view(np.float32)
    np.testing.assert_array_equal(have, roots(x))


def test_engine_keeps_numpys_mode(model: Path, tmp_path: Path) -> None:
    """Also where the pool's threads work; what numpy computes afterwards is as before."""
    made = sparsec.compile(model, output=tmp_path / "a.sparsec", target="generic").path
    x = np.resize(np.float32([1e-39, 2.0, 3e-45, 0.5]), (64, WIDTH))
    for cores in (1, 2):
        with sparsec.Engine(made, num_cores=cores) as engine:
            np.testing.assert_array_equal(engine.run([x])[0], roots(x))
        assert np.sqrt(x).min() > 0
