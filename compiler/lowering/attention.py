"""What attention multiplies, and whether vectors or tiles do it faster."""

from __future__ import annotations

from dataclasses import dataclass

from sparsec import targets
from sparsec.compiler.ir import Graph, Node
from sparsec.compiler.lowering.bfloat16 import PRODUCTS
from sparsec.compiler.lowering.elements import BYTES
from sparsec.compiler.lowering.tiling import PACK
from sparsec.targets import Target

#: Blocks of 16 queries that a call takes at most, each of one head: those of a call share keys and
#: values that are packed once for all.
QUERIES, PACKED_QUERIES = 6, 12

#: Pieces that a head's work is cut into for each thread, and threads that are expected.
PIECES, THREADS = 8, 2


@dataclass(frozen=True)
class Shape:
    """Attention over one sequence.

    Attributes:
        tokens: queries, and keys.
        heads, dim: heads, and channels of each.
        qk, pv: what scores, and what outputs are products of: "i8", "f32" or "bf16".
    """

    tokens: int
    heads: int
    dim: int
    qk: str
    pv: str

    @staticmethod
    def of(node: Node, graph: Graph, target: Target) -> Shape:
        """The shape of an `attention` node in the bucket of a graph."""
        prob: Graph = node.attrs["prob"]
        types = (graph.values[node.inputs[0]].dtype, prob.values[prob.outputs[0]].dtype)
        floats = PRODUCTS[target.precision]
        qk, pv = ("i8" if dtype in BYTES else floats for dtype in types)
        channels, heads = graph.values[node.inputs[0]].shape[-1], int(node.attrs["heads"])
        assert isinstance(channels, int)
        return Shape(graph.tokens, heads, channels // heads, qk, pv)

    @property
    def floats(self) -> bool:
        """Whether a product is of float32, which only vectors do."""
        return "f32" in (self.qk, self.pv)

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
    if target.matrix is None or shape.floats:
        return False
    return _tile_time(shape, target) < _vector_time(shape, target)


def _vector_time(shape: Shape, target: Target) -> float:
    """Of the products by vectors for one head, in nanoseconds of the cost model."""
    packs = shape.tokens * shape.k_packs + -(-shape.tokens // PACK[shape.pv]) * shape.dim
    vectors = -(-shape.tokens // 16) * packs * (16 // target.lanes)
    return vectors * targets.costs(target).i8[7]


def _tile_time(shape: Shape, target: Target) -> float:
    """The same by tiles: products, packing of keys and values, and calls that wake the unit up."""
    product, _, _, _, call, _ = targets.costs(target).matrix
    vector = targets.costs(target).i8[7] * (16 // target.lanes)
    queries = -(-shape.tokens // 16)
    share = max(1, min(PACKED_QUERIES, queries * shape.heads // (PIECES * THREADS)))
    calls = -(-queries // share)
    blocks = -(-shape.tokens // 16)
    products = blocks * shape.k_steps + shape.c_tiles * -(-blocks // PACK[shape.pv])
    # A transposition of 16 x 16 dwords takes 64 shuffles, a row of values a load and a store.
    packing = blocks * (shape.k_steps * 64 + shape.dim)
    return queries * products * product + calls * (packing * vector + call)
