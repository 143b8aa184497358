"""Compiled models against ONNX Runtime on the same file: form, target, option, length and mask."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import sparsec
from examples.encoders import FORMS, EncoderConfig, Export, Form, Model, write_random
from examples.encoders.reference import LOWEST
from sparsec.runtime import cpu
from sparsec.targets import TARGETS
from tests.ort_reference import session as reference

BASE: Mapping[str, Any] = MappingProxyType(
    {"layers": 2, "hidden": 64, "heads": 4, "intermediate": 256, "vocab": 120, "max_position": 64}
)


@dataclass(frozen=True)
class Bound:
    """What two correct implementations may differ by, relative to the largest output.

    Attributes:
        high: the largest difference in any batch.
        mean: the largest of the batches' mean differences.
        typical: what the largest difference of a quarter of the batches is at most.
    """

    high: float
    mean: float
    typical: float


#: Float forms differ by the rounding of sums only.  In quantized forms integers are exact, but a
#: float that comes out one bit apart just before a QuantizeLinear can round to the next step, and
#: everything after it sees that step; so a few batches are off by steps, and the others agree like
#: floats do: it is `typical` that a defect cannot pass.  How many batches are off depends on the
#: kernels that ONNX Runtime has for the CPU: to a third with AVX-512, to two thirds with AVX2.
#:
#: Measured over CASES, 1 to 32 tokens and batch sizes 1, 2, 3, 17 (the largest of all cases):
#:
#:     form      target        high     mean     typical
#:     fp32      avx512_vnni   1.3e-6   8.7e-7   6.3e-7
#:     fp32      avx2          1.7e-6   1.2e-6   7.7e-7
#:     fp32      generic       2.6e-6   1.5e-6   4.7e-7
#:     sparseml  avx512_vnni   2.8e-2   2.7e-3   2.3e-7
#:     sparseml  avx2          2.8e-2   3.5e-3   2.5e-7
#:     sparseml  generic       2.3e-2   2.7e-3   2.3e-7
#:     qdq       avx512_vnni   1.7e-2   9.6e-4   4.2e-7
#:     qdq       avx2          2.2e-2   9.6e-4   4.2e-7
#:     qdq       generic       1.7e-2   8.0e-4   4.4e-7
#:
#: fp32 is worst where few small outputs are left of long sums: in the classification heads.
#:
#: The reference is ONNX Runtime with its optimizations off, which computes what the file says.
#: With all of them on it is as close in most forms, but Gemm between quantizers becomes a QGemm
#: whose bias is rounded to int32: *every* batch is then 2e-2 away from what it computes without.
BOUNDS = {
    "fp32": Bound(high=5e-6, mean=3e-6, typical=1.5e-6),
    "sparseml": Bound(high=5e-2, mean=7e-3, typical=1e-6),
    "qdq": Bound(high=5e-2, mean=5e-3, typical=1e-6),
}


@dataclass(frozen=True)
class Case:
    """One model: what differs from the base configuration."""

    name: str
    forms: tuple[Form, ...] = FORMS
    config: Mapping[str, Any] = field(default_factory=dict)
    export: Mapping[str, Any] = field(default_factory=dict)
    quantization: Mapping[str, Any] = field(default_factory=dict)
    sparsity: float = 0.7
    block: int = 4
    spread: float = 0.0

    def write(self, path: Path, form: Form) -> Model:
        return write_random(
            path,
            EncoderConfig(**{**BASE, **self.config}),
            form,
            Export(**self.export),
            seed=3,
            sparsity=self.sparsity,
            block=self.block,
            spread=self.spread,
            **({} if form == "fp32" else self.quantization),
        )


QUANTIZED: tuple[Form, ...] = ("sparseml", "qdq")

#: The first form of each is tested always, the others by `make test-slow`.
CASES = (
    Case("pooler", ("sparseml", "fp32", "qdq"), {"head": "pooler"}),
    Case("tokens", ("qdq", "fp32", "sparseml"), {"head": "token-classification"}),
    Case("answers", ("sparseml", "fp32", "qdq"), {"head": "question-answering"}),
    Case("sequences", ("fp32", "sparseml", "qdq"), {"head": "sequence-classification"}),
    Case("sdpa", ("sparseml", "fp32", "qdq"), {"attention": "sdpa"}),
    Case("sdpa-float", ("fp32",), {"attention": "sdpa", "layers": 1}),
    Case("distilbert", ("qdq", "fp32", "sparseml"), {"attention": "distilbert", "type_vocab": 0}),
    Case("lowest-mask", ("fp32", "sparseml", "qdq"), {"mask_value": LOWEST}),
    Case("opset-11", ("sparseml", "fp32"), export={"opset": 11}),
    Case("opset-17", ("sparseml", "fp32", "qdq"), export={"opset": 17, "fused": True}),
    Case("opset-20", ("qdq", "fp32", "sparseml"), export={"opset": 20, "fused": True}),
    Case("opset-21", ("fp32", "qdq"), export={"opset": 21}),
    Case("per-channel", QUANTIZED, quantization={"per_channel": True}),
    Case("per-channel-qdq", ("qdq",), {"layers": 1}, quantization={"per_channel": True}),
    Case("s8", ("qdq",), quantization={"activation": "s8"}),
    Case("gemm", ("qdq", "fp32"), export={"linear": "gemm"}),
    Case(
        "gemm-per-channel-s8",
        ("qdq",),
        export={"linear": "gemm"},
        quantization={"per_channel": True, "activation": "s8"},
    ),
    Case("float-attention", QUANTIZED, quantization={"attention": False}),
    Case("qlinear-attention", ("sparseml",), export={"matmul_attention": "qlinear"}),
    Case("own-quantizers", ("sparseml",), export={"share_inputs": False}),
    Case("int32-bias", ("qdq",), quantization={"integer_bias": True}),
    Case("float-bias", ("sparseml",), quantization={"integer_bias": False}),
    Case("weight-quantizers", ("qdq",), export={"quantize_weight_nodes": True}),
    Case("fixed-length", ("sparseml", "fp32", "qdq"), export={"length": 24}),
    Case("fixed-shape", ("fp32", "sparseml", "qdq"), export={"length": 24, "fixed_batch": 1}),
    Case("no-types-input", ("qdq", "fp32", "sparseml"), export={"token_type_input": False}),
    Case("no-types", ("sparseml", "fp32", "qdq"), {"type_vocab": 0}),
    Case("external-data", ("fp32", "sparseml", "qdq"), export={"external_data": True}),
    Case("odd-width", ("sparseml", "fp32", "qdq"), {"hidden": 40, "heads": 5, "intermediate": 100}),
    Case("no-quads", ("qdq", "fp32", "sparseml"), {"hidden": 30, "heads": 3, "intermediate": 55}),
    Case("no-quads-float", ("fp32",), {"hidden": 30, "heads": 3, "intermediate": 55}),
    Case("head-64", ("sparseml", "fp32", "qdq"), {"hidden": 128, "heads": 2}),
    Case("head-80", ("qdq", "fp32", "sparseml"), {"hidden": 160, "heads": 2}),
    Case("unstructured", ("sparseml", "fp32", "qdq"), sparsity=0.8, block=1),
    Case("unstructured-float", ("fp32",), sparsity=0.9, block=1),
    Case("uneven", QUANTIZED, sparsity=0.9, block=1, spread=0.5),
    Case("uneven-float-attention", ("qdq",), {}, {}, {"attention": False}, 0.9, 1, 0.5),
    Case("dense", ("qdq", "fp32", "sparseml"), sparsity=0.0),
    Case("sparse-95", ("sparseml", "fp32", "qdq"), sparsity=0.95),
    Case("one-layer", ("sparseml", "fp32", "qdq"), {"layers": 1}),
    Case("three-layers", ("qdq", "fp32", "sparseml"), {"layers": 3}),
)

LENGTHS = (1, 2, 5, 15, 16, 17, 31, 32)


def runnable() -> list[str]:
    info = cpu.detect()
    return [t.name for t in TARGETS if t.runs_on(info.arch, info.features)]


def targets() -> list[Any]:
    """Every target as a parameter, skipped with a reason where it cannot run."""
    able, features = runnable(), cpu.detect().features
    return [
        pytest.param(
            t.name,
            marks=[]
            if t.name in able
            else pytest.mark.skip(reason=f"this CPU lacks {', '.join(t.missing(features))}"),
        )
        for t in TARGETS
    ]


def batches(model: Model, lengths: tuple[int, ...]) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Inputs of every length: whole rows, and padded ones; batch sizes 1, 3 and 17."""
    for i, length in enumerate(lengths):
        for batch in (1, 3, 17) if i % 3 == 2 else (2,):
            for ragged in (False, True):
                yield (
                    f"batch {batch}, length {length}, {'ragged' if ragged else 'full'}",
                    model.batch(batch, length, seed=11, ragged=ragged),
                )


