"""Compiled models against ONNX Runtime on the same file: every form, target, length and mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import sparsec
from examples.encoders import EncoderConfig, Export, random_batch, write_random
from sparsec.compiler.targets import TARGETS
from sparsec.runtime import cpu

CONFIG = EncoderConfig(
    layers=2, hidden=64, heads=4, intermediate=256, vocab=120, max_position=64, head="hidden"
)
#: Largest difference to ONNX Runtime, relative to the largest output.  Float forms differ by rounding
#: only.  Quantized forms have exact accumulators, but a float that rounds differently just before a
#: QuantizeLinear moves that value by one step of its scale, so the bound is a few steps.
BOUND = {"fp32": 1e-5, "sparseml": 2e-2, "qdq": 2e-2}
#: Mean difference over all outputs, relative to the largest: what one odd step cannot hide.
MEAN_BOUND = {"fp32": 1e-6, "sparseml": 2e-3, "qdq": 2e-3}
LENGTHS = (1, 2, 5, 15, 16, 17, 31, 32)


def runnable_targets() -> list[Any]:
    info = cpu.detect()
    return [
        pytest.param(
            t.name,
            marks=[]
            if t.runs_on(info.arch, info.features)
            else pytest.mark.skip(reason=f"this CPU lacks {', '.join(t.missing(info.features))}"),
        )
        for t in TARGETS
    ]


def feeds(names: list[str], batch: int, length: int, ragged: bool, seed: int) -> list[np.ndarray]:
    """Inputs in the model's order; masks cover the whole row, or a random prefix of it."""
    made = random_batch(CONFIG, batch, length, seed, ragged)
    return [made[("input_ids", "attention_mask", "token_type_ids").index(n)] for n in names]


def reference(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def compare(engine: sparsec.Engine, session: ort.InferenceSession, form: str, seed: int) -> None:
    names = [i.name for i in session.get_inputs()]
    assert engine.input_names == names
    for length in LENGTHS:
        for batch in (1, 3, 17) if length in (5, 17) else (2,):
            for ragged in (False, True):
                inputs = feeds(names, batch, length, ragged, seed)
                expected = session.run(None, dict(zip(names, inputs, strict=True)))
                got = engine.run(inputs)
                for want, have in zip(expected, got, strict=True):
                    assert have.shape == want.shape and have.dtype == want.dtype
                    error = np.abs(have - want) / np.abs(want).max()
                    where = f"{form}, batch {batch}, length {length}, ragged {ragged}"
                    assert error.max() < BOUND[form], f"{where}: {error.max()}"
                    assert error.mean() < MEAN_BOUND[form], f"{where}: mean {error.mean()}"


@pytest.mark.parametrize("form", ["fp32", "sparseml", "qdq"])
@pytest.mark.parametrize("target", runnable_targets())
def test_agrees_with_onnxruntime(tmp_path: Path, form: str, target: str) -> None:
    path = tmp_path / "model.onnx"
    write_random(path, CONFIG, form, seed=3, sparsity=0.7)
    artifact = sparsec.compile(path, buckets=[16, 32], target=target)
    with sparsec.Engine(artifact.path, num_cores=2) as engine:
        compare(engine, reference(path), form, seed=11)
