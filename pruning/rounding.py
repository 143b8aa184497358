"""Weights rounded to int8 so that each rounding error is made up for by the weights still free.

With H = L L^T and errors e = q - w, the loss of one output is |L^T e|^2, whose term i has only the
errors from i on.  So the last weight is rounded first, and each other one to cancel what the later
ones have left: OBQ (Frantar and Alistarh, arXiv:2208.11580) in the fixed order of GPTQ (Frantar et
al., 2210.17323).  The inputs of most variance come first.  Zero stays zero: pruned weights take no
part.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsec.pruning.least_squares import BATCH_BYTES, Problem

#: Scales that are tried, as shares of the one that clips nothing.
SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6)

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
    w = weights[:, order].float()
    rounded = torch.zeros(w.shape, dtype=torch.int8, device=w.device)
    if keep is None or bool(keep.all()):
        factor = _factor(hessian[None])
        rounded[:] = _sweep(factor.expand(len(w), -1, -1), w, scale)
    else:
        mask = keep[:, order]
        ranked = mask.sum(1).argsort(descending=True)
        ranked = ranked[mask.sum(1)[ranked] > 0]
        start = 0
        while start < len(ranked):
            widest = int(mask[ranked[start]].sum())
            rows = ranked[start : start + max(1, BATCH_BYTES // (8 * widest * widest))]
            _round_batch(hessian, w, mask, scale, rows, rounded)
            start += len(rows)
    result = torch.empty_like(rounded)
    result[:, order] = rounded
    return result


def _factor(matrices: Tensor) -> Tensor:
    """Upper factors L^T of positive definite matrices [R, n, n]."""
    factor, info = torch.linalg.cholesky_ex(matrices)
    if bool((info != 0).any()):
        factor = torch.linalg.cholesky(matrices.double()).to(matrices.dtype)
    upper: Tensor = factor.mT
    return upper


def _round_batch(
    hessian: Tensor, w: Tensor, mask: Tensor, scale: Tensor, rows: Tensor, rounded: Tensor
) -> None:
    """Rows that keep about equally many weights, the widest first."""
    mask = mask[rows]
    widest = int(mask[0].sum())
    # Kept columns go to the end, in order; rows with fewer begin with rows of the identity.
    columns = mask.to(torch.uint8).argsort(dim=1, stable=True)[:, -widest:]
    real = mask.gather(1, columns)
    matrices = hessian[columns[:, :, None], columns[:, None, :]]
    matrices *= real[:, :, None] & real[:, None, :]
    matrices.diagonal(dim1=1, dim2=2).add_((~real).float())
    some = w[rows].gather(1, columns) * real
    q = _sweep(_factor(matrices), some, scale[rows])
    block = torch.zeros(len(rows), w.shape[1], dtype=torch.int8, device=w.device)
    rounded[rows] = block.scatter_(1, columns, q)


def _sweep(factor: Tensor, w: Tensor, scale: Tensor) -> Tensor:
    """Round w [R, n] with upper factors [R, n, n], the last weight first: int8 [R, n]."""
    q = torch.empty_like(w)
    error = torch.zeros_like(w)
    for i in reversed(range(w.shape[1])):
        later = (factor[:, i, i + 1 :] * error[:, i + 1 :]).sum(1)
        wanted = w[:, i] - later / factor[:, i, i]
        q[:, i] = (wanted / scale).round().clamp(-LIMIT, LIMIT)
        error[:, i] = q[:, i] * scale - w[:, i]
    return q.to(torch.int8)


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
