"""Whole encoders in every form: imported and interpreted, they are what ONNX Runtime computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from examples.encoders import HEADS, EncoderConfig, Export, write_random
from sparsec.compiler.frontend import dialect_name, load_model, signature
from tests.frontend_support import check, ops

SIZE: dict[str, Any] = {"hidden": 32, "intermediate": 48, "heads": 4, "vocab": 100, "layers": 1}

CASES = [
    *[(form, {"head": head}, {}, {}) for form in ("fp32", "sparseml", "qdq") for head in HEADS],
    *[
        (form, {"attention": attention, "type_vocab": types}, {}, {})
        for form in ("fp32", "sparseml", "qdq")
        for attention, types in (("sdpa", 2), ("distilbert", 0))
    ],
    *[
        (form, {}, {"opset": opset, "fused": fused}, {})
        for form in ("fp32", "sparseml", "qdq")
        for opset, fused in ((11, False), (13, False), (17, True), (20, True))
    ],
    ("fp32", {}, {"linear": "gemm"}, {}),
    ("qdq", {}, {"linear": "gemm"}, {}),
    ("sparseml", {}, {"matmul_attention": "qlinear"}, {}),
    ("fp32", {}, {"external_data": True}, {}),
    ("sparseml", {}, {}, {"per_channel": True}),
    ("qdq", {}, {}, {"per_channel": True, "activation": "s8"}),
]


@pytest.mark.parametrize(
    ("form", "config", "export", "quantization"),
    CASES,
    ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v.values())),
)
def test_encoders(
    tmp_path: Path,
    form: Any,
    config: dict[str, Any],
    export: dict[str, Any],
    quantization: dict[str, Any],
) -> None:
    size = EncoderConfig(**SIZE, **config)
    path = tmp_path / "model.onnx"
    write_random(path, size, form, sparsity=0.5, export=Export(**export), **quantization)
    model = load_model(path)
    graph = check(model, tolerance=1e-4)
    assert dialect_name(model) == form
    assert signature(model).mask_input == "attention_mask"
    count = ops(graph)
    linears = count["linear"] + count["qlinear"]
    assert linears == len(size.linears())
    assert count["linear"] == (linears if form == "fp32" else 0)
    assert count["matmul_integer" if form == "sparseml" else "matmul"] == 2


def test_an_encoder_of_fixed_length(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_random(path, EncoderConfig(**SIZE), "sparseml", export=Export(length=16))
    model = load_model(path)
    assert signature(model).fixed_length == 16
    check(model, lengths=(16,), tolerance=1e-4)
