"""BERT-shaped encoders as ONNX files, written with onnx.helper: what tests and benchmarks compile.

The quick way::

    from examples.encoders import EncoderConfig, Export, write_random
    model = write_random("model.onnx", EncoderConfig(layers=2), "sparseml", sparsity=0.8)
    model.reference(ids, mask, types)      # the same model in numpy

Or step by step: `random_weights` (or real ones), `calibrate`, `quantize_model`, `write`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from examples.encoders.config import FORMS, HEADS, PRESETS, EncoderConfig, Export, Form, Head
from examples.encoders.graph import EncoderGraph
from examples.encoders.qdq import QdqGraph
from examples.encoders.quantization import (
    QParams,
    QuantizedLinear,
    QuantizedModel,
    Ranges,
    quantize_model,
    quantize_weight,
)
from examples.encoders.reference import calibrate, forward, random_batch
from examples.encoders.sparseml import SparseMLGraph
from examples.encoders.weights import (
    Weights,
    check_weights,
    measured_sparsity,
    prune,
    random_weights,
)

__all__ = [
    "FORMS",
    "HEADS",
    "PRESETS",
    "EncoderConfig",
    "Export",
    "Form",
    "Head",
    "Model",
    "QParams",
    "QuantizedLinear",
    "QuantizedModel",
    "Ranges",
    "Weights",
    "calibrate",
    "forward",
    "measured_sparsity",
    "prune",
    "quantize_model",
    "quantize_weight",
    "random_batch",
    "random_weights",
    "write",
    "write_fp32",
    "write_qdq",
    "write_random",
    "write_sparseml",
]


def write_fp32(
    path: str | Path, config: EncoderConfig, weights: Weights, export: Export | None = None
) -> Path:
    """Write a float32 model."""
    check_weights(config, weights)
    return _save(EncoderGraph(config, weights, export or Export()), path)


def write_sparseml(
    path: str | Path,
    config: EncoderConfig,
    weights: Weights,
    quantized: QuantizedModel,
    export: Export | None = None,
) -> Path:
    """Write a quantized model in SparseML's integer form."""
    check_weights(config, weights)
    return _save(SparseMLGraph(config, weights, export or Export(), quantized), path)


def write_qdq(
    path: str | Path,
    config: EncoderConfig,
    weights: Weights,
    quantized: QuantizedModel,
    export: Export | None = None,
) -> Path:
    """Write a quantized model in QDQ form."""
    check_weights(config, weights)
    return _save(QdqGraph(config, weights, export or Export(), quantized), path)


def write(
    path: str | Path,
    config: EncoderConfig,
    weights: Weights,
    form: Form,
    export: Export | None = None,
    quantized: QuantizedModel | None = None,
) -> Path:
    """Write a model in any form; `quantized` is needed unless the form is fp32."""
    if form == "fp32":
        return write_fp32(path, config, weights, export)
    if quantized is None:
        raise ValueError(f"the {form} form needs a quantized model")
    writer = {"sparseml": write_sparseml, "qdq": write_qdq}[form]
    return writer(path, config, weights, quantized, export)


def _save(graph: EncoderGraph, path: str | Path) -> Path:
    path = Path(path)
    graph.build().save(path, path.stem, graph.export.external_data)
    return path


@dataclass(frozen=True)
class Model:
    """A model that was written, and all that is needed to compute it in numpy."""

    path: Path
    config: EncoderConfig
    export: Export
    weights: Weights
    quantized: QuantizedModel | None

    def batch(self, batch: int, length: int, seed: int = 0, ragged: bool = True) -> list[Any]:
        """Random inputs in the model's order, int64 [batch, length] each."""
        ids, mask, types = random_batch(self.config, batch, length, seed, ragged)
        wanted = self.config.type_vocab and self.export.token_type_input
        return [ids, mask, types] if wanted else [ids, mask]

    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """The outputs for those inputs, computed in numpy with the model's own integers."""
        return forward(self.config, self.weights, *inputs, quantized=self.quantized)


def write_random(
    path: str | Path,
    config: EncoderConfig,
    form: Form = "fp32",
    export: Export | None = None,
    *,
    seed: int = 0,
    sparsity: float = 0.0,
    block: int = 4,
    spread: float = 0.0,
    **quantization: Any,
) -> Model:
    """Write a model with random weights, calibrated on random tokens.

    Args:
        sparsity, block: what share of the encoder's blocks of weights is zero.
        spread: how unevenly they are spread over the channels (see `random_weights`).
        quantization: further arguments of `quantize_model` (per_channel, attention, ...).
    """
    export = export or Export()
    weights = random_weights(config, seed, sparsity, block, spread)
    quantized = None
    if form != "fp32":
        length = min(32, config.max_position)
        ranges = calibrate(config, weights, [random_batch(config, 4, length, seed)])
        quantized = quantize_model(config, weights, ranges, form, **quantization)
    path = write(path, config, weights, form, export, quantized)
    return Model(path, config, export, weights, quantized)
