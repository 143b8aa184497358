"""Whole heads and channels pruned by second order, judged by the layer that reads them.

A head is a group of inputs of the attention's output projection, a channel of the feed-forward part
one input of its second layer.  With W [N, K] that layer's weights and H its Hessian, removing the
group g of inputs from all outputs at once, and moving the others to the best place for it, costs

    tr(W_:g ((H^-1)_gg)^-1 W_:g^T)       and moves W by    -W_:g ((H^-1)_gg)^-1 (H^-1)_g:

as in ZipLM (Kurtic et al., arXiv:2302.04089).  What made the group's values (query, key and value
of a head, a row of the first layer) goes with it; the mean of what it fed goes into the bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsec.pruning.least_squares import Problem


@dataclass(frozen=True, eq=False)
class Removal:
    """In which order groups go, and at what cost.

    Attributes:
        order: int64 [G], groups in order of removal.
        loss: float64 [G + 1], above the dense minimum, with so many groups removed.
    """

    order: Tensor
    loss: Tensor


@dataclass(frozen=True, eq=False)
class Pruned:
    """A layer without some groups of its inputs.

    Attributes:
        weights: float64 [N, K], zero where pruned.
        keep: bool [G].
        loss: above the dense minimum, all outputs together, damping included.
        error: squared error of all outputs as a share of the targets' variance.
    """

    weights: Tensor
    keep: Tensor
    loss: float
    error: float


def removal_order(problem: Problem, size: int = 1, rate: float = 0.0) -> Removal:
    """In which order groups of `size` neighbouring inputs are best removed, greedily, with updates.

    Args:
        size: inputs of a group (a head's channels, or 1); divides K.
        rate: share of the remaining groups that goes at once; 0 is the exact greedy order.

    Raises:
        ValueError: `size` does not divide K.
    """
    width = problem.weights.shape[1]
    if width % size:
        raise ValueError(f"{width} inputs are no multiple of {size}")
    w = problem.weights.clone()
    h = torch.cholesky_inverse(torch.linalg.cholesky(problem.hessian))
    groups = width // size
    numbers = torch.arange(groups, device=w.device)
    within = torch.arange(size, device=w.device)
    order: list[Tensor] = []
    loss = [0.0]
    while numbers.numel():
        take = max(1, round(rate * numbers.numel()))
        scores = group_scores(w, h, size)
        ranked = scores.argsort(stable=True)
        gone, kept = ranked[:take], ranked[take:].sort().values
        gone_at = (gone[:, None] * size + within).flatten()
        kept_at = (kept[:, None] * size + within).flatten()
        factor = torch.linalg.cholesky(h[gone_at][:, gone_at])
        half = torch.linalg.solve_triangular(factor, w[:, gone_at].T, upper=False)
        share = scores[gone] / scores[gone].sum().clamp_min(1e-300)
        added = (half.square().sum() * share).cumsum(0)
        loss += (loss[-1] + added).tolist()
        order.append(numbers[gone])
        move = torch.linalg.solve_triangular(factor, h[gone_at][:, kept_at], upper=False)
        w = w[:, kept_at] - half.T @ move
        h = h[kept_at][:, kept_at] - move.T @ move
        numbers = numbers[kept]
    return Removal(torch.cat(order), torch.tensor(loss, dtype=torch.float64))


def group_scores(weights: Tensor, inverse: Tensor, size: int) -> Tensor:
    """Cost of removing each group of `size` inputs: [G], tr(W_:g ((H^-1)_gg)^-1 W_:g^T).

    Args:
        weights: [N, K].
        inverse: [K, K], the inverse Hessian.
    """
    groups = weights.shape[1] // size
    split = inverse.view(groups, size, groups, size)
    corner = split.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    factor = torch.linalg.cholesky(corner)
    w = weights.view(-1, groups, size).permute(1, 2, 0)
    half: Tensor = torch.linalg.solve_triangular(factor, w, upper=False)
    return half.square().sum((1, 2))


def solve(problem: Problem, keep: Tensor) -> Pruned:
    """The best weights that read only the groups `keep`, bool [G]."""
    size = problem.weights.shape[1] // len(keep)
    at = keep.repeat_interleave(size).nonzero()[:, 0]
    weights = torch.zeros_like(problem.weights)
    if at.numel():
        wanted = (problem.weights @ problem.hessian)[:, at]
        factor = torch.linalg.cholesky(problem.hessian[at][:, at])
        weights[:, at] = torch.cholesky_solve(wanted.T, factor).T
    loss = float(problem.loss(weights).sum())
    return Pruned(weights, keep, loss, problem.data.relative_error(weights))


def ladder(
    problem: Problem, counts: Sequence[int], *, size: int = 1, rate: float = 0.0
) -> list[Pruned]:
    """A layer with several numbers of groups kept, from one order of removal.

    Args:
        counts: how many groups to keep.
        size, rate: as in :func:`removal_order`.
    """
    removal = removal_order(problem, size, rate)
    made = []
    for count in counts:
        keep = torch.ones(len(removal.order), dtype=torch.bool, device=removal.order.device)
        keep[removal.order[: len(keep) - count]] = False
        made.append(solve(problem, keep))
    return made
