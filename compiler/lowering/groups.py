"""The nodes that run with rows in lanes, cut into kernels, among the row-major ones, in order.

A kernel is an anchor (a linear layer, an attention block, or nothing) with the elementwise work
around it fused in.  The walk goes through the nodes once: an anchor begins a group, elementwise
work and normalization join the group that makes what they read, if they can, and everything else is
a step of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sparsec.compiler.ir import Graph, Node
from sparsec.compiler.lowering.lanes import (
    Choice,
    by_lengths,
    channel_order,
    is_position_table,
    is_table_gather,
    lane_operands,
)
from sparsec.compiler.lowering.waits import Waits
from sparsec.compiler.ops import OPS

#: Elementwise nodes that one kernel takes at most: what they hold must find room in registers.
GROUP_LIMIT = 24


@dataclass
class Group:
    """One lane kernel: an anchor and the elementwise nodes fused with it.

    Attributes:
        kind: "linear" (anchor linear or qlinear), "attention", or "map".
        nodes: in order; the anchor of a linear or attention group comes first.
        norm: the LayerNorm of a map group, or None.
        copies: values that a map only moves into lanes, because an anchor reads them there.
        order: channels in the order in which panels take them; None where no node says.
        extremes: the node that wants those of one of its values, which it finds on the way.
    """

    kind: str
    domain: str
    channels: int
    nodes: list[Node] = field(default_factory=list)
    norm: Node | None = None
    copies: list[str] = field(default_factory=list)
    order: np.ndarray | None = None
    extremes: Node | None = None

    @property
    def anchor(self) -> Node | None:
        """The linear layer or attention block, for groups that have one."""
        return self.nodes[0] if self.kind != "map" else None

    def take(self, more: Group) -> None:
        """Do the work of a map, too."""
        self.nodes += more.nodes
        self.norm = more.norm if self.norm is None else self.norm
        self.order = more.order if self.order is None else self.order

    @property
    def source(self) -> str:
        """ONNX names of what it computes, for comments."""
        names = [n.source for n in self.nodes if n.source]
        return ", ".join(dict.fromkeys(names))


@dataclass
class Step:
    """One thing to run: a lane group, or a row-major node with a general kernel."""

    group: Group | None = None
    node: Node | None = None


def group(graph: Graph, choice: Choice) -> list[Step]:
    """Cut the graph into steps, in an order that respects every dependence."""
    return _Grouping(graph, choice).run()


class _Grouping:
    """The walk.

    Attributes:
        steps: as they were made.
        waits: which of them waits for which.
        maker: the step that makes a value.
        gathers: rows that readers look up in a table; no step makes them.
        copies: the step that moves a value into lanes.
        in_order: what layers and attention read as panels, unless a gather gave it another order.
    """

    def __init__(self, graph: Graph, choice: Choice) -> None:
        self.graph = graph
        self.choice = choice
        self.consumers = graph.consumers()
        self.steps: list[Step] = []
        self.waits = Waits()
        self.maker: dict[str, int] = {}
        self.gathers: set[str] = set()
        self.copies: dict[str, int] = {}
        self.in_order = {
            choice.root(name)
            for node in graph.nodes
            if choice.has(node) and (OPS[node.op].linear == "i8" or node.op == "attention")
            for name in lane_operands(node)
        }

    def run(self) -> list[Step]:
        for node in self.graph.nodes:
            if node.outputs[0] in self.choice.alias:
                self.share(node.output, self.choice.root(node.output))
            elif node.op == "extremes" and self.watches(node):
                continue
            elif not self.choice.has(node):
                self.add(Step(node=node), node.inputs, node.outputs)
            elif is_table_gather(node, self.graph, self.choice):
                self.look_up(node)
            elif OPS[node.op].linear or node.op == "attention":
                self.begin(node)
            else:
                self.join(node)
        return [self.steps[i] for i in self.ordered()]

    def add(self, step: Step, inputs: Iterable[str], outputs: Iterable[str]) -> int:
        """A new step, which waits for those that make its inputs."""
        index = self.waits.add(self.makers(inputs))
        self.steps.append(step)
        self.maker.update(dict.fromkeys(outputs, index))
        return index

    def makers(self, names: Iterable[str]) -> set[int]:
        return {self.maker[name] for name in names if name in self.maker}

    def home(self, name: str) -> Group | None:
        """The group that makes a value."""
        return self.steps[self.maker[name]].group if name in self.maker else None

    def share(self, name: str, other: str) -> None:
        """A value comes from where another one does."""
        if other in self.maker:
            self.maker[name] = self.maker[other]
        if other in self.gathers:
            self.gathers.add(name)

    def look_up(self, node: Node) -> None:
        """A gather of rows of a table: a step only if what it gives is wanted row-major."""
        names = _names_of(node.output, self.choice, self.consumers)
        users = [u for name in names for u in self.consumers[name]]
        if not names.isdisjoint(self.graph.outputs) or not all(map(self.choice.has, users)):
            self.add(Step(node=node), node.inputs, node.outputs)
            return
        self.gathers.add(node.output)
        if node.inputs[1] in self.maker:
            self.maker[node.output] = self.maker[node.inputs[1]]

    def begin(self, node: Node) -> None:
        """A layer or attention block; what it reads is moved into lanes first, where it is not."""
        rows = self.choice.rows[node.output]
        lanes = [self.choice.root(n) for n in lane_operands(node)]
        for name in lanes:
            if name not in self.copies and (name in self.gathers or self.home(name) is None):
                own = self.choice.rows[name]
                copy = Group("map", own.domain, own.channels, copies=[name])
                self.copies[name] = self.add(Step(copy), [name], ())
        kind = "attention" if node.op == "attention" else "linear"
        inputs = [self.choice.root(n) for n in node.inputs if n]
        step = Step(Group(kind, rows.domain, rows.channels, [node]))
        index = self.add(step, inputs, node.outputs)
        # Row-major readers wait for the original only.
        self.waits.extend(index, {self.copies[name] for name in lanes if name in self.copies})

    def join(self, node: Node) -> None:
        """Elementwise work or a LayerNorm: into the latest group among those that it reads."""
        graph, choice = self.graph, self.choice
        rows = choice.rows[node.output]
        lanes = [
            choice.root(n)
            for n in lane_operands(node)
            if n not in graph.constants and n in choice.rows
        ]
        inputs = [choice.root(n) for n in node.inputs if n]
        order = channel_order(node, graph)
        if order is None and choice.root(node.output) in self.in_order:
            order = np.arange(rows.channels)
        new = Group("map", rows.domain, rows.channels, [node], order=order)
        if node.op == "layernorm":
            new.norm = node
        grouped = [n for n in lanes if n not in self.gathers and self.home(n) is not None]
        gathered = len(grouped) < len(lanes) or any(
            is_position_table(n, graph, rows) for n in node.inputs if n
        )
        if grouped:
            index = max(self.makers(grouped))
            group = self.steps[index].group
            others = self.makers(n for n in inputs if self.maker.get(n) != index)
            assert group is not None
            if _takes(group, new, gathered) and not self.waits.reaches(others, index):
                group.take(new)
                self.waits.extend(index, others)
                self.maker[node.output] = index
                return
        self.add(Step(new), inputs, node.outputs)

    def watches(self, node: Node) -> bool:
        """Let the group that makes a value find its extremes, if it can."""
        name = self.choice.root(node.inputs[0])
        group = self.home(name)
        rows = self.choice.rows.get(name)
        if group is None or rows is None or group.extremes is not None or name in self.gathers:
            return False
        if (group.domain, group.channels) != (rows.domain, rows.channels):
            return False
        if len(node.inputs) > 1 and not by_lengths(node.inputs[1], self.graph):
            return False
        group.extremes = node
        self.maker.update(dict.fromkeys(node.outputs, self.maker[name]))
        return True

    def ordered(self) -> list[int]:
        """The steps' order.

        Row-major work (masks, mostly) comes first, so that lane kernels follow each other without a
        break.
        """
        behind: set[int] = set()  # groups, and what waits for one
        for i, step in enumerate(self.steps):
            if step.group is not None or not behind.isdisjoint(self.waits.on[i]):
                behind.add(i)
        first = [i for i in range(len(self.steps)) if i not in behind]
        return self.gathered(self.waits.ordered([*first, *range(len(self.steps))]))

    def gathered(self, order: Sequence[int]) -> list[int]:
        """An order in which row-major work comes together: all of it that can be done, wherever
        some of it has to be."""
        placed: dict[int, None] = {}
        row_major = [i for i in order if self.steps[i].group is None]
        for step in order:
            if step in placed:
                continue
            placed[step] = None
            if self.steps[step].group is None:
                for i in row_major:
                    if i not in placed and self.waits.on[i] <= placed.keys():
                        placed[i] = None
                row_major = [i for i in row_major if i not in placed]
        return list(placed)


def _takes(group: Group, more: Group, gathered: bool) -> bool:
    """Whether a group's kernel can do the work of a map of one node, too.

    Args:
        gathered: that reads rows that no group makes.
    """
    (node,) = more.nodes
    return (
        (group.domain, group.channels) == (more.domain, more.channels)
        and len(group.nodes) < GROUP_LIMIT
        and not (group.kind != "map" and (gathered or node.op in ("layernorm", "gather")))
        and not (more.norm is not None and group.norm is not None)
        and (group.order is None or more.order is None or np.array_equal(group.order, more.order))
    )


def _names_of(name: str, choice: Choice, consumers: Mapping[str, Sequence[Node]]) -> set[str]:
    """A value and all that share its bytes."""
    names, todo = {name}, [name]
    while todo:
        for user in consumers[todo.pop()]:
            if user.outputs[0] in choice.alias and user.outputs[0] not in names:
                names.add(user.outputs[0])
                todo.append(user.outputs[0])
    return names


__all__ = ["GROUP_LIMIT", "Group", "Step", "group"]
