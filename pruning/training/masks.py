"""Which blocks a training prunes next, and what the others do about it.

Within each layer, the blocks whose removal costs least by second order go first; how many go is
the allocation's business (a share of each layer, times the schedule's).  What is pruned stays so.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsec.pruning.blocks import BLOCK, expand
from sparsec.pruning.least_squares import conjugate_gradients
from sparsec.pruning.masks import input_scores

DAMPING = 0.01
"""Added to second moments, as a share of their mean diagonal."""

SETTLING = 16
"""Steps of conjugate gradients: within 2 % of the least error on real layers."""


def kept_blocks(mask: Tensor) -> Tensor:
    """Blocks `[N, blocks]` of which any weight is kept, of a mask of weights `[N, K]`."""
    missing = -mask.shape[1] % BLOCK
    filled = torch.nn.functional.pad(mask, (0, missing))
    return filled.view(len(mask), -1, BLOCK).any(2)


def choose(
    weight: Tensor,
    moments: Tensor,
    mask: Tensor,
    target: float,
    sensitivity: Tensor | None = None,
    order: Tensor | None = None,
) -> Tensor:
    """A mask bool `[N, K]` with a share of a layer's blocks gone.

    Args:
        weight: `[N, K]`, zero where pruned.
        moments: `E x x^T`, `[K, K]`, of the layer's inputs.
        mask: the one so far; what it prunes stays pruned.
        target: share of blocks to prune; a layer that has lost more already stays as it is.
        sensitivity: `[N]`, mean squared gradient of the loss by each output; None: all the same.
        order: int64 `[K]`, in which inputs lie in blocks; None: as they are.
    """
    if order is not None:
        order = order.to(mask.device)
        found = choose(
            weight[:, order], moments[order][:, order], mask[:, order], target, sensitivity
        )
        return found[:, order.argsort()]
    keep = kept_blocks(mask)
    remove = round(target * keep.numel()) - int((~keep).sum())
    if remove <= 0:
        return mask
    missing = -weight.shape[1] % BLOCK
    pad = torch.nn.functional.pad
    cost = input_scores(
        pad(weight, (0, missing)),
        pad(moments, (0, missing, 0, missing)),
        sensitivity,
        BLOCK,
        DAMPING,
    )
    # Stable: equal costs go in one order on every machine.
    gone = cost.masked_fill(~keep, torch.inf).flatten().argsort(stable=True)[:remove]
    keep = keep.flatten().index_fill(0, gone, False).view_as(keep)
    return expand(keep, BLOCK, weight.shape[1]) & mask


def settle(weight: Tensor, moments: Tensor, mask: Tensor) -> Tensor:
    """The weights `[N, K]` within a mask whose outputs are about nearest to those of `weight`: what
    is left makes up for what went.

    By few steps of conjugate gradients: training goes on from here anyway.
    """
    diagonal = moments.diagonal()
    strength = DAMPING * float(diagonal.mean().clamp_min(1e-12))
    hessian = moments + strength * torch.eye(len(moments), device=moments.device)
    settled = weight * mask
    residual = ((weight - settled) @ hessian) * mask
    # Of inputs of very different sizes: in units of their own.
    steps = conjugate_gradients(
        hessian, 1 / hessian.diagonal(), residual, mask.to(weight.dtype), SETTLING
    )
    return settled + steps


def sensitivity(squares: Tensor, moments: Tensor) -> Tensor | None:
    """Mean squared gradient of the loss by each output `[N]`, up to a factor; None: not known.

    A weight's gradient is its output's times its input.

    Args:
        squares: `[N, K]`, mean squared gradients of the weights, such as Adam has them.
        moments: `E x x^T` of the inputs.
    """
    energy = moments.diagonal().clamp_min(1e-12)
    found = (squares / energy).mean(1)
    mean = found.mean()
    # A row that the loss does not see yet may matter later.
    return 0.1 + found / mean if bool(mean > 0) else None
