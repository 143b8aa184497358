"""Which output channels a sparse kernel takes together.

A quad of 4 channels takes as many steps as the longest of them, so channels of like length belong
together.  And where the two channels of a pair both have a non-zero pack, its activations can be
loaded once for both, so pairs with many packs in common belong together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

#: Time of a product that loads its activations, where one that shares them takes 1: on a Zen 4
#: core, which loads one vector a cycle, the loops run at 83 % and 100 % of its VPDPBUSD peak.
LOADING = 1.2

#: Steps of shared packs that are worth a loop of their own.
FEWEST_SHARED = 4


@dataclass(frozen=True, eq=False)
class Arrangement:
    """The channels of a layer in quads, each two pairs, and the packs that they compute.

    Attributes:
        order: int64 [channels], the channel at each place; places 4q to 4q + 3 are quad q, whose
            pairs are the first two and the last two.
        shared: int64 [quads], how many packs of each pair of the quad are taken together: an even
            number, as the kernel takes two steps at a time.
        shared_columns: int64 [channels / 2, most shared], which these are.
        own: int64 [channels], how many other packs the channel at each place has.
        own_columns: int64 [channels, most own], which these are; beyond `own`, any.
    """

    order: Array
    shared: Array
    shared_columns: Array
    own: Array
    own_columns: Array

    @property
    def steps(self) -> Array:
        """Int64 [quads]: steps of 4 products that each quad takes."""
        return np.asarray(self.shared + self.own.reshape(-1, 4).max(axis=1))


def mutual_pairs(gain: Array) -> Array:
    """Disjoint pairs of an even number of items, best matches first.

    Args:
        gain: float [n, n], symmetric, what pairing two items gains; overwritten.

    Returns:
        int64 [n / 2, 2].
    """
    np.fill_diagonal(gain, -np.inf)
    free = np.arange(len(gain))
    pairs = []
    while free.size:
        best = gain.argmax(axis=1)
        place = np.arange(free.size)
        mutual = best[best] == place
        chosen = mutual & (place < best)
        if not chosen.any():  # a ring of equals
            chosen[0], mutual[[0, best[0]]] = True, True
        pairs.append(np.stack([free[chosen], free[best[chosen]]], axis=1))
        free, gain = free[~mutual], gain[np.ix_(~mutual, ~mutual)]
    return np.concatenate(pairs) if pairs else np.zeros((0, 2), np.int64)


def arrange(used: Array, slab_quads: int) -> Arrangement:
    """Put channels in quads of little work.

    Args:
        used: bool [channels, packs], a multiple of 4 channels: which packs are not all zero.
        slab_quads: channels stay within their slab of this many quads.
    """
    size = 4 * slab_quads
    order = np.concatenate(
        [first + _slab_order(used[first : first + size]) for first in range(0, len(used), size)]
        or [np.zeros(0, np.int64)]
    )
    used = used[order]
    common = used[0::2] & used[1::2]
    shared = common.sum(axis=1).reshape(-1, 2).min(axis=1)
    shared[shared < FEWEST_SHARED] = 0
    shared -= shared % 2
    together = common & (np.cumsum(common, axis=1) <= np.repeat(shared, 2)[:, None])
    alone = used & ~np.repeat(together, 2, axis=0)
    own = alone.sum(axis=1)
    return Arrangement(order, shared, _columns(together), own, _columns(alone))


def _slab_order(used: Array) -> Array:
    """The channels of a slab in an order that makes good pairs and quads; short quads first."""
    x = used.astype(np.float32)
    common = x @ x.T
    length = x.sum(axis=1)
    saved = 2 * (LOADING - 1)
    pairs = mutual_pairs(
        saved * common - LOADING * np.abs(length[:, None] - length[None, :]),
    )
    longest, shared = length[pairs].max(axis=1), common[pairs[:, 0], pairs[:, 1]]
    quads = mutual_pairs(
        -2 * LOADING * np.abs(longest[:, None] - longest[None, :])
        - saved * np.abs(shared[:, None] - shared[None, :])
    )
    work = longest[quads].max(axis=1)
    return np.asarray(pairs[quads[np.argsort(work, kind="stable")]].reshape(-1))


def _columns(mask: Array) -> Array:
    """Where each row of a mask is set, in order; rows with fewer repeat their last."""
    counts = mask.sum(axis=1)
    most = int(counts.max()) if counts.size else 0
    columns = np.argsort(~mask, axis=1, kind="stable")[:, :most]
    place = np.minimum(np.arange(most), np.maximum(counts - 1, 0)[:, None])
    return np.take_along_axis(columns, place, axis=1)
