"""QDQ: QuantizeLinear -> DequantizeLinear on both operands of every product.

    x -> Q -> DQ -> MatMul or Gemm(DQ(int8 weight)) -> Add(bias)

Weights are symmetric int8, per tensor or per channel (axis 1 of MatMul's, 0 of Gemm's).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from examples.encoders.config import EncoderConfig, Export
from examples.encoders.graph import EncoderGraph, scope_of
from examples.encoders.quantization import QParams, QuantizedLinear, QuantizedModel
from examples.encoders.reference import input_key
from examples.encoders.weights import Weights


class QdqGraph(EncoderGraph):
    """Writes the QDQ form of a quantized model."""

    def __init__(
        self, config: EncoderConfig, weights: Weights, export: Export, quantized: QuantizedModel
    ) -> None:
        super().__init__(config, weights, export)
        self.quantized = quantized
        self._wrapped: dict[tuple[str, str], str] = {}

    def wrap(self, key: str, x: str, scope: str) -> str:
        """DQ(Q(x)); readers of one tensor share one pair."""
        if (key, x) not in self._wrapped:
            e = self.e
            params: QParams = self.quantized.activations[key]
            operands = [
                e.initializer(np.float32(params.scale), f"{key}_scale"),
                e.initializer(np.asarray(params.zero_point, params.dtype), f"{key}_zero_point"),
            ]
            q = e.op("QuantizeLinear", [x, *operands], scope)
            self._wrapped[key, x] = e.op("DequantizeLinear", [q, *operands], scope)
        return self._wrapped[key, x]

    def embed(self, table: str, ids: str) -> str:
        if table not in self.quantized.tables:
            return super().embed(table, ids)
        e, scope = self.e, scope_of(table)
        rows, params = self.quantized.tables[table]
        operands = [
            e.initializer(np.float32(params.scale), f"{table}_scale"),
            e.initializer(np.asarray(params.zero_point, params.dtype), f"{table}_zero_point"),
        ]
        name = e.initializer(rows, f"{table}.weight_quantized")
        return e.op("DequantizeLinear", [e.op("Gather", [name, ids], scope), *operands], scope)

    def weight(self, name: str, layer: QuantizedLinear, transposed: bool) -> str:
        """The float weight that a MatMul [K, N] or a Gemm [N, K] reads."""
        e, scope = self.e, scope_of(name)
        axis: dict[str, Any] = {"axis": 1 if transposed else 0} if layer.scale.ndim else {}
        scale = e.initializer(layer.scale, f"{name}.weight_scale")
        zero = e.initializer(np.zeros(layer.scale.shape, np.int8), f"{name}.weight_zero_point")
        values = layer.weight.T if transposed else layer.weight
        if self.export.quantize_weight_nodes:
            spread = layer.scale[:, None] if layer.scale.ndim else layer.scale
            real = layer.weight.astype(np.float32) * spread
            w = e.initializer(real.T if transposed else real, f"{name}.weight")
            w = e.op("QuantizeLinear", [w, scale, zero], scope, **axis)
        else:
            w = e.initializer(values, f"{name}.weight_quantized")
        return e.op("DequantizeLinear", [w, scale, zero], scope, **axis)

    def bias(self, name: str, layer: QuantizedLinear) -> str:
        """The bias, float or DequantizeLinear(int32)."""
        e = self.e
        if not self.quantized.integer_bias:
            return e.initializer(layer.bias, f"{name}.bias")
        params = self.quantized.activations[input_key(name)]
        values = e.initializer(layer.bias_int32(params.scale), f"{name}.bias_quantized")
        scale = e.initializer(np.float32(params.scale) * layer.scale, f"{name}.bias_scale")
        zero = e.initializer(np.zeros(layer.scale.shape, np.int32), f"{name}.bias_zero_point")
        axis: dict[str, Any] = {"axis": 0} if layer.scale.ndim else {}
        return e.op("DequantizeLinear", [values, scale, zero], scope_of(name), **axis)

    def linear(self, name: str, x: str, rank: int) -> str:
        e, scope = self.e, scope_of(name)
        layer = self.quantized.linears[name]
        x = self.wrap(input_key(name), x, scope)
        gemm = self.use_gemm(rank)
        w, b = self.weight(name, layer, not gemm), self.bias(name, layer)
        if gemm:
            return self.gemm(name, x, w, b, rank)
        return e.op("Add", [e.op("MatMul", [x, w], scope), b], scope)

    def scores(self, attn: str, q: str, k: str) -> str:
        if f"{attn}.q" in self.quantized.activations:
            q = self.wrap(f"{attn}.q", q, scope_of(attn))
            k = self.wrap(f"{attn}.k", k, scope_of(attn))
        return super().scores(attn, q, k)

    def context(self, attn: str, probs: str, v: str) -> str:
        if f"{attn}.probs" in self.quantized.activations:
            probs = self.wrap(f"{attn}.probs", probs, scope_of(attn))
            v = self.wrap(f"{attn}.v", v, scope_of(attn))
        return super().context(attn, probs, v)
