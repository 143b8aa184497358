"""Which nodes run with rows in lanes, and how they are grouped into kernels.

A *row tensor* has its rows in the leading extents: ``[B, S, ...]`` or ``[B*S, ...]`` (rows are
tokens) or ``[B, ...]`` (rows are sequences).  :func:`choose` marks the nodes whose operands and
results are row tensors of one kind; :func:`group` cuts them into kernels, each an anchor (a linear
layer, an attention block, or nothing) with the elementwise work around it fused in.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sparsec.compiler.ir import BatchDim, Graph, Node, Value
from sparsec.compiler.lowering import elements
from sparsec.compiler.lowering.elements import BYTES, F32, I32
from sparsec.compiler.ops import OPS

#: Elementwise nodes that one kernel takes at most (``lane_args`` has room for their constants).
GROUP_LIMIT = 16

#: Layers with weights.


@dataclass(frozen=True)
class Rows:
    """How a value is seen as rows of channels.

    Attributes:
        domain: "token" (a row is a token) or "item" (a row is a sequence).
        channels: extent of a row.
    """

    domain: str
    channels: int


def rows_of(value: Value, length: int) -> Rows | None:
    """The row view of a value, or None where it has none."""
    shape = value.shape
    if len(shape) < 2 or not isinstance(shape[0], BatchDim):
        return None
    rest = shape[1:]
    if any(isinstance(d, BatchDim) for d in rest):
        return None
    channels = 1
    for d in rest:
        channels *= int(d)  # type: ignore[arg-type]
    if channels == 0:
        return None
    if shape[0].coef == 1 and len(shape) >= 3 and length > 0 and shape[1] == length:
        return Rows("token", channels // length)
    if shape[0].coef == 1:
        return Rows("item", channels)
    if shape[0].coef == length:
        return Rows("token", channels)
    return None


def is_position_table(name: str, graph: Graph, rows: Rows) -> bool:
    """A float constant ``[S, C]`` or ``[1, S, C]``: one row of channels for each position."""
    array = graph.constants.get(name)
    if array is None or array.dtype != F32 or rows.domain != "token" or graph.tokens < 2:
        return False
    shape = array.shape[1:] if array.ndim == 3 and array.shape[0] == 1 else array.shape
    return shape == (graph.tokens, rows.channels)


def is_number(value: Value) -> bool:
    """Whether a value is a single number, which lane kernels read where it lies."""
    return all(d == 1 for d in value.shape) and value.dtype in elements.LANE_DTYPES


def is_vector(value: Value, channels: int) -> bool:
    """Whether a value is a number for each channel and nothing else."""
    return is_number(Value("", value.dtype, value.shape[:-1])) and value.shape[-1:] == (channels,)


def _is_shared(value: Value, out: Value, rows: Rows) -> bool:
    """Whether all rows read the same of a value that is known at run time only."""
    if len(value.shape) > len(out.shape):
        return False
    vector = out.shape[-1] == rows.channels and is_vector(value, rows.channels)
    return vector or is_number(value)


def _channel_constant(name: str, graph: Graph, out: Value, rows: Rows) -> bool:
    """A constant that is one number, or one for each channel of the last axis."""
    array = graph.constants.get(name)
    if array is None:
        return False
    if array.size == 1:
        return len(array.shape) <= len(out.shape)
    last = out.shape[-1]
    return last == rows.channels and array.shape[-1] == last and array.size == last


@dataclass
class Choice:
    """Result of :func:`choose`: the lane nodes, and for each value its row view."""

    nodes: set[int] = field(default_factory=set)
    rows: dict[str, Rows] = field(default_factory=dict)
    alias: dict[str, str] = field(default_factory=dict)

    def root(self, name: str) -> str:
        """The value whose bytes `name` shares: reshapes are aliases, if lanes keep their rows."""
        while name in self.alias:
            name = self.alias[name]
        return name


def _fits(node: Node, graph: Graph, choice: Choice) -> bool:
    """Whether an elementwise node's operands are all usable in lanes."""
    out = graph.values[node.output]
    rows = choice.rows.get(node.output)
    if rows is None or out.dtype == elements.BOOL or not elements.supported(node, graph):
        return False
    operands = _lane_operands(node)
    if OPS[node.op].quantizes:
        scale = graph.constants.get(node.inputs[1], np.ones(1))
        if scale.size != 1 and (scale.size != rows.channels or out.shape[-1] != rows.channels):
            return False
    moving = 0
    for name in operands:
        if not name:
            continue
        if _channel_constant(name, graph, out, rows) or is_position_table(name, graph, rows):
            continue
        value = graph.values[name]
        if name not in graph.constants and _is_shared(value, out, rows):
            continue
        if name in graph.constants or value.shape != out.shape:
            return False
        if value.dtype not in elements.LANE_DTYPES:
            return False
        moving += 1
    return moving > 0


