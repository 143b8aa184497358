"""Which four channels share a pack: a heuristic for the order of channels that costs least.

Four consecutive input channels of one output are one product in the kernel, needed as soon as one
of the four weights is not zero.  Channels that the same outputs use belong together.  Where the
channels are also the outputs of a layer whose kernel takes them four at a time, every four cost as
much as the longest of them, so channels of like length belong together.

First pairs are formed, then pairs of pairs, each time taking those that are each other's best
match.  Then channels of different groups are swapped as long as that helps.  Both are products of
0/1 matrices, done in tiles that bound the time: about 0.2 s for 3072 channels of 768 outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sparsec.compiler.lowering.linear import SLAB_QUADS

Array = np.ndarray[Any, Any]

#: Channels that are matched, and swapped, with each other at most.
MATCH_TILE, SWAP_TILE = 1024, 256

#: Rounds of swaps; they end before that when a round gains less than this share of the cost.
SWEEPS, SETTLED = 6, 1e-3


def grouping_cost(used: Array, lengths: Sequence[Array], order: Array) -> int:
    """Packs that an order of channels costs.

    Args:
        used: [outputs, channels] which weights are not zero.
        lengths: for each layer that makes the channels in fours, [channels] the packs of each.
        order: the channel at each place.

    Returns:
        Non-zero packs of `used`, and for each of `lengths` 4 times the longest of each four.
    """
    packs = used[:, order].reshape(len(used), len(order) // 4, 4).any(axis=2).sum()
    rows = sum(4 * int(n[order].reshape(-1, 4).max(axis=1).sum()) for n in lengths)
    return int(packs) + rows


def group_in_fours(used: Array, lengths: Sequence[Array], width: int) -> Array:
    """An order of channels of low cost; never of higher cost than the order they are in.

    Args:
        used, lengths: as for :func:`grouping_cost`.
        width: channels stay within their segment of this many (a multiple of 4).

    Returns:
        int64 [channels], the channel at each place.
    """
    channels = used.shape[1]
    natural = np.arange(channels)
    x = used.astype(np.float32)
    tall = [n.astype(np.float32) for n in lengths]
    pieces = []
    for first in range(0, channels, width):
        span = slice(first, first + width)
        here = [n[span] for n in tall]
        order = _refined(x[:, span], here, _matched(x[:, span], here))
        before, after = (
            grouping_cost(x[:, span] != 0, here, o) for o in (natural[: len(order)], order)
        )
        if after < before:
            pieces.append(first + _dealt(order, here))
        else:
            pieces.append(first + natural[: len(order)])
    return np.concatenate(pieces)


def _dealt(order: Array, lengths: Sequence[Array]) -> Array:
    """The same groups in an order that gives every slab of them like work."""
    groups = order.reshape(-1, 4)
    if not lengths:
        return order
    work = np.sum([n[groups].max(axis=1) for n in lengths], axis=0)
    slabs = -(-len(groups) // SLAB_QUADS)
    rank = np.argsort(-work, kind="stable")
    dealt = rank[np.argsort(np.arange(len(groups)) % slabs, kind="stable")]
    return np.asarray(groups[dealt].reshape(-1))


def _mutual_pairs(gain: Array) -> Array:
    """Disjoint pairs [n/2, 2] of an even number of items, best matches first."""
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
    return np.concatenate(pairs)


def _overlap(x: Array, lengths: Sequence[Array]) -> Array:
    """What putting two items together saves: [items, items]."""
    gain = x.T @ x
    for n in lengths:
        gain -= 2 * np.abs(n[:, None] - n[None, :])
    return np.asarray(gain)


def _matched(x: Array, lengths: Sequence[Array]) -> Array:
    """Channels in fours that match well, by pairing twice."""
    channels = x.shape[1]
    if channels > MATCH_TILE:
        # Channels with like numbers of weights are matched with each other.
        sorted_channels = np.argsort(-x.sum(axis=0), kind="stable").reshape(-1, 4)
        tiles = [
            tile.reshape(-1) for tile in np.array_split(sorted_channels, -(-channels // MATCH_TILE))
        ]
        return np.concatenate([t[_matched(x[:, t], [n[t] for n in lengths])] for t in tiles])
    pairs = _mutual_pairs(_overlap(x, lengths))
    union = np.maximum(x[:, pairs[:, 0]], x[:, pairs[:, 1]])
    fours = _mutual_pairs(_overlap(union, [n[pairs].max(axis=1) for n in lengths]))
    return np.asarray(pairs[fours].reshape(-1))


def _refined(x: Array, lengths: Sequence[Array], order: Array) -> Array:
    """The order after rounds of swaps between groups, each of which lowers the cost."""
    groups = order.reshape(-1, 4).copy()
    rng = np.random.default_rng(0)
    cost = grouping_cost(x != 0, lengths, order)
    for _ in range(SWEEPS):
        shuffled = rng.permutation(len(groups))
        parts = np.array_split(shuffled, -(-4 * len(groups) // SWAP_TILE))
        saved = 0.0
        for part in parts:
            saved += _swap(x, lengths, groups, part)
        if saved <= SETTLED * cost:
            break
    return np.asarray(groups.reshape(-1))


def _swap(x: Array, lengths: Sequence[Array], groups: Array, part: Array) -> float:
    """Swap channels between the groups `part`, each group once at most; what that saves."""
    flat = groups[part].reshape(-1)
    size = flat.size
    columns = x[:, flat]
    fours = columns.reshape(len(x), size // 4, 4)
    others = fours.sum(axis=2, keepdims=True) - fours > 0
    # fit[p, q]: less what it costs to have channel q at place p beside the other three there.
    fit = others.astype(np.float32).reshape(len(x), size).T @ columns
    for n in lengths:
        four = n[flat].reshape(-1, 4)
        ranked = np.sort(four, axis=1)
        is_longest = np.zeros(four.shape, bool)
        is_longest[np.arange(len(four)), four.argmax(axis=1)] = True
        rest = np.where(is_longest, ranked[:, 2:3], ranked[:, 3:4]).reshape(-1)
        fit -= 4 * np.maximum(rest[:, None], n[flat][None, :])
    now = np.diag(fit)
    gain = fit + fit.T - now[:, None] - now[None, :]
    group = np.arange(size) // 4
    gain[group[:, None] == group[None, :]] = 0
    best = gain.argmax(axis=1)
    saves = gain[np.arange(size), best]
    moved = np.zeros(len(part), bool)
    saved = 0.0
    for p in np.argsort(-saves, kind="stable"):
        q = best[p]
        if saves[p] < 0.5:
            break
        if moved[group[p]] or moved[group[q]]:
            continue
        moved[[group[p], group[q]]] = True
        flat[[p, q]] = flat[[q, p]]
        saved += float(saves[p])
    groups[part] = flat.reshape(-1, 4)
    return saved
