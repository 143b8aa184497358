"""Weights rounded to int8 so that each rounding error is made up for by the weights still free.

Dense layers: with H = L L^T and errors e = q - w, the loss of one output is |L^T e|^2, whose term i
has only the errors from i on.  So the last weight is rounded first, and each other one to cancel
what the later ones have left: OBQ (Frantar and Alistarh, arXiv:2208.11580) in the fixed order of
GPTQ (Frantar et al., 2210.17323).  The inputs of most variance come first.

Pruned layers would take a factorization for each row: from the nearest numbers on, each weight in
turn goes where the loss is least with the others as they are, in all rows side by side (coordinate
descent, as in QuantEase: Behdin et al., 2309.01885).  Zero stays zero: pruned weights take no part.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsec.pruning.least_squares import Problem

#: Scales that are tried, as shares of the one that clips nothing.
SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)

#: Times that each weight is looked at, and weights that are worked on together.
PASSES, PART = 4, 64

#: Greatest absolute int8 weight: symmetric.
LIMIT = 127


def round_weights(
    problem: Problem, weights: Tensor, scale: Tensor, keep: Tensor | None = None
) -> Tensor:
    """Round weights to int8 multiples of a scale, spreading each error over the rest.

    Args:
        weights: [N, K], best for the problem on the mask.
        scale: [N], or [] for all rows.
        keep: bool [N, K], what is not pruned; absent: everything.

    Returns:
        int8 [N, K], zero outside the mask, at most 127 in size.
    """
    scale = scale.to(weights.device).float().expand(len(weights))
    order = problem.hessian.diagonal().argsort(stable=True)  # the last is rounded first
    hessian = problem.hessian[order][:, order].float()
    if keep is None or bool(keep.all()):
        rounded = _sweep(_factor(hessian), weights[:, order].float(), scale)
    else:
        inner = (weights[:, order].float(), problem.weights[:, order].float())
        rounded = _descend(hessian, *inner, scale[:, None], keep[:, order])
    result = torch.empty_like(rounded)
    result[:, order] = rounded
    return result


def _factor(matrix: Tensor) -> Tensor:
    """The upper factor L^T of a positive definite matrix."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    if bool(info):
        factor = torch.linalg.cholesky(matrix.double()).to(matrix.dtype)
    upper: Tensor = factor.mT
    return upper


def _sweep(factor: Tensor, w: Tensor, scale: Tensor) -> Tensor:
    """Round w [N, K] with an upper factor [K, K], the last weight first: int8 [N, K]."""
    q = torch.empty_like(w)
    error = torch.zeros_like(w)
    for i in reversed(range(w.shape[1])):
        later = error[:, i + 1 :] @ factor[i, i + 1 :]
        wanted = w[:, i] - later / factor[i, i]
        q[:, i] = (wanted / scale).round().clamp(-LIMIT, LIMIT)
        error[:, i] = q[:, i] * scale - w[:, i]
    return q.to(torch.int8)


def _descend(hessian: Tensor, start: Tensor, aim: Tensor, scale: Tensor, keep: Tensor) -> Tensor:
    """Round by coordinate descent: int8 [N, K].

    Args:
        start: [N, K], the weights to begin with.
        aim: [N, K], the minimum of the loss without a mask.
        scale: [N, 1].
        keep: bool [N, K].
    """
    mask = keep.float()
    q = (start / scale).round().clamp(-LIMIT, LIMIT) * mask
    slope = (q * scale - aim) @ hessian
    inverse = 1 / hessian.diagonal()
    width = hessian.shape[0]
    for _ in range(PASSES):
        before = q.clone()
        # The last have most variance; a part is worked on with its own slope alone.
        for end in range(width, 0, -PART):
            part = slice(max(0, end - PART), end)
            moved = _descend_part(
                hessian[part, part], q[:, part], slope[:, part].clone(), inverse[part], scale,
                mask[:, part],
            )  # fmt: skip
            slope += (moved * scale) @ hessian[part]
        if torch.equal(q, before):
            break
    return q.to(torch.int8)


def _descend_part(
    hessian: Tensor, q: Tensor, slope: Tensor, inverse: Tensor, scale: Tensor, mask: Tensor
) -> Tensor:
    """Each of some weights in turn, into q [N, k]: by how many steps it has moved."""
    moved = torch.empty_like(q)
    for i in reversed(range(q.shape[1])):
        best = q[:, i] - slope[:, i] * inverse[i] / scale[:, 0]
        step = best.round().clamp(-LIMIT, LIMIT) * mask[:, i] - q[:, i]
        slope += (step * scale[:, 0])[:, None] * hessian[i]
        q[:, i] += step
        moved[:, i] = step
    return moved


def search_scale(problem: Problem, weights: Tensor, per_channel: bool) -> Tensor:
    """The scale [N], or [] unless `per_channel`, with the least loss of plain rounding.

    Args:
        weights: [N, K].
    """
    w = weights.double()
    peak = w.abs().amax(1)
    if not per_channel:
        peak = peak.max()
    peak = peak.clamp_min(1e-8)
    best, best_loss = peak / LIMIT, torch.full_like(peak, torch.inf)
    for shrink in SHRINKS:
        scale = peak * shrink / LIMIT
        step = scale[..., None]
        error = (w / step).round().clamp(-LIMIT, LIMIT) * step - w
        loss = ((error @ problem.hessian) * error).sum(-1)
        if not per_channel:
            loss = loss.sum()
        better = loss < best_loss
        best, best_loss = torch.where(better, scale, best), torch.where(better, loss, best_loss)
    return best.float()
