"""Single ONNX nodes with random attributes: what the importer makes of them beside ONNX Runtime.

A seed and an operator give the same node again.  What ONNX Runtime refuses is no test; what the
importer refuses may be, as long as it says so by an error of its own.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from sparsec.compiler import passes
from sparsec.compiler.frontend import canonicalize
from sparsec.compiler.frontend.importer import IMPORTERS, InputShape, import_nodes
from sparsec.compiler.frontend.load import Model
from sparsec.compiler.interpreter import interpret
from sparsec.errors import SparsecError
from tests.fuzz.draws import Array, Draw
from tests.fuzz.operators import ELSEWHERE, GENERATORS, Constant, Drawn

OPSETS = range(7, 23)
FEW, MANY = 12, 120

#: The first opset that has an operator.
SINCE: dict[str, int] = {}
for schema in onnx.defs.get_all_schemas_with_history():
    if schema.domain == "":
        SINCE[schema.name] = min(schema.since_version, SINCE.get(schema.name, OPSETS[-1]))

#: Of the nodes that ONNX Runtime runs, the share that the importer must take.
TAKEN = 0.5


@dataclass(frozen=True)
class Node:
    """A model of one node.

    Attributes:
        fed: its inputs that are not constants, in order.
    """

    model: onnx.ModelProto
    fed: dict[str, Array]

    @staticmethod
    def of(op: str, opset: int, drawn: Drawn, draw: Draw) -> Node:
        """The model of what was drawn; inputs but the first are constants now and then."""
        names, fed, constants = [], {}, []
        for i, given in enumerate(drawn.inputs):
            names.append("" if given is None else f"x{i}")
            if given is None:
                continue
            value = given.value if isinstance(given, Constant) else np.asarray(given)
            if isinstance(given, Constant) or (i and draw.sometimes(0.4)):
                constants.append(numpy_helper.from_array(value, names[-1]))
            else:
                fed[names[-1]] = value
        outputs = [f"y{i}" for i in range(drawn.outputs)]
        node = helper.make_node(op, names, outputs, name="node", **drawn.attributes)
        inputs = [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
            )
            for name, value in fed.items()
        ]
        results = [helper.make_empty_tensor_value_info(name) for name in outputs]
        graph = helper.make_graph([node], "node", inputs, results, constants)
        opsets = [helper.make_opsetid("", opset)]
        return Node(helper.make_model(graph, opset_imports=opsets, ir_version=9), fed)

    def expected(self) -> list[Array] | None:
        """What ONNX Runtime makes of it; None where it refuses."""
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level, options.intra_op_num_threads = 4, 1
        try:
            session = ort.InferenceSession(
                self.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            return session.run(None, self.fed)
        except Exception:  # whatever it raises, by the kind of what is wrong
            return None

    def have(self, optimized: bool) -> list[Array]:
        """What the references make of it, with or without the passes.

        Raises:
            SparsecError: the importer refuses it.
        """
        opsets = {entry.domain: entry.version for entry in self.model.opset_import}
        version = opsets[""]
        model = Model(self.model, Path("node.onnx"), "node", Path(), None, "", version, opsets)
        shapes = [
            InputShape(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in self.fed.items()
        ]
        graph = canonicalize(import_nodes(model, shapes, 0))
        if optimized:
            graph = passes.run(graph)
        given = zip(self.fed.values(), graph.inputs, strict=True)
        return interpret(graph, [x.astype(graph.values[name].dtype) for x, name in given])


def differs(have: Array, want: Array) -> str:
    """In what two results differ; "" where in nothing that matters."""
    if have.shape != want.shape or have.dtype != want.dtype:
        return f"{have.dtype}{have.shape} instead of {want.dtype}{want.shape}"
    if have.dtype.kind != "f":
        same = have == want
    else:
        tiny = (np.abs(have) < 1.2e-38) & (np.abs(want) < 1.2e-38)
        same = np.isclose(have, want, rtol=2e-5, atol=2e-5, equal_nan=True) | tiny
    if same.all():
        return ""
    at = np.unravel_index(int(np.argmin(same)), same.shape)
    return f"{have[at]} instead of {want[at]} at {at}, {np.sum(~same)} of {same.size}"


def valid(node: Node, op: str, opset: int) -> bool:
    """Whether the standard allows the node in this opset."""
    context = onnx.checker.C.CheckerContext()
    context.ir_version, context.opset_imports = 9, {"": opset}
    try:
        onnx.defs.get_schema(op, opset)
        onnx.checker.check_node(node.model.graph.node[0], context)
    except (onnx.defs.SchemaError, onnx.checker.ValidationError):
        return False
    return True


def faults(op: str, seed: int) -> list[str] | None:
    """In what a random node differs from ONNX Runtime; None where there is nothing to compare.

    Raises:
        SparsecError: the importer refuses a node that ONNX Runtime runs.
    """
    draw = Draw(zlib.crc32(op.encode()), seed)
    opset = draw.whole(max(OPSETS[0], SINCE[op]), OPSETS[-1])
    drawn = GENERATORS[op](draw, op, opset)
    node = Node.of(op, opset, drawn, draw)
    want = node.expected() if valid(node, op, opset) else None
    if want is None:
        return None
    found = []
    for optimized in (False, True):
        for have, expected in zip(node.have(optimized), want, strict=True):
            if fault := differs(np.asarray(have), np.asarray(expected)):
                where = "after the passes" if optimized else "imported"
                shapes = [np.shape(getattr(x, "value", x)) for x in drawn.inputs]
                found.append(f"{op} {seed}, opset {opset}, {drawn.attributes}, {shapes}")
                found[-1] += f", {where}: {fault}"
    return found


def check(op: str, seeds: range) -> None:
    """Compare nodes of one operator, and see that some were compared."""
    found: list[str] = []
    compared = refused = 0
    with np.errstate(all="ignore"):
        for seed in seeds:
            try:
                fault = faults(op, seed)
            except SparsecError:
                refused += 1
                continue
            compared += fault is not None
            found += fault or []
    assert not found, "\n".join(found)
    assert compared > 0 and compared >= TAKEN * (compared + refused), (compared, refused)


def test_every_operator_is_drawn() -> None:
    known = {op for domain, op in IMPORTERS if domain == ""}
    assert known == GENERATORS.keys() | ELSEWHERE.keys()
    assert GENERATORS.keys().isdisjoint(ELSEWHERE)


@pytest.mark.parametrize("op", GENERATORS)
def test_nodes_are_what_onnx_runtime_gives(op: str) -> None:
    check(op, range(FEW))


@pytest.mark.slow
@pytest.mark.parametrize("op", GENERATORS)
def test_many_nodes_are_what_onnx_runtime_gives(op: str) -> None:
    check(op, range(FEW, MANY))


def test_differences_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """In values, and in types."""
    have = Node.have
    wrong: tuple[Callable[[Array], Array], ...] = (lambda x: 1.001 * x, lambda x: x.astype("f2"))
    for change in wrong:
        monkeypatch.setattr(Node, "have", lambda *of, change=change: [change(have(*of)[0])])
        with pytest.raises(AssertionError, match="instead of"):
            check("MatMul", range(FEW))
