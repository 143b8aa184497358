"""Blocks of neighbouring inputs removed one after the other by second order, with updates.

Removing a block b of the weights w of one output, and moving its others to the best place for it,
costs by the layer's Hessian H (`least_squares`)

    w_b^T ((H^-1)_bb)^-1 w_b          and moves w by   -(H^-1)_:b ((H^-1)_bb)^-1 w_b

after which H^-1 loses the rows and columns of b: Optimal Brain Surgeon (Hassibi and Stork, 1993),
for blocks as in oBERT (Kurtic et al., arXiv:2203.07259) and row by row as in OBC (Frantar et al.,
2208.11580).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparsec.pruning.least_squares import Problem, padded, row_batches
from sparsec.pruning.splitting import Scope


@dataclass(frozen=True, eq=False)
class Removal:
    """In which order blocks of each row go, and at what cost.

    Attributes:
        order: int64 [N, R], block numbers in order of removal.
        cost: float64 [N, R], the loss that each removal adds.
        blocks: how many a row has.
    """

    order: Tensor
    cost: Tensor
    blocks: int


def saliency(weights: Tensor, inverse: Tensor, block: int) -> Tensor:
    """Cost of removing each block of each row: w_b^T ((H^-1)_bb)^-1 w_b.

    Args:
        weights: [..., K], K a multiple of `block`.
        inverse: [..., K, K], inverse Hessians.

    Returns:
        [..., K / block].
    """
    count = weights.shape[-1] // block
    split = inverse.reshape(*inverse.shape[:-2], count, block, count, block)
    diagonal = split.diagonal(dim1=-4, dim2=-2)  # [..., block, block, count]
    w = weights.reshape(*weights.shape[:-1], count, block).transpose(-1, -2)
    # Forward substitution with the Cholesky factors of all blocks at once.
    low: list[list[Tensor]] = []
    half: list[Tensor] = []
    for i in range(block):
        row: list[Tensor] = []
        rest, left = w[..., i, :], diagonal[..., i, i, :]
        for j in range(i):
            value = diagonal[..., i, j, :]
            for k in range(j):
                value = value - row[k] * low[j][k]
            row.append(value / low[j][j])
            left = left - row[j].square()
            rest = rest - row[j] * half[j]
        row.append(left.clamp_min(1e-30).sqrt())
        half.append(rest / row[i])
        low.append(row)
    return torch.stack(half).square().sum(0)


def removal_order(problem: Problem, block: int, remove: int, rate: float = 0.1) -> Removal:
    """Which blocks of each row to remove first, greedily, with updates.

    Args:
        remove: how many blocks of each row, at most all.
        rate: share of a row's remaining blocks that goes at once; 0 is the exact greedy order, one
            by one.  What goes at once shares the joint cost by saliency.
    """
    weights, hessian = padded(problem, block)
    weights = weights.float()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian)).float()
    rows, width = weights.shape
    order = torch.empty(rows, remove, dtype=torch.int64, device=weights.device)
    cost = torch.empty(rows, remove, dtype=torch.float64, device=weights.device)
    for part in row_batches(rows, 2 * width):
        w = weights[part]
        remove_blocks(w, inverse.expand(len(w), -1, -1), block, rate, order[part], cost[part])
    return Removal(order, cost, width // block)


def remove_blocks(
    w: Tensor, h: Tensor, block: int, rate: float, order: Tensor, cost: Tensor
) -> None:
    """:func:`removal_order` of some rows: w [R, K], h [R, K, K], into order and cost."""
    rows, remove = order.shape
    within = torch.arange(block, device=w.device)
    numbers = torch.arange(w.shape[1] // block, device=w.device).expand(rows, -1)
    done = 0
    while done < remove:
        left = numbers.shape[1]
        take = min(max(1, round(rate * left)), remove - done)
        s = saliency(w, h, block)
        ranked = s.argsort(dim=1, stable=True)
        gone, kept = ranked[:, :take], ranked[:, take:].sort(dim=1).values
        order[:, done : done + take] = numbers.gather(1, gone)
        numbers = numbers.gather(1, kept)
        gone_at = (gone[:, :, None] * block + within).flatten(1)
        kept_at = (kept[:, :, None] * block + within).flatten(1)
        slab = h.gather(1, gone_at[:, :, None].expand(-1, -1, h.shape[2]))
        corner = slab.gather(2, gone_at[:, None, :].expand(-1, slab.shape[1], -1))
        factor = torch.linalg.cholesky(corner)
        half = torch.linalg.solve_triangular(factor, w.gather(1, gone_at)[:, :, None], upper=False)
        share = s.gather(1, gone).double()
        share /= share.sum(1, keepdim=True).clamp_min(1e-30)
        cost[:, done : done + take] = half.double().square().sum((1, 2))[:, None] * share
        done += take
        if done == remove:
            break
        slab = slab.gather(2, kept_at[:, None, :].expand(-1, slab.shape[1], -1))
        move = torch.linalg.solve_triangular(factor, slab, upper=False)
        w = w.gather(1, kept_at) - (half.transpose(1, 2) @ move)[:, 0]
        h = h.gather(1, kept_at[:, :, None].expand(-1, -1, h.shape[2]))
        h = h.gather(2, kept_at[:, None, :].expand(-1, h.shape[1], -1))
        h = torch.baddbmm(h, move.transpose(1, 2), move, alpha=-1)


def choose(removal: Removal, sparsity: float, scope: Scope = "layer") -> Tensor:
    """Which blocks to keep: bool [N, blocks].

    Args:
        sparsity: share of blocks to remove, to the nearest number of them.
        scope: each row loses the first of its order; how many is decided over all rows by cost
            ("layer"), or is the same for all ("row").
    """
    rows, steps = removal.order.shape
    gone = torch.zeros(rows, steps, dtype=torch.bool, device=removal.order.device)
    if scope == "row":
        gone[:, : round(sparsity * removal.blocks)] = True
    else:
        # A removal can cost less than the one before it: getting there costs the larger of both.
        ranked = removal.cost.cummax(dim=1).values.flatten().argsort(stable=True)
        gone.view(-1)[ranked[: round(sparsity * rows * removal.blocks)]] = True
    keep = torch.ones(rows, removal.blocks, dtype=torch.bool, device=gone.device)
    row, place = gone.nonzero(as_tuple=True)
    keep[row, removal.order[row, place]] = False
    return keep
