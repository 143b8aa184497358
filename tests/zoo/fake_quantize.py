"""Quantize and dequantize pairs at the operands of products, as tools outside ONNX Runtime write.

    x, w float   =>   x -- QuantizeLinear -- [Clip] -- DequantizeLinear --.
                                                                          MatMul
                      w -- QuantizeLinear -- DequantizeLinear ------------'

NNCF leaves weights in float for the graph to quantize, and takes activations times activations
and embedding tables, too; torch.ao's exported fake quantization of 7 bits has a Clip of bytes in
between; Neural Compressor stores bytes, and gives every reader a pair of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper


@dataclass(frozen=True)
class Scheme:
    """How a tool writes it; activations are uint8 with a zero point, weights int8 around 0.

    Attributes:
        stored: weights are stored as bytes, else as floats that the graph quantizes.
        activations: products of two activations are quantized, too.
        tables: embedding tables are quantized, too.
        seven: activations have 7 bits; bytes are clipped.
        shared: all readers of a tensor read one pair.
    """

    stored: bool = False
    activations: bool = False
    tables: bool = False
    seven: bool = False
    shared: bool = True


NNCF = Scheme(activations=True, tables=True)
TORCH = Scheme(seven=True)
NEURAL_COMPRESSOR = Scheme(stored=True, activations=True, tables=True, shared=False)


def insert(
    model: onnx.ModelProto, scheme: Scheme, feeds: Iterable[Mapping[str, np.ndarray]]
) -> onnx.ModelProto:
    """The model with its products quantized; ranges are those of `feeds`."""
    graph = model.graph
    weights = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    taken = [
        (node, index)
        for node in graph.node
        for index in _operands(node, weights, scheme)
        if node.input[index] in weights or node.op_type != "Gather"
    ]
    dynamic = {node.input[index] for node, index in taken} - set(weights)
    ranges = _ranges(model, sorted(dynamic), feeds)
    made: dict[tuple[str, int], str] = {}
    added: list[onnx.NodeProto] = []
    for node, index in taken:
        name = node.input[index]
        if name in weights:
            axis = _channels(node, weights[name])
            key = (name, axis)
        else:
            axis = -1
            key = (name, axis if scheme.shared else len(made))
        if key not in made:
            stem = f"{name}_{len(made)}"
            if name in weights:
                made[key] = _weight(graph, added, weights[name], name, stem, axis, scheme.stored)
            else:
                made[key] = _activation(graph, added, name, stem, ranges[name], scheme)
        node.input[index] = made[key]
    _place(graph, added)
    return model


def _operands(
    node: onnx.NodeProto, weights: Mapping[str, np.ndarray], scheme: Scheme
) -> tuple[int, ...]:
    if node.op_type == "Gather":
        table = weights.get(node.input[0])
        wanted = scheme.tables and table is not None and table.dtype == np.float32
        return (0,) if wanted and table is not None and table.ndim == 2 else ()
    if node.op_type not in ("MatMul", "Gemm"):
        return ()
    return (0, 1) if scheme.activations or node.input[1] in weights else ()


def _channels(node: onnx.NodeProto, weight: np.ndarray) -> int:
    """The axis of a weight's output channels; -1 for one scale of a table."""
    if node.op_type == "Gather" or weight.ndim != 2:
        return -1
    flipped = any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if flipped else 1


def _ranges(
    model: onnx.ModelProto, names: list[str], feeds: Iterable[Mapping[str, np.ndarray]]
) -> dict[str, tuple[float, float]]:
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    session = ort.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    found = [session.run(None, feed) for feed in feeds]
    return {
        name: (
            min(0.0, *(float(run[i].min()) for run in found)),
            max(0.0, *(float(run[i].max()) for run in found)),
        )
        for i, name in enumerate(names)
    }


def _constants(graph: onnx.GraphProto, stem: str, scale: np.ndarray, zero: np.ndarray) -> list[str]:
    names = [f"scale_{stem}", f"zero_point_{stem}"]
    arrays = zip((scale.astype(np.float32), zero), names, strict=True)
    graph.initializer.extend(numpy_helper.from_array(a, name) for a, name in arrays)
    return names


def _weight(
    graph: onnx.GraphProto,
    added: list[onnx.NodeProto],
    array: np.ndarray,
    name: str,
    stem: str,
    axis: int,
    stored: bool,
) -> str:
    others = tuple(i for i in range(array.ndim) if i != axis)
    size = np.maximum(np.abs(array).max(others if axis >= 0 else None), 1e-6)
    scale = np.asarray(size / 127, np.float32)
    parameters = _constants(graph, stem, scale, np.zeros(scale.shape, np.int8))
    attributes = {"axis": axis} if axis >= 0 else {}
    quantized = f"q_output_{stem}"
    if stored:
        apart = scale.reshape([-1 if i == axis else 1 for i in range(array.ndim)])
        data = np.clip(np.rint(array / apart), -127, 127).astype(np.int8)
        graph.initializer.append(numpy_helper.from_array(data, quantized))
    else:
        added.append(
            helper.make_node("QuantizeLinear", [name, *parameters], [quantized], **attributes)
        )
    out = f"dq_output_{stem}"
    added.append(
        helper.make_node("DequantizeLinear", [quantized, *parameters], [out], **attributes)
    )
    return out


def _activation(
    graph: onnx.GraphProto,
    added: list[onnx.NodeProto],
    name: str,
    stem: str,
    bounds: tuple[float, float],
    scheme: Scheme,
) -> str:
    low, high = bounds
    top = 127 if scheme.seven else 255
    scale = np.float32(max(high - low, 1e-6) / top)
    zero = np.asarray(np.clip(np.rint(-low / scale), 0, top), np.uint8)
    parameters = _constants(graph, stem, np.asarray(scale), zero)
    quantized, out = f"q_output_{stem}", f"dq_output_{stem}"
    added.append(helper.make_node("QuantizeLinear", [name, *parameters], [quantized]))
    if scheme.seven:
        bound = f"most_{stem}"
        graph.initializer.append(numpy_helper.from_array(np.asarray(top, zero.dtype), bound))
        added.append(helper.make_node("Clip", [quantized, "", bound], [f"clipped_{stem}"]))
        quantized = f"clipped_{stem}"
    added.append(helper.make_node("DequantizeLinear", [quantized, *parameters], [out]))
    return out


def _place(graph: onnx.GraphProto, added: list[onnx.NodeProto]) -> None:
    """Put the new nodes right in front of what reads them."""
    maker = {out: node for node in added for out in node.output}
    done: set[str] = set()
    order: list[onnx.NodeProto] = []

    def place(node: onnx.NodeProto) -> None:
        for name in node.input:
            if name in maker and name not in done:
                done.add(name)
                place(maker[name])
        order.append(node)

    for node in graph.node:
        place(node)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in order]
    del graph.node[:]
    graph.node.extend(nodes)
