"""Elementwise nodes, alone or fused: one loop nest over the broadcast result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sparsec.compiler.codegen.general.extents import (
    ONE,
    ZERO,
    Extent,
    broadcast_strides,
    collapse,
    decode,
    extents,
    offset,
    product,
    strides,
)
from sparsec.compiler.codegen.general.render import Call, NotGeneral, c_type
from sparsec.compiler.ir import Graph, Node, Shape, Value
from sparsec.compiler.lowering.elements import is_square
from sparsec.compiler.ops import OPS


def expression(node: Node, graph: Graph, operands: Sequence[str]) -> str:
    """The C expression of one element of an elementwise node.

    Args:
        node: its op is elementwise.
        graph: has the types of its inputs, and exponents that are constant.
        operands: C names of its inputs' elements.

    Raises:
        NotGeneral: the op has no expression for these types.
    """
    if is_square(node, graph):
        return f"{operands[0]} * {operands[0]}"
    types = [graph.values[n].dtype for n in node.inputs]
    for dtype in (*types, graph.values[node.output].dtype):
        c_type(dtype)  # is it one that C has
    row = OPS[node.op].elementwise
    text = row.element(node.op, node.attrs, types, operands) if row is not None else None
    if text is None:
        raise NotGeneral(f"{node.op} of {types[0].name} is not supported")
    return text


def operand_strides(node: Node, position: int, value: Value, graph: Graph) -> list[Extent]:
    """Strides of an elementwise node's input over the node's result.

    Inputs broadcast from the right, but for the parameters of a quantization, which lie along an
    axis.
    """
    rank = len(graph.values[node.output].shape)
    if OPS[node.op].quantizes and position:
        steps = [ZERO] * rank
        if value.shape not in ((), (1,)):
            steps[int(node.attrs.get("axis", 1)) % rank] = strides(extents(value.shape))[0]
        return steps
    return broadcast_strides(value.shape, rank)


def group_outputs(nodes: Sequence[Node], graph: Graph) -> list[str]:
    """Results of a group that are graph outputs or are read by a node that is not in it."""
    made = {node.output for node in nodes}
    needed = set(graph.outputs)
    for node in graph.nodes:
        if made.isdisjoint(node.outputs):
            needed.update(node.inputs)
    return [node.output for node in nodes if node.output in needed]


_Read = tuple[str, tuple[Extent, ...]]


def _reads(node: Node, graph: Graph) -> list[_Read]:
    """The values that a node reads, and their strides over its result."""
    count = 1 if is_square(node, graph) else len(node.inputs)
    return [
        (name, tuple(operand_strides(node, i, graph.values[name], graph)))
        for i, name in enumerate(node.inputs[:count])
    ]


def emit_group(call: Call) -> str:
    """One loop for all nodes of the call; they have one result shape.

    Every (value, strides) pair that the nodes read from outside becomes one load.  Along the
    innermost loop an operand's stride is 1 or 0: extents of 1 at the end are gone by then.
    """
    graph = call.graph
    shape = _result_shape(call)
    loads = _loads(call)
    dims, collapsed = collapse(
        extents(shape), [strides(extents(shape)), *(list(steps) for _, steps in loads)]
    )
    inner = dims.pop() if dims else ONE
    whole = [steps[:-1] for steps in collapsed]
    parameter = {value.name: i for i, value in reversed(list(enumerate(call.inputs)))}
    fixed: list[dict[str, object]] = []
    moving: list[dict[str, object]] = []
    for (name, _), k in loads.items():
        steps = collapsed[k + 1]
        value = graph.values[name]
        load = {
            "name": f"v{k}",
            "type": c_type(value.dtype),
            "parameter": f"x{parameter[name]}",
            "offset": offset("i", whole[k + 1]),
            "boolean": value.dtype.kind == "b",
        }
        (moving if steps and steps[-1] != ZERO else fixed).append(load)
    names = {node.output: f"r{i}" for i, node in enumerate(call.nodes)}
    return call.render(
        "elementwise",
        rows=product(dims) if dims else inner,
        work=product(extents(shape)),
        flat=not dims,
        decode=decode("row", dims, "i", whole[1:]),
        inner=inner,
        fixed=fixed,
        moving=moving,
        statements=[_statement(node, graph, names, loads) for node in call.nodes],
        stores=[(f"y{i}", names[value.name]) for i, value in enumerate(call.outputs)],
    )


def _result_shape(call: Call) -> Shape:
    """The shape of all results of a group.

    Raises:
        ValueError: a node is not elementwise, or the shapes differ.
    """
    graph = call.graph
    shape = graph.values[call.nodes[0].output].shape
    for node in call.nodes:
        if OPS[node.op].elementwise is None:
            raise NotGeneral(f"{node.op} is not elementwise")
        if graph.values[node.output].shape != shape:
            raise ValueError(f"group of results {list(shape)} with {graph.values[node.output]}")
    return shape


def _loads(call: Call) -> dict[_Read, int]:
    """What the nodes of a group read from outside, numbered."""
    made = {node.output for node in call.nodes}
    reads = (read for node in call.nodes for read in _reads(node, call.graph))
    return {read: i for i, read in enumerate(dict.fromkeys(r for r in reads if r[0] not in made))}


def _statement(
    node: Node, graph: Graph, names: Mapping[str, str], loads: Mapping[_Read, int]
) -> str:
    """The C statement that computes an element of a node's result.

    Args:
        node: of a group.
        graph: has the types of its values.
        names: C names of the group's results.
        loads: numbers of what the group reads from outside.
    """
    operands = [
        names[read[0]] if read[0] in names else f"v{loads[read]}" for read in _reads(node, graph)
    ]
    result = c_type(graph.values[node.output].dtype)
    return f"const {result} {names[node.output]} = {expression(node, graph, operands)};"


# Nodes of one loop: more of them would only keep the C compiler busy.
_MOST = 24


def partition(graph: Graph, nodes: Sequence[Node]) -> list[list[Node]]:
    """Group consecutive elementwise nodes of one result shape that are connected.

    A node joins the group before it when it has the group's result shape and reads a result of it,
    or reads an input of it, so that nothing is loaded twice.  Other nodes stand alone.
    """
    groups: list[list[Node]] = []
    shape: Shape | None = None
    touched: set[str] = set()
    for node in nodes:
        fusable = OPS[node.op].elementwise is not None and len(node.outputs) == 1
        own = graph.values[node.output].shape if fusable else None
        room = groups and len(groups[-1]) < _MOST
        if fusable and room and own == shape and touched & set(node.inputs):
            groups[-1].append(node)
        else:
            groups.append([node])
            shape, touched = own, set()
        touched |= {*node.inputs, *node.outputs}
    return groups
