"""The rows of the table of peers: models, shapes, and the file that each engine runs.

Models are made once and kept; weights are random in BERT-base's shape, or all-MiniLM-L6-v2's own.
"""

from __future__ import annotations

import dataclasses
import inspect
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.harness.models import CALIBRATION_TOKENS
from examples.encoders import (
    PRESETS,
    EncoderConfig,
    Form,
    Weights,
    calibrate,
    prune,
    quantize_model,
    random_batch,
    random_weights,
    write,
)

Model = Literal["bert-base", "minilm", "tiny"]
File = Literal["fp32", "qdq", "sparseml", "dynamic"]

SHAPES: dict[Model, tuple[tuple[int, int], ...]] = {
    "bert-base": ((1, 16), (1, 128), (1, 384), (32, 128)),
    "minilm": ((1, 16), (1, 128), (32, 64)),
    "tiny": ((1, 16),),
}

#: By entrant: whose environment runs it, and which loader of worker.py.
ENTRANTS = {
    "sparsec": ("sparsec", "sparsec"),
    "openvino": ("openvino", "openvino"),
    "openvino-f32": ("openvino", "openvino-f32"),
    "ort": ("onnxruntime", "onnxruntime"),
    "deepsparse": ("deepsparse", "deepsparse"),
}

LABELS = {
    "sparsec": "sparsec",
    "openvino": "OpenVINO",
    "openvino-f32": "OpenVINO f32",
    "ort": "ONNX Runtime",
    "deepsparse": "DeepSparse",
}


@dataclass(frozen=True)
class Row:
    """What is compared.

    Attributes:
        kind: what it is called, behind the model's name.
        sparsity: share of the blocks of 4 input channels that are zero.
        files: by entrant, the form that suits it best.
        options: for ``sparsec.compile``.
        feature: of the CPU, without which the row is skipped.
    """

    model: Model
    kind: str
    sparsity: float
    files: Mapping[str, File]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    feature: str = ""

    @property
    def key(self) -> str:
        """As `--rows` selects by."""
        return f"{self.model} {self.kind}"


def _rows(model: Model) -> list[Row]:
    static: dict[str, File] = dict.fromkeys((n for n in ENTRANTS if n != "openvino-f32"), "qdq")
    sparse: dict[str, File] = {"sparsec": "sparseml", "deepsparse": "sparseml"}
    dynamic: dict[str, File] = dict.fromkeys(("sparsec", "openvino", "ort"), "dynamic")
    floats: dict[str, File] = dict.fromkeys(ENTRANTS, "fp32")
    return [
        *(Row(model, f"int8 {s:.0%}", s, static | sparse) for s in (0.8, 0.9, 0.95)),
        Row(model, "int8 dense, static", 0.0, static),
        Row(model, "int8 dense, dynamic", 0.0, dynamic),
        Row(model, "fp32 80%", 0.8, floats),
        Row(model, "fp32 dense", 0.0, floats),
        Row(
            model,
            "bf16 dense",
            0.0,
            {"sparsec": "fp32", "openvino": "fp32"},
            {"precision": "bf16"},
            "avx512bf16",
        ),
    ]


ROWS = [row for model in SHAPES for row in _rows(model)]


def config_of(model: Model) -> EncoderConfig:
    """The size of a model."""
    if model != "minilm":
        return PRESETS[model]
    return _minilm()[0]


def _minilm() -> tuple[EncoderConfig, Weights]:
    from examples.minilm.build import find_model, load_model

    return load_model(find_model())


def _weights(model: Model, sparsity: float) -> Weights:
    """Random, or the real ones with their smallest blocks zero: only their places cost time."""
    config = config_of(model)
    if model != "minilm":
        return random_weights(config, 0, sparsity, 4)
    weights = dict(_minilm()[1])
    for name in config.linears() if sparsity else ():
        key = f"{name}.weight"
        weights[key] = prune(weights[key], sparsity, 4)
    return weights


def inputs_of(model: Model, batch: int, length: int, masked: float) -> list[np.ndarray]:
    """Ids, mask and types; that share of each sequence is masked, and computed all the same."""
    inputs = list(random_batch(config_of(model), batch, length, 0, ragged=False))
    inputs[1] = np.array(inputs[1])
    inputs[1][:, length - round(length * masked) :] = 0
    return inputs


def file_of(cache: Path, row: Row, form: File, quantize: Callable[[Path, Path], None]) -> Path:
    """An ONNX file of a row's weights, made unless it is there.

    Args:
        quantize: ONNX Runtime's dynamic quantization, called with source and destination.
    """
    folder = cache / "rows" / f"{row.model}-s{round(100 * row.sparsity)}"
    path = folder / f"{form}.onnx"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"part-{form}.onnx"
    if form == "dynamic":
        quantize(file_of(cache, row, "fp32", quantize), part)
    else:
        _write(part, row, form)
    return part.rename(path)


def _write(path: Path, row: Row, form: Form) -> None:
    config, weights = config_of(row.model), _weights(row.model, row.sparsity)
    if form == "fp32":
        write(path, config, weights, form)
        return
    length = min(CALIBRATION_TOKENS, config.max_position)
    ranges = calibrate(config, weights, [random_batch(config, 4, length, 0)])
    write(path, config, weights, form, quantized=quantize_model(config, weights, ranges, form))


def artifact_of(cache: Path, row: Row, model: Path) -> Path:
    """Where the row's model lies, compiled by sparsec."""
    name = row.kind.replace(" ", "-").replace(",", "").replace("%", "")
    return model.with_name(f"{model.stem}-{name}.sparsec")


def selected(rows: Sequence[Row], pattern: str) -> list[Row]:
    """Those whose key the regular expression finds; those of "tiny" only if it names them."""
    found = [row for row in rows if re.search(pattern, row.key)]
    return [row for row in found if row.model != "tiny" or "tiny" in pattern]


def why_not(row: Row, features: frozenset[str]) -> str:
    """Why a row cannot be measured on this CPU; "" where it can."""
    import sparsec

    missing = row.options.keys() - inspect.signature(sparsec.compile).parameters.keys()
    if missing:
        return f"this sparsec has no option {', '.join(sorted(missing))}"
    if row.feature and row.feature not in features:
        return f"this CPU lacks {row.feature}"
    return "" if platform.machine() in ("x86_64", "AMD64") else "the peers are for x86-64"