def is_table_gather(node: Node, graph: Graph, choice: Choice) -> bool:
    """Embedding lookup: ``gather(constant [V, C], ids [B, S] or [B])`` along axis 0."""
    if node.op != "gather" or int(node.attrs.get("axis", 0)) != 0:
        return False
    table = graph.constants.get(node.inputs[0])
    ids = graph.values[node.inputs[1]]
    rows = choice.rows.get(node.output)
    return (
        table is not None
        and table.ndim == 2
        and table.dtype in (F32, *BYTES)
        and table.shape[0] > 0
        and ids.dtype in (np.dtype(np.int64), I32)
        and node.inputs[1] not in graph.constants
        and rows is not None
        and rows.channels == table.shape[1]
    )


def channel_order(node: Node, graph: Graph) -> np.ndarray | None:
    """The order in which a ``gather`` puts all channels of a byte tensor, if it does that."""
    if node.op != "gather":
        return None
    value = graph.values[node.inputs[0]]
    order = graph.constants.get(node.inputs[1])
    last = len(value.shape) - 1
    if order is None or value.dtype not in BYTES or int(node.attrs.get("axis", 0)) != last:
        return None
    channels = order.size
    if (order.shape, value.shape[last]) != ((channels,), channels):
        return None
    if channels % 4 or not 0 < channels <= 1 << 16:
        return None
    return order if np.array_equal(np.sort(order), np.arange(channels)) else None


def _reorders(node: Node, graph: Graph, choice: Choice, consumers: dict[str, list[Node]]) -> bool:
    """Whether a gather of channels is part of packing bytes for the layers that read them."""
    order = channel_order(node, graph)
    if order is None:
        return False
    before, after = (choice.rows.get(n) for n in (node.inputs[0], node.output))
    return (
        before is not None
        and before == after
        and before.channels == len(order)
        and node.output not in graph.outputs
        and all(
            OPS[u.op].linear == "i8" and _anchor_fits(u, graph, choice)
            for u in consumers[node.output]
        )
    )


def _anchor_fits(node: Node, graph: Graph, choice: Choice) -> bool:
    return not misfit(node, graph, choice)


def misfit(node: Node, graph: Graph, choice: Choice) -> str:
    """Why a layer, attention or layer normalization has no kernel with rows in lanes, or ""."""
    if not OPS[node.op].layer:
        return f"there is no such kernel for {node.op}"
    rows = choice.rows.get(node.output)
    if rows is None:
        shape = list(graph.values[node.output].shape)
        return f"its result {shape} is not made of rows [batch, {graph.tokens}, ..] or [batch, ..]"
    if OPS[node.op].linear:
        return _linear_misfit(node, graph, choice, rows)
    if node.op == "attention":
        return _attention_misfit(node, graph, rows)
    if graph.values[node.inputs[0]].shape[-1] != rows.channels:
        return "it normalizes over a part of a row"
    if any(n and n not in graph.constants for n in node.inputs[1:]):
        return "its parameters are not constant"
    return ""


def _linear_misfit(node: Node, graph: Graph, choice: Choice, rows: Rows) -> str:
    x = choice.rows.get(node.inputs[0])
    k = graph.values[node.inputs[0]].shape[-1]
    weights = graph.constants.get(node.inputs[1])
    if x is None or x.domain != rows.domain or x.channels != k:
        return "its input is not made of rows like those of its result"
    if weights is None or any(n and n not in graph.constants for n in node.inputs[1:]):
        return "its parameters are not constant"
    return "" if min(weights.shape) > 0 else "it has no weights"


def _attention_misfit(node: Node, graph: Graph, rows: Rows) -> str:
    q = graph.values[node.inputs[0]]
    dim = rows.channels // int(node.attrs["heads"])
    score, prob = node.attrs["score"], node.attrs["prob"]
    p_type = prob.values[prob.outputs[0]].dtype
    if graph.tokens < 1 or rows.domain != "token" or q.shape[1] != graph.tokens:
        return "it is not over the tokens of a sequence"
    if (q.dtype in BYTES or p_type in BYTES) and dim % 4:
        return f"its heads of {dim} channels are no multiple of 4"
    if p_type in BYTES and int(node.attrs["p_zp"]) != np.iinfo(p_type).min:
        return "the zero point of its probabilities is not the lowest byte"
    full = (BatchDim(), int(node.attrs["heads"]), graph.tokens, graph.tokens)
    for name in node.inputs[3:]:
        extra = graph.values[name]
        shape = (1,) * (4 - len(extra.shape)) + extra.shape
        if extra.dtype not in (F32, elements.BOOL) or len(shape) > 4:
            return f"its scores meet {extra}"
        if any(d not in (1, f) for d, f in zip(shape, full, strict=True)):
            return f"its scores meet {extra}"
    for nested in (score, prob):
        for inner in nested.nodes:
            if not elements.supported(inner, nested):
                return f"its scores go through {inner.op}"
        if any(array.size != 1 for array in nested.constants.values()):
            return "its scores meet constants that are more than a number"
    return ""


