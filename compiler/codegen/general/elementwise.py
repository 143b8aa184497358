"""Elementwise nodes, alone or fused: one loop nest over the broadcast result."""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.compiler.codegen.general.expressions import ELEMENTWISE, expression, is_square
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


def operand_strides(node: Node, position: int, value: Value, graph: Graph) -> list[Extent]:
    """Strides of an elementwise node's input over the node's result.

    Inputs broadcast from the right, but for the parameters of `quantize` and `dequantize`, which
    lie along an axis.
    """
    rank = len(graph.values[node.output].shape)
    if node.op in ("quantize", "dequantize") and position:
        steps = [ZERO] * rank
        if value.shape not in ((), (1,)):
            steps[int(node.attrs.get("axis", 1)) % rank] = strides(extents(value.shape))[0]
        return steps
    return broadcast_strides(value.shape, rank)


def group_outputs(nodes: Sequence[Node], graph: Graph) -> list[str]:
    """Results of a group that are graph outputs or are read by a node that is not in it."""
    inside = {id(node) for node in nodes}
    needed = set(graph.outputs)
    for node in graph.nodes:
        if id(node) not in inside:
            needed.update(node.inputs)
    return [node.output for node in nodes if node.output in needed]


def emit_group(call: Call) -> str:
    """One loop for all nodes of the call; they have one result shape.

    Every (value, strides) pair that the nodes read from outside becomes one load.  Along the
    innermost loop an operand's stride is 1 or 0: extents of 1 at the end are gone by then.
    """
    graph = call.graph
    shape = graph.values[call.nodes[0].output].shape
    for node in call.nodes:
        if node.op not in ELEMENTWISE:
            raise NotGeneral(f"{node.op} is not elementwise")
        if graph.values[node.output].shape != shape:
            raise ValueError(f"group of results {list(shape)} with {graph.values[node.output]}")
    parameter = {value.name: i for i, value in reversed(list(enumerate(call.inputs)))}
    made = {node.output for node in call.nodes}
    loads: dict[tuple[str, tuple[Extent, ...]], int] = {}
    for node in call.nodes:
        for position, name in enumerate(node.inputs):
            if name not in made and not (position and is_square(node, graph)):
                steps = operand_strides(node, position, graph.values[name], graph)
                loads.setdefault((name, tuple(steps)), len(loads))
    dims, collapsed = collapse(
        extents(shape), [strides(extents(shape)), *(list(key[1]) for key in loads)]
    )
    inner = dims.pop() if dims else ONE
    whole = [steps[:-1] for steps in collapsed]
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
    names: dict[str, str] = {}
    statements = []
    for i, node in enumerate(call.nodes):
        operands = []
        for position, name in enumerate(node.inputs):
            if name in made:
                operands.append(names[name])
            elif not (position and is_square(node, graph)):
                steps = operand_strides(node, position, graph.values[name], graph)
                operands.append(f"v{loads[name, tuple(steps)]}")
        names[node.output] = f"r{i}"
        result = c_type(graph.values[node.output].dtype)
        statements.append(f"const {result} r{i} = {expression(node, graph, operands)};")
    stores = [(f"y{i}", names[value.name]) for i, value in enumerate(call.outputs)]
    return call.render(
        "elementwise",
        rows=product(dims) if dims else inner,
        work=product(extents(shape)),
        flat=not dims,
        decode=decode("row", dims, "i", whole[1:]),
        inner=inner,
        fixed=fixed,
        moving=moving,
        statements=statements,
        stores=stores,
    )


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
        fusable = node.op in ELEMENTWISE and len(node.outputs) == 1
        own = graph.values[node.output].shape if fusable else None
        room = groups and len(groups[-1]) < _MOST
        if fusable and room and own == shape and touched & set(node.inputs):
            groups[-1].append(node)
        else:
            groups.append([node])
            shape, touched = own, set()
        touched |= {*node.inputs, *node.outputs}
    return groups
