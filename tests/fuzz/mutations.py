"""Changes to ONNX models that an exporter, an editor or a bad disk could have made."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sparsec.compiler.frontend.importer import IMPORTERS

_OPS = sorted(name for domain, name in IMPORTERS if not domain)
_DIMS = [0, 1, 2, 3, 7, 64, -1, 2**31, 2**62]
_TYPES = [
    TensorProto.FLOAT,
    TensorProto.DOUBLE,
    TensorProto.FLOAT16,
    TensorProto.INT64,
    TensorProto.INT32,
    TensorProto.UINT8,
    TensorProto.INT8,
    TensorProto.BOOL,
    TensorProto.STRING,
]


_NAMES = ["", "\0", "é日本", 'a"b\\', "??/", "*/ x /*", "a\nb", "%s", "a/b", "x" * 5000]
_PLACES = ["", ".", "..", "../x", "/dev/zero", "mutant.onnx", "a\0b", "C:\\x", "sub/../../x", "é"]


def mutate(model: onnx.ModelProto, rng: np.random.Generator) -> str:
    """Change one thing in place; says what."""
    changes = [
        *(_drop_node, _swap_inputs, _redirect, _change_op, _change_attribute, _drop_attribute),
        *(_change_constant, _change_shape, _change_type, _change_input, _drop_input, _change_opset),
        *(_duplicate, _drop_constant, _rename_output, _say_less, _tap, _odd_name, _move_data),
    ]
    return changes[int(rng.integers(len(changes)))](model.graph, model, rng)


def _node(graph: onnx.GraphProto, rng: np.random.Generator) -> onnx.NodeProto:
    return graph.node[int(rng.integers(len(graph.node)))]


def _values(graph: onnx.GraphProto) -> list[str]:
    made = [name for node in graph.node for name in node.output]
    return made + [t.name for t in graph.initializer] + [v.name for v in graph.input]


def _drop_node(graph: onnx.GraphProto, model: onnx.ModelProto, rng: np.random.Generator) -> str:
    """Readers of the node read its first input instead."""
    at = int(rng.integers(len(graph.node)))
    node = graph.node[at]
    gone = set(node.output)
    new = node.input[0] if node.input else ""
    for other in graph.node:
        for i, name in enumerate(other.input):
            if name in gone:
                other.input[i] = new
    said = f"without {node.name or node.op_type}"
    del graph.node[at]
    return said


def _swap_inputs(graph: onnx.GraphProto, model: onnx.ModelProto, rng: np.random.Generator) -> str:
    node = _node(graph, rng)
    order = rng.permutation(len(node.input))
    names = [node.input[i] for i in order]
    del node.input[:]
    node.input.extend(names)
    return f"inputs of {node.name} in the order {order.tolist()}"


def _redirect(graph: onnx.GraphProto, model: onnx.ModelProto, rng: np.random.Generator) -> str:
    node = _node(graph, rng)
    if not node.input:
        return "nothing"
    values = _values(graph)
    at, to = int(rng.integers(len(node.input))), values[int(rng.integers(len(values)))]
    node.input[at] = to
    return f"input {at} of {node.name} is {to}"


def _change_op(graph: onnx.GraphProto, model: onnx.ModelProto, rng: np.random.Generator) -> str:
    node = _node(graph, rng)
    was, node.op_type = node.op_type, _OPS[int(rng.integers(len(_OPS)))]
    return f"{node.name} is a {node.op_type} instead of a {was}"


def _change_attribute(
    graph: onnx.GraphProto, model: onnx.ModelProto, rng: np.random.Generator
) -> str:
    nodes = [node for node in graph.node if node.attribute]
    if not nodes:
        return "nothing"
    node = nodes[int(rng.integers(len(nodes)))]
    attribute = node.attribute[int(rng.integers(len(node.attribute)))]
    numbers = [-(2**63), -3, -2, -1, 0, 1, 2, 5, 100, 2**31, 2**62]
    number = numbers[int(rng.integers(len(numbers)))]
    if attribute.type == onnx.AttributeProto.INT:
        attribute.i = number
    elif attribute.type == onnx.AttributeProto.INTS and attribute.ints:
        attribute.ints[int(rng.integers(len(attribute.ints)))] = number
    elif attribute.type == onnx.AttributeProto.FLOAT:
        attribute.f = float([0.0, -1.0, float("nan"), float("inf"), 1e30][int(rng.integers(5))])
    elif attribute.type == onnx.AttributeProto.STRING:
        attribute.s = [b"", b"none", b"\xff\xfe", b"reflect"][int(rng.integers(4))]
    return f"{attribute.name} of {node.name} changed"


def _drop_attribute(
    graph: onnx.GraphProto, model: onnx.ModelProto, rng: np.random.Generator
) -> str:
    node = _node(graph, rng)
    del node.attribute[:]
    return f"{node.name} without attributes"


def _constant(graph: onnx.GraphProto, rng: np.random.Generator) -> onnx.TensorProto:
    return graph.initializer[int(rng.integers(len(graph.initializer)))]


def _change_constant(
    graph: onnx.GraphProto, model: onnx.ModelProto, rng: np.random.Generator
) -> str:
    tensor = _constant(graph, rng)
    array = np.array(numpy_helper.to_array(tensor))
    if array.size:
        odd = [0, 1, -1, 127, float("nan"), float("inf"), 1e38, 2**31]
        with np.errstate(all="ignore"):
            value = np.asarray(odd[int(rng.integers(len(odd)))]).astype(array.dtype)
        array.reshape(-1)[int(rng.integers(array.size))] = value
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return f"a number in {tensor.name}"


def _change_shape(graph: onnx.GraphProto, model: onnx.ModelProto, rng: np.random.Generator) -> str:
    """A stored tensor with its contents in another shape."""
    tensor = _constant(graph, rng)
    array = numpy_helper.to_array(tensor)
    how = int(rng.integers(4))
    if how == 0:
        array = array.reshape(-1)
    elif how == 1:
        array = array[None]
    elif how == 2:
        array = array.T
    elif array.ndim:
        array = array[: max(0, array.shape[0] - 1)]
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
    return f"{tensor.name} has the shape {list(array.shape)}"


def _change_type(graph: onnx.GraphProto, model: onnx.ModelProto, rng: np.random.Generator) -> str:
    tensor = _constant(graph, rng)
    kind = _TYPES[int(rng.integers(len(_TYPES) - 1))]
    array = numpy_helper.to_array(tensor)
    with np.errstate(all="ignore"):
        array = array.astype(helper.tensor_dtype_to_np_dtype(kind))
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return f"{tensor.name} is of type {array.dtype}"


def _change_input(graph: onnx.GraphProto, model: onnx.ModelProto, rng: np.random.Generator) -> str:
    value = graph.input[int(rng.integers(len(graph.input)))]
    kind = value.type.tensor_type
    if rng.integers(2) or not kind.shape.dim:
        kind.elem_type = _TYPES[int(rng.integers(len(_TYPES)))]
        return f"the input {value.name} is of type {kind.elem_type}"
    dim = kind.shape.dim[int(rng.integers(len(kind.shape.dim)))]
    if rng.integers(2):
        dim.dim_value = _DIMS[int(rng.integers(len(_DIMS)))]
    else:
        dim.dim_param = ["batch", "sequence", "other", ""][int(rng.integers(4))]
    return f"an extent of the input {value.name} is {dim}".replace("\n", " ")


def _drop_input(graph: onnx.GraphProto, model: onnx.ModelProto, rng: np.random.Generator) -> str:
    node = _node(graph, rng)
    if not node.input:
        return "nothing"
    at = int(rng.integers(len(node.input)))
    if rng.integers(2):
        node.input[at] = ""
    else:
        del node.input[at:]
    return f"{node.name} without input {at}"


def _change_opset(graph: onnx.GraphProto, model: onnx.ModelProto, rng: np.random.Generator) -> str:
    versions = [1, 6, 7, 9, 11, 13, 15, 18, 21, 23, 999, 0]
    model.opset_import[0].version = versions[int(rng.integers(len(versions)))]
    return f"opset {model.opset_import[0].version}"


def _duplicate(graph: onnx.GraphProto, model: onnx.ModelProto, rng: np.random.Generator) -> str:
    node = _node(graph, rng)
    graph.node.append(node)
    return f"{node.name} twice"


def _drop_constant(graph: onnx.GraphProto, model: onnx.ModelProto, rng: np.random.Generator) -> str:
    at = int(rng.integers(len(graph.initializer)))
    name = graph.initializer[at].name
    del graph.initializer[at]
    return f"without the constant {name}"


def _rename_output(graph: onnx.GraphProto, model: onnx.ModelProto, rng: np.random.Generator) -> str:
    values = _values(graph)
    graph.output[0].name = values[int(rng.integers(len(values)))]
    return f"the output is {graph.output[0].name}"


def _say_less(graph: onnx.GraphProto, model: onnx.ModelProto, rng: np.random.Generator) -> str:
    """An input or output whose type, element type or shape the file does not say."""
    values = [*graph.input, *graph.output]
    value = values[int(rng.integers(len(values)))]
    how = int(rng.integers(3))
    if how == 0:
        value.ClearField("type")
    elif how == 1:
        value.type.tensor_type.ClearField("elem_type")
    else:
        value.type.tensor_type.ClearField("shape")
    return f"{value.name} says less ({how})"


def _tap(graph: onnx.GraphProto, model: onnx.ModelProto, rng: np.random.Generator) -> str:
    values = _values(graph)
    name = values[int(rng.integers(len(values)))]
    graph.output.append(onnx.ValueInfoProto(name=name))
    return f"{name!r} is an output too"


def _odd_name(graph: onnx.GraphProto, model: onnx.ModelProto, rng: np.random.Generator) -> str:
    """A value has another name, wherever it is read; or a node has."""
    new = _NAMES[int(rng.integers(len(_NAMES)))]
    if rng.integers(3) == 0:
        _node(graph, rng).name = new
        return f"a node is called {new[:20]!r}"
    values = [v.name for v in (*graph.input, *graph.output)] + _values(graph)
    old = values[int(rng.integers(len(values)))]
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == old:
                    names[i] = new
    for value in (*graph.input, *graph.output, *graph.initializer):
        if value.name == old:
            value.name = new
    return f"{old!r} is called {new[:20]!r}"


def _move_data(graph: onnx.GraphProto, model: onnx.ModelProto, rng: np.random.Generator) -> str:
    """A constant is said to be in another file."""
    tensor = _constant(graph, rng)
    place = _PLACES[int(rng.integers(len(_PLACES)))]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=place)
    if rng.integers(2):
        tensor.ClearField("raw_data")
    return f"{tensor.name} is in {place!r}"
