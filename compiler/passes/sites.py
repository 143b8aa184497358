"""Sets of channels that nobody else sees: they can be reordered, or left out, together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from sparsec.compiler.ir import Graph, Node
from sparsec.compiler.ops import OPS
from sparsec.compiler.ops.contraction import BYTES

#: Layers that make and read channels.
LAYERS = ("linear", "qlinear")


@dataclass(eq=False)
class Site:
    """Channels that can be reordered, or left out, together.

    Attributes:
        values: tensors whose last axis is these channels.
        makers: `linear` and `qlinear` nodes whose outputs they are.
        readers: `qlinear` nodes whose inputs they are; where channels are left out, also `linear`.
        width: channels stay within segments of this many (a head, or all).
        gathered: the value that is to be gathered, where there are no makers.
    """

    values: set[str] = field(default_factory=set)
    makers: list[Node] = field(default_factory=list)
    readers: list[Node] = field(default_factory=list)
    width: int = 0
    gathered: str = ""


class Ties:
    """Finds sites in a graph."""

    def __init__(self, graph: Graph, whole: bool = False) -> None:
        """Args:
        graph: any.
        whole: channels are left out, and heads as a whole, so that no sum of floats that stays
            changes its order; else they are reordered, which is for sums of integers.
        """
        self.graph = graph
        self.whole = whole
        self.readers = LAYERS if whole else ("qlinear",)
        self.producers = graph.producers()
        self.consumers = graph.consumers()

    def channels(self, name: str) -> int:
        """Extent of a value's last axis; 0 if it has none."""
        shape = self.graph.values[name].shape
        return shape[-1] if shape and isinstance(shape[-1], int) else 0

    def site(self, start: str) -> Site | None:
        """The site of all values whose channels must be in one order with those of `start`.

        None where one of them is seen from outside, or comes from, or goes to, what would have
        to be reordered at run time.
        """
        graph = self.graph
        channels = self.channels(start)
        site = Site(width=channels)
        if channels % 4:
            return None
        todo = [start]
        while todo:
            name = todo.pop()
            if name in site.values or name in graph.constants:
                continue
            maker = self.producers.get(name)
            if maker is None or name in graph.outputs or self.channels(name) != channels:
                return None
            site.values.add(name)
            for node in (maker, *self.consumers[name]):
                more = self._tied_by(node, name, site)
                if more is None:
                    return None
                todo += more
        return site if site.makers and site.width % 4 == 0 else None

    def _tied_by(self, node: Node, name: str, site: Site) -> Iterable[str] | None:
        """Other values that `node` ties to `name`; None where it does not let go of the order."""
        makes = name in node.outputs
        if OPS[node.op].elementwise and self._rides(node):
            return (*(n for n in node.inputs if n), *node.outputs)
        if node.op == "reshape":
            ends = (node.inputs[0], node.output)
            return ends if self.channels(ends[0]) == self.channels(ends[1]) else None
        if node.op in LAYERS and node.inputs[1] in self.graph.constants:
            if makes:
                site.makers.append(node)
                return ()
            if node.op in self.readers and node.inputs.count(name) == 1:
                site.readers.append(node)
                return ()
        if node.op == "attention" and name not in node.inputs[3:]:
            q, k, v = node.inputs[:3]
            head = self.channels(name) // int(node.attrs["heads"])
            if site.width not in (self.channels(name), head):
                return None
            site.width = head
            if makes or name == v:
                return (v, node.output) if name not in (q, k) else None
            # A product of floats would be summed in another order.
            return (q, k) if self.whole or self.graph.values[q].dtype in BYTES else None
        return None

    def _rides(self, node: Node) -> bool:
        """Whether an elementwise node leaves channels apart: its constants can be reordered too."""
        rank = len(self.graph.values[node.output].shape)
        channels = self.channels(node.output)
        if OPS[node.op].quantizes:
            parameters = [self.graph.constants.get(n) for n in node.inputs[1:] if n]
            last = int(node.attrs.get("axis", 1)) % max(rank, 1) == rank - 1
            return all(p is not None and (p.size == 1 or last) for p in parameters)
        return all(
            self.channels(n) == channels or (n in self.graph.constants and self.channels(n) <= 1)
            for n in node.inputs
            if n
        )
