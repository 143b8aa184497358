"""Which nodes run with rows in lanes, and how they are grouped into kernels.

A *row tensor* has its rows in the leading extents: ``[B, S, ...]`` or ``[B*S, ...]`` (rows are
tokens) or ``[B, ...]`` (rows are sequences).  :func:`choose` marks the nodes whose operands and
results are row tensors of one kind; :mod:`~sparsec.compiler.lowering.groups` cuts them into
kernels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sparsec.compiler.ir import BatchDim, Graph, Node, Value
from sparsec.compiler.lowering import elements
from sparsec.compiler.lowering.elements import BYTES, F32, I32
from sparsec.compiler.ops import OPS


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
    """Result of :func:`choose`.

    Attributes:
        nodes: results of the nodes that run with rows in lanes.
        rows: the row view of each value that has one.
        alias: for each reshape that moves nothing, the value whose bytes it shares.
    """

    nodes: set[str] = field(default_factory=set)
    rows: dict[str, Rows] = field(default_factory=dict)
    alias: dict[str, str] = field(default_factory=dict)

    def has(self, node: Node) -> bool:
        """Whether a node runs with rows in lanes."""
        return node.outputs[0] in self.nodes

    def root(self, name: str) -> str:
        """The value whose bytes `name` shares."""
        return self.alias.get(name, name)


def _fits(node: Node, graph: Graph, choice: Choice) -> bool:
    """Whether an elementwise node's operands are all usable in lanes."""
    out = graph.values[node.output]
    rows = choice.rows.get(node.output)
    if rows is None or out.dtype == elements.BOOL or not elements.supported(node, graph):
        return False
    operands = lane_operands(node)
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


def _reorders(
    node: Node, graph: Graph, choice: Choice, consumers: Mapping[str, Sequence[Node]]
) -> bool:
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
    return _extras_misfit(node, graph) or _nested_misfit(score) or _nested_misfit(prob)


def _extras_misfit(node: Node, graph: Graph) -> str:
    full = (BatchDim(), int(node.attrs["heads"]), graph.tokens, graph.tokens)
    for name in node.inputs[3:]:
        extra = graph.values[name]
        shape = (1,) * (4 - len(extra.shape)) + extra.shape
        if extra.dtype not in (F32, elements.BOOL) or len(shape) > 4:
            return f"its scores meet {extra}"
        if any(d not in (1, f) for d, f in zip(shape, full, strict=True)):
            return f"its scores meet {extra}"
    return ""


def _nested_misfit(nested: Graph) -> str:
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
    for node in graph.nodes:
        if _follows(node, graph, choice, consumers):
            choice.nodes.add(node.output)
            if node.op == "reshape":
                choice.alias[node.output] = choice.root(node.inputs[0])
    for node in reversed(graph.nodes):
        if _feeds(node, graph, choice, consumers):
            choice.nodes.add(node.output)
    for node in graph.nodes:
        # Row-major tensors are the same bytes in any shape.
        readers = consumers[node.output] if node.op == "reshape" else []
        if node.op == "reshape" and not any(choice.has(n) for n in (node, *readers)):
            choice.alias[node.output] = choice.root(node.inputs[0])
    return choice


def _follows(
    node: Node, graph: Graph, choice: Choice, consumers: Mapping[str, Sequence[Node]]
) -> bool:
    """Whether a node runs in lanes, by itself or because one before it does."""
    if _anchor_fits(node, graph, choice) or is_table_gather(node, graph, choice):
        return True
    if OPS[node.op].elementwise:
        return not choice.nodes.isdisjoint(node.inputs) and _fits(node, graph, choice)
    if node.inputs[0] not in choice.nodes:
        return False
    if node.op == "reshape":
        return choice.rows.get(node.inputs[0]) == choice.rows.get(node.output) is not None
    return _reorders(node, graph, choice, consumers)


def _feeds(
    node: Node, graph: Graph, choice: Choice, consumers: Mapping[str, Sequence[Node]]
) -> bool:
    """Whether a node goes into lanes with its readers, so that no kernel of its own packs it."""
    if choice.has(node) or not OPS[node.op].elementwise or node.output in graph.outputs:
        return False
    users = consumers[node.output]
    return (
        bool(users)
        and all(choice.has(u) and node.output in lane_operands(u) for u in users)
        and _fits(node, graph, choice)
    )


def by_lengths(name: str, graph: Graph) -> bool:
    """Whether a value says which tokens are real by their sequences' lengths alone: of these, and
    no others, rows in lanes are made."""
    makers = graph.producers()
    node = makers.get(name)
    while node is not None and node.op == "reshape":
        node = makers.get(node.inputs[0])
    if node is None or node.op != "less":
        return False
    tokens = graph.constants.get(node.inputs[0])
    count = makers.get(node.inputs[1])
    while count is not None and count.op == "reshape":
        count = makers.get(count.inputs[0])
    whole = tokens is not None and np.array_equal(tokens, np.arange(graph.tokens)[None])
    return whole and count is not None and count.op == "lengths"


def lane_operands(node: Node) -> tuple[str, ...]:
    """Inputs that a lane node reads as rows in lanes."""
    return node.inputs[: OPS[node.op].row_operands]


__all__ = [
    "Choice",
    "Rows",
    "by_lengths",
    "channel_order",
    "choose",
    "is_number",
    "is_position_table",
    "is_table_gather",
    "is_vector",
    "lane_operands",
    "misfit",
    "rows_of",
]
