"""What padding can reach: a proof for each bucket, and what is done where there is none.

The runtime fills a sequence of n tokens up with zeros to the bucket's length.  :func:`settle`
follows these positions through the graph.  Its claim about every value: where all its token indices
are below n, it is what the model computes at length n.  The claim holds for elementwise work and
for layers on rows; an op that mixes tokens keeps it where the padded positions add nothing: they
are masked in a softmax, zero in a sum, ...  So each value also carries what is known of its padded
positions (:class:`~sparsec.compiler.padding.pads.Pad`).

Where an op would let padding through, the graph is repaired: its operand is replaced where tokens
are not real, by a mask made of the lengths that the runtime gives:

    x ── softmax            ->   x ── where(real, x, -inf) ── softmax
    lengths ── less(0..S-1, .) ── real

What cannot be repaired leaves the bucket to sequences of just its length.

Three things are taken for granted.  Numbers that nothing masks are tame: finite, and far below 1000
where a softmax reads them.  A sequence has a token that its mask does not drop.  Constants that
have an extent of the length are those of a shorter sequence and more, which is checked against the
import at one other length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsec.compiler.ir import BATCH as BATCH_DIM
from sparsec.compiler.ir import Graph
from sparsec.compiler.padding.walk import Walk

__all__ = ["Settled", "settle"]

#: For a walk in which no input is known to be 0 at padding.
_NO_INPUT = ""


@dataclass(frozen=True)
class Settled:
    """What holds for padding in all buckets.

    Attributes:
        kind: "masked": padded positions reach no result; "lengths": they do not where the lengths
            are given; "exact": sequences must have a bucket's length.
        reason: what stood in the way of the kind before, for people; or "".
        graphs: the graphs, repaired where that was needed.
        mask_input: the input that marks real tokens by numbers other than 0, such that tokens
            marked 0 reach no result whatever the other inputs hold there; or None.
    """

    kind: str
    reason: str
    graphs: tuple[Graph, ...]
    mask_input: str | None


def settle(graphs: Sequence[Graph], shorter: Sequence[Graph], usual_mask: str | None) -> Settled:
    """Prove for each bucket that padding is harmless, or repair it, or say why neither is possible.

    Args:
        graphs: one for each bucket as the frontend makes them, shortest first.
        shorter: the same model at lengths below the shortest bucket's, if it takes others.
        usual_mask: the input that is called the attention mask; preferred where several would do.
    """
    if not graphs or graphs[0].length == 0:
        return Settled("exact", "", tuple(graphs), None)
    kinds: list[tuple[str, str]] = []
    repaired: list[Graph] = []
    others = [_like(graph, [*shorter, *graphs[:i]]) for i, graph in enumerate(graphs)]
    for graph, other in zip(graphs, others, strict=True):
        walk = Walk(graph, other, None)
        if graph.length > 1:
            walk.run()
        done = walk.repaired() if not walk.failure else graph
        reason = walk.failure or (walk.leaks[0] if walk.leaks else "")
        kinds.append(("exact" if walk.failure else "lengths" if walk.leaks else "masked", reason))
        repaired.append(done)
    order = ("masked", "lengths", "exact")
    kind, reason = max(kinds, key=lambda k: order.index(k[0]))
    if kind == "exact":
        return Settled(kind, reason, tuple(graphs), None)
    return Settled(kind, reason, tuple(repaired), _proved_mask(graphs, others, usual_mask))


def _like(graph: Graph, others: Sequence[Graph]) -> Graph | None:
    """The nearest of shorter graphs that has the same nodes; the nearest where none has."""
    nodes = [(n.op, n.inputs, n.outputs) for n in graph.nodes]
    below = [other for other in others if other.length < graph.length]
    for other in reversed(below):
        if [(n.op, n.inputs, n.outputs) for n in other.nodes] == nodes:
            return other
    return below[-1] if below else None


def _proved_mask(
    graphs: Sequence[Graph], others: Sequence[Graph | None], usual: str | None
) -> str | None:
    """The input whose zeros keep tokens from every result in all buckets, and is needed for that.

    Not one by which rows of a table are chosen: there 0 is a row like others.
    """
    pairs = [(g, o) for g, o in zip(graphs, others, strict=True) if g.length > 1]

    def holds(name: str) -> bool:
        walks = [Walk(graph, other, name) for graph, other in pairs]
        for walk in walks:
            walk.run()
        return not any(walk.failure or walk.leaks for walk in walks)

    if not pairs or holds(_NO_INPUT):
        return None
    last = graphs[-1]
    chosen = {n.inputs[1] for n in last.nodes if n.op == "gather"}
    shape = (BATCH_DIM, last.length)
    tokens = [n for n in last.inputs if last.values[n].shape == shape and n not in chosen]
    return next(filter(holds, sorted(tokens, key=lambda n: n != usual)), None)