def choose(graph: Graph) -> Choice:
    """Mark the nodes that run with rows in lanes."""
    choice = Choice()
    for name, value in graph.values.items():
        rows = rows_of(value, graph.tokens)
        if rows is not None and value.dtype in elements.LANE_DTYPES:
            choice.rows[name] = rows
    consumers = graph.consumers()
    in_lanes: set[str] = set()

    def mark(node: Node) -> None:
        choice.nodes.add(id(node))
        in_lanes.update(node.outputs)

    for node in graph.nodes:
        if (
            _anchor_fits(node, graph, choice)
            or is_table_gather(node, graph, choice)
            or (node.inputs[0] in in_lanes and _reorders(node, graph, choice, consumers))
        ):
            mark(node)
        elif node.op == "reshape":
            a, b = choice.rows.get(node.inputs[0]), choice.rows.get(node.output)
            if node.inputs[0] in in_lanes and a is not None and a == b:
                choice.alias[node.output] = node.inputs[0]
                mark(node)
        elif (
            OPS[node.op].elementwise
            and _fits(node, graph, choice)
            and any(n in in_lanes for n in node.inputs)
        ):
            mark(node)
    # What only feeds lane nodes goes there too, so that no kernel of its own need pack it.
    for node in reversed(graph.nodes):
        if id(node) in choice.nodes or not OPS[node.op].elementwise:
            continue
        users = consumers[node.output]
        if (
            users
            and node.output not in graph.outputs
            and all(id(u) in choice.nodes for u in users)
            and all(node.output in _lane_operands(u) for u in users)
            and _fits(node, graph, choice)
        ):
            mark(node)
    for node in graph.nodes:
        # Row-major tensors are the same bytes in any shape.
        readers = consumers[node.output] if node.op == "reshape" else []
        if node.op == "reshape" and not any(id(n) in choice.nodes for n in (node, *readers)):
            choice.alias[node.output] = node.inputs[0]
    return choice


def _lane_operands(node: Node) -> tuple[str, ...]:
    """Inputs that a lane node reads as rows in lanes."""
    return node.inputs[: OPS[node.op].row_operands]


def _names_of(name: str, choice: Choice, consumers: dict[str, list[Node]]) -> set[str]:
    """A value and all that share its bytes."""
    names, todo = {name}, [name]
    while todo:
        for user in consumers[todo.pop()]:
            if user.outputs[0] in choice.alias and user.outputs[0] not in names:
                names.add(user.outputs[0])
                todo.append(user.outputs[0])
    return names


