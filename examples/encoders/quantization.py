"""Ranges -> scales and zero points; weights -> int8."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from examples.encoders.config import EncoderConfig
from examples.encoders.weights import Weights

Ranges = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class QParams:
    """Scale and zero point of an 8-bit tensor; `dtype` is uint8 or int8."""

    scale: np.float32
    zero_point: int
    dtype: Any = np.uint8

    def quantize(self, x: np.ndarray) -> np.ndarray:
        """QuantizeLinear: round half to even, saturate."""
        info = np.iinfo(self.dtype)
        q = np.rint(x / self.scale) + np.float32(self.zero_point)
        return np.clip(q, info.min, info.max).astype(self.dtype)

    def dequantize(self, q: np.ndarray) -> np.ndarray:
        """DequantizeLinear."""
        return (q.astype(np.int32) - self.zero_point).astype(np.float32) * self.scale


def asymmetric(low: float, high: float, dtype: Any = np.uint8) -> QParams:
    """Parameters that cover [low, high] and 0 exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32(max(high - low, 1e-8) / 255)
    shift = 0 if np.dtype(dtype) == np.uint8 else -128
    return QParams(scale, int(np.clip(round(-low / float(scale)), 0, 255)) + shift, dtype)


def symmetric_u8(low: float, high: float) -> QParams:
    """uint8 around 128, covering the larger of |low| and |high|."""
    return QParams(np.float32(max(abs(low), abs(high), 1e-8) / 127), 128, np.uint8)


@dataclass(frozen=True)
class QuantizedLinear:
    """An int8 linear layer.

    Attributes:
        weight: int8 [N, K], zero point 0.
        scale: float32, [] (per tensor) or [N].
        bias: float32 [N].
    """

    weight: np.ndarray
    scale: np.ndarray
    bias: np.ndarray

    def bias_int32(self, input_scale: np.float32) -> np.ndarray:
        """The bias in units of the accumulator, int32 [N]."""
        limit = 2.0**31 - 128
        bias = np.rint(self.bias / (input_scale * self.scale))
        return np.clip(bias, -limit, limit).astype(np.int32)


@dataclass(frozen=True)
class QuantizedModel:
    """Everything a quantized ONNX file holds besides its graph.

    Attributes:
        linears: by name of the linear layer; layers that are absent stay float.
        activations: by activation key (see `reference.forward`); absent ones stay float.
        tables: embedding tables as (uint8 [rows, hidden], parameters); absent ones stay float.
        integer_bias: biases are rounded to int32 accumulator units.
    """

    linears: dict[str, QuantizedLinear]
    activations: dict[str, QParams]
    tables: dict[str, tuple[np.ndarray, QParams]] = field(default_factory=dict)
    integer_bias: bool = False


def quantize_weight(
    weight: np.ndarray, bias: np.ndarray, per_channel: bool = False
) -> QuantizedLinear:
    """Round float weights [N, K] to symmetric int8; zeros stay exactly zero."""
    peak = np.abs(weight).max(axis=1 if per_channel else None)
    scale = np.asarray(np.maximum(peak, 1e-8) / 127, np.float32)
    q = np.rint(weight / (scale[:, None] if per_channel else scale))
    return QuantizedLinear(np.clip(q, -127, 127).astype(np.int8), scale, bias.astype(np.float32))


def quantize_model(
    config: EncoderConfig,
    weights: Weights,
    ranges: Mapping[str, tuple[float, float]],
    form: Literal["sparseml", "qdq"],
    *,
    per_channel: bool = False,
    activation: Literal["u8", "s8"] = "u8",
    attention: bool = True,
    tables: bool | None = None,
    integer_bias: bool | None = None,
    linears: Mapping[str, QuantizedLinear] | None = None,
) -> QuantizedModel:
    """Quantize a model for one of the two dialects.

    Args:
        ranges: what `reference.calibrate` measured.
        form: ``sparseml`` has uint8 activations, K and V symmetric around 128, outputs of the
            attention products quantized once more, int32 biases and uint8 embedding tables.
            ``qdq`` has activations of type `activation` and float biases and tables.
        attention: False leaves QK^T and PV in float.
        tables, integer_bias: override the form's default.
        linears: layers that are quantized already, instead of rounding their weights here.
    """
    sparseml = form == "sparseml"
    if sparseml and activation != "u8":
        raise ValueError("the sparseml form has uint8 activations")
    dtype = np.uint8 if activation == "u8" else np.int8
    quantized = {
        name: quantize_weight(weights[f"{name}.weight"], weights[f"{name}.bias"], per_channel)
        for name in config.linears()
        if not linears or name not in linears
    }
    activations: dict[str, QParams] = {}
    for key, (low, high) in ranges.items():
        if key.endswith((".q", ".k", ".v", ".probs", ".scores", ".context")) and not attention:
            continue
        if key.endswith((".scores", ".context")) and not sparseml:
            continue
        if sparseml and key.endswith((".k", ".v")):
            activations[key] = symmetric_u8(low, high)
        else:
            activations[key] = asymmetric(low, high, dtype)
    packed: dict[str, tuple[np.ndarray, QParams]] = {}
    if sparseml if tables is None else tables:
        for name in config.tables():
            table = weights[f"{name}.weight"]
            params = asymmetric(float(table.min()), float(table.max()))
            packed[name] = (params.quantize(table), params)
    return QuantizedModel(
        linears={n: (linears or {}).get(n) or quantized[n] for n in config.linears()},
        activations=activations,
        tables=packed,
        integer_bias=sparseml if integer_bias is None else integer_bias,
    )
