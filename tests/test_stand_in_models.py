"""Whole models on 64-byte vectors and on tiles, against ONNX Runtime.

On emulated instructions where this CPU lacks them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import sparsec
from examples.encoders import EncoderConfig, Export, Form, Model, write_random
from sparsec.compiler import toolchain
from tests import stand_ins
from tests.ort_reference import session
from tests.test_zoo import Encoder
from tests.zoo.dialects import DIALECTS

#: A layer of MiniLM, but for a mask that quantized scores survive.
CONFIG = EncoderConfig(
    layers=1, hidden=384, heads=12, intermediate=1536, vocab=200, max_position=128, mask_value=-12.0
)

#: Batch sizes and lengths: few rows, whole vectors, one more, and a bucket's length.
RUNS = ((1, 1), (1, 16), (3, 17), (1, 33), (2, 128))


@dataclass(frozen=True)
class Made:
    """A model and the float model that it was made from."""

    model: Model
    path: Path


def floats(folder: Path, sparsity: float) -> Model:
    path = folder / "floats.onnx"
    return write_random(path, CONFIG, "fp32", Export(), seed=3, sparsity=sparsity)


def encoder(folder: Path, form: Form, sparsity: float) -> Made:
    """Weights and activations in bytes."""
    made = write_random(folder / "made.onnx", CONFIG, form, Export(), seed=3, sparsity=sparsity)
    return Made(floats(folder, sparsity), made.path)


def alone(model: Model) -> Made:
    return Made(model, model.path)


def dialect(folder: Path, name: str, sparsity: float) -> Made:
    """What a producer's tools make of the float model."""
    pytest.importorskip("onnxruntime.quantization", reason="onnxruntime's quantizer needs more")
    source = floats(folder, sparsity)
    path = folder / "made.onnx"
    DIALECTS[name](source.path, path, Encoder(source, CONFIG.heads, CONFIG.hidden), 16)
    return Made(source, path)


MODELS: dict[str, Callable[[Path], Made]] = {
    "fp32": lambda folder: alone(floats(folder, 0.0)),
    "fp32, 80 %": lambda folder: alone(floats(folder, 0.8)),
    "int8": lambda folder: encoder(folder, "sparseml", 0.0),
    "int8, 80 %": lambda folder: encoder(folder, "sparseml", 0.8),
    "int8 QDQ, 90 %": lambda folder: encoder(folder, "qdq", 0.9),
    "every op quantized": lambda folder: dialect(folder, "qdq-u8s8", 0.5),
    "every op quantized, signed": lambda folder: dialect(folder, "qdq-s8s8-channel", 0.5),
    "integer operators": lambda folder: dialect(folder, "qoperator-u8u8", 0.5),
    "dynamic": lambda folder: dialect(folder, "dynamic-channel", 0.0),
    "dynamic, fused": lambda folder: dialect(folder, "fused-dynamic", 0.7),
    "weights of bytes": lambda folder: dialect(folder, "qdq-float-weights", 0.0),
}


#: Those that run on tiles, too; and those with a bucket of 128 tokens beside that of 33.
ON_TILES = ("int8, 80 %", "every op quantized", "dynamic")
LONG = ("int8, 80 %", "fp32")


def needs(name: str) -> pytest.MarkDecorator:
    """Skips a test of a target where even what stands in for it cannot run."""
    row = stand_ins.HERE[name]
    return pytest.mark.skipif(not stand_ins.runs(row), reason="this CPU lacks AVX2")


CASES = [
    pytest.param(name, target, marks=needs(target), id=f"{name}-{target}")
    for target in ("avx512_vnni", "amx")
    for name in MODELS
    if target != "amx" or name in ON_TILES
]


def compile_here(
    path: Path, folder: Path, target: str, lengths: list[int], precision: str = "fp32"
) -> sparsec.Artifact:
    """For the stand-in; what is emulated takes the compiler long."""
    with mock.patch.object(toolchain, "COMPILE", (*toolchain.COMPILE, "-O1")):
        return sparsec.compile(
            path,
            buckets=lengths,
            target=target,
            precision=precision,
            output=folder / f"{target}.sparsec",
        )


def relative(have: list[np.ndarray], want: list[np.ndarray]) -> float:
    """Root mean square of the difference, over that of what is wanted."""
    worst = 0.0
    for a, b in zip(have, want, strict=True):
        assert a.shape == b.shape and np.isfinite(a).all()
        worst = max(worst, float(np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2))))
    return worst


def runs(made: Made, longest: int) -> Iterator[tuple[list[np.ndarray], list[np.ndarray], float]]:
    """Inputs, what ONNX Runtime makes of them, and how far that is from the float model."""
    reference, source = session(made.path), session(made.model.path)
    names = [i.name for i in reference.get_inputs()]
    for batch, length in RUNS:
        for ragged in (False, True) if length <= longest else ():
            inputs = made.model.batch(batch, length, seed=length, ragged=ragged)
            feed = dict(zip(names, inputs, strict=True))
            want = list(reference.run(None, feed))
            yield inputs, want, relative(list(source.run(None, feed)), want)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "target"), CASES)
def test_models_agree_with_onnx_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, target: str
) -> None:
    """Up to the rounding of sums; a byte between two quantizations may round the other way, which
    costs a part of what quantization costs, but not in all runs."""
    made = MODELS[name](tmp_path)
    stand_ins.install(monkeypatch)
    lengths = [33, 128] if name in LONG else [33]
    artifact = compile_here(made.path, tmp_path, target, lengths)
    engines = [sparsec.Engine(artifact.path, num_cores=cores) for cores in (1, 2)]
    errors = []
    for inputs, want, noise in runs(made, lengths[-1]):
        one, two = (engine.run(inputs) for engine in engines)
        for x, y in zip(one, two, strict=True):
            np.testing.assert_array_equal(x, y)
        errors.append(relative(one, want))
        assert errors[-1] <= max(2e-5, noise), inputs[0].shape
    assert min(errors) <= 2e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "target", [pytest.param(t, marks=needs(t)) for t in ("avx512_vnni", "amx")]
)
def test_bf16_is_near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    """Within what 8 bits of significand cost, and not nearer."""
    made = MODELS["fp32"](tmp_path)
    stand_ins.install(monkeypatch)
    artifact = compile_here(made.path, tmp_path, target, [33], "bf16")
    with sparsec.Engine(artifact.path) as engine:
        for inputs, want, _ in runs(made, 33):
            assert 1e-4 < relative(engine.run(inputs), want) < 2e-2
