"""Reorder channels so that the sparse kernels have less to do.

    x ── quantize ── qlinear(W)            x ── quantize ── gather(p) ── qlinear(W[:, p])
    a ── qlinear(U) ── quantize ── qlinear(W)
    ->
    a ── qlinear(U[p]) ── quantize ── qlinear(W[:, p])

A kernel's unit of work is a pack: 4 consecutive input channels of one output, skipped when all four
weights are zero.  Which channels stand side by side is ours to choose (``grouping`` does) wherever
nobody else sees the order:

* between two layers with elementwise work in between (the inner width of a feed-forward block);
* within each head, between V and the projection that reads attention's result, and in Q and K,
  where scores sum over the channels;
* in front of a layer that reads a quantized LayerNorm: its kernel writes bytes in fours, and which
  four costs nothing.  This is written as a gather, so the float values keep their order.

Sums of integers do not depend on their order, so results stay the same to the last bit.  Orders
are kept only where the kernels' work falls by ``WORTH`` or more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sparsec.compiler.editor import Editor
from sparsec.compiler.ir import Graph, Node
from sparsec.compiler.lowering.linear import estimated_work, packs_of
from sparsec.compiler.ops import OPS
from sparsec.compiler.passes.grouping import group_in_fours
from sparsec.compiler.passes.sites import Site, Ties

Array = np.ndarray[Any, Any]

#: Share of the work of the layers concerned that a new order must save.
WORTH = 0.03

#: Matrices this close to having only full packs hold blocks already: nothing is looked for.
FULL = 0.95

#: Orders by what they were computed from: buckets of a model have the same weights.
_known: dict[bytes, Array] = {}
_KNOWN_LIMIT = 4096


def permute_channels(graph: Graph) -> Graph:
    """Choose an order for every set of channels that is free to have one."""
    return _Permuting(graph).run()


class _Permuting:
    """Finds sites, chooses orders one site after the other, rewrites constants."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.ties = Ties(graph)
        self.producers = self.ties.producers
        self.consumers = self.ties.consumers
        self.place = {node.outputs[0]: i for i, node in enumerate(graph.nodes)}
        self.weights = {
            n.outputs[0]: graph.constants[n.inputs[1]]
            for n in graph.nodes
            if n.op in ("linear", "qlinear") and n.inputs[1] in graph.constants
        }

    def run(self) -> Graph:
        chosen: list[tuple[Site, Array]] = []
        for site in self.sites():
            order = self.choose(site)
            if order is not None:
                chosen.append((site, order))
                self.apply(site, order)
        return self.rewritten(chosen) if chosen else self.graph

    # -- where channels are free

    def sites(self) -> list[Site]:
        """All sites; one whose makers read another site comes after that one."""
        free: list[Site] = []
        gathers: list[Site] = []
        seen: set[str] = set()
        for node in self.graph.nodes:
            if node.op == "qlinear":
                starts: tuple[str, ...] = node.inputs[:1]
            elif node.op == "attention":
                starts = node.inputs[:3]
            else:
                continue
            for name in starts:
                if name in seen:
                    continue
                site = self.ties.site(name)
                seen |= site.values if site else {name}
                if site is not None:
                    free.append(site)
                elif node.op == "qlinear":
                    gathers += self.behind_norm(name)
        free.sort(key=lambda site: min(self.place[n.outputs[0]] for n in site.makers))
        return gathers + free

    def behind_norm(self, name: str) -> list[Site]:
        """The site of quantized LayerNorm output that only layers read, if `name` is that."""
        readers = self.consumers[name]
        maker = self.producers.get(name)
        norm = self.producers.get(maker.inputs[0]) if maker and maker.op == "quantize" else None
        if norm is not None and norm.op == "mul":  # brings channels to one size
            moving = [n for n in norm.inputs if n not in self.graph.constants]
            norm = self.producers.get(moving[0]) if len(moving) == 1 else None
        if norm is None or norm.op != "layernorm" or self.ties.channels(name) % 4:
            return []
        if name in self.graph.outputs or any(
            n.op != "qlinear" or n.inputs.count(name) != 1 or n.outputs[0] not in self.weights
            for n in readers
        ):
            return []
        return [Site({name}, [], readers, self.ties.channels(name), name)]

    # -- which order

    def choose(self, site: Site) -> Array | None:
        """The best order found, if it saves enough; None to leave the site as it is."""
        used = [self.weights[n.outputs[0]] != 0 for n in site.readers]
        packs = sum(int((packs_of(self.weights[n.outputs[0]]) != 0).sum()) for n in site.readers)
        if not packs or sum(int(u.sum()) for u in used) >= FULL * 4 * packs:
            return None
        order = _ordered(np.concatenate(used), site.width)
        before = self.work(site)
        saved = before - self.work(site, order)
        return order if saved > 0 and saved >= WORTH * before else None

    def work(self, site: Site, order: Array | None = None) -> float:
        """Work of the byte layers around a site, with its channels in some order."""
        total = 0.0
        for node in dict.fromkeys((*site.makers, *site.readers)):
            if node.op == "qlinear":
                w = self.weights[node.outputs[0]]
                if order is not None:
                    w = self.reordered(node, site, order)
                total += estimated_work(w)
        return total

    def reordered(self, node: Node, site: Site, order: Array) -> Array:
        """A layer's weights with the site's channels in that order."""
        w = self.weights[node.outputs[0]]
        if node in site.makers:
            w = w[order]
        return w[:, order] if node in site.readers else w

    def apply(self, site: Site, order: Array) -> None:
        """Make an order the one that later sites see."""
        for node in dict.fromkeys((*site.makers, *site.readers)):
            self.weights[node.outputs[0]] = self.reordered(node, site, order)

    # -- the new graph

    def rewritten(self, chosen: Sequence[tuple[Site, Array]]) -> Graph:
        """The graph with reordered constants, and gathers where there are no makers."""
        edit = Editor(self.graph)
        inputs = {node.outputs[0]: list(node.inputs) for node in self.graph.nodes}
        rows: dict[str, Array] = {}
        touched: set[str] = set()
        for site, order in chosen:
            for node in site.makers:
                rows[node.outputs[0]] = order
                touched.add(node.outputs[0])
            touched |= {node.outputs[0] for node in site.readers}
            if site.gathered:
                indices = edit.constant(order, f"{site.gathered}.order")
                axis = len(self.graph.values[site.gathered].shape) - 1
                source = self.producers[site.gathered].source
                moved = edit.emit("gather", (site.gathered, indices), source=source, axis=axis)
                for node in site.readers:
                    inputs[node.outputs[0]][0] = moved
            for name in site.values - {site.gathered}:
                node = self.producers[name]
                if OPS[node.op].elementwise:
                    self.reorder_constants(edit, inputs[node.outputs[0]], order)
        for node in self.graph.nodes:
            if node.outputs[0] in touched:
                names = inputs[node.outputs[0]]
                names[1] = edit.constant(
                    np.ascontiguousarray(self.weights[node.outputs[0]]), names[1]
                )
                if node.outputs[0] in rows:
                    self.reorder_constants(edit, names, rows[node.outputs[0]], first=2)
        edit.nodes = [
            replace(node, inputs=tuple(inputs.get(node.outputs[0], node.inputs)))
            for node in edit.nodes
        ]
        return edit.finish()

    def reorder_constants(
        self, edit: Editor, names: list[str], order: Array, first: int = 0
    ) -> None:
        """Replace constants over the channels, from operand `first` on, by reordered ones."""
        for i, name in enumerate(names):
            if i >= first and name in edit.constants:
                array = edit.constants[name]
                if array.ndim and array.shape[-1] == len(order):
                    names[i] = edit.constant(np.ascontiguousarray(array[..., order]), name)


def _ordered(used: Array, width: int) -> Array:
    """:func:`group_in_fours`, remembered."""
    digest = hashlib.sha256(f"{used.shape} {width}".encode())
    digest.update(np.packbits(used).tobytes())
    key = digest.digest()
    if key not in _known:
        if len(_known) >= _KNOWN_LIMIT:
            _known.clear()
        _known[key] = group_in_fours(used, width)
    return _known[key]