def difference(want: list[np.ndarray], have: list[np.ndarray]) -> tuple[float, float]:
    """(largest, mean) difference of two lists of outputs, each relative to its largest number."""
    high, mean = 0.0, 0.0
    assert len(want) == len(have)
    for w, h in zip(want, have, strict=True):
        assert h.shape == w.shape and h.dtype == w.dtype
        error = np.abs(h - w) / np.abs(w).max()
        high, mean = max(high, float(error.max())), max(mean, float(error.mean()))
    return high, mean


class Comparison:
    """Differences over many batches, and where the largest was."""

    def __init__(self) -> None:
        self.highs: list[float] = []
        self.means: list[float] = []
        self.where: list[str] = []

    def add(self, where: str, want: list[np.ndarray], have: list[np.ndarray]) -> None:
        high, mean = difference(want, have)
        self.highs.append(high)
        self.means.append(mean)
        self.where.append(where)

    def check(self, bound: Bound) -> None:
        worst = self.where[int(np.argmax(self.highs))]
        assert max(self.highs) <= bound.high, worst
        assert max(self.means) <= bound.mean, self.where[int(np.argmax(self.means))]
        best = sorted(self.highs)[len(self.highs) // 4]
        assert best <= bound.typical, f"three quarters of the batches, worst {worst}"


def expect(session: ort.InferenceSession, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """ONNX Runtime's outputs; a model of fixed batch size 1 is run once for each sequence."""
    names = [i.name for i in session.get_inputs()]
    if session.get_inputs()[0].shape[0] != 1:
        return list(session.run(None, dict(zip(names, inputs, strict=True))))
    runs = [
        session.run(None, {n: x[i : i + 1] for n, x in zip(names, inputs, strict=True)})
        for i in range(len(inputs[0]))
    ]
    return [np.concatenate(parts) for parts in zip(*runs, strict=True)]


def compare_case(folder: Path, case: Case, form: Form, target: str) -> Comparison:
    model = case.write(folder / "model.onnx", form)
    fixed = case.export.get("length")
    artifact = sparsec.compile(model.path, buckets=[fixed or 32], target=target)
    session = reference(model.path)
    comparison = Comparison()
    with sparsec.Engine(artifact.path, num_cores=2) as engine:
        assert engine.input_names == [i.name for i in session.get_inputs()]
        assert engine.output_names == [o.name for o in session.get_outputs()]
        for where, inputs in batches(model, (fixed,) if fixed else (1, 6, 17, 31, 32)):
            comparison.add(where, expect(session, inputs), engine.run(inputs))
    return comparison


@pytest.mark.optimized
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_option(tmp_path: Path, case: Case) -> None:
    """Every option in one form, for the best target of this machine."""
    compare_case(tmp_path, case, case.forms[0], runnable()[0]).check(BOUNDS[case.forms[0]])


@pytest.mark.slow
@pytest.mark.parametrize("target", targets())
@pytest.mark.parametrize(
    ("case", "form"),
    [pytest.param(c, f, id=f"{c.name}-{f}") for c in CASES for f in c.forms],
)
def test_option_everywhere(tmp_path: Path, case: Case, form: Form, target: str) -> None:
    if form == case.forms[0] and target == runnable()[0]:
        pytest.skip("test_option has it")
    compare_case(tmp_path, case, form, target).check(BOUNDS[form])


@pytest.mark.optimized
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("target", targets())
def test_base_model(tmp_path: Path, form: Form, target: str) -> None:
    """The base model in every form for every target, with two buckets."""
    model = Case("base").write(tmp_path / "model.onnx", form)
    artifact = sparsec.compile(model.path, buckets=[16, 32], target=target)
    with sparsec.Engine(artifact.path, num_cores=2) as engine:
        for optimize in (False, True):
            check_lengths(model, engine, reference(model.path, optimize), BOUNDS[form])
        check_masks_with_holes(model, engine, reference(model.path), BOUNDS[form])
        check_skipped_padding(model, engine, BOUNDS[form])


def check_lengths(
    model: Model, engine: sparsec.Engine, session: ort.InferenceSession, bound: Bound
) -> None:
    """All lengths, batch sizes and prefix masks."""
    comparison = Comparison()
    for where, inputs in batches(model, LENGTHS):
        comparison.add(where, expect(session, inputs), engine.run(inputs))
    comparison.check(bound)


def check_masks_with_holes(
    model: Model, engine: sparsec.Engine, session: ort.InferenceSession, bound: Bound
) -> None:
    """Masks that are no prefix: padding on the left, holes, one token, nothing at all."""
    comparison, nothing = Comparison(), Comparison()
    rng = np.random.default_rng(0)
    for length in (6, 16, 23):
        ids, mask, types = model.batch(5, length, seed=5, ragged=False)
        mask[0, : length // 2] = 0
        mask[1] = rng.integers(0, 2, length)
        mask[2] = np.arange(length) == length - 1
        mask[4] = 0
        for row in range(5):
            inputs = [ids[row : row + 1], mask[row : row + 1], types[row : row + 1]]
            want = expect(session, inputs)
            into = nothing if row == 4 else comparison
            into.add(f"row {row}, length {length}", want, engine.run(inputs))
        inputs = [ids, mask, types]
        want, have = expect(session, inputs), engine.run(inputs)
        comparison.add(f"length {length}", [w[:4] for w in want], [h[:4] for h in have])
        nothing.add(f"length {length}", [w[4:] for w in want], [h[4:] for h in have])
    comparison.check(bound)
    # -10000 at every position: scores are rounded to multiples of 0.001, in either direction.
    nothing.check(Bound(max(bound.high, 1e-3), max(bound.mean, 1e-4), 5e-2))


def check_skipped_padding(model: Model, engine: sparsec.Engine, bound: Bound) -> None:
    """Without padding, real tokens come out the same and the others are 0.  (A mask without any
    real token counts as one without padding.)"""
    comparison = Comparison()
    for where, inputs in batches(model, LENGTHS):
        real = inputs[1] == 1
        (whole,) = engine.run(inputs)
        (skipped,) = engine.run(inputs, skip_padding=True)
        assert not skipped[~real].any(), where
        comparison.add(where, [whole[real]], [skipped[real]])
    inputs = model.batch(3, 16, seed=8, ragged=False)
    inputs[1][1] = 0
    whole, skipped = engine.run(inputs), engine.run(inputs, skip_padding=True)
    comparison.add("no real token", whole, skipped)
    comparison.check(bound)


@pytest.mark.optimized
@pytest.mark.parametrize("head", ["pooler", "sequence-classification", "question-answering"])
def test_skipped_padding_before_a_head(tmp_path: Path, head: str) -> None:
    """Heads that read one token, or come after row-major code, see the same tokens."""
    model = Case(head, config={"head": head}).write(tmp_path / "model.onnx", "fp32")
    artifact = sparsec.compile(model.path, buckets=[32], target=runnable()[0])
    with sparsec.Engine(artifact.path, num_cores=2) as engine:
        for where, inputs in batches(model, (1, 6, 31)):
            real = inputs[1] == 1
            whole = engine.run(inputs)
            skipped = engine.run(inputs, skip_padding=True)
            for name, w, s in zip(engine.output_names, whole, skipped, strict=True):
                if w.shape[:2] == real.shape:
                    assert not s[~real].any(), f"{name}: {where}"
                    w, s = w[real], s[real]
                assert difference([w], [s])[0] <= BOUNDS["fp32"].high, f"{name}: {where}"


def test_dialects_of_the_same_weights_run_on_the_same_kernels(tmp_path: Path) -> None:
    """What matters is the layer, not how an exporter wrote it down."""
    layers = {}
    for form in QUANTIZED:
        model = Case(form, quantization={"integer_bias": True}).write(
            tmp_path / f"{form}.onnx", form
        )
        artifact = sparsec.compile(model.path, buckets=[16], target="generic")
        layers[form] = [replace(row, name="") for row in artifact.manifest.layers]
    assert len(layers["qdq"]) == 12
    assert {row.op for row in layers["qdq"]} == {"qlinear"}
    assert layers["qdq"] == layers["sparseml"]
