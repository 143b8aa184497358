"""The encoder as a graph of float ops; the quantized dialects override how products are written."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from examples.encoders.config import DECODER, PREDICTIONS, EncoderConfig, Export
from examples.encoders.emitter import Emitter
from examples.encoders.reference import LOWEST
from examples.encoders.weights import Weights


class EncoderGraph:
    """Writes one model.  Values are names; `self.e` collects the nodes."""

    def __init__(self, config: EncoderConfig, weights: Weights, export: Export) -> None:
        self.config = config
        self.weights = weights
        self.export = export
        self.e = Emitter(export.opset)

    # What a dialect overrides.

    def embed(self, table: str, ids: str) -> str:
        """Rows of an embedding table."""
        e = self.e
        rows = e.initializer(self.weights[f"{table}.weight"], f"{table}.weight")
        return e.op("Gather", [rows, ids], scope_of(table))

    def linears(self, names: Sequence[str], x: str, rank: int) -> list[str]:
        """Linear layers that read the same `x`."""
        return [self.linear(name, x, rank) for name in names]

    def linear(self, name: str, x: str, rank: int) -> str:
        """One linear layer on `x` of that rank, bias included."""
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        if self.use_gemm(rank):
            w = self.e.initializer(weight, f"{name}.weight")
            b = self.e.initializer(bias, f"{name}.bias")
            return self.gemm(name, x, w, b, rank)
        w = self.e.initializer(weight.T, "onnx::MatMul")
        product = self.e.op("MatMul", [x, w], scope_of(name))
        b = self.e.initializer(bias, f"{name}.bias")
        return self.e.op("Add", [b, product], scope_of(name))

    def scores(self, attn: str, q: str, k: str) -> str:
        """q [B, H, S, D] x k [B, H, D, S], before scaling of the result."""
        return self.e.op("MatMul", [q, k], scope_of(attn))

    def context(self, attn: str, probs: str, v: str) -> str:
        """probs x v, heads merged: [B, S, hidden]."""
        return self.merge_heads(attn, self.e.op("MatMul", [probs, v], scope_of(attn)))

    # Pieces that the dialects share.

    def use_gemm(self, rank: int) -> bool:
        """2-D layers are always Gemm, as torch writes nn.Linear on matrices."""
        return rank == 2 or self.export.linear == "gemm"

    def gemm(self, name: str, x: str, w: str, b: str, rank: int) -> str:
        """Gemm(transB=1) with w [N, K], with reshapes around it where x has three axes."""
        e, scope = self.e, scope_of(name)
        if rank == 2:
            return e.op("Gemm", [x, w, b], scope, alpha=1.0, beta=1.0, transB=1)
        n, k = self.weights[f"{name}.weight"].shape
        lead: list[str | int] = [self.batch(x, scope), self.length(x, scope)]
        rows = e.op("Reshape", [x, e.ints([-1, k], scope)], scope)
        y = e.op("Gemm", [rows, w, b], scope, alpha=1.0, beta=1.0, transB=1)
        return e.op("Reshape", [y, e.shape_of([*lead, n], scope)], scope)

    def merge_heads(self, attn: str, x: str) -> str:
        """[B, H, S, D] -> [B, S, H * D]."""
        e, scope = self.e, scope_of(attn)
        x = e.op("Transpose", [x], scope, perm=[0, 2, 1, 3])
        shape = [self.batch(x, scope), self.length(x, scope), self.config.hidden]
        return e.op("Reshape", [x, e.shape_of(shape, scope)], scope)

    def batch(self, x: str, scope: str) -> str | int:
        """x.size(0): a number where it is fixed, else shape arithmetic."""
        return self.export.fixed_batch or self.e.extent(x, 0, scope)

    def length(self, x: str, scope: str, axis: int = 1) -> str | int:
        """x.size(axis), the sequence axis: a number where it is fixed, else shape arithmetic."""
        return self.export.length or self.e.extent(x, axis, scope)

    def norm(self, name: str, x: str) -> str:
        """LayerNorm, fused or as primitive ops."""
        e, scope = self.e, scope_of(name)
        gamma = e.initializer(self.weights[f"{name}.weight"], f"{name}.weight")
        beta = e.initializer(self.weights[f"{name}.bias"], f"{name}.bias")
        if self.export.fused:
            eps = float(self.config.eps)
            return e.op("LayerNormalization", [x, gamma, beta], scope, axis=-1, epsilon=eps)
        centered = e.op("Sub", [x, e.reduce_mean(x, scope)], scope)
        squared = e.op("Pow", [centered, e.scalar(2, scope)], scope)
        variance = e.reduce_mean(squared, scope)
        shifted = e.op("Add", [variance, e.scalar(self.config.eps, scope)], scope)
        normed = e.op("Div", [centered, e.op("Sqrt", [shifted], scope)], scope)
        return e.op("Add", [e.op("Mul", [normed, gamma], scope), beta], scope)

    def gelu(self, scope: str, x: str) -> str:
        """GELU by erf: one node from opset 20 on, else primitive ops."""
        e = self.e
        if self.export.fused and self.export.opset >= 20:
            return e.op("Gelu", [x], scope, approximate="none")
        scaled = e.op("Div", [x, e.scalar(2**0.5, scope)], scope)
        one_plus = e.op("Add", [e.op("Erf", [scaled], scope), e.scalar(1, scope)], scope)
        return e.op("Mul", [e.op("Mul", [x, one_plus], scope), e.scalar(0.5, scope)], scope)

    def split_heads(self, attn: str, x: str, perm: Sequence[int]) -> str:
        """[B, S, H * D] -> [B, H, S, D] or, for keys, [B, H, D, S]."""
        e, scope = self.e, scope_of(attn)
        shape: list[str | int] = [self.batch(x, scope), self.length(x, scope)]
        shape += [self.config.heads, self.config.head_size]
        x = e.op("Reshape", [x, e.shape_of(shape, scope)], scope)
        return e.op("Transpose", [x], scope, perm=list(perm))

    # The model.

    def embeddings(self, ids: str, types: str | None) -> str:
        """Sum of the tables, normalized."""
        e, config, scope = self.e, self.config, "/embeddings"
        length = self.length(ids, scope)
        x = self.embed("embeddings.word_embeddings", ids)
        if config.type_vocab:
            if types is None:
                buffer = e.initializer(
                    np.zeros((1, config.max_position), np.int64), "embeddings.token_type_ids"
                )
                shape = e.shape_of([self.batch(ids, scope), length], scope)
                types = e.expand(self.slice_buffer(buffer, length, scope), shape, 2, scope)
            x = e.op("Add", [x, self.embed("embeddings.token_type_embeddings", types)], scope)
        positions = np.arange(config.max_position, dtype=np.int64)[None]
        if self.export.length:
            index = e.initializer(positions[:, : self.export.length], "embeddings.position_ids")
        else:
            buffer = e.initializer(positions, "embeddings.position_ids")
            index = self.slice_buffer(buffer, length, scope)
            if config.attention == "distilbert":
                index = e.expand(index, e.op("Shape", [ids], scope), 2, scope)
        x = e.op("Add", [x, self.embed("embeddings.position_embeddings", index)], scope)
        return self.norm("embeddings.LayerNorm", x)

    def slice_buffer(self, buffer: str, length: str | int, scope: str) -> str:
        """buffer[:, :length]."""
        e = self.e
        fixed = isinstance(length, int)
        end = e.ints([length], scope) if fixed else e.unsqueeze(length, 0, scope)
        return e.op("Slice", [buffer, e.ints([0], scope), end, e.ints([1], scope)], scope)

    def mask(self, ids: str, mask: str) -> str:
        """What every layer's scores are masked with, before the layers run."""
        e, config, scope = self.e, self.config, ""
        if config.attention == "distilbert":
            return e.op("Equal", [mask, e.constant(0, np.int64, scope)], scope)
        wide = e.unsqueeze(e.unsqueeze(mask, 1, scope), 2, scope)
        if config.attention == "eager":
            one = e.op("Cast", [wide], scope, to=TensorProto.FLOAT)
            inverted = e.op("Sub", [e.scalar(1, scope), one], scope)
            return e.op("Mul", [inverted, e.scalar(config.mask_value, scope)], scope)
        batch, length = self.batch(ids, scope), self.length(ids, scope)
        square = e.expand(wide, e.shape_of([batch, 1, length, length], scope), 4, scope)
        visible = e.op("Cast", [square], scope, to=TensorProto.BOOL)
        zero, hidden = e.scalar(0, scope), e.scalar(-np.inf, scope)
        return e.op("Where", [visible, zero, hidden], scope)

    def sdpa_scale(self, q: str, scope: str) -> str:
        """sqrt(1 / sqrt(q.size(-1))), computed from the shape as the exporter does."""
        e = self.e
        ends = [e.ints([-1], scope), e.ints([2**63 - 1], scope)]
        size = e.op("Slice", [e.op("Shape", [q], scope), *ends], scope)
        root = e.op("Sqrt", [e.op("Cast", [size], scope, to=TensorProto.FLOAT)], scope)
        inverse = e.op("Div", [e.constant([1], np.float32, scope), root], scope)
        return e.op("Sqrt", [inverse], scope)

    def attention(self, layer: str, x: str, mask: str) -> str:
        """Self-attention of one layer, heads merged, before the output projection."""
        e, config = self.e, self.config
        attn = f"{layer}.attention.self"
        scope = scope_of(attn)
        q, k, v = self.linears([f"{attn}.{n}" for n in ("query", "key", "value")], x, 3)
        q = self.split_heads(attn, q, [0, 2, 1, 3])
        k = self.split_heads(attn, k, [0, 2, 3, 1])
        v = self.split_heads(attn, v, [0, 2, 1, 3])
        root = config.head_size**0.5
        if config.attention == "sdpa":
            scale = self.sdpa_scale(q, scope)
            q, k = e.op("Mul", [q, scale], scope), e.op("Mul", [k, scale], scope)
        elif config.attention == "distilbert":
            q = e.op("Div", [q, e.scalar(root, scope)], scope)
        scores = self.scores(attn, q, k)
        if config.attention == "eager":
            scores = e.op("Div", [scores, e.scalar(root, scope)], scope)
            scores = e.op("Add", [scores, mask], scope)
        elif config.attention == "sdpa":
            scores = e.op("Add", [scores, mask], scope)
        else:
            shape = [self.batch(x, scope), 1, 1, self.length(x, scope)]
            wide = e.op("Reshape", [mask, e.shape_of(shape, scope)], scope)
            hidden = e.expand(wide, e.op("Shape", [scores], scope), 4, scope)
            scores = e.op("Where", [hidden, e.scalar(LOWEST, scope), scores], scope)
        probs = e.op("Softmax", [scores], scope, axis=self.last_of_four())
        if config.attention == "sdpa":
            nothing = e.op("IsNaN", [probs], scope)
            probs = e.op("Where", [nothing, e.scalar(0, scope), probs], scope)
        return self.context(attn, probs, v)

    def last_of_four(self) -> int:
        """Softmax's axis: before opset 13 it flattens from that axis on, and exporters write 3."""
        return 3 if self.export.opset < 13 else -1

    def layer(self, name: str, x: str, mask: str) -> str:
        """One encoder layer: [B, S, hidden] -> the same."""
        e = self.e
        y = self.linear(f"{name}.attention.output.dense", self.attention(name, x, mask), 3)
        y = e.op("Add", [y, x], scope_of(f"{name}.attention.output"))
        x = self.norm(f"{name}.attention.output.LayerNorm", y)
        scope = scope_of(f"{name}.intermediate.intermediate_act_fn")
        y = self.gelu(scope, self.linear(f"{name}.intermediate.dense", x, 3))
        y = self.linear(f"{name}.output.dense", y, 3)
        y = e.op("Add", [y, x], scope_of(f"{name}.output"))
        return self.norm(f"{name}.output.LayerNorm", y)

    def build(self) -> Emitter:
        """Emit the whole model."""
        e, config, export = self.e, self.config, self.export
        batch: int | str = export.fixed_batch or "batch"
        length: int | str = export.length or "sequence"
        names = ["input_ids", "attention_mask"]
        if config.type_vocab and export.token_type_input:
            names.append("token_type_ids")
        ids, mask, *types = (e.input(n, TensorProto.INT64, [batch, length]) for n in names)
        masked = self.mask(ids, mask)
        x = self.embeddings(ids, types[0] if types else None)
        for i in range(config.layers):
            x = self.layer(f"encoder.layer.{i}", x, masked)

        self.head(x, batch, length)
        return e

    def head(self, x: str, batch: int | str, length: int | str) -> None:
        """The outputs, made of the last hidden state."""
        e, config, kind = self.e, self.config, TensorProto.FLOAT
        if config.has_pooler:
            first = e.op("Gather", [x, e.constant(0, np.int64, "/pooler")], "/pooler", axis=1)
            pooled = e.op("Tanh", [self.linear("pooler.dense", first, 2)], "/pooler/activation")
        if config.head in ("hidden", "pooler"):
            e.output(x, "last_hidden_state", kind, [batch, length, config.hidden])
        if config.head == "pooler":
            e.output(pooled, "pooler_output", kind, [batch, config.hidden])
        elif config.head == "sequence-classification":
            logits = self.linear("classifier", pooled, 2)
            e.output(logits, "logits", kind, [batch, config.num_labels])
        elif config.head == "token-classification":
            logits = self.linear("classifier", x, 3)
            e.output(logits, "logits", kind, [batch, length, config.num_labels])
        elif config.head == "question-answering":
            logits = self.linear("qa_outputs", x, 3)
            for half, name in zip(e.split_halves(logits, ""), ("start", "end"), strict=True):
                e.output(e.squeeze(half, -1, ""), f"{name}_logits", kind, [batch, length])
        elif config.head == "masked-lm":
            transform = f"{PREDICTIONS}.transform"
            scope = scope_of(f"{transform}.transform_act_fn")
            y = self.gelu(scope, self.linear(f"{transform}.dense", x, 3))
            logits = self.linear(DECODER, self.norm(f"{transform}.LayerNorm", y), 3)
            e.output(logits, "logits", kind, [batch, length, config.vocab])


def scope_of(module: str) -> str:
    """The node name scope of a module: `encoder.layer.0.output` -> `/encoder/layer.0/output`."""
    return "/" + module.replace(".", "/").replace("/layer/", "/layer.")
