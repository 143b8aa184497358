"""Which channels become neighbours: an order in which less is lost with whole blocks.

A block goes or stays with all of its inputs.  Where inputs that matter little for an output lie
side by side, more of what matters stays; channels whose order is nobody's business may be laid so.
Pool and Yu (2021), "Channel permutations for N:M sparsity", search such orders by exchanging
channels; here for 4-blocks that are chosen over a whole layer, of which a share stays: what counts
is how far blocks are above the threshold that this share sets.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from sparsec.pruning.blocks import BLOCK

ROUNDS = 8
"""Times that all exchanges are looked at; what further ones gain is a few thousandths."""

REACH = 128
"""Channels whose places are farther apart are not exchanged: one matters much more than the
other."""

ROWS = 4096
"""Outputs that are looked at, at most, of all layers together."""


def lost(saliency: Tensor, keep: float, block: int = BLOCK) -> float:
    """Share of the saliency [N, K] that goes with the blocks that go, when the best stay.

    Args:
        keep: share of the blocks that stays.
    """
    blocks = _blocks(saliency, block).flatten()
    count = round(keep * blocks.numel())
    return 1 - float(blocks.topk(count).values.sum() / blocks.sum().clamp_min(1e-30))


def best_order(
    saliencies: Sequence[Tensor],
    keep: float,
    *,
    within: int | None = None,
    block: int = BLOCK,
    rounds: int = ROUNDS,
) -> Tensor:
    """An order of the channels that all of some layers read: int64 [K], the old number of each.

    From the old order or that by size, whichever loses less, on by exchanges of two channels, the
    best first, as long as they gain: a local optimum.

    Args:
        saliencies: of each layer, float [N, K], what each weight is worth; layers count alike.
        keep: share of the blocks that stays, of each layer.
        within: channels that stay together, those of a head; divides K.  None: all are free.
        block: K need not be a multiple.
    """
    width = saliencies[0].shape[1]
    within = within or width
    padded = -(-width // block) * block
    if within != width and within % block:
        return torch.arange(width)
    each = max(1, ROWS // len(saliencies))
    rows = torch.cat([_some(s / s.sum().clamp_min(1e-30), each) for s in saliencies]).float()
    starts = [0]
    for s in saliencies:
        starts.append(starts[-1] + min(len(s), each))
    # The last block may be shorter: it is filled up with channels that are worth nothing.
    rows = torch.nn.functional.pad(rows, (0, padded - width))
    fixed = torch.arange(padded) >= width
    part = torch.arange(padded) // within
    size = rows.sum(0).masked_fill(fixed, -1)
    # Stable sorts: by size, and then by part.
    by_size = size.argsort(descending=True, stable=True)
    by_size = by_size[part[by_size].argsort(stable=True)]
    starting = (torch.arange(padded), by_size)
    best = max(starting, key=lambda order: _kept(rows, starts, order, keep, block))
    order, kept = best.clone(), _kept(rows, starts, best, keep, block)
    for _ in range(rounds):
        if not _exchange(rows, starts, order, keep, block, part, fixed):
            break
        now = _kept(rows, starts, order, keep, block)
        if now <= kept:
            break  # the threshold moves with the order
        best, kept = order.clone(), now
    return best[best < width]


def _kept(rows: Tensor, starts: Sequence[int], order: Tensor, keep: float, block: int) -> float:
    """What stays of all layers, in an order."""
    sums = _blocks(rows[:, order], block)
    parts = [sums[a:b].flatten() for a, b in itertools.pairwise(starts)]
    return sum(float(p.topk(round(keep * p.numel())).values.sum()) for p in parts)


def _some(rows: Tensor, count: int) -> Tensor:
    """So many rows, evenly chosen."""
    if len(rows) <= count:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, count).round().long()]


def _blocks(saliency: Tensor, block: int) -> Tensor:
    filled = torch.nn.functional.pad(saliency, (0, -saliency.shape[1] % block))
    return filled.reshape(len(filled), -1, block).sum(-1)


def _exchange(
    rows: Tensor,
    starts: Sequence[int],
    order: Tensor,
    keep: float,
    block: int,
    part: Tensor,
    fixed: Tensor,
) -> bool:
    """One round, into `order`: whether anything was exchanged; each block at most once."""
    now = rows[:, order]
    sums = _blocks(now, block)
    limit = torch.cat(
        [_threshold(sums[a:b], keep).expand(b - a) for a, b in itertools.pairwise(starts)]
    )[:, None]
    width = now.shape[1]
    gain = _gains(now, sums, limit, block)
    mine = torch.arange(width) // block
    barred = (mine[:, None] == mine) | (part[:, None] != part) | fixed[:, None] | fixed
    gain[barred] = 0
    values, places = gain.flatten().topk(min(gain.numel(), 64 * width))
    used, moved = [False] * (width // block), False
    for value, place in zip(values.tolist(), places.tolist(), strict=True):
        i, j = divmod(place, width)
        if value <= 1e-7 * len(starts):
            break
        if used[i // block] or used[j // block]:
            continue
        used[i // block] = used[j // block] = moved = True
        order[[i, j]] = order[[j, i]]
    return moved


def _threshold(sums: Tensor, keep: float) -> Tensor:
    """The least block that stays."""
    count = min(sums.numel(), max(1, round(keep * sums.numel())))
    return sums.flatten().topk(count).values[-1]


def _gains(now: Tensor, sums: Tensor, limit: Tensor, block: int) -> Tensor:
    """What exchanging the channels at two places adds to the part of blocks that is above the
    threshold: [K, K], above the diagonal."""
    width = now.shape[1]
    above = (sums - limit).clamp_min(0).sum(0).repeat_interleave(block)
    rest = sums.repeat_interleave(block, 1) - now - limit
    with_other = torch.zeros(width, width)
    for i in range(width):
        low, high = max(0, i - REACH), min(width, i + REACH)
        with_other[i, low:high] = (rest[:, i : i + 1] + now[:, low:high]).relu_().sum(0)
    gain = with_other + with_other.T - above[:, None] - above
    far = torch.arange(width)
    gain[(far[:, None] - far).abs() >= REACH] = 0
    return gain.triu_(1)
