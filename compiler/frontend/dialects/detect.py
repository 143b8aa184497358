"""The name of a model's quantization dialect."""

from __future__ import annotations

import onnx

from sparsec.compiler.frontend.load import Model

_CONTRIB = {"MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QAttention", "QGemm", "MatMulNBits"}

_FUSED = {"Attention", "MultiHeadAttention", "SkipLayerNormalization", "EmbedLayerNormalization"}


def dialect_name(model: Model) -> str:
    """What wrote the quantization of a model.

    Returns:
        ``sparseml`` (QuantizeLinear -> MatMulInteger), ``qdq`` (DequantizeLinear -> MatMul, Gemm),
        ``qoperator`` (QLinearMatMul), ``dynamic`` (DynamicQuantizeLinear -> MatMulInteger),
        ``contrib`` (quantized contrib ops of ONNX Runtime), ``mixed`` for several of them; ``fp32``
        or ``fp16`` for a model that is not quantized, ``fused`` if ONNX Runtime has fused it.
    """
    graph = model.proto.graph
    made = {out: node for node in graph.node for out in node.output}
    kinds = {_kind(node, made) for node in graph.node} - {""}
    if "sparseml" in kinds:
        # SparseML's exporter wrote products of activations as QLinearMatMul or left them as QDQ.
        kinds -= {"qoperator", "qdq"}
    if len(kinds) > 1:
        return "mixed"
    if kinds:
        return kinds.pop()
    if any(n.domain == "com.microsoft" and n.op_type in _FUSED for n in graph.node):
        return "fused"
    half = sum(t.data_type == onnx.TensorProto.FLOAT16 for t in graph.initializer)
    return "fp16" if half > len(graph.initializer) // 2 else "fp32"


def _kind(node: onnx.NodeProto, made: dict[str, onnx.NodeProto]) -> str:
    """The dialect that has such a product; "" for other nodes."""
    if node.op_type in ("MatMul", "Gemm"):
        sources = [_origin(made, name) for name in node.input[:2]]
        return "qdq" if sources == ["DequantizeLinear"] * 2 else ""
    if node.op_type == "MatMulInteger":
        dynamic = _origin(made, node.input[0]) == "DynamicQuantizeLinear"
        return "dynamic" if dynamic else "sparseml"
    if node.op_type == "QLinearMatMul":
        return "qoperator"
    return "contrib" if node.op_type in _CONTRIB else ""


def _origin(made: dict[str, onnx.NodeProto], name: str) -> str:
    """Op type that made a value, looking through nodes that only move elements."""
    for _ in range(16):
        node = made.get(name)
        if node is None:
            return ""
        if node.op_type not in ("Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze"):
            return node.op_type
        name = node.input[0]
    return ""
