"""Weights whose products with unsigned bytes are added in 16 bits before they are in 32.

VPMADDUBSW multiplies 32 bytes and adds neighbours in 16 bits; widening those sums takes another
instruction, VPMADDWD.  Where the weights of several packs are small enough, their sums are added in
16 bits first and widened once: with 4 packs, 5 instructions that multiply do what took 8.  Weights
that would leave 16 bits are taken out, and multiplied apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

#: Packs whose products may be added in 16 bits: the choices.
DEPTHS = (4, 2, 1)

#: Quads, about, that the depth is chosen by.
SAMPLE = 16

#: Multiplications that the loop over what was taken out of a quad costs, besides its own.
REST_LOOP = 10


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


def _excess(groups: Array) -> Array:
    """What each pack adds to a sum that may leave 16 bits: int16 ``[N, groups, depth]``, else 0.

    Args:
        groups: int16 ``[N, groups, depth, 2, 2]``: the weights of neighbouring packs.
    """
    share = np.zeros(groups.shape[:3], np.int16)
    for sign, most in ((1, 32767 // 255), (-1, 32768 // 255)):
        part = np.maximum(sign * groups, 0).sum(axis=4, dtype=np.int16)
        outside = part.sum(axis=2, keepdims=True) > most
        np.maximum(share, np.where(outside, part, 0).max(axis=3), out=share)
    return share


def split_words(rows: Array, depth: int) -> tuple[Array, Array]:
    """Packs as sums of three, so that products of the first can be added in 16 bits.

    Args:
        rows: int32 dwords of 4 int8, ``[N, packs]``.
        depth: neighbouring packs whose products with unsigned bytes are added.

    Returns:
        The first, ``[N, packs]``, and the others, ``[2, N, packs]``, of which no two adjacent
        products leave 16 bits.
    """
    n, packs = rows.shape
    halves = split_pairs(rows).reshape(n, packs, 2)
    groups = np.zeros((n, -(-packs // depth) * depth, 4), np.int16)
    groups[:, :packs] = np.ascontiguousarray(halves[..., 0]).view(np.int8).reshape(n, packs, 4)
    groups = groups.reshape(n, -1, depth, 2, 2)
    taken = np.zeros_like(groups)
    left = np.arange(n * groups.shape[1])
    while left.size:
        channel, group = np.divmod(left, groups.shape[1])
        share = _excess(groups[channel, group][None])[0]
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


@dataclass(frozen=True, eq=False)
class Words:
    """Weights [N, K] for sums in 16 bits, quad by quad.

    Attributes:
        depth: packs whose products are added in 16 bits.
        main: int32 ``[quads, packs, 4]``.
        rest: int32 ``[steps, 4]``, a pack of each channel of a quad to multiply apart.
        at: uint16 ``[steps, 4]``, which packs they are.
        start: int32 ``[quads + 1]``, where each quad begins in both.
    """

    depth: int
    main: Array
    rest: Array
    at: Array
    start: Array

    @property
    def cost(self) -> int:
        """Multiplications for each vector of rows."""
        quads, packs = self.main.shape[:2]
        words = (packs + -(-packs // self.depth)) * quads * 4
        return int(words + 8 * len(self.rest) + (REST_LOOP * quads if len(self.rest) else 0))


def pack_words(rows: Array, depth: int) -> Words:
    """Packs ``[N, packs]``, N a multiple of 4, for sums of `depth` of them in 16 bits."""
    main, rest = split_words(rows, depth)
    channel, pack, part = rest.transpose(1, 2, 0).nonzero()
    counts = np.bincount(channel, minlength=len(rows))
    # A quad takes as many steps as the channel that has most; others multiply by 0.
    steps = counts.reshape(-1, 4).max(axis=1)
    start = np.concatenate([[0], np.cumsum(steps)])
    before = np.concatenate([[0], np.cumsum(counts)])
    at = start[channel // 4] + np.arange(len(channel)) - before[channel], channel % 4
    weights, packs = np.zeros((start[-1], 4), np.int32), np.zeros((start[-1], 4), np.uint16)
    weights[at], packs[at] = rest[part, channel, pack], pack
    quads = main.reshape(len(rows) // 4, 4, -1).transpose(0, 2, 1)
    return Words(depth, np.ascontiguousarray(quads), weights, packs, start.astype(np.int32))


def best_words(rows: Array) -> Words:
    """The same for the depth that takes the fewest multiplications, of some of the quads."""
    quads = rows.reshape(-1, 4, rows.shape[1])
    sample = quads[:: max(1, len(quads) // SAMPLE)].reshape(-1, rows.shape[1])
    depth = min(DEPTHS, key=lambda depth: pack_words(sample, depth).cost)
    return pack_words(rows, depth)
