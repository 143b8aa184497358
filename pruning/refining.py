"""A support made better by exchanging blocks, row by row.

Blocks that would help most are added, and as many removed again by second order, with updates: what
stays out may be what was in.  A row takes its new support where its loss is less with it.  A block
b outside gains at least g_b^T (H_bb)^-1 g_b, g the gradient at the best weights on the support.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsec.pruning.least_squares import BATCH_BYTES, Problem, padded, solve_rows
from sparsec.pruning.removal import remove_blocks

#: Share of a row's blocks that is added and removed again in a sweep, and in how many rounds.
EXCHANGED, ROUNDS = 0.1, 4

#: What holds a place in a row with fewer blocks than others: too dear ever to be removed.
DEAR = 1e12


def refine(problem: Problem, keep: Tensor, block: int, sweeps: int = 2) -> Tensor:
    """A support with as many blocks in each row, and a loss that is no greater.

    Args:
        keep: bool [N, blocks].
        sweeps: how often to exchange blocks; rows that a sweep did not help are left alone.
    """
    wanted, hessian = padded(problem, block)
    keep = keep.clone()
    active = (keep.any(1) & ~keep.all(1)).nonzero()[:, 0]
    weights = solve_rows(hessian, wanted, keep.repeat_interleave(block, 1))
    for _ in range(sweeps):
        if not active.numel():
            break
        some = wanted[active]
        other = _exchanged(hessian, some, weights[active], keep[active], block)
        solved = solve_rows(hessian, some, other.repeat_interleave(block, 1))
        better = _loss(hessian, some, solved) < _loss(hessian, some, weights[active]) * (1 - 1e-6)
        active = active[better]
        keep[active], weights[active] = other[better], solved[better]
    return keep


def _loss(hessian: Tensor, wanted: Tensor, weights: Tensor) -> Tensor:
    d = weights - wanted
    return ((d @ hessian) * d).sum(1)


def _gains(hessian: Tensor, gradient: Tensor, block: int) -> Tensor:
    """What each block gains at least: [N, blocks]."""
    count = gradient.shape[1] // block
    corners = hessian.view(count, block, count, block).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    g = gradient.view(-1, count, block).permute(1, 2, 0)
    solved: Tensor = torch.linalg.solve(corners, g)
    return (g * solved).sum(1).T


def _exchanged(
    hessian: Tensor, wanted: Tensor, weights: Tensor, keep: Tensor, block: int
) -> Tensor:
    """Supports with blocks added and as many removed: bool like `keep`."""
    gains = _gains(hessian, (wanted - weights) @ hessian, block).masked_fill(keep, -1)
    counts = keep.sum(1)
    add = max(1, round(EXCHANGED * float(counts.double().mean())))
    add = min(add, int((keep.shape[1] - counts).min()))
    if add == 0:
        return keep
    grown = keep.scatter(1, gains.topk(add, dim=1).indices, True)
    order = counts.argsort(descending=True)
    result = grown.clone()
    single = hessian.float()
    start = 0
    while start < len(order):
        width = (int(counts[order[start]]) + add) * block
        rows = order[start : start + max(1, BATCH_BYTES // (6 * width * width))]
        gone, real = _removed(single, wanted[rows], grown[rows], add, block)
        assert bool(real.all())
        result[rows] = grown[rows].scatter(1, gone, False)
        start += len(rows)
    return result


def _removed(
    hessian: Tensor, wanted: Tensor, grown: Tensor, remove: int, block: int
) -> tuple[Tensor, Tensor]:
    """The blocks [R, remove] that are best removed from supports `grown`, the widest first."""
    blocks = int(grown[0].sum())
    numbers = (~grown).to(torch.uint8).argsort(dim=1, stable=True)[:, :blocks]
    real = grown.gather(1, numbers)
    within = torch.arange(block, device=grown.device)
    columns = (numbers[:, :, None] * block + within).flatten(1)
    mask = real.repeat_interleave(block, 1)
    h = hessian[columns[:, :, None], columns[:, None, :]]
    h *= mask[:, :, None] & mask[:, None, :]
    h.diagonal(dim1=1, dim2=2).add_((~mask).float())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    aim = (wanted.float() @ hessian).gather(1, columns) * mask
    w = (inverse @ aim[:, :, None])[:, :, 0].masked_fill(~mask, DEAR)
    order = torch.empty(len(grown), remove, dtype=torch.int64, device=grown.device)
    cost = torch.empty(len(grown), remove, dtype=torch.float64, device=grown.device)
    remove_blocks(w, inverse, block, remove / ROUNDS / blocks, order, cost)
    return numbers.gather(1, order), real.gather(1, order)
