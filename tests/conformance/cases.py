"""The cases of ``onnx.backend.test``: which concern us, and many of them as one model."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.compose
from onnx import TensorProto, helper, numpy_helper

from sparsec.compiler import frontend, passes
from sparsec.compiler.codegen.table import check_supported
from sparsec.compiler.frontend.importer import IMPORTERS, STATIC, core_dtype
from sparsec.compiler.frontend.tensor import Fail
from sparsec.errors import SparsecError, UnsupportedError

EXPANDED = "(function bodies)"
"""Stands for the op of a case that is made of several."""


@dataclass(frozen=True, eq=False)
class Case:
    """One node test.

    Attributes:
        name: as the suite has it.
        op: its op, or :data:`EXPANDED`.
        proto: its model; inputs that must be known at compile time have become initializers.
        inputs: arrays of the remaining inputs, in order.
        outputs: what it must give.
        rtol: relative tolerance that the suite asks for.
        atol: absolute tolerance.
    """

    name: str
    op: str
    proto: onnx.ModelProto
    inputs: tuple[np.ndarray, ...]
    outputs: tuple[np.ndarray, ...]
    rtol: float
    atol: float


def load() -> tuple[list[Case], dict[str, tuple[str, str]]]:
    """The cases whose ops are all supported, and those of them that are refused before anything.

    Returns:
        Cases to compile, and op and reason by name for those with data that are not tensors.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        suite = load_model_tests(kind="node")
    cases, refused = [], {}
    for test in suite:
        proto = test.model
        ops = {n.op_type for n in proto.graph.node}
        if any(n.domain not in ("", "ai.onnx") for n in proto.graph.node):
            continue
        version = next((o.version for o in proto.opset_import if not o.domain), 1)
        if not all(_known(op, version) for op in ops):
            continue
        op = min(ops) if len(ops) == 1 else EXPANDED
        given, wanted = test.data_sets[0]
        arrays = [_array(a) for a in (*given, *wanted)]
        if any(a is None for a in arrays):
            refused[test.name] = (op, "sequences, optionals and strings are not supported")
            continue
        plain = [a for a in arrays if a is not None]
        proto, inputs = _with_constants(proto, plain[: len(given)])
        outputs = tuple(plain[len(given) :])
        rtol, atol = test.rtol, test.atol
        if any(a.dtype.name in ("float16", "bfloat16") for a in plain):
            # Half floats are computed in float32; what they are compared with was not.
            brain = any(a.dtype.name == "bfloat16" for a in plain)
            rtol, atol = (3e-2, 1e-2) if brain else (4e-3, 1e-3)
        cases.append(Case(test.name, op, proto, tuple(inputs), outputs, rtol, atol))
    return cases, refused


def _known(op: str, version: int) -> bool:
    if ("", op) in IMPORTERS:
        return True
    try:
        schema: Any = onnx.defs.get_schema(op, version, "")
    except onnx.defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)


def _array(value: Any) -> np.ndarray | None:
    if isinstance(value, TensorProto):
        value = numpy_helper.to_array(value)
    if isinstance(value, (np.ndarray, np.generic)):
        array = np.asarray(value)
        return None if array.dtype.kind in "OSU" else array
    return None


def _with_constants(
    proto: onnx.ModelProto, arrays: Sequence[np.ndarray]
) -> tuple[onnx.ModelProto, list[np.ndarray]]:
    """The model with the inputs that shapes hang on as initializers, and the arrays of the rest."""
    makers = {out: node for node in proto.graph.node for out in node.output}
    static: set[str] = set()
    todo = [
        node.input[i]
        for node in proto.graph.node
        for i in STATIC.get(("", node.op_type), ())
        if i < len(node.input)
    ]
    while todo:
        name = todo.pop()
        if name in static:
            continue
        static.add(name)
        maker = makers.get(name)
        if maker is not None and maker.op_type not in ("Shape", "Size"):
            todo += maker.input
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.input[:]
    rest = []
    for value, array in zip(proto.graph.input, arrays, strict=True):
        if value.name in static:
            copy.graph.initializer.append(numpy_helper.from_array(array, value.name))
        else:
            copy.graph.input.append(_shaped(value, array))
            rest.append(array)
    return copy, rest


def _shaped(value: onnx.ValueInfoProto, array: np.ndarray) -> onnx.ValueInfoProto:
    """The input with the extents of its array."""
    kind = value.type.tensor_type.elem_type
    return helper.make_tensor_value_info(value.name, kind, array.shape)


