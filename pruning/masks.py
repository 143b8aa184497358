"""Scores by which gradual training chooses masks anew.

The loss that a block of weights adds when it goes is w_b^T ((A^-1)_bb)^-1 w_b / 2 with A the
curvature of the loss, of which only blocks on the diagonal are kept: the empirical Fisher
information of gradients, as in oBERT (Kurtic et al., arXiv:2203.07259), where A's blocks are those
that are pruned.  It is zero where the loss is, as at the start of training against a teacher; there
the second moments of a layer's inputs, times how sensitive the loss is to each output, are the
curvature's expectation (K-FAC, Martens and Grosse, 1503.05671).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsec.pruning.blocks import BLOCK
from sparsec.pruning.removal import saliency


class Fisher:
    """Running second moments of a weight's gradients within blocks.

    Attributes:
        value: float32 [N, K / block, block, block].
        steps: how many gradients were taken in.
    """

    def __init__(self, shape: tuple[int, int], block: int = BLOCK, decay: float = 0.95) -> None:
        """Args:
        shape: [N, K] of the weight; K is a multiple of `block`.
        decay: what is left of the past with each gradient.
        """
        self.block, self.decay = block, decay
        self.value = torch.zeros(shape[0], shape[1] // block, block, block)
        self.steps = 0

    @torch.no_grad()
    def add(self, gradient: Tensor) -> None:
        """Take in the gradient [N, K] of one batch."""
        g = gradient.detach().float().reshape(len(gradient), -1, self.block)
        self.value = self.value.to(g.device)
        self.value.mul_(self.decay).add_(g[..., :, None] * g[..., None, :], alpha=1 - self.decay)
        self.steps += 1

    @property
    def mean(self) -> Tensor:
        """The mean [N, K / block, block, block], as if the past had been the same always."""
        return self.value / max(1 - self.decay**self.steps, 1e-12)


def block_scores(weight: Tensor, fisher: Fisher, damping: float = 1e-3) -> Tensor:
    """What each block of weights adds to the loss when it goes: float32 [N, K / block].

    Args:
        weight: [N, K].
        damping: added to the Fisher's diagonal, as a share of its mean.
    """
    w = weight.detach().float().reshape(len(weight), -1, fisher.block)
    mean = fisher.mean
    least = damping * mean.diagonal(dim1=2, dim2=3).mean()
    score: Tensor = ((mean @ w[..., None])[..., 0] * w).sum(-1) + least * w.square().sum(-1)
    return 0.5 * score


def input_scores(
    weight: Tensor,
    second_moment: Tensor,
    sensitivity: Tensor | None = None,
    block: int = BLOCK,
    damping: float = 0.01,
) -> Tensor:
    """The same by what a layer reads: float32 [N, K / block].

    Args:
        weight: [N, K]; K is a multiple of `block`.
        second_moment: [K, K], of the layer's inputs (a running mean is enough).
        sensitivity: [N], mean squared gradient of the loss by each output; absent: 1.
        damping: as a share of the mean diagonal.
    """
    hessian = second_moment.detach().double()
    hessian = hessian + damping * hessian.diagonal().mean().clamp_min(1e-12) * torch.eye(
        len(hessian), dtype=hessian.dtype, device=hessian.device
    )
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    scores = saliency(weight.detach().double(), inverse.expand(len(weight), -1, -1), block)
    if sensitivity is not None:
        scores = scores * sensitivity.to(scores)[:, None]
    return (0.5 * scores).float()


def keep_best(scores: Tensor, sparsity: float) -> Tensor:
    """The blocks that are kept: bool like `scores`, round(sparsity * blocks) of them False."""
    flat = scores.flatten()
    gone = flat.argsort(stable=True)[: round(sparsity * flat.numel())]
    keep = torch.ones_like(flat, dtype=torch.bool)
    keep[gone] = False
    return keep.view_as(scores)
