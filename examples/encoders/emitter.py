"""Collects ONNX nodes under the names that torch.onnx gives them, for any opset from 11 to 21."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# The IR version that came with each opset, so that old readers accept the file.
_IR_VERSION = {11: 6, 12: 7, 13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10}


class Emitter:
    """A graph under construction; methods return the name of the value they make."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self._names: dict[str, int] = {}

    def unique(self, name: str) -> str:
        """`name`, or `name`_1, `name`_2, ... where it is taken."""
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        return self.unique(f"{name}_{count}") if count else name

    def input(self, name: str, dtype: int, shape: Sequence[int | str]) -> str:
        """Declare a graph input."""
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return self.unique(name)

    def output(self, value: str, name: str, dtype: int, shape: Sequence[int | str]) -> None:
        """Declare `value` a graph output called `name`."""
        for node in self.nodes:
            for field in (node.input, node.output):
                for i, v in enumerate(field):
                    if v == value:
                        field[i] = name
        self.outputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def initializer(self, array: np.ndarray, name: str) -> str:
        """Add a weight, scale or zero point."""
        name = self.unique(name)
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def op(
        self, kind: str, inputs: Sequence[str], scope: str = "", *, outputs: int = 1, **attrs: Any
    ) -> str:
        """Append a node; returns its first output (the others are `..._output_1` and so on)."""
        name = self.unique(f"{scope}/{kind}")
        made = [f"{name}_output_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), made, name=name, **attrs))
        return made[0]

    def constant(self, value: Any, dtype: Any, scope: str) -> str:
        """A Constant node."""
        tensor = numpy_helper.from_array(np.asarray(value, dtype))
        return self.op("Constant", [], scope, value=tensor)

    def scalar(self, value: float, scope: str) -> str:
        """A float32 Constant of rank 0."""
        return self.constant(value, np.float32, scope)

    def ints(self, values: Sequence[int], scope: str) -> str:
        """An int64 Constant of rank 1."""
        return self.constant(list(values), np.int64, scope)

    # Ops whose axes moved from attribute to input.

    def unsqueeze(self, x: str, axis: int, scope: str) -> str:
        if self.opset < 13:
            return self.op("Unsqueeze", [x], scope, axes=[axis])
        return self.op("Unsqueeze", [x, self.ints([axis], scope)], scope)

    def squeeze(self, x: str, axis: int, scope: str) -> str:
        if self.opset < 13:
            return self.op("Squeeze", [x], scope, axes=[axis])
        return self.op("Squeeze", [x, self.ints([axis], scope)], scope)

    def reduce_mean(self, x: str, scope: str) -> str:
        """Mean over the last axis, kept."""
        if self.opset < 18:
            return self.op("ReduceMean", [x], scope, axes=[-1], keepdims=1)
        return self.op("ReduceMean", [x, self.ints([-1], scope)], scope, keepdims=1)

    def split_halves(self, x: str, scope: str) -> tuple[str, str]:
        """Split the last axis, of extent 2, in two."""
        if self.opset < 13:
            first = self.op("Split", [x], scope, outputs=2, axis=-1, split=[1, 1])
        else:
            first = self.op("Split", [x, self.ints([1, 1], scope)], scope, outputs=2, axis=-1)
        return first, first.removesuffix("_0") + "_1"

    # Shape arithmetic as the TorchScript exporter writes it.

    def extent(self, x: str, axis: int, scope: str) -> str:
        """x.size(axis) as an int64 scalar."""
        shape = self.op("Shape", [x], scope)
        index = self.constant(axis, np.int64, scope)
        return self.op("Gather", [shape, index], scope, axis=0)

    def shape_of(self, parts: Sequence[str | int], scope: str) -> str:
        """A shape from int64 scalars (names) and known extents: Unsqueeze each, then Concat."""
        pieces = []
        for part in parts:
            if isinstance(part, int):
                pieces.append(self.ints([part], scope))
            else:
                pieces.append(self.unsqueeze(part, 0, scope))
        return self.op("Concat", pieces, scope, axis=0)

    def expand(self, x: str, shape: str, rank: int, scope: str) -> str:
        """x.expand(shape): -1 in the shape becomes 1 through ConstantOfShape/Equal/Where."""
        one = helper.make_tensor("value", TensorProto.INT64, [1], [1])
        ones = self.op("ConstantOfShape", [self.ints([rank], scope)], scope, value=one)
        minus = self.op("Mul", [ones, self.constant(-1, np.int64, scope)], scope)
        same = self.op("Equal", [shape, minus], scope)
        return self.op("Expand", [x, self.op("Where", [same, ones, shape], scope)], scope)

    def save(self, path: Path, name: str, external_data: bool) -> None:
        """Write the model; weights beside it in `<file name>.data` where asked for."""
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, self.initializers)
        model = helper.make_model(
            graph,
            producer_name="examples.encoders",
            ir_version=_IR_VERSION[self.opset],
            opset_imports=[helper.make_opsetid("", self.opset)],
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        if not external_data:
            path.write_bytes(model.SerializeToString())
            return
        data = path.with_name(path.name + ".data")
        data.unlink(missing_ok=True)  # onnx appends to a file that exists
        onnx.save(
            model,
            str(path),
            save_as_external_data=True,
            location=data.name,
            size_threshold=1024,
        )