def reason_against(case: Case, folder: Path) -> str | None:
    """Why a case cannot be compiled, or None."""
    path = folder / "case.onnx"
    try:
        onnx.save(merged([case]), path)
        model = frontend.load_model(path)
        check_supported(passes.run(frontend.import_graph(model, 0)))
    except UnsupportedError as error:
        return "; ".join(dict.fromkeys(f"{op}: {why}" for _, op, why in error.nodes))
    except SparsecError as error:
        return str(error).replace(str(folder), "").strip()
    return None


def merged(cases: Iterable[Case]) -> onnx.ModelProto:
    """Cases of one opset side by side; the values of case i are called ``c<i>_...``.

    Two more inputs, which nobody reads, keep every extent what it is: inputs that agree on their
    leading extent would be taken for a batch.
    """
    graphs = []
    for i, case in enumerate(cases):
        graphs.append(onnx.compose.add_prefix(case.proto, f"c{i}_"))
    total = onnx.ModelProto()
    total.CopyFrom(graphs[0])
    for other in graphs[1:]:
        for part in ("node", "input", "output", "initializer", "sparse_initializer"):
            getattr(total.graph, part).extend(getattr(other.graph, part))
        total.ir_version = max(total.ir_version, other.ir_version)
    del total.graph.value_info[:]
    for size in (1, 2):
        name, shape = f"anchor{size}", [size, size]
        total.graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT32, shape))
    return total


def feeds(cases: Sequence[Case], names: Sequence[str]) -> list[np.ndarray]:
    """What the merged model is given: half floats as float32, and the inputs nobody reads."""
    arrays = [a for case in cases for a in case.inputs]
    arrays += [np.zeros((size, size), np.int32) for size in (1, 2)]
    assert len(arrays) == len(names)
    return [a.astype(widened(a.dtype)) for a in arrays]


def widened(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The element type in which compiled code takes or gives what ONNX has in `dtype`."""
    try:
        return core_dtype(helper.np_dtype_to_tensor_dtype(dtype))
    except Fail:
        return dtype


def core_ops(case: Case, folder: Path) -> set[str]:
    """What a case becomes when it is compiled on its own."""
    path = folder / "case.onnx"
    onnx.save(merged([case]), path)
    graph = passes.run(frontend.import_graph(frontend.load_model(path), 0))
    return {node.op for node in graph.nodes}


_SHORT = {
    "float16": "f16",
    "bfloat16": "bf16",
    "float32": "f32",
    "float64": "f64",
    **{f"int{n}": f"i{n}" for n in (8, 16, 32, 64)},
    **{f"uint{n}": f"u{n}" for n in (8, 16, 32, 64)},
    "bool": "bool",
}


def element_types(case: Case, folder: Path) -> list[str]:
    """Types of the first input with which a one-op case compiles, out of those the standard allows.

    All inputs that share the first one's type variable are given the other type.
    """
    (node, *more) = case.proto.graph.node
    version = next((o.version for o in case.proto.opset_import if not o.domain), 1)
    schema: Any = onnx.defs.get_schema(node.op_type, version, "")
    if more or not node.input or not schema.inputs:
        return []
    variable = schema.inputs[0].type_str
    allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    same = {
        name
        for i, name in enumerate(node.input)
        if schema.inputs[min(i, len(schema.inputs) - 1)].type_str == variable
    }
    found = []
    for name, short in _SHORT.items():
        onnx_name = {"float32": "float", "float64": "double"}.get(name, name)
        if f"tensor({onnx_name})" not in allowed.get(variable, [variable]):
            continue
        kind = TensorProto.DataType.Value(onnx_name.upper())
        proto = onnx.ModelProto()
        proto.CopyFrom(case.proto)
        for value in proto.graph.input:
            if value.name in same:
                value.type.tensor_type.elem_type = kind
        for tensor in proto.graph.initializer:
            if tensor.name in same:
                array = numpy_helper.to_array(tensor)
                tensor.CopyFrom(
                    numpy_helper.from_array(
                        array.astype(helper.tensor_dtype_to_np_dtype(kind)), tensor.name
                    )
                )
        other = Case(case.name, case.op, proto, (), (), 0, 0)
        if reason_against(other, folder) is None:
            found.append(short)
    return found
