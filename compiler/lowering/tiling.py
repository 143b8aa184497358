"""How linear layers are cut into tiles and chunks: the choices, and the record of those made.

``sparsec compile --tune`` measures the :func:`candidates` (see ``compiler/tune.py``) and passes its
choices on as :class:`Tilings`; without, :func:`by_model` chooses.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsec import targets
from sparsec.arguments import argument
from sparsec.compiler.lowering import tile_packing
from sparsec.errors import InputError
from sparsec.targets import Matrix, Target

Array = np.ndarray[Any, Any]

#: Activations of a tile and chunk should stay in the first-level cache beside the weight stream:
#: three quarters of 32 KiB, and of the 48 KiB of newer cores.
BUDGETS = (24 * 1024, 36 * 1024)

#: Times that differ by less are taken for equal; the model is off by 3 % in the middle.
NOISE = 0.04

#: Input channels in a pack of weights, by the type of products: 4 bytes, or one float of them.
PACK = {"i8": 4, "bf16": 2, "f32": 1}
#: By how much a sparse form must promise to be faster than a dense one, whose time depends on less,
#: where less than half of the weights are zero: those that are by accident, a few in a hundred,
#: never make a layer sparse.
CAUTION = 1.15

#: Output channels that the kernel on tiles computes together: two tiles of weights.
MATRIX_CHANNELS = 2 * tile_packing.CHANNELS

#: Tiles of inputs whose weights are cut in parts together: few enough for the second-level cache,
#: so many that sums seldom leave their tiles.
FLOAT_STEPS = 24

#: What products of floats take in products of tiles: six of them, which wait for less than others
#: do.  And what cutting a tile of weights in parts takes, in tiles that are made of masks: for a
#: sweep of two blocks of rows at most, whose parts stay in the first-level cache, and for others.
FLOAT_PRODUCTS, FLOAT_MADE_FEW, FLOAT_MADE = 4.3, 6.5, 11.5

#: How many times faster a bucket must be with a form of the weights of its own, to be worth storing
#: them twice.
WORTH_STORING = 1.25

#: Density above which zeros are taken for accidents where it is not known which core will run the
#: code: skipping them gains a little on some, and loses a quarter on others.
MOSTLY_FULL = 0.85

#: Layers whose densities differ by less than this are tuned together.
DENSITY_STEP = 0.05


@dataclass(frozen=True, order=True)
class Tiling:
    """A way to compute a linear layer.

    Attributes:
        sparse: whether zeros are not stored: whole packs; for products of tiles, single weights.
        chunks: pieces of the input channels, each swept for all output channels before the next.
        tile: blocks of 16 rows whose sums are in registers together; dense layers
            with channels in lanes take no notice of it.
        matrix: whether the unit for products of tiles computes it.
    """

    sparse: bool
    chunks: int
    tile: int
    matrix: bool = False

    @property
    def form(self) -> str:
        """What its kernels are called by: "sparse", "dense", "tiles" or "masked"."""
        if self.matrix:
            return "masked" if self.sparse else "tiles"
        return "sparse" if self.sparse else "dense"


@dataclass(frozen=True)
class LayerClass:
    """Layers that are tuned together.

    Attributes:
        kind: "i8", "f32", or "bf16": what its products are of.
        n, k: output and input channels.
        density: share of packs with a non-zero weight, in steps of :data:`DENSITY_STEP`.
        panels: whether the result is packed 4 adjacent channels to a dword.
        filled: share of tiles of weights that are not empty, in such steps, rounded up; 1 where
            there is no unit for products of tiles.
    """

    kind: str
    n: int
    k: int
    density: float
    panels: bool
    filled: float = 1.0

    @property
    def packs(self) -> int:
        """Input packs of :data:`PACK` channels."""
        return -(-self.k // PACK[self.kind])

    @staticmethod
    def of(
        kind: str, n: int, k: int, density: float, panels: bool, filled: float = 1.0
    ) -> LayerClass:
        """The class of a layer of these exact shares."""
        near = round(round(density / DENSITY_STEP) * DENSITY_STEP, 2)
        above = round(math.ceil(filled / DENSITY_STEP - 1e-6) * DENSITY_STEP, 2)
        return LayerClass(kind, n, k, near, panels, above)


def chunks_for(packs: int, blocks: int, budget: int) -> int:
    """Chunks that make the activations of so many blocks of rows fit a budget of bytes."""
    return max(1, -(-blocks * packs * 64 // budget))


def blocks_read(tile: int, unit: int) -> int:
    """Blocks of rows whose activations a tile of a sparse layer reads at most.

    Where a unit is half of a block, a half that is left over joins a tile of one block
    (``linear.tile_units``), and takes as much of the cache as a whole one.
    """
    return 2 if (unit, tile) == (8, 1) else tile


def candidates(layer: LayerClass, target: Target) -> list[Tiling]:
    """What is worth measuring for a layer; the same number and order for every layer."""
    found = []
    for tile in target.tiles.sparse:
        blocks = blocks_read(tile, target.unit)
        for budget in BUDGETS:
            found.append(Tiling(True, chunks_for(layer.packs, blocks, budget), tile))
    # With channels in lanes the tile means nothing.
    for tile in target.tiles.sparse:
        found.append(Tiling(False, 1, tile))
    if target.matrix is not None:
        found += on_matrix(layer, target.matrix) or found[-1:] * 2
    return found


def on_matrix(layer: LayerClass, matrix: Matrix) -> list[Tiling]:
    """How products of tiles compute a layer, all of its weights and those that are not zero; none
    if they cannot."""
    if layer.kind == "i8" and layer.k < tile_packing.LEAST_INPUTS:
        return []
    steps = tile_packing.tile_count(layer.k, layer.kind)
    if layer.kind == "f32":
        return [Tiling(False, -(-steps // FLOAT_STEPS), 2, matrix=True)] * 2
    chunks = -(-steps * MATRIX_CHANNELS * 64 // matrix.weights)
    if layer.kind == "bf16":
        return [Tiling(False, chunks, 2, matrix=True)] * 2
    return [Tiling(masked, chunks, 2, matrix=True) for masked in (False, True)]


def features(layer: LayerClass, tiling: Tiling, blocks: int, lanes: int) -> Array:
    """What the time of a layer is made of, for the cost model: a sum of these, each with a factor.

    Args:
        blocks: blocks of 16 rows.
        lanes: 32-bit lanes of a vector.

    Returns:
        Float64: products, those that share their activations with another, those whose activations
        are too many for the first-level cache, steps of the inner loop, its ends, partial sums,
        results (all for vectors); the dense kernel's products, weights, ends and results are apart.
    """
    vectors = 16 // lanes
    packs = layer.packs
    quads = -(-layer.n // 4)
    tiles = -(-blocks // tiling.tile)  # the last may be shorter: its steps are counted in full
    if not tiling.sparse:
        if layer.kind == "bf16":  # rows in lanes
            steps = float(quads * packs)
            results = 4 * quads * blocks * vectors
            made_of = [steps * 4 * blocks * vectors, steps * tiles, quads * tiles, results]
            return np.array([0.0] * 7 + made_of)
        wide = float(-(-layer.n // 32) * 32 // lanes)  # vectors of channels
        dense = [wide * packs * 16 * blocks, wide * packs, wide * blocks, wide * 16 * blocks]
        return np.array([0.0] * 7 + dense)
    # Four channels take as many steps as the longest of them.  Where one of a pair has a pack, the
    # other has one about as often as anywhere.
    steps = quads * packs * layer.density * 1.03
    bytes_ = tiling.tile * packs * 64 / tiling.chunks
    products = steps * 4 * blocks * vectors
    partial = 4 * quads * blocks * vectors * (tiling.chunks - 1)
    row: list[float] = [
        products * (1 - layer.density),
        products * layer.density,
        products * max(0.0, 1 - BUDGETS[0] / bytes_),
        steps * tiles,
        quads * tiling.chunks * tiles,
        partial,
        4 * quads * blocks * vectors,
    ]
    return np.array(row + [0.0] * 4)


def matrix_features(
    layer: LayerClass, tiling: Tiling, blocks: int, target: Target, cold: bool = True
) -> Array:
    """What the time of a layer on tiles is made of, as :func:`features`.

    Args:
        blocks: blocks of 16 rows.
        target: has a unit for products of tiles.
        cold: weights come from further than the second-level cache.

    Returns:
        Float64: products of tiles, loads of weights for two blocks, their arrival from far away
        (in the bytes of a tile; products hide little of it), results (in vectors), calls, tiles
        made of masks (or of floats).
    """
    assert target.matrix is not None
    floats = layer.kind == "f32"
    sweep = target.matrix.sweep
    steps = tile_packing.tile_count(layer.k, layer.kind)
    every = -(-layer.n // tile_packing.CHANNELS) * steps
    weights = every * layer.filled
    whole, rest = divmod(blocks, sweep)
    sweeps = [sweep] * whole + [rest] * (rest > 0)
    # Of a masked tile, masks of packs and the packs that are not zero, at most.
    stored = every * layer.density + weights / 32 if tiling.sparse else weights
    far = len(sweeps) if cold else 0
    pairs = sum(-(-rows // 2) for rows in sweeps)
    results = -(-layer.n // 4) * 4 * blocks * (16 // target.lanes)
    made = weights * len(sweeps) if tiling.sparse else 0.0
    products = weights * blocks
    if floats:
        products = weights * blocks * FLOAT_PRODUCTS
        stored = -(-layer.n // MATRIX_CHANNELS) * 2.0 * steps
        made = stored * sum(FLOAT_MADE_FEW if rows <= 2 else FLOAT_MADE for rows in sweeps)
        stored *= 2
    return np.array([products, weights * pairs, stored * far, results, 1.0, made])


def estimate(
    layer: LayerClass, tiling: Tiling, blocks: int, target: Target, cold: bool = True
) -> float:
    """What a layer takes by the cost model, in its nanoseconds.

    Args:
        blocks: blocks of 16 rows.
        cold: weights come from further than the second-level cache.
    """
    factors = targets.costs(target)
    if tiling.matrix:
        made_of = matrix_features(layer, tiling, blocks, target, cold)
        return float(made_of @ np.array(factors.matrix))
    # Pairs of bfloat16 go through the loops of bytes, one instruction a pack.
    loops = "f32" if layer.kind == "f32" else "i8"
    took = features(layer, tiling, blocks, target.lanes) @ np.array(getattr(factors, loops))
    return float(took) + (arrival(layer, tiling, target) if cold else 0.0)


def arrival(layer: LayerClass, tiling: Tiling, target: Target) -> float:
    """What the bytes of weights that vectors read take to arrive from far away, in nanoseconds of
    the cost model: as much as those of tiles, where these are the alternative."""
    if target.matrix is None or tiling.matrix:
        return 0.0
    # Beside the 4 bytes of a pack that is not zero, 2 say where it is.
    stored = layer.n * layer.packs * (6 * layer.density if tiling.sparse else 4)
    return stored / tile_packing.BYTES * targets.costs(target).matrix[2]


class Tilings(Mapping[tuple[LayerClass, int], Tiling]):
    """Choices by layer class and bucket length.

    Attributes:
        microseconds: what they were made by, where that is known: of each form (``Tiling.form``)
            the time of its best tiling, on one core.
    """

    def __init__(
        self,
        chosen: Mapping[tuple[LayerClass, int], Tiling],
        microseconds: Mapping[tuple[LayerClass, int], Mapping[str, float]] | None = None,
    ) -> None:
        self._chosen = dict(chosen)
        self.microseconds = {key: dict(times) for key, times in (microseconds or {}).items()}

    def __getitem__(self, key: tuple[LayerClass, int]) -> Tiling:
        return self._chosen[key]

    def __iter__(self) -> Iterator[tuple[LayerClass, int]]:
        return iter(self._chosen)

    def __len__(self) -> int:
        return len(self._chosen)

    def to_json(self) -> list[dict[str, Any]]:
        """The record that goes into the manifest."""
        rows = [
            {
                **vars(layer),
                "bucket": length,
                **vars(tiling),
                "microseconds": self.microseconds.get((layer, length), {}),
            }
            for (layer, length), tiling in self.items()
        ]
        return sorted(rows, key=lambda r: [str(r[key]) for key in sorted(r)])

    @staticmethod
    def from_json(rows: object, where: str) -> Tilings:
        """The choices of a record.

        Args:
            rows: as :meth:`to_json` gives them.
            where: names the record in errors.

        Raises:
            InputError: it is not such a record.
        """
        chosen, times = {}, {}
        layer_fields = ("kind", "n", "k", "density", "panels")
        try:
            for row in _rows(rows):
                known = {name: row[name] for name in layer_fields}
                # Records of before knew of no empty tiles.
                layer = LayerClass(**known, filled=float(row.get("filled", 1.0)))
                tiling = Tiling(
                    bool(row["sparse"]),
                    int(row["chunks"]),
                    int(row["tile"]),
                    bool(row.get("matrix", False)),
                )
                if not 1 <= tiling.tile <= 4 or not 1 <= tiling.chunks <= layer.k:
                    raise ValueError(f"a tile of {tiling.tile}, {tiling.chunks} chunks")
                key = layer, int(row["bucket"])
                chosen[key] = tiling
                forms = row.get("microseconds", {})
                times[key] = {str(form): float(forms[form]) for form in forms}
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{where} is not a record of {argument('tune', True)}: {error}"
            ) from error
        return Tilings(chosen, times)


def _rows(rows: object) -> Iterable[Mapping[str, Any]]:
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        raise TypeError(f"a list is wanted, not {type(rows).__name__}")
    return rows


def choose(measured: Mapping[tuple[LayerClass, Tiling], Mapping[int, float]]) -> Tilings:
    """The best tilings: one form and number of chunks per class, one tile per class and bucket.

    A bucket has a form of its own only where another is much faster than the one which is best for
    all: few rows are for vectors, many for products of tiles.

    Args:
        measured: seconds by class, tiling and bucket length.
    """
    chosen: dict[tuple[LayerClass, int], Tiling] = {}
    times: dict[tuple[LayerClass, int], dict[str, float]] = {}
    for layer in dict.fromkeys(layer for layer, _ in measured):
        mine = {tiling: times for (of, tiling), times in measured.items() if of == layer}
        for n, tiling in _choose(mine).items():
            chosen[layer, n] = tiling
            times[layer, n] = _by_form(mine, n)
    return Tilings(chosen, times)


def _by_form(seconds: Mapping[Tiling, Mapping[int, float]], length: int) -> dict[str, float]:
    """Microseconds of the best tiling of each form, in three digits; the fastest form first."""
    found: dict[str, float] = {}
    for tiling, times in seconds.items():
        found[tiling.form] = min(times[length], found.get(tiling.form, times[length]))
    return {
        form: float(f"{found[form] * 1e6:.3g}") for form in sorted(found, key=found.__getitem__)
    }


def _choose(times: Mapping[Tiling, Mapping[int, float]]) -> dict[int, Tiling]:
    """The best tilings of one class by bucket length."""
    lengths = list(next(iter(times.values())))
    fastest = {n: min(of[n] for of in times.values()) for n in lengths}
    options: list[tuple[float, float, dict[int, Tiling]]] = []
    for stored in dict.fromkeys(_stored(t) for t in times):
        like = [t for t in times if _stored(t) == stored]
        tiles = {}
        for n in lengths:
            enough = min(times[t][n] for t in like) * (1 + NOISE)
            # The lowest of those that are as fast: it has the fewest variants of code.
            tiles[n] = min((t for t in like if times[t][n] <= enough), key=lambda t: t.tile)
        cost = sum(times[t][n] / fastest[n] for n, t in tiles.items())
        options.append((cost, times[tiles[max(lengths)]][max(lengths)], tiles))
    # Of those that are as good for all buckets, the best for the longest.
    enough = min(cost for cost, *_ in options) * (1 + NOISE)
    _, tiles = min((o[1:] for o in options if o[0] <= enough), key=lambda o: o[0])
    chosen = {}
    for n, tiling in tiles.items():
        others = [t[n] for *_, t in options if t[n].form != tiling.form]
        took = {t: times[t][n] for t in (tiling, *others)}
        best = min(took, key=lambda t: took[t])
        chosen[n] = best if took[best] * WORTH_STORING < took[tiling] else tiling
    return chosen


def _stored(tiling: Tiling) -> tuple[bool, bool, int]:
    """What decides how weights are stored."""
    return tiling.sparse, tiling.matrix, tiling.chunks


def blocks_of(lengths: Iterable[int], batch_size: int) -> dict[int, int]:
    """Blocks of 16 rows that a batch has, by the length of the bucket."""
    return {length: -(-max(length, 1) * batch_size // 16) for length in lengths}


def by_model(
    layer: LayerClass, target: Target, blocks: Mapping[int, int], cold: bool = True
) -> Tilings:
    """What :func:`choose` makes of the cost model.

    Args:
        blocks: from :func:`blocks_of`.
        cold: weights come from further than the second-level cache.
    """

    def expected(tiling: Tiling, count: int) -> float:
        doubtful = tiling.sparse and not tiling.matrix and layer.density > 0.5
        return estimate(layer, tiling, count, target, cold) * (CAUTION if doubtful else 1.0) * 1e-9

    modelled = {
        (layer, tiling): {length: expected(tiling, count) for length, count in blocks.items()}
        for tiling in candidates(layer, target)
    }
    free = choose(modelled)
    if target.tuned_for != targets.UNKNOWN or layer.density <= MOSTLY_FULL:
        return free
    whole = {key: times for key, times in modelled.items() if not key[1].sparse}
    return Tilings(choose(whole), free.microseconds)
