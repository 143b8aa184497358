"""Which blocks to keep, found for all rows of a layer at once by operator splitting.

Weights W that fit (`least_squares`) and weights D that are sparse take turns, drawn together:

    W = argmin loss(W) + rho/2 |W - D + U|^2,   D = the best blocks of W + U,   U += W - D

with a rising rho (ADMM, as ALPS does: Meng et al., arXiv:2406.07831).  One eigendecomposition of
the Hessian serves all steps, each of which is two products of matrices: for wide layers this costs
a fraction of greedy removal, and it finds better supports, as it can bring blocks back.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sparsec.pruning.least_squares import Problem, padded

#: Over what the share of removed blocks is kept: each row alone, or all rows of a layer together.
Scope = Literal["layer", "row"]

#: rho at the start, relative to the Hessian's diagonal, and what it is multiplied by.
START, GROWTH = 0.1, 1.1

#: Steps with one rho, at most as many in all, and how many of an unchanged support end it.
EACH, MOST, STEADY = 2, 60, 4


def choose_support(
    problem: Problem,
    sparsity: float,
    block: int,
    scope: Scope = "layer",
    importance: Tensor | None = None,
) -> Tensor:
    """Which blocks to keep: bool [N, blocks], round(sparsity * N * blocks) of them False.

    Args:
        sparsity: share of blocks to remove; of each row with scope "row".
        importance: [N], what a squared error of each output counts; absent: 1.
    """
    wanted, hessian = padded(problem, block)
    # In units in which every input has a variance of 1.
    size = hessian.diagonal().sqrt()
    wanted, hessian = (wanted * size).float(), hessian / size[:, None] / size
    values, vectors = (t.float() for t in torch.linalg.eigh(hessian))
    turned = (wanted @ vectors) * values
    sparse, gap = wanted, torch.zeros_like(wanted)
    rho, steady = START, 0
    if importance is not None:  # rows only meet where blocks are compared
        root = importance.to(wanted).clamp_min(0).sqrt()[:, None]
        root = root / root.max().clamp_min(1e-30)
    else:
        root = wanted.new_ones(len(wanted), 1)
    keep = best_blocks(wanted * root, sparsity, block, scope)
    for step in range(MOST):
        fitted = ((turned + rho * ((sparse - gap) @ vectors)) / (values + rho)) @ vectors.T
        before, keep = keep, best_blocks((fitted + gap) * root, sparsity, block, scope)
        gap += fitted
        sparse = gap * keep.repeat_interleave(block, 1)
        gap = gap - sparse
        steady = steady + 1 if keep.equal(before) else 0
        if steady == STEADY:
            break
        if step % EACH == EACH - 1:
            rho, gap = rho * GROWTH, gap / GROWTH
    return keep


def best_blocks(weights: Tensor, sparsity: float, block: int, scope: Scope) -> Tensor:
    """The blocks of most weight: bool [N, blocks].

    Args:
        weights: [N, K], K a multiple of `block`.
        sparsity, scope: as in :func:`choose_support`.
    """
    size = weights.view(len(weights), -1, block).square().sum(2)
    groups = size if scope == "row" else size.view(1, -1)
    gone = groups.topk(round(sparsity * groups.shape[1]), dim=1, largest=False).indices
    keep = torch.ones_like(groups, dtype=torch.bool)
    return keep.scatter_(1, gone, False).view_as(size)
