"""Weights of a linear layer as tiles, the operands of products of bytes, bfloat16 or floats.

The layout is described in ``templates/lanes/linear_tiles.c.j2``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

#: Output channels, and packs of input channels (4 bytes, or 2 bfloat16), of a tile of weights.
CHANNELS, PACKS = 16, 16

#: What it takes.
BYTES = 4 * CHANNELS * PACKS

#: Input channels of a tile, by the type of products.  Floats are multiplied as three bfloat16.
INPUTS = {"i8": 4 * PACKS, "bf16": 2 * PACKS, "f32": 2 * PACKS}

#: Parts of a float, and the products of two of them that are computed, smallest first: the parts
#: of weight and activation, and which of them are others than those of the product before.
PARTS = 3
PRODUCTS = ((2, 0, "wx"), (1, 0, "w"), (1, 1, "x"), (0, 1, "w"), (0, 2, "x"), (0, 0, "x"))

#: Those of weights that are one bfloat16 each.
WHOLE_PRODUCTS = ((0, 2, "wx"), (0, 1, "x"), (0, 0, "x"))

#: Tiles of channels that are computed together.
HALVES = 2

#: Bytes that expanding a row of a tile may read beyond the last.
BEYOND = 64

#: Input channels from which on a layer of bytes fills a tile.
LEAST_INPUTS = 4 * PACKS - 3


def tile_count(k: int, kind: str = "i8") -> int:
    """Tiles that cover `k` input channels, by the type of products."""
    return -(-k // INPUTS[kind])


def pack_floats(weights: Array) -> Array:
    """Float32 weights [N, K] as tiles that are cut in parts when they are used: float32
    ``[ceil(N/32), ceil(K/32), 2, 16, 2, 16]``, even inputs before odd ones, filled up with zeros.
    """
    n, k = weights.shape
    count = tile_count(k, "f32")
    group = HALVES * CHANNELS
    padded = np.zeros((-(-n // group) * group, count * INPUTS["f32"]), np.float32)
    padded[:n, :k] = weights
    tiles = padded.reshape(-1, HALVES, CHANNELS, count, PACKS, 2)
    return np.ascontiguousarray(tiles.transpose(0, 3, 1, 2, 5, 4))


def pack_tiles(weights: Array) -> Array:
    """Weights [N, K] as tiles: int8 ``[ceil(N/16), ceil(K/64), 16, 64]``.

    Bits of bfloat16 (uint16) as ``[N/16, K/32, 16, 32]``.

    Channels that are missing at the end are zero.  The last tile of bytes ends with the last pack
    of inputs, so that the activations it meets exist; inputs that the tile before holds are zero in
    it.  Floats might meet infinity there: their activations are filled up with zeros (the layer
    packs them itself), and so are their weights.

    Raises:
        ValueError: fewer bytes of inputs than a tile takes.
    """
    n, k = weights.shape
    floats = weights.dtype == np.uint16
    each = 2 if floats else 4
    if k < LEAST_INPUTS and not floats:
        raise ValueError(f"{k} input channels do not fill a tile")
    width = each * PACKS
    count = -(-k // width)
    inputs = count * width if floats else -(-k // each) * each
    rows = np.zeros((-(-n // CHANNELS) * CHANNELS, inputs), weights.dtype)
    rows[:n, :k] = weights
    rows = rows.reshape(-1, CHANNELS, inputs)
    tiles = np.zeros((len(rows), count, CHANNELS, width), weights.dtype)
    for i in range(tiles.shape[1]):
        first = min(i * width, inputs - width)
        known = i * width - first
        tiles[:, i, :, known:] = rows[:, :, first + known : first + width]
    return tiles


def filled(weights: Array) -> Array:
    """Which tiles of weights [N, K] hold a weight that is not zero.

    Returns:
        bool ``[N/16, K/64]`` of int8 weights, ``[N/16, K/32]`` of bits of bfloat16.
    """
    n, k = weights.shape
    each = 2 if weights.dtype == np.uint16 else 4
    count = -(-k // (each * PACKS))
    padded = np.zeros((-(-n // CHANNELS) * CHANNELS, count * each * PACKS), bool)
    padded[:n, :k] = weights != 0
    return np.asarray(padded.reshape(-1, CHANNELS, count, each * PACKS).any(axis=(1, 3)))


@dataclass(frozen=True, eq=False)
class Listed:
    """Tiles that are not empty, as ``listed`` in ``templates/lanes/linear_tiles.c.j2``.

    Attributes:
        weights: int8 (of bfloat16, their bytes), the tiles one after the other; or of each its
            masks and what they stand for.
        offsets: uint16 [steps], the packs where each step begins.
        start: int32 [32 channels * chunks + 2, 4].
        granule: weights that a bit of a mask stands for; 0: there are no masks.
    """

    weights: Array
    offsets: Array
    start: Array
    granule: int


def list_tiles(weights: Array, chunk: int) -> Listed:
    """The tiles of weights [N, K], int8 or bits of bfloat16, that are not empty.

    Args:
        chunk: tiles of inputs that are gone through before the next ones.
    """
    tiles, offsets, entries = _listed(weights, chunk)
    flat = np.concatenate([tiles.reshape(-1), np.zeros(BEYOND, np.int8)])
    return Listed(flat, offsets, _starts(entries, np.full(len(tiles), tiles[0].size)), 0)


def mask_tiles(weights: Array, chunk: int, granules: tuple[int, ...] = (4, 1)) -> Listed:
    """The same without the weights that are zero, in the form that takes the fewest bytes."""
    tiles, offsets, entries = _listed(weights, chunk)
    forms = [(granule, *_masked(tiles, granule)) for granule in granules]
    granule, data, sizes = min(forms, key=lambda form: len(form[1]))
    return Listed(data, offsets, _starts(entries, sizes), granule)


def _listed(weights: Array, chunk: int) -> tuple[Array, Array, Array]:
    """Tiles [count, 16, 64] in order, where steps begin, and rows of counts.

    Each row is of 32 channels and a chunk: its steps, its tiles, steps with two, with the first.
    """
    packed = pack_tiles(weights)
    tiles = packed.view(np.int8).reshape(*packed.shape[:3], 4 * PACKS)
    if len(tiles) % HALVES:
        tiles = np.concatenate([tiles, np.zeros_like(tiles[:1])])
    used = tiles.any(axis=(2, 3)).reshape(-1, HALVES, tiles.shape[1])
    tiles = tiles.reshape(-1, HALVES, *tiles.shape[1:])
    # The last tile of bytes ends with the inputs, that of bfloat16 is filled up.
    floats = weights.dtype == np.uint16
    last = tiles.shape[2] * PACKS if floats else -(-weights.shape[1] // 4) - PACKS
    found: list[Array] = []
    offsets: list[Array] = []
    entries: list[tuple[int, int, int, int]] = []
    for half, group in zip(used, tiles, strict=True):
        for begin in range(0, half.shape[1], chunk):
            piece = half[:, begin : begin + chunk]
            kinds = [
                np.flatnonzero(k)
                for k in (piece.all(axis=0), piece[0] > piece[1], piece[1] > piece[0])
            ]
            both, first, second = kinds
            cut = group[:, begin : begin + chunk]
            found.append(cut[:, both].swapaxes(0, 1).reshape(-1, *cut.shape[2:]))
            found += [cut[0, first], cut[1, second]]
            steps = np.concatenate(kinds)
            offsets.append(np.minimum((begin + steps) * PACKS, last))
            entries.append((steps.size, steps.size + both.size, both.size, first.size))
    every = np.concatenate(found)
    if not len(every):  # nothing is loaded, but there is something to point at
        every = np.zeros((1, CHANNELS, 4 * PACKS), np.int8)
    return every, np.concatenate(offsets).astype(np.uint16), np.array(entries, np.int64)


def _starts(entries: Array, sizes: Array) -> Array:
    """The table `start` of rows of counts, for tiles of these sizes in bytes."""
    start = np.zeros((len(entries) + 2, 4), np.int64)
    start[1:-1, 0] = np.cumsum(entries[:, 0])
    start[1:-1, 1] = np.concatenate([[0], np.cumsum(sizes)])[np.cumsum(entries[:, 1])]
    start[-1] = start[-2]
    start[:-2, 2:] = entries[:, 2:]
    return start.astype(np.int32)


def _masked(tiles: Array, granule: int) -> tuple[Array, Array]:
    """Tiles as masks and what they stand for, and the bytes of each."""
    parts = tiles.reshape(len(tiles), -1, granule)
    used = (parts != 0).any(axis=2)
    masks = np.packbits(used, axis=1, bitorder="little").view(np.int8)
    rows = [
        np.concatenate([m, p[u].reshape(-1)]) for m, p, u in zip(masks, parts, used, strict=True)
    ]
    data = np.concatenate([*rows, np.zeros(BEYOND, np.int8)])
    return data, np.array([row.size for row in rows])
