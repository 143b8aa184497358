"""In which forms values are wanted: row by row, in lanes, in bytes, or in panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparsec.compiler.ir import Graph, Node
from sparsec.compiler.lowering.elements import BYTES
from sparsec.compiler.lowering.groups import Group, Step
from sparsec.compiler.lowering.lanes import Choice
from sparsec.compiler.ops import OPS


@dataclass(frozen=True)
class Forms:
    """What the steps make of each other's values.

    Attributes:
        in_lanes: values that lane kernels make.
        gathers: values that are rows of a table, looked up by whoever reads them -> the gather.
        needed: value -> forms in which the others want it.
    """

    in_lanes: frozenset[str]
    gathers: Mapping[str, Node]
    needed: Mapping[str, frozenset[str]]


def find(graph: Graph, choice: Choice, steps: Sequence[Step]) -> Forms:
    """The forms in which the steps want each other's values."""
    in_lanes = frozenset(
        out for step in steps if step.group for node in step.group.nodes for out in node.outputs
    )
    row_major = {out for step in steps if step.node is not None for out in step.node.outputs}
    gathers = {
        node.output: node
        for node in graph.nodes
        if node.op == "gather" and choice.has(node) and node.output not in in_lanes | row_major
    }
    needed: dict[str, set[str]] = {}
    for step in steps:
        for name, form in _wanted(step, graph, choice, in_lanes):
            needed.setdefault(choice.root(name), set()).add(form)
    for name in graph.outputs:
        if choice.root(name) in in_lanes:
            needed.setdefault(choice.root(name), set()).add("flat")
    return Forms(in_lanes, gathers, {name: frozenset(forms) for name, forms in needed.items()})


def _wanted(
    step: Step, graph: Graph, choice: Choice, in_lanes: frozenset[str]
) -> list[tuple[str, str]]:
    """Values that a step reads of others, and the form in which it does."""
    if step.node is not None:
        return [(n, "flat") for n in step.node.inputs if n and choice.root(n) in in_lanes]
    assert step.group is not None
    inside = {out for node in step.group.nodes for out in node.outputs}
    reads = (
        (name, _form(node, position, name, graph, choice, in_lanes))
        for node in step.group.nodes
        for position, name in enumerate(node.inputs)
        if name and name not in graph.constants and choice.root(name) not in inside
    )
    return [(name, form) for name, form in reads if form is not None]


def _form(
    node: Node, position: int, name: str, graph: Graph, choice: Choice, in_lanes: frozenset[str]
) -> str | None:
    """The form in which a lane node reads an operand; None for row-major ones."""
    dtype = graph.values[name].dtype
    if OPS[node.op].linear == "i8":
        return "panel_u8" if position == 0 else None
    if node.op == "attention" and position > 2:
        return "flat" if choice.root(name) in in_lanes else None
    if node.op == "attention" and dtype in BYTES:
        return ("panel_u8", "panel_s8", "byte_s8")[position]
    if choice.root(name) in in_lanes or OPS[node.op].linear == "f32" or node.op == "attention":
        return "byte" if dtype in BYTES else "lane"
    return None


@dataclass(frozen=True)
class Stores:
    """What a lane group leaves behind.

    Attributes:
        forms: value -> forms in lanes that its kernel stores.
        flat: values that are moved row by row afterwards.
    """

    forms: Mapping[str, frozenset[str]]
    flat: tuple[str, ...]


def stores(group: Group, forms: Forms, graph: Graph) -> Stores:
    """The forms in which a group stores its values."""
    made = {out for node in group.nodes for out in node.outputs}
    stored: dict[str, frozenset[str]] = {}
    flat: list[str] = []
    for name in sorted((made & set(forms.needed)) | set(group.copies)):
        wanted = forms.needed.get(name, frozenset())
        stored[name] = wanted - {"flat"}
        if "flat" in wanted and name in made:
            flat.append(name)
            stored[name] |= {"byte" if graph.values[name].dtype in BYTES else "lane"}
    return Stores(stored, tuple(flat))
