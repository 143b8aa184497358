"""Embedding tables as bytes, in SparseML's form: the row is gathered, then scaled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper


def round_tables(path: Path, names: list[str]) -> None:
    """Write tables of an ONNX file as uint8 with a scale and a zero point each.

    Args:
        path: the file, which is replaced.
        names: of float32 initializers ``[rows, channels]`` that only Gather reads.
    """
    model = onnx.load(path)
    nodes, values = [], {one.name: one for one in model.graph.initializer}
    for node in model.graph.node:
        nodes.append(node)
        if node.op_type != "Gather" or node.input[0] not in names:
            continue
        name = node.input[0]
        table = numpy_helper.to_array(values[name])
        low, high = min(float(table.min()), 0.0), max(float(table.max()), 0.0)
        scale = np.float32((high - low) / 255)
        zero = np.uint8(round(-low / float(scale)))
        rounded = np.clip(np.rint(table / scale) + int(zero), 0, 255).astype(np.uint8)
        made = [f"{name}_{part}" for part in ("quantized", "scale", "zero_point")]
        model.graph.initializer.remove(values[name])
        for part, array in zip(made, (rounded, np.array(scale), np.array(zero)), strict=True):
            model.graph.initializer.append(numpy_helper.from_array(array, part))
        found = node.output[0]
        node.input[0], node.output[0] = made[0], f"{found}_quantized"
        nodes.append(
            helper.make_node(
                "DequantizeLinear", [node.output[0], *made[1:]], [found], name=f"{name}_dequantize"
            )
        )
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    onnx.save(model, path)
