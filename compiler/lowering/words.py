"""Weights whose products with unsigned bytes are added in 16 bits before they are in 32.

VPMADDUBSW multiplies 32 bytes and adds neighbours in 16 bits; widening those sums takes another
instruction, VPMADDWD.  The products of several packs are added in 16 bits first and widened once:
with 4 packs, 5 instructions that multiply do what took 8.

A sum of products with bytes lies between -255 n and 255 p, where n and p are the sums of its
negative and positive weights.  Additions in 16 bits wrap, so that only the whole sum must fit:
where n + p <= 257, it does, once a constant is added that moves its range into that of int16.  The
bias gives it back.  Weights that would leave even that are taken out, and multiplied apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

#: Packs whose products may be added in 16 bits: the choices.
DEPTHS = (4, 2, 1)

#: Quads, about, that the form is chosen by.
SAMPLE = 16

#: Times on Zen 4, in those of one multiplication of a pack: an addition of the constant that moves
#: the range of a sum, and a pack that is multiplied apart.
MOVE, APART = 0.6, 2.4

#: Sums of positive and of negative weights up to which their products with bytes fit in 16 bits;
#: and of both, where the range of the sum may be moved.
MOST = {1: 32767 // 255, -1: 32768 // 255}
WIDTH = 65535 // 255


def exceeds_pairs(rows: Array) -> Array:
    """Whether products of packs [N, packs] with unsigned bytes, in pairs, may leave 16 bits."""
    pairs = np.ascontiguousarray(rows).view(np.int8).reshape(*rows.shape, 2, 2).astype(np.int16)
    above = np.maximum(pairs, 0).sum(axis=3) * 255 > 32767
    below = np.minimum(pairs, 0).sum(axis=3) * 255 < -32768
    return np.asarray((above | below).any(axis=2))


def split_pairs(rows: Array) -> Array:
    """Packs as sums of two: [N, packs] -> [N, 2 * packs], each followed by what it lacks.

    Packs that :func:`exceeds_pairs` are halved, so that none does; others are followed by zero.
    """
    whole = np.ascontiguousarray(rows).view(np.int8)
    half = np.where(np.repeat(exceeds_pairs(rows), 4, axis=1), whole >> 1, whole).astype(np.int8)
    rest = (whole - half).astype(np.int8)
    return np.stack([half.view(np.int32), rest.view(np.int32)], axis=2).reshape(len(rows), -1)


def _excess(groups: Array, moved: bool) -> Array:
    """What each pack adds to a sum that may leave 16 bits: int16 ``[N, groups, depth]``, else 0.

    Args:
        groups: int16 ``[N, groups, depth, 2, 2]``: the weights of neighbouring packs.
        moved: whether the range of a sum may be moved.
    """
    share = np.zeros(groups.shape[:3], np.int16)
    parts = [(np.abs(groups), WIDTH)] if moved else []
    parts += [] if moved else [(np.maximum(s * groups, 0), most) for s, most in MOST.items()]
    for weights, most in parts:
        part = weights.sum(axis=4, dtype=np.int16)
        outside = part.sum(axis=2, keepdims=True) > most
        np.maximum(share, np.where(outside, part, 0).max(axis=3), out=share)
    return share


def _in_groups(rows: Array, depth: int) -> Array:
    """Packs ``[N, packs]`` as the weights of sums: int16 ``[N, groups, depth, 2 sums, 2]``."""
    n, packs = rows.shape
    groups = np.zeros((n, -(-packs // depth) * depth, 4), np.int16)
    groups[:, :packs] = np.ascontiguousarray(rows).view(np.int8).reshape(n, packs, 4)
    return groups.reshape(n, -1, depth, 2, 2)


def split_words(rows: Array, depth: int, moved: bool) -> tuple[Array, Array]:
    """Packs as sums of three, so that products of the first can be added in 16 bits.

    Args:
        rows: int32 dwords of 4 int8, ``[N, packs]``.
        depth: neighbouring packs whose products with unsigned bytes are added.
        moved: whether the range of a sum may be moved.

    Returns:
        The first, ``[N, packs]``, and the others, ``[2, N, packs]``, of which no two adjacent
        products leave 16 bits.
    """
    n, packs = rows.shape
    halves = split_pairs(rows).reshape(n, packs, 2)
    groups = _in_groups(halves[..., 0], depth)
    taken = np.zeros_like(groups)
    left = np.arange(n * groups.shape[1])
    while left.size:
        channel, group = np.divmod(left, groups.shape[1])
        share = _excess(groups[channel, group][None], moved)[0]
        outside = share.any(axis=1)
        left, pack = left[outside], share[outside].argmax(axis=1)
        # The pack that has most of the sum goes; what stays may still be too much.
        at = (channel[outside], group[outside], pack)
        taken[at] = groups[at]
        groups[at] = 0
    main, rest = (
        part.reshape(n, -1, 4)[:, :packs].astype(np.int8).reshape(n, -1).view(np.int32)
        for part in (groups, taken)
    )
    return main, np.stack([halves[..., 1], rest])


def moves(main: Array, depth: int) -> Array:
    """The constants that move sums of `depth` packs into 16 bits: int16 ``[N, groups, 2]``."""
    groups = _in_groups(main, depth).astype(np.int32)
    least = np.minimum(groups, 0).sum(axis=(2, 4)) * 255
    most = np.maximum(groups, 0).sum(axis=(2, 4)) * 255
    return np.asarray(np.clip(0, -32768 - least, 32767 - most), np.int16)


@dataclass(frozen=True, eq=False)
class Words:
    """Weights [N, K] for sums in 16 bits, N a multiple of 4.

    Attributes:
        depth: packs whose products are added in 16 bits.
        main: int32 ``[N, packs]``.
        moves: int16 ``[N, groups of packs, 2]``, added to sums; empty where none needs it.
        rest: int32 ``[n]``, packs to multiply apart, channel by channel.
        channel, at: int32 and uint16 ``[n]``, of which channel they are, and which of its packs.
        start: int32 ``[N + 1]``, where each channel begins in these.
    """

    depth: int
    main: Array
    moves: Array
    rest: Array
    channel: Array
    at: Array
    start: Array

    @property
    def cost(self) -> float:
        """Multiplications for each vector of rows, in what they take."""
        n, packs = self.main.shape
        groups = n * -(-packs // self.depth)
        moved = MOVE if self.moves.size else 0.0
        return float(n * packs + groups * (1 + moved) + APART * len(self.rest))

    @property
    def bias(self) -> Array:
        """What takes the moves out of the sums again: int32 ``[N]``."""
        return np.asarray(-self.moves.astype(np.int32).sum(axis=(1, 2)), np.int32)

    def stream(self, channels: int) -> Array:
        """What is read in order: of each slab of so many channels, of each group of packs, of each
        channel: the packs, then the moves of its two sums, where there are any.
        """
        n, packs = self.main.shape
        moves = np.ascontiguousarray(self.moves).view(np.int32)[..., 0]
        parts = []
        for first in range(0, n, channels):
            slab = slice(first, min(first + channels, n))
            for group in range(-(-packs // self.depth)):
                four = self.main[slab, group * self.depth : (group + 1) * self.depth]
                moved = moves[slab, group : group + 1] if moves.size else four[:, :0]
                parts.append(np.concatenate([four, moved], axis=1).reshape(-1))
        return np.concatenate(parts)


def pack_words(rows: Array, depth: int, moved: bool) -> Words:
    """Packs ``[N, packs]``, N a multiple of 4, for sums of `depth` of them in 16 bits.

    Args:
        moved: whether the range of sums may be moved.
    """
    main, rest = split_words(rows, depth, moved)
    channel, pack, part = rest.transpose(1, 2, 0).nonzero()
    counts = np.bincount(channel, minlength=len(rows))
    start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    moved_by = moves(main, depth)
    if not moved_by.any():
        moved_by = moved_by[:, :0]
    apart = rest[part, channel, pack]
    places = channel.astype(np.int32), pack.astype(np.uint16)
    return Words(depth, main, moved_by, apart, *places, start)


def best_words(rows: Array) -> Words:
    """The same in the form that takes the least time, going by some of the channels."""
    quads = rows.reshape(-1, 4, rows.shape[1])
    sample = quads[:: max(1, len(quads) // SAMPLE)].reshape(-1, rows.shape[1])
    forms = [(depth, moved) for depth in DEPTHS for moved in (False, True)]
    depth, moved = min(forms, key=lambda form: pack_words(sample, *form).cost)
    return pack_words(rows, depth, moved)
