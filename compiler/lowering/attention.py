"""What attention multiplies, and whether vectors or tiles do it faster."""

from __future__ import annotations

from dataclasses import dataclass

from sparsec import targets
from sparsec.compiler.ir import Graph, Node
from sparsec.compiler.lowering.bfloat16 import PRODUCTS
from sparsec.compiler.lowering.elements import BYTES
from sparsec.compiler.lowering.tile_packing import INPUTS
from sparsec.compiler.lowering.tiling import FLOAT_PRODUCTS, PACK
from sparsec.targets import Target

#: Blocks of 16 queries that a call takes at most, each of one head: those of a call share keys and
#: values that are packed once for all.
QUERIES, PACKED_QUERIES = 6, 12

#: What cutting a vector of floats in parts takes, in vectors of results of the cost model; what a
#: vector of exponentials takes longer for being cut; calls' worth of waiting for the unit.
CUT, CUT_SHARE, WAITS = 4.2, 2.0, 2

#: Pieces of the work that each thread should get, and those where keys and values are packed for
#: each; threads that are expected.
PIECES, PACKED_PIECES, THREADS = 8, 4, 2


@dataclass(frozen=True)
class Shape:
    """Attention over one sequence.

    Attributes:
        tokens: queries, and keys.
        heads, dim: heads, and channels of each.
        qk, pv: what scores, and what outputs are products of: "i8", "f32" or "bf16".
        plain: probabilities go into the product as the softmax makes them.
    """

    tokens: int
    heads: int
    dim: int
    qk: str
    pv: str
    plain: bool = True

    @staticmethod
    def of(node: Node, graph: Graph, target: Target) -> Shape:
        """The shape of an `attention` node in the bucket of a graph."""
        prob: Graph = node.attrs["prob"]
        types = (graph.values[node.inputs[0]].dtype, prob.values[prob.outputs[0]].dtype)
        floats = PRODUCTS[target.precision]
        qk, pv = ("i8" if dtype in BYTES else floats for dtype in types)
        channels, heads = graph.values[node.inputs[0]].shape[-1], int(node.attrs["heads"])
        assert isinstance(channels, int)
        plain = prob.outputs == prob.inputs
        return Shape(graph.tokens, heads, channels // heads, qk, pv, plain)

    @property
    def for_vectors(self) -> bool:
        """Whether only vectors do it: one product alone is of float32, or both are, and
        probabilities become something else first."""
        floats = [kind == "f32" for kind in (self.qk, self.pv)]
        return any(floats) and not (all(floats) and self.plain)

    @property
    def k_packs(self) -> int:
        """Packs of a head's channels."""
        return -(-self.dim // PACK[self.qk])

    @property
    def k_steps(self) -> int:
        """Tiles of a head's channels that 16 keys and 16 queries meet in."""
        return -(-self.k_packs // 16)

    @property
    def key_blocks(self) -> int:
        """Blocks of 16 rows that the keys may lie in; the first key is a multiple of 4."""
        return (self.tokens + 27) // 16

    @property
    def v_tiles(self) -> int:
        """Tiles of 64 bytes of keys."""
        return -(-self.key_blocks // PACK[self.pv])

    @property
    def c_tiles(self) -> int:
        """Tiles of 16 channels of a head."""
        return -(-self.dim // 16)


def on_tiles(shape: Shape, target: Target) -> bool:
    """Whether tiles take less time than vectors for both products, packing included."""
    if target.matrix is None or shape.for_vectors:
        return False
    time = _cut_time if shape.qk == "f32" else _tile_time
    return time(shape, target) < _vector_time(shape, target)


def _vector_time(shape: Shape, target: Target) -> float:
    """Of the products by vectors for one head, in nanoseconds of the cost model."""
    packs = shape.tokens * shape.k_packs + -(-shape.tokens // PACK[shape.pv]) * shape.dim
    vectors = -(-shape.tokens // 16) * packs * (16 // target.lanes)
    costs = targets.costs(target)
    return vectors * (costs.f32 if shape.qk == "f32" else costs.i8)[7]


def _cut_time(shape: Shape, target: Target) -> float:
    """The same by tiles of floats in parts: 32 keys meet 32 queries at a time."""
    product, _, _, result, call, _ = targets.costs(target).matrix
    blocks = -(-shape.tokens // 32) * 2
    calls = _calls(shape, blocks)
    products = blocks * -(-shape.dim // INPUTS["f32"]) + shape.c_tiles * blocks // 2
    cut = blocks * shape.dim * (2 * calls + 1) * CUT + shape.tokens * blocks * CUT_SHARE
    return blocks * products * FLOAT_PRODUCTS * product + cut * result + WAITS * calls * call


def _calls(shape: Shape, queries: int) -> int:
    """Calls that share a head's blocks of queries."""
    share = max(1, min(PACKED_QUERIES, queries * shape.heads // (PACKED_PIECES * THREADS)))
    return -(-queries // share)


def _tile_time(shape: Shape, target: Target) -> float:
    """The same by tiles: products, packing of keys and values, and calls that wake the unit up."""
    product, _, _, _, call, _ = targets.costs(target).matrix
    vector = targets.costs(target).i8[7] * (16 // target.lanes)
    queries = -(-shape.tokens // 16)
    calls = _calls(shape, queries)
    blocks = -(-shape.tokens // 16)
    products = blocks * shape.k_steps + shape.c_tiles * -(-blocks // PACK[shape.pv])
    # A transposition of 16 x 16 dwords takes 64 shuffles, a row of values a load and a store.
    packing = blocks * (shape.k_steps * 64 + shape.dim)
    return queries * products * product + calls * (packing * vector + call)
