"""The form that SparseML exported: uint8 activations, MatMulInteger, int32 biases.

    x -> QuantizeLinear -> MatMulInteger(u8, W u8 zp 128) -> Add(int32 bias) -> Cast -> Mul(sA sW)

The products of attention are integer as well, with K^T and V symmetric around 128, and embeddings
are Gather(u8 table) -> DequantizeLinear.  Residuals are float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from examples.encoders.config import EncoderConfig, Export
from examples.encoders.graph import EncoderGraph, scope_of
from examples.encoders.quantization import QParams, QuantizedModel
from examples.encoders.reference import input_key
from examples.encoders.weights import Weights


class SparseMLGraph(EncoderGraph):
    """Writes the integer form of a quantized model."""

    def __init__(
        self, config: EncoderConfig, weights: Weights, export: Export, quantized: QuantizedModel
    ) -> None:
        super().__init__(config, weights, export)
        self.quantized = quantized

    def params(self, key: str, params: QParams) -> list[str]:
        """Names of a tensor's scale and zero point."""
        return [
            self.e.initializer(np.float32(params.scale), f"{key}_scale"),
            self.e.initializer(np.asarray(params.zero_point, params.dtype), f"{key}_zero_point"),
        ]

    def embed(self, table: str, ids: str) -> str:
        if table not in self.quantized.tables:
            return super().embed(table, ids)
        e, scope = self.e, scope_of(table)
        rows, params = self.quantized.tables[table]
        name = e.initializer(rows, f"{table}.weight_quantized")
        picked = e.op("Gather", [name, ids], scope)
        return e.op("DequantizeLinear", [picked, *self.params(table, params)], scope)

    def quantize(self, key: str, x: str, scope: str) -> tuple[str, str]:
        """(x as uint8, its zero point)."""
        scale, zero = self.params(key, self.quantized.activations[key])
        return self.e.op("QuantizeLinear", [x, scale, zero], scope), zero

    def linears(self, names: Sequence[str], x: str, rank: int) -> list[str]:
        if not self.export.share_inputs:
            return super().linears(names, x, rank)
        key = input_key(names[0])
        q, zero = self.quantize(key, x, scope_of(key.removesuffix(".input")))
        return [self.integer_linear(name, q, zero) for name in names]

    def linear(self, name: str, x: str, rank: int) -> str:
        return self.integer_linear(name, *self.quantize(input_key(name), x, scope_of(name)))

    def integer_linear(self, name: str, x: str, x_zero: str) -> str:
        """A linear layer of an x that is quantized already."""
        e, scope = self.e, scope_of(name)
        layer = self.quantized.linears[name]
        params = self.quantized.activations[input_key(name)]
        w = e.initializer((layer.weight.T.astype(np.int16) + 128).astype(np.uint8), f"{name}.w_u8")
        zero = np.full(layer.scale.shape, 128, np.uint8)
        w_zero = e.initializer(zero, f"{name}.weight_zero_point")
        y = e.op("MatMulInteger", [x, w, x_zero, w_zero], scope)
        if self.quantized.integer_bias:
            bias = e.initializer(layer.bias_int32(params.scale), f"{name}.bias_quantized")
            y = e.op("Add", [y, bias], scope)
        y = e.op("Cast", [y], scope, to=TensorProto.FLOAT)
        scale = e.initializer(np.float32(params.scale) * layer.scale, f"{name}.rescale_scale")
        y = e.op("Mul", [y, scale], scope)
        if self.quantized.integer_bias:
            return y
        return e.op("Add", [y, e.initializer(layer.bias, f"{name}.bias")], scope)

    def product(self, attn: str, a: str, b: str, out: str, x: str, y: str) -> tuple[str, list[str]]:
        """x @ y: (result, the parameters that it must still be dequantized with, if any)."""
        e, scope = self.e, scope_of(attn)
        known = self.quantized.activations
        xq, x_zero = self.quantize(f"{attn}.{a}", x, scope)
        yq, y_zero = self.quantize(f"{attn}.{b}", y, scope)
        result = self.params(f"{attn}.{out}", known[f"{attn}.{out}"])
        if self.export.matmul_attention == "qlinear":
            x_scale = e.initializer(known[f"{attn}.{a}"].scale, f"{attn}.{a}_scale")
            y_scale = e.initializer(known[f"{attn}.{b}"].scale, f"{attn}.{b}_scale")
            operands = [xq, x_scale, x_zero, yq, y_scale, y_zero]
            return e.op("QLinearMatMul", [*operands, *result], scope), result
        acc = e.op("MatMulInteger", [xq, yq, x_zero, y_zero], scope)
        scale = known[f"{attn}.{a}"].scale * known[f"{attn}.{b}"].scale
        real = e.op("Cast", [acc], scope, to=TensorProto.FLOAT)
        real = e.op("Mul", [real, e.initializer(scale, f"{attn}.{out}_rescale")], scope)
        # The exporter folds the product's inputs, but leaves its output quantizer behind.
        q = e.op("QuantizeLinear", [real, *result], scope)
        return e.op("DequantizeLinear", [q, *result], scope), []

    def scores(self, attn: str, q: str, k: str) -> str:
        if f"{attn}.q" not in self.quantized.activations:
            return super().scores(attn, q, k)
        y, params = self.product(attn, "q", "k", "scores", q, k)
        return self.e.op("DequantizeLinear", [y, *params], scope_of(attn)) if params else y

    def context(self, attn: str, probs: str, v: str) -> str:
        if f"{attn}.probs" not in self.quantized.activations:
            return super().context(attn, probs, v)
        y, params = self.product(attn, "probs", "v", "context", probs, v)
        y = self.merge_heads(attn, y)
        return self.e.op("DequantizeLinear", [y, *params], scope_of(attn)) if params else y
