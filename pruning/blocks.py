"""Blocks of neighbouring inputs pruned by second order.

Removing a block b of the weights w of one output, and moving its others to the best place for it,
costs by the layer's Hessian H (`least_squares`)

    w_b^T ((H^-1)_bb)^-1 w_b          and moves w by   -(H^-1)_:b ((H^-1)_bb)^-1 w_b

after which H^-1 loses the rows and columns of b: Optimal Brain Surgeon (Hassibi and Stork, 1993),
for blocks as in oBERT (Kurtic et al., arXiv:2203.07259) and row by row as in OBC (Frantar et al.,
2208.11580).  :func:`removal_order` does that for all rows; :func:`choose` keeps the blocks that
cost most; what is left is solved exactly (`least_squares.solve_rows`), and :func:`refine` swaps
blocks while that helps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sparsec.pruning.least_squares import Problem, row_batches, solve_rows

#: What the compiler's kernels take: 4 inputs of int8, one dword.
BLOCK = 4

#: Over what the share of removed blocks is kept: each row alone, or all rows of a layer together.
Scope = Literal["layer", "row"]


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


@dataclass(frozen=True, eq=False)
class Pruned:
    """A layer without some of its blocks.

    Attributes:
        weights: float64 [N, K], zero where pruned.
        keep: bool [N, blocks].
        loss: float64 [N], above the dense minimum, damping included.
        error: squared error of all outputs as a share of the targets' variance.
    """

    weights: Tensor
    keep: Tensor
    loss: Tensor
    error: float

    @property
    def sparsity(self) -> float:
        """Share of the blocks that are pruned."""
        return 1 - float(self.keep.double().mean())


def expand(keep: Tensor, block: int, width: int) -> Tensor:
    """A mask of blocks [N, blocks] as one of weights [N, width]; the last block may be shorter."""
    return keep.repeat_interleave(block, dim=1)[:, :width]


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
    weights, inverse = _padded(problem, block)
    rows, width = weights.shape
    order = torch.empty(rows, remove, dtype=torch.int64, device=weights.device)
    cost = torch.empty(rows, remove, dtype=torch.float64, device=weights.device)
    for part in row_batches(rows, 2 * width):
        w = weights[part]
        _remove(w, inverse.expand(len(w), -1, -1), block, rate, order[part], cost[part])
    return Removal(order, cost, width // block)


def _padded(problem: Problem, block: int) -> tuple[Tensor, Tensor]:
    """Weights and inverse Hessian, float32, with inputs filled up to a multiple of `block`."""
    width = problem.weights.shape[1]
    missing = -width % block
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(problem.hessian))
    pad = torch.nn.functional.pad
    inverse = pad(inverse, (0, missing, 0, missing))
    inverse.diagonal()[width:] = inverse.diagonal()[:width].mean()
    return pad(problem.weights, (0, missing)).float(), inverse.float()


def _remove(w: Tensor, h: Tensor, block: int, rate: float, order: Tensor, cost: Tensor) -> None:
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


def solve(problem: Problem, keep: Tensor, block: int = BLOCK) -> Pruned:
    """The best weights on the blocks `keep` [N, blocks]."""
    mask = expand(keep, block, problem.weights.shape[1])
    weights = solve_rows(problem.hessian, problem.weights, mask)
    error = problem.data.relative_error(weights)
    return Pruned(weights, keep, problem.loss(weights), error)


def ladder(
    problem: Problem,
    sparsities: Sequence[float],
    *,
    block: int = BLOCK,
    scope: Scope = "layer",
    rate: float = 0.1,
) -> list[Pruned]:
    """A layer at several sparsities, from one order of removal.

    Args:
        sparsities: shares of blocks to remove, each below 1.
        rate: as in :func:`removal_order`.
    """
    blocks = -(-problem.weights.shape[1] // block)
    most = max(sparsities, default=0.0)
    # Rows may differ: each is followed further than the average one will go.
    further = most if scope == "row" else min(1.0, most + 0.15)
    removal = removal_order(problem, block, round(blocks * further), rate)
    return [solve(problem, choose(removal, s, scope), block) for s in sparsities]


def prune(
    problem: Problem,
    sparsity: float,
    *,
    block: int = BLOCK,
    scope: Scope = "layer",
    rate: float = 0.1,
) -> Pruned:
    """A layer without `sparsity` of its blocks, and what is left at its best."""
    return ladder(problem, [sparsity], block=block, scope=scope, rate=rate)[0]