@dataclass
class Group:
    """One lane kernel: an anchor and the elementwise nodes fused with it.

    Attributes:
        kind: "linear" (anchor linear or qlinear), "attention", or "map".
        nodes: in order; the anchor of a linear or attention group comes first.
        norm: the LayerNorm of a map group, or None.
        copies: values that a map only moves into lanes, because an anchor reads them there.
        order: channels in the order in which panels take them; None where no node says.
    """

    kind: str
    domain: str
    channels: int
    nodes: list[Node] = field(default_factory=list)
    norm: Node | None = None
    copies: list[str] = field(default_factory=list)
    order: np.ndarray | None = None

    @property
    def anchor(self) -> Node | None:
        """The linear layer or attention block, for groups that have one."""
        return self.nodes[0] if self.kind != "map" else None

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
    consumers = graph.consumers()
    steps: list[Step] = []
    maker: dict[str, int] = {}  # value -> index of the step that makes it
    before: list[set[int]] = []  # transitive dependences of each step

    def depends(names: list[str]) -> set[int]:
        found: set[int] = set()
        for name in names:
            if name in maker:
                found |= {maker[name]} | before[maker[name]]
        return found

    def add(step: Step, inputs: list[str], outputs: tuple[str, ...]) -> int:
        steps.append(step)
        before.append(depends(inputs))
        for out in outputs:
            maker[out] = len(steps) - 1
        return len(steps) - 1

    def copy_if_flat(name: str, rows: Rows) -> None:
        """An anchor reads lanes: what comes row-major or from a table gets there by a map."""
        if name not in maker or steps[maker[name]].group is None or name in gathers:
            if name in copied:
                return
            index = add(Step(Group("map", rows.domain, rows.channels, copies=[name])), [name], ())
            copied[name] = index
            # Readers of the lanes depend on the copy; row-major readers on the original.
            lane_maker[name] = index

    # What layers and attention read as panels, unless a gather gave it another order.
    in_order = {
        choice.root(name)
        for node in graph.nodes
        if id(node) in choice.nodes and (OPS[node.op].linear == "i8" or node.op == "attention")
        for name in _lane_operands(node)
    }
    gathers: dict[str, Node] = {}
    copied: dict[str, int] = {}
    lane_maker: dict[str, int] = {}

    def extend(index: int, extra: set[int]) -> None:
        """Step `index` now also depends on `extra`; so does everything that depends on it."""
        for i, deps in enumerate(before):
            if i == index or index in deps:
                deps |= extra

    for node in graph.nodes:
        if id(node) not in choice.nodes:
            if node.outputs[0] in choice.alias:
                if node.inputs[0] in maker:
                    maker[node.output] = maker[node.inputs[0]]
                continue
            add(Step(node=node), [n for n in node.inputs if n], node.outputs)
            continue
        inputs = [choice.root(n) for n in node.inputs if n]
        if node.output in choice.alias:
            root = choice.root(node.output)
            if root in maker:
                maker[node.output] = maker[root]
            if root in gathers:
                gathers[node.output] = gathers[root]
            continue
        if is_table_gather(node, graph, choice):
            names = _names_of(node.output, choice, consumers)
            users = [u for name in names for u in consumers[name]]
            if not names.isdisjoint(graph.outputs) or any(id(u) not in choice.nodes for u in users):
                add(Step(node=node), [n for n in node.inputs if n], node.outputs)
                continue
            gathers[node.output] = node
            # No step of its own: readers look rows up in the table.
            if node.inputs[1] in maker:
                maker[node.output] = maker[node.inputs[1]]
            continue
        rows = choice.rows[node.output]
        if OPS[node.op].linear or node.op == "attention":
            lanes = [choice.root(n) for n in _lane_operands(node)]
            for name in lanes:
                copy_if_flat(name, choice.rows[name])
            kind = "attention" if node.op == "attention" else "linear"
            index = add(Step(Group(kind, rows.domain, rows.channels, [node])), inputs, node.outputs)
            for name in lanes:
                if name in lane_maker:
                    before[index] |= {lane_maker[name]} | before[lane_maker[name]]
            continue
        # Elementwise or LayerNorm: join the latest group among the producers of its lane operands.
        lanes = [
            choice.root(n)
            for n in _lane_operands(node)
            if n and n not in graph.constants and choice.rows.get(n) is not None
        ]
        homes = [
            maker[n]
            for n in lanes
            if n in maker and n not in gathers and steps[maker[n]].group is not None
        ]
        gathered = any(
            n in gathers or n not in maker or steps[maker[n]].group is None for n in lanes
        ) or any(is_position_table(n, graph, rows) for n in node.inputs if n)
        taken = channel_order(node, graph)
        if taken is None and choice.root(node.output) in in_order:
            taken = np.arange(rows.channels)
        joined = False
        if homes:
            index = max(homes)
            home = steps[index].group
            assert home is not None
            needs = depends([n for n in inputs if maker.get(n) != index])
            reads_norm = node.op == "layernorm"
            joined = (
                home.domain == rows.domain
                and home.channels == rows.channels
                and len(home.nodes) < GROUP_LIMIT
                and index not in needs
                and not (home.kind != "map" and (gathered or reads_norm))
                and not (reads_norm and home.norm is not None)
                and not (home.kind != "map" and node.op == "gather")
                and (taken is None or home.order is None or np.array_equal(taken, home.order))
            )
            if joined:
                home.order = taken if home.order is None else home.order
                home.nodes.append(node)
                if reads_norm:
                    home.norm = node
                extend(index, needs)
                for out in node.outputs:
                    maker[out] = index
        if not joined:
            new = Group("map", rows.domain, rows.channels, [node], order=taken)
            if node.op == "layernorm":
                new.norm = node
            add(Step(new), inputs, node.outputs)
    order: list[int] = []
    placed: set[int] = set()

    def place(index: int) -> None:
        stack = [(index, False)]
        while stack:
            i, ready = stack.pop()
            if i in placed:
                continue
            if ready:
                placed.add(i)
                order.append(i)
                continue
            stack.append((i, True))
            for d in sorted(before[i], reverse=True):
                if d not in placed:
                    stack.append((d, False))

    # Row-major work (masks, mostly) first, so that lane kernels follow each other without a break.
    for i, step in enumerate(steps):
        if step.node is not None and not any(steps[d].group for d in before[i]):
            place(i)
    for i in range(len(steps)):
        place(i)
    return [steps[i] for i in order]


__all__ = [
    "Choice",
    "Group",
    "Rows",
    "Step",
    "choose",
    "group",
    "is_number",
    "is_position_table",
    "is_vector",
    "misfit",
    "rows_of",
]
