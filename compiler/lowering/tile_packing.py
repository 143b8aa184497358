"""Weights of a linear layer as tiles, the operands of products of bytes.

The layout is described in ``templates/lanes/linear_tiles.c.j2``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

#: Output channels, and packs of 4 input channels, of a tile of weights.
CHANNELS, PACKS = 16, 16

#: Input channels from which on a layer fills a tile.
LEAST_INPUTS = 4 * PACKS - 3


def tile_count(k: int) -> int:
    """Tiles that cover `k` input channels."""
    return -(-k // (4 * PACKS))


def pack_tiles(weights: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Weights int8 [N, K] as tiles: int8 ``[ceil(N/16), ceil(K/64), 16, 64]``.

    Channels that are missing at the end are zero.  The last tile of inputs ends with the last pack,
    so that the activations it meets exist; inputs that the tile before holds are zero in it.

    Raises:
        ValueError: fewer inputs than a tile takes.
    """
    n, k = weights.shape
    if k < LEAST_INPUTS:
        raise ValueError(f"{k} input channels do not fill a tile")
    inputs, width = -(-k // 4) * 4, 4 * PACKS
    rows = np.zeros((-(-n // CHANNELS) * CHANNELS, inputs), np.int8)
    rows[:n, :k] = weights
    rows = rows.reshape(-1, CHANNELS, inputs)
    tiles = np.zeros((len(rows), tile_count(k), CHANNELS, width), np.int8)
    for i in range(tiles.shape[1]):
        first = min(i * width, inputs - width)
        known = i * width - first
        tiles[:, i, :, known:] = rows[:, :, first + known : first + width]
    return tiles
