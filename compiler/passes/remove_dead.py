"""Leave out channels and heads that no result depends on.

    x ── layer(U) ── elementwise ── layer(W)
    ->
    x ── layer(U[live]) ── elementwise ── layer(W[:, live]; what the others add is in its bias)

Pruning leaves channels between two layers dead in two ways: no reader has a weight for them, or
every maker has zeros only, so that they hold one number for every row.  What that number adds to a
reader's sums is known: exact in a bias of integers, an addition behind a layer of floats.

A head of attention is dead if no reader of its output has a weight for it.  Its channels of Q, K
and V go with it; parts of a head stay, since heads are equally wide.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sparsec.compiler.editor import Editor
from sparsec.compiler.interpreter import run_node
from sparsec.compiler.ir import Graph, Node
from sparsec.compiler.passes.sites import LAYERS, Site, Ties

Array = np.ndarray[Any, Any]

#: Channels of a site stay a multiple of this: what kernels read together.
UNIT = 4


def remove_dead(graph: Graph) -> Graph:
    """Leave out dead channels between layers, and dead heads, wherever nobody else sees them."""
    removal = _Removal(graph)
    removal.find()
    return removal.rewritten() if removal.live else graph


@dataclass(eq=False)
class _Removal:
    """What goes: found first, then the graph is built without it.

    Attributes:
        live: by value, the channels that stay, in order.
        heads: by output of an attention, the heads that stay.
        constant: by input of a reader, what each channel holds for every row, where it does; NaN
            where it does not, or where it does not matter.
    """

    graph: Graph
    live: dict[str, Array] = field(default_factory=dict)
    heads: dict[str, Array] = field(default_factory=dict)
    constant: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ties = Ties(self.graph, whole=True)

    def find(self) -> None:
        """Look at every set of channels that a layer reads."""
        seen: set[str] = set()
        for node in self.graph.nodes:
            if node.op not in LAYERS or node.inputs[0] in seen:
                continue
            site = self.ties.site(node.inputs[0])
            seen |= site.values if site else {node.inputs[0]}
            if site is None or not site.readers:
                continue
            attentions = [n for n in self.graph.nodes if n.op == "attention"]
            if any(site.values & set(n.inputs[:2]) for n in attentions):
                continue  # scores read all of these, as no layer's weights say
            attentions = [n for n in attentions if n.outputs[0] in site.values]
            if attentions:
                self._heads(site, attentions)
            else:
                self._channels(site)

    def _weights(self, node: Node) -> Array:
        return self.graph.constants[node.inputs[1]]

    def _unread(self, site: Site) -> Array:
        """Which channels no reader has a weight for."""
        read = [(self._weights(n) != 0).any(axis=0) for n in site.readers]
        return np.asarray(~np.any(read, axis=0))

    # -- channels

    def _channels(self, site: Site) -> None:
        unread = self._unread(site)
        unmade = ~np.any([(self._weights(n) != 0).any(axis=1) for n in site.makers], axis=0)
        held = self._held(site) if unmade.any() else {}
        for node in site.readers:  # what is no number cannot go into a bias
            unmade &= np.isfinite(held[node.inputs[0]]) if held else False
        dead = np.flatnonzero(unread | unmade)
        count = min(dead.size // UNIT * UNIT, unread.size - UNIT)
        if count <= 0:
            return
        live = np.delete(np.arange(unread.size), dead[:count])
        for name in site.values:
            self.live[name] = live
        for name, values in held.items():
            known = np.where(unmade & ~unread, values, np.nan)
            known[live] = np.nan
            self.constant[name] = known

    def _held(self, site: Site) -> dict[str, Array]:
        """What channels without weights hold, for each value of a site: float64 [channels].

        Empty where that is not the same for all rows.
        """
        arrays: dict[str, Array] = {}
        for node in self.graph.nodes:
            name = node.outputs[0]
            if name not in site.values:
                continue
            made = self._made(node, arrays)
            if made.size not in (1, self.ties.channels(name)):
                return {}
            extents = (1,) * (len(self.graph.values[name].shape) - 1)
            arrays[name] = np.broadcast_to(made.reshape(-1), (*extents, self.ties.channels(name)))
        return {name: array.reshape(-1).astype(np.float64) for name, array in arrays.items()}

    def _made(self, node: Node, arrays: dict[str, Array]) -> Array:
        """What a node of a site makes of these values, where layers have no weights."""
        constants = self.graph.constants
        if node.op == "linear":
            return np.zeros(len(self._weights(node)), np.float32)
        if node.op == "qlinear":
            sums = np.zeros(len(self._weights(node)), np.int32)
            if len(node.inputs) > 3 and node.inputs[3]:
                sums = constants[node.inputs[3]]
            return np.asarray(sums.astype(np.float32) * constants[node.inputs[2]])
        if node.op == "reshape":
            return arrays[node.inputs[0]]
        operands = [arrays.get(n, constants.get(n)) if n else None for n in node.inputs]
        return np.asarray(run_node(node, operands)[0])

    # -- heads

    def _heads(self, site: Site, attentions: list[Node]) -> None:
        if len(attentions) != 1:
            return
        (node,) = attentions
        heads = int(node.attrs["heads"])
        unread = self._unread(site).reshape(heads, -1)
        live = np.flatnonzero(~unread.all(axis=1)) if not unread.all() else np.arange(1)
        if live.size == heads or not self._parts(node):
            return
        scores = self.ties.site(node.inputs[0])
        if scores is None or scores.readers or self._others(node, scores):
            return
        width = unread.shape[1]
        channels = (live[:, None] * width + np.arange(width)).reshape(-1)
        for name in site.values | scores.values:
            self.live[name] = channels
        self.heads[node.outputs[0]] = live

    def _others(self, node: Node, scores: Site) -> bool:
        """Whether another attention has scores of the same values."""
        users = (n for n in self.graph.nodes if n.op == "attention" and n is not node)
        return any(scores.values & set(n.inputs[:3]) for n in users)

    def _parts(self, node: Node) -> bool:
        """Whether an attention's heads are computed alike, but for constants of each."""
        heads = int(node.attrs["heads"])
        nested = [node.attrs["score"], node.attrs["prob"]]
        whole = all(
            _of_heads(a.shape, heads) is False for g in nested for a in g.constants.values()
        )
        extras = [n for n in node.inputs[3:] if _of_heads(self.graph.values[n].shape, heads)]
        return whole and all(name in self.graph.constants for name in extras)

    # -- the graph without them

    def rewritten(self) -> Graph:
        graph = self.graph
        edit = Editor(name=graph.name, length=graph.length)
        edit.output_names = graph.output_names
        for name in graph.inputs:
            value = graph.values[name]
            edit.input(name, value.dtype, value.shape)
        for name, array in graph.constants.items():
            edit.constants[name], edit.values[name] = array, graph.values[name]
        for node in graph.nodes:
            self._emit(edit, node)
        edit.outputs = list(graph.outputs)
        return edit.finish()

    def _emit(self, edit: Editor, node: Node) -> None:
        """The node for the channels that stay."""
        made, read = (self.live.get(name) for name in (node.outputs[0], node.inputs[0]))
        names, attrs = list(node.inputs), dict(node.attrs)
        added = None
        if node.op in LAYERS and (made is not None or read is not None):
            names, added = self._layer(edit, node, made, read)
        elif node.op == "attention" and made is not None:
            attrs |= self._fewer_heads(edit, node, names)
        elif made is not None and node.op == "reshape":
            attrs["shape"] = (*attrs["shape"][:-1], made.size)
        elif made is not None:
            names = [self._cut(edit, n, made) for n in names]
        if added is None:
            edit.emit_multi(node.op, names, source=node.source, outputs=node.outputs, **attrs)
            return
        outputs = [f"{node.outputs[0]}.live"]
        sums = edit.emit(node.op, names, source=node.source, outputs=outputs, **attrs)
        more = edit.constant(added, f"{names[1]}.dead")
        edit.emit("add", [sums, more], source=node.source, outputs=node.outputs)

    def _cut(self, edit: Editor, name: str, live: Array) -> str:
        """A constant over the channels, without those that go; anything else as it is."""
        array = self.graph.constants.get(name) if name else None
        if array is None or not array.ndim or array.shape[-1] <= 1:
            return name
        return edit.constant(np.ascontiguousarray(array[..., live]), name)

    def _layer(
        self, edit: Editor, node: Node, made: Array | None, read: Array | None
    ) -> tuple[list[str], Array | None]:
        """Operands of a layer, and what is to be added to its result."""
        names, w = list(node.inputs), self._weights(node)
        bias = self.graph.constants.get(names[3]) if len(names) > 3 and names[3] else None
        known = self.constant.get(names[0])
        added = None
        if known is not None and read is not None:
            values = np.where(np.isnan(known), int(node.attrs.get("x_zp", 0)), known)
            values = values - int(node.attrs.get("x_zp", 0))
            total = w.astype(np.float64) @ values
            if node.op == "qlinear" and total.any():
                start = bias.astype(np.float64) if bias is not None else 0.0
                bias = (start + total).astype(np.int64).astype(np.int32)
            elif total.any():
                added = total.astype(np.float32)
        w = w if read is None else w[:, read]
        if made is not None:
            w = w[made]
            bias = bias if bias is None else bias[made]
            added = added if added is None else added[made]
            names[2:3] = [self._cut(edit, n, made) for n in names[2:3]]
        names[1] = edit.constant(np.ascontiguousarray(w), names[1])
        if bias is not None:
            names[3:] = [edit.constant(bias, f"{names[1]}.bias")]
        return names, added

    def _fewer_heads(self, edit: Editor, node: Node, names: list[str]) -> dict[str, Any]:
        """Attributes of an attention of the heads that stay; its constants go into `names`."""
        live, heads = self.heads[node.outputs[0]], int(node.attrs["heads"])
        for i, name in enumerate(names[3:], 3):
            axis = _of_heads(self.graph.values[name].shape, heads)
            if axis:
                array = np.take(self.graph.constants[name], live, axis=axis)
                names[i] = edit.constant(array, name)
        return {
            "heads": live.size,
            "score": _nested(node.attrs["score"], heads, live.size),
            "prob": _nested(node.attrs["prob"], heads, live.size),
        }


def _of_heads(shape: Iterable[Any], heads: int) -> int | bool:
    """The axis (negative) along which something differs by head; False: it does not."""
    extents = tuple(shape)
    return -3 if len(extents) >= 3 and extents[-3] == heads != 1 else False


def _nested(graph: Graph, heads: int, count: int) -> Graph:
    """An elementwise graph of scores for another number of heads."""
    edit = Editor(name=graph.name, length=graph.length)
    edit.output_names = graph.output_names
    for name in graph.inputs:
        value = graph.values[name]
        shape = list(value.shape)
        if _of_heads(shape, heads):
            shape[-3] = count
        edit.input(name, value.dtype, shape)
    for name, array in graph.constants.items():
        edit.constants[name], edit.values[name] = array, graph.values[name]
    for node in graph.nodes:
        edit.emit_multi(
            node.op, node.inputs, source=node.source, outputs=node.outputs, **node.attrs
        )
    edit.outputs = list(graph.outputs)
    return replace(edit.finish(), tokens=graph.tokens)
