"""How a linear layer is cut into tiles and chunks, and its weights packed for the kernel.

Layouts are described in ``templates/lanes/linear.c.j2``.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsec.compiler.ir import Graph, Node
from sparsec.compiler.lowering import tile_packing
from sparsec.compiler.lowering.bfloat16 import PRODUCTS, to_bf16
from sparsec.compiler.lowering.codes import (
    CodedWeights,
    Codes,
    find_codes,
    fits_bfloat16,
    fits_tiles,
    pack_code_tiles,
    pack_codes,
)
from sparsec.compiler.lowering.pairing import arrange
from sparsec.compiler.lowering.tiling import (
    BUDGETS,
    PACK,
    LayerClass,
    Tiling,
    Tilings,
    blocks_of,
    blocks_read,
    by_model,
    chunks_for,
    on_matrix,
)
from sparsec.compiler.lowering.words import Words, best_words, split_pairs
from sparsec.compiler.ops import OPS
from sparsec.targets import Target

Array = np.ndarray[Any, Any]

#: Quads (4 output channels) that are sorted together, and that one thread takes as a whole.
SLAB_QUADS = 16

#: Output channels that a dense layer computes together; divides a slab.
DENSE_CHANNELS = 32

#: A product of a sparse layer costs about this much of a dense one's (an offset to load, one
#: activation load per product instead of one per 4).
SPARSE_COST = 1.2

#: Bytes of a chunk's activations that 16-bit offsets reach.
OFFSETS = 1 << 16

#: Share of tiles up to which those that are empty are left out: a list costs about as much.
FULL_TILES = 0.97

#: Packs of float weights that share an offset, where weights were pruned in blocks.
RUN = 4

#: Zeros that runs may add to the products of a sparse layer: a run saves about this share.
RUN_PADDING = 1.05


@dataclass(frozen=True, eq=False)
class LinearPlan:
    """A linear layer ready for its kernel.

    Attributes:
        kind: products: "i8" (u8 x s8 -> int32), "f32", or "bf16" (pairs, with float32 sums).
        sparse: whether only non-zero packs are stored; for tiles, only weights that are not zero.
        matrix: whether it is computed by products of tiles.
        n, k: output and input channels.
        packs: input packs: of 4 channels (i8), 2 (bf16) or 1 (f32).
        chunk_packs, chunks: K is processed in `chunks` pieces of `chunk_packs` (the last may be
            shorter).
        quads: groups of 4 output channels.
        tiles: units of rows of the tile variants, largest first, of kernels with rows in lanes
            in registers: sparse ones, and dense ones of codes or bfloat16.
        weights: int32 dwords (bytes, bfloat16), float32, or tiles (``tile_packing.py``);
            `offsets`: uint16 byte offsets into a chunk's activations, `start`: int32
            ``[chunks * quads + 1, 2]``, where each (chunk, quad) begins in both, in steps of 4
            weights (or runs of them) and in pairs of offsets (both only where sparse).  Of tiles:
            as ``tile_packing.Listed``, where some are left out.
        order: uint16 ``[chunks, 4 * quads]``: channels in the order in which quads take them; empty
            where every quad is 4 adjacent channels.
        bias: int32, the layer's bias less what the input's zero point contributes (i8 only).
        sparsity, block4_sparsity: shares of zero weights and of all-zero aligned 1x4 blocks.
        nonzero: packs of the matrix that hold a non-zero weight.
        work: pack products that the kernel computes for a block of 16 rows, padding included.
        pairs: products are added in 16 bits before they are in 32 (i8 only).
        run: consecutive packs that share one offset in the sparse stream: 4 where float weights
            were pruned in blocks, else 1.
        coded: the weights of a dense float layer that are stored as bytes or nibbles; `weights` are
            its codes.
        words: the weights of a dense layer whose products are added in 16 bits; `weights` are its
            stream.
        granule: weights that a bit of the mask of a tile stands for; 0: tiles have no masks.
        microseconds: what each form would take in the bucket, on one core; empty: not known.
    """

    kind: str
    sparse: bool
    matrix: bool
    n: int
    k: int
    packs: int
    chunk_packs: int
    chunks: int
    quads: int
    tiles: tuple[int, ...]
    weights: Array
    offsets: Array
    start: Array
    order: Array
    bias: Array
    sparsity: float
    block4_sparsity: float
    nonzero: int
    work: int
    pairs: bool
    run: int
    words: Words | None
    coded: CodedWeights | None
    granule: int
    microseconds: Mapping[str, float]

    @property
    def parts(self) -> int:
        """Bfloat16 that a weight is the sum of, where products of tiles multiply floats."""
        return 1 if self.coded and self.coded.whole else tile_packing.PARTS

    @property
    def listed(self) -> bool:
        """Whether empty tiles are left out."""
        return self.matrix and self.start.size > 0

    @property
    def block_bytes(self) -> int:
        """Bytes of the activations of one block of 16 rows, channels padded to a multiple of 4."""
        return -(-self.k // 4) * (64 if self.kind == "i8" else 256)

    @property
    def bias_by_place(self) -> Array:
        """What sums begin with, as quads of the first chunk take the channels."""
        bias = self.bias + self.words.bias if self.words else self.bias
        return bias[self.order[0]] if self.order.size else bias

    @property
    def title(self) -> str:
        """One line for comments and manifests."""
        masks = {0: "", 1: " with masks of bytes", 4: " with masks of packs"}[self.granule]
        stored = f"dense {self.coded.bits}-bit" if self.coded else "dense"
        form = "sparse" if self.sparse or self.listed else stored
        unit = f" on tiles{masks}" if self.matrix else ""
        return (
            f"{form} {self.kind} linear{unit}, {self.k} -> {self.n} channels, "
            f"K in {self.chunks} chunk{'s' if self.chunks > 1 else ''} of {self.chunk_packs} packs"
        )


def _block4_sparsity(w: Array) -> float:
    """Share of aligned blocks of 4 input channels that are all zero."""
    n, k = w.shape
    padded = np.zeros((n, -(-k // 4) * 4), bool)
    padded[:, :k] = w != 0
    return float(1.0 - padded.reshape(n, -1, 4).any(axis=2).mean())


def _run_length(rows: Array) -> int:
    """RUN where keeping whole aligned blocks of packs adds little to the non-zero ones, else 1."""
    if rows.shape[1] % RUN:
        return 1
    kept = RUN * (rows.reshape(len(rows), -1, RUN) != 0).any(axis=2).sum()
    return RUN if kept <= RUN_PADDING * (rows != 0).sum() else 1


def tile_units(tile: int, unit: int) -> tuple[int, ...]:
    """Heights of the tiles of kernels with rows in lanes, largest first.

    Tiles begin where blocks do: half a block fills the first-level cache as a whole one does.
    Where a unit is half of a block, a half that is left over joins the block before, if registers
    are enough for it: that costs less than a tile of its own
    (chunks are for the activations of both: ``tiling.blocks_read``).

    Args:
        tile: blocks of 16 rows of most tiles.
        unit: rows that are computed or left out together.
    """
    largest = 16 // unit * tile + (blocks_read(tile, unit) > tile)
    return tuple(range(largest, 0, -1))


def packs_of(weights: Array) -> Array:
    """Weights [N, K] as packs; rows padded to 4s.

    Packs are int32 dwords of 4 int8 or 2 bfloat16 (given as uint16), or float32.
    """
    n, k = weights.shape
    rows = -(-n // 4) * 4
    if weights.dtype in (np.int8, np.uint16):
        each = 4 // weights.dtype.itemsize
        padded = np.zeros((rows, -(-k // each) * each), weights.dtype)
        padded[:n, :k] = weights
        return padded.view(np.int32)
    single = np.zeros((rows, k), np.float32)
    single[:n] = weights
    return single


def _default_chunk(packs: int) -> int:
    """Packs of a chunk that the widest vectors mostly get."""
    return -(-packs // chunks_for(packs, 2, BUDGETS[0]))


def estimated_work(weights: Array) -> float:
    """What a layer of int8 `weights` [N, K] costs: products for 16 rows, in dense ones.

    Counts what the kernel of the widest vectors would do, padding included.
    """
    rows = packs_of(weights)
    step = _default_chunk(rows.shape[1])
    used = rows != 0
    work = sum(
        4 * int(quads.steps.sum())
        for first in range(0, used.shape[1], step)
        for quads in (arrange(used[:, first : first + step], SLAB_QUADS),)
    )
    return min(work * SPARSE_COST, float(rows.size))


@dataclass(frozen=True, eq=False)
class Packed:
    """Weights as a kernel reads them: fields of :class:`LinearPlan`."""

    weights: Array
    offsets: Array
    start: Array
    order: Array
    words: Words | None = None
    coded: CodedWeights | None = None
    granule: int = 0


def pack_dense(w: Array, chunk_packs: int) -> Packed:
    """Every pack of the weights [N, K] as [N / 16][packs][16]; the input channels are one chunk."""
    rows = packs_of(w)
    full = np.zeros((-(-len(rows) // DENSE_CHANNELS) * DENSE_CHANNELS, chunk_packs), rows.dtype)
    full[: len(rows)] = rows
    weights = np.ascontiguousarray(full.reshape(-1, 16, chunk_packs).transpose(0, 2, 1))
    none = np.zeros(0, np.int32)
    return Packed(weights, none, none, none)


def pack_quads(w: Array, chunk_packs: int) -> Packed:
    """Every pack of the weights [N, K], quad by quad; the input channels are one chunk."""
    rows = packs_of(w)
    weights = np.ascontiguousarray(rows.reshape(len(rows) // 4, 4, chunk_packs).transpose(0, 2, 1))
    none = np.zeros(0, np.int32)
    return Packed(weights, none, none, none)


def pack_in_words(w: Array, chunk_packs: int) -> Packed:
    """The weights [N, K] for products that are added in 16 bits (``words.py``)."""
    words = best_words(packs_of(w))
    none = np.zeros(0, np.int32)
    return Packed(words.stream(4 * SLAB_QUADS), none, none, none, words)


def pack_coded(w: Array, chunk_packs: int) -> Packed:
    """Weights [N, K] that are few-valued as bytes or nibbles and scales (``codes.py``).

    Raises:
        ValueError: they are not.
    """
    return _coded(w, pack_codes)


def pack_coded_tiles(w: Array, chunk_packs: int) -> Packed:
    """The same as tiles."""
    return _coded(w, pack_code_tiles)


def _coded(w: Array, pack: Callable[[Codes], CodedWeights]) -> Packed:
    codes = find_codes(w)
    if codes is None:
        raise ValueError(f"weights {list(w.shape)} are not whole numbers times scales")
    coded = pack(codes)
    none = np.zeros(0, np.int32)
    return Packed(coded.codes, none, none, none, coded=coded)


def pack_tiles(w: Array, chunk_packs: int) -> Packed:
    """The weights [N, K] as tiles; where enough of them are empty, without those."""
    none = np.zeros(0, np.int32)
    if tile_packing.filled(w).mean() > FULL_TILES:
        return Packed(tile_packing.pack_tiles(w), none, none, none)
    return _listed(tile_packing.list_tiles(w, chunk_packs // tile_packing.PACKS))


def pack_float_tiles(w: Array, chunk_packs: int) -> Packed:
    """The float32 weights [N, K] as tiles."""
    none = np.zeros(0, np.int32)
    return Packed(tile_packing.pack_floats(w), none, none, none)


def pack_masked(w: Array, chunk_packs: int) -> Packed:
    """The weights [N, K] as tiles without zeros."""
    return _listed(tile_packing.mask_tiles(w, chunk_packs // tile_packing.PACKS))


def _listed(tiles: tile_packing.Listed) -> Packed:
    none = np.zeros(0, np.int32)
    return Packed(tiles.weights, tiles.offsets, tiles.start, none, granule=tiles.granule)


def pack_sparse(w: Array, chunk_packs: int) -> Packed:
    """The non-zero packs of the weights [N, K], of each chunk."""
    return _sparse_stream(packs_of(w), chunk_packs)


def pack_runs(w: Array, chunk_packs: int) -> Packed:
    """As :func:`pack_sparse`, in runs of 4 packs that are not all zero."""
    return _sparse_stream(packs_of(w), chunk_packs, run=RUN)


def pack_pairs(w: Array, chunk_packs: int) -> Packed:
    """As :func:`pack_sparse`, where no product of two adjacent bytes may leave 16 bits."""
    return _sparse_stream(split_pairs(packs_of(w)), chunk_packs, parts=2)


def _sparse_stream(rows: Array, chunk_packs: int, run: int = 1, parts: int = 1) -> Packed:
    """Non-zero runs of each (chunk, quad), interleaved by row.

    A run is `run` consecutive packs, of which any may be non-zero.  With `parts`, that many entries
    of `rows` in a row are of one pack.
    """
    n4 = len(rows)
    runs = rows.reshape(n4, -1, run)
    used = (runs != 0).any(axis=2)
    chunk_runs = chunk_packs // run * parts
    weights: list[Array] = []
    offsets: list[Array] = []
    orders: list[Array] = []
    start = [(0, 0)]
    for first in range(0, runs.shape[1], chunk_runs):
        arranged = arrange(used[:, first : first + chunk_runs], SLAB_QUADS)
        orders.append(arranged.order)
        piece = runs[arranged.order, first : first + chunk_runs]
        both = np.take_along_axis(
            piece, np.repeat(arranged.shared_columns, 2, axis=0)[..., None], 1
        )
        single = np.take_along_axis(piece, arranged.own_columns[..., None], 1)
        # Channels with fewer packs than the longest of their quad repeat one with weight 0.
        single[np.arange(single.shape[1]) >= arranged.own[:, None]] = 0
        both_at, single_at = (
            c // parts * (64 * run) for c in (arranged.shared_columns, arranged.own_columns)
        )
        for q, (shared, length) in enumerate(zip(arranged.shared, arranged.steps, strict=True)):
            own = length - shared
            four = slice(4 * q, 4 * q + 4)
            value = np.concatenate([both[four, :shared], single[four, :own]], axis=1)
            weights.append(value.transpose(1, 2, 0).reshape(-1, 4))
            offsets.append(both_at[2 * q : 2 * q + 2, :shared].T.reshape(-1))
            offsets.append(single_at[four, :own].T.reshape(-1))
            start.append((start[-1][0] + length, start[-1][1] + shared + 2 * own))
    order = np.array(orders)
    if (order == np.arange(n4)).all():
        order = order[:0]
    return Packed(
        np.ascontiguousarray(np.concatenate(weights)),
        np.concatenate(offsets).astype(np.uint16),
        np.array(start, np.int32),
        order.astype(np.uint16),
    )


def rounded(weights: Array) -> Array:
    """Float32 weights as bits of bfloat16 (uint16), of which zero has one form: no bit is set."""
    bits = to_bf16(weights)
    return np.where(bits == 0x8000, 0, bits).astype(np.uint16)


def products_of(node: Node, target: Target) -> str:
    """What the products of a layer are of: "i8", "f32" or "bf16"."""
    kind = OPS[node.op].linear
    return PRODUCTS[target.precision] if kind == "f32" else kind


def weights_of(node: Node, graph: Graph, target: Target) -> Array:
    """Weights [N, K] of a layer as they are multiplied: int8, float32, or bits of bfloat16."""
    weights = graph.constants[node.inputs[1]]
    return rounded(weights) if products_of(node, target) == "bf16" else weights


def plan_linear(
    node: Node, graph: Graph, target: Target, tiling: Tiling, coded: bool = False
) -> LinearPlan:
    """Pack the weights of a `linear`, `qlinear` or `linear_integer` node.

    Args:
        node, graph: the layer.
        target: the ISA to plan for.
        tiling: how to cut it.
        coded: whether weights of a dense float layer are stored as their codes.
    """
    w = weights_of(node, graph, target)
    n, k = w.shape
    quads = -(-n // 4)
    kind = products_of(node, target)
    bias = np.zeros(0, np.int32)
    rows = packs_of(w)
    packs = rows.shape[1]
    if kind == "i8":
        x_zp = int(node.attrs.get("x_zp", 0))
        if graph.values[node.inputs[0]].dtype == np.int8:
            x_zp += 128
        total = np.zeros(quads * 4, np.int64)
        total[:n] = -x_zp * w.astype(np.int64).sum(axis=1)
        if len(node.inputs) > 3 and node.inputs[3]:
            total[:n] += graph.constants[node.inputs[3]]
        bias = total.astype(np.int32)
    run = _run_length(rows) if kind == "f32" else 1
    pairs = kind == "i8" and target.adds_pairs
    if tiling.matrix:
        steps = tile_packing.tile_count(k, kind)
        chunk_packs = -(-steps // tiling.chunks) * tile_packing.INPUTS[kind] // PACK[kind]
        floats = pack_coded_tiles if coded else pack_float_tiles
        stored = floats if kind == "f32" else pack_tiles
        packed = (pack_masked if tiling.sparse else stored)(w, chunk_packs)
        work = quads * 4 * packs
        pairs = False
    elif tiling.sparse:
        pieces = max(tiling.chunks, -(-packs * 64 // OFFSETS))
        chunk_packs = -(-packs // (pieces * run)) * run
        pack = pack_pairs if pairs else pack_runs if run > 1 else pack_sparse
        packed = pack(w, chunk_packs)
        work = int(packed.start[-1, 0]) * 4 * run
    else:
        chunk_packs = packs
        in_words = pack_in_words if pairs else pack_quads if kind == "bf16" else pack_dense
        pack = pack_coded if coded else in_words
        packed = pack(w, chunk_packs)
        work = quads * 4 * packs
    summed_in_lanes = tiling.sparse or packed.coded or kind == "bf16"
    in_lanes = bool(summed_in_lanes) and not tiling.matrix
    return LinearPlan(
        kind=kind,
        sparse=tiling.sparse,
        matrix=tiling.matrix,
        n=n,
        k=k,
        packs=packs,
        chunk_packs=chunk_packs,
        chunks=-(-packs // chunk_packs),
        quads=quads,
        tiles=tile_units(tiling.tile, target.unit) if in_lanes else (),
        weights=packed.weights,
        offsets=packed.offsets,
        start=packed.start,
        order=packed.order,
        bias=bias,
        sparsity=float((w == 0).mean()),
        block4_sparsity=_block4_sparsity(w),
        nonzero=int((rows != 0).sum()),
        work=work,
        pairs=pairs,
        run=run if tiling.sparse else 1,
        words=packed.words,
        coded=packed.coded,
        granule=packed.granule,
        microseconds={},
    )


def weight_bytes(graph: Graph) -> int:
    """Bytes of the weights of all linear layers of a graph, as it stores them."""
    names = {node.inputs[1] for node in graph.nodes if OPS[node.op].linear}
    return sum(graph.constants[name].nbytes for name in names if name in graph.constants)


class Plans:
    """Layers packed for their kernels, shared by the buckets of an artifact.

    Attributes:
        classes: weights of a layer of each class that was planned: int8 or float32 ``[N, K]``.
    """

    def __init__(
        self,
        target: Target,
        lengths: Iterable[int],
        batch_size: int = 1,
        tilings: Tilings | None = None,
        cold: bool = True,
    ) -> None:
        """Args:
        target: the ISA to plan for.
        lengths: of the buckets.
        batch_size: sequences that are expected to run at once.
        tilings: how to cut layers, where that was measured.
        cold: weights come from further than the second-level cache.
        """
        self.classes: dict[LayerClass, Array] = {}
        self._target = target
        self._cold = cold
        self._blocks = blocks_of(lengths, batch_size)
        self._tilings: dict[tuple[LayerClass, int], Tiling] = dict(
            tilings.items() if tilings else ()
        )
        self._microseconds: dict[tuple[LayerClass, int], Mapping[str, float]] = dict(
            tilings.microseconds if tilings else ()
        )
        self._class_of: dict[bytes, LayerClass] = {}
        self._plans: dict[tuple[bytes, bool, bool, int], LinearPlan] = {}
        self._coded: dict[bytes, bool] = {}
        self._tiles: dict[bytes, bool] = {}
        self._whole: dict[bytes, bool] = {}

    def get(self, node: Node, graph: Graph, panels: bool = True) -> LinearPlan:
        """The plan of a `linear`, `qlinear` or `linear_integer` node in the bucket of a graph.

        Args:
            panels: whether a result is packed 4 adjacent channels to a dword.
        """
        digest = hashlib.sha256(f"{node.op} {node.attrs.get('x_zp')} {panels}".encode())
        digest.update(str(graph.values[node.inputs[0]].dtype).encode())
        for name in (node.inputs[1], *node.inputs[3:]):
            if name:
                array = np.ascontiguousarray(graph.constants[name])
                digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
        key = digest.digest()
        if key not in self._class_of:
            weights = weights_of(node, graph, self._target)
            n, k = weights.shape
            density = float((packs_of(weights)[:n] != 0).mean()) if weights.size else 0.0
            kind = products_of(node, self._target)
            tiles = kind in ("i8", "bf16") and self._target.matrix is not None and weights.size
            filled = float(tile_packing.filled(weights).mean()) if tiles else 1.0
            layer = self._class_of[key] = LayerClass.of(kind, n, k, density, panels, filled)
            codes = find_codes(weights) if kind == "f32" and density > 0.5 else None
            self._coded[key] = codes is not None
            # Infinity has no parts.
            finite = kind != "f32" or bool(np.isfinite(weights).all())
            self._tiles[key] = finite and (codes is None or fits_tiles(codes))
            self._whole[key] = codes is not None and fits_bfloat16(codes)
            self.classes.setdefault(layer, graph.constants[node.inputs[1]])
            if any((layer, length) not in self._tilings for length in self._blocks):
                chosen = by_model(layer, self._target, self._blocks, self._cold)
                self._tilings.update(chosen)
                self._microseconds.update(chosen.microseconds)
        choice = self._class_of[key], graph.tokens
        tiling = self._tilings[choice]
        whole = self._whole[key] and self._target.matrix is not None
        if whole:
            # Always faster than vectors, which expand codes too; floats were measured, or modelled.
            assert self._target.matrix is not None
            tiling = on_matrix(self._class_of[key], self._target.matrix)[0]
        elif (self._coded[key] and tiling.sparse) or (tiling.matrix and not self._tiles[key]):
            # What is read of codes is less than what zeros would save.
            tiling = Tiling(False, 1, min(self._target.tiles.sparse))
        stored = (key, tiling.sparse, tiling.matrix, tiling.chunks)
        if stored not in self._plans:
            coded = self._coded[key]
            self._plans[stored] = plan_linear(node, graph, self._target, tiling, coded)
        # The height of a tile does not change how weights are stored.
        plan = self._plans[stored]
        return dataclasses.replace(
            plan,
            tiles=tile_units(tiling.tile, self._target.unit) if plan.tiles else (),
            microseconds={} if whole else self._microseconds.get(choice, {}),
        )
