"""The least squares that second moments pose, and its solutions.

For inputs x [K] and targets y [N] of one layer the loss of the weights w of one output, with the
best bias for it, is

    L(w) = E |w x - y|^2  +  damping * |w - w0|^2        (x, y less their means)

and all outputs share its Hessian, E x x^T + damping.  That is the layer-wise problem of Optimal
Brain Surgeon as OBC, SparseGPT and ZipLM pose it (Frantar et al., arXiv:2208.11580; Frantar and
Alistarh, 2301.00774; Kurtic et al., 2302.04089), with targets from the dense model, so that a layer
also makes up for what the layers before it have lost.  The prior w0 is the dense layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparsec.pruning.gram import Centered, Moments

#: Inputs with less than this share of the mean variance carry nothing.
DEAD = 1e-9

#: What damping is chosen from, as shares of the Hessian's mean diagonal.
DAMPINGS = (1e-3, 1e-2, 3e-2, 1e-1, 3e-1)

#: Where conjugate gradients end: a residual of this share; or so many steps, or passes of those.
CLOSE, MOST_STEPS, MOST_PASSES = 1e-4, 200, 12

#: Bytes of matrices that are worked on together.
BATCH_BYTES = 256 << 20


@dataclass(frozen=True, eq=False)
class Problem:
    """Least squares with a prior, for all outputs of one layer.

    Attributes:
        data: the moments that it is made of.
        hessian: float64 [K, K], E x x^T + damping.
        weights: float64 [N, K], the minimum over dense weights.
        damping: what was added to the diagonal.
    """

    data: Centered
    hessian: Tensor
    weights: Tensor
    damping: float

    def loss(self, weights: Tensor) -> Tensor:
        """Loss of each row of weights [N, K] above the dense minimum: float64 [N]."""
        d = weights.to(self.hessian) - self.weights
        return ((d @ self.hessian) * d).sum(-1)

    def within(self, rows: Tensor, columns: Tensor) -> Problem:
        """The same for some outputs that read only some inputs, int64 [N'] and [K']; the others'
        weights are 0, and data is not cut."""
        if len(columns) == self.weights.shape[1]:
            return replace(self, weights=self.weights[rows])
        hessian = self.hessian[columns][:, columns]
        wanted = (self.weights[rows] @ self.hessian)[:, columns]
        factor = torch.linalg.cholesky(hessian)
        weights = torch.cholesky_solve(wanted.T, factor).T.contiguous()
        return Problem(self.data, hessian, weights, self.damping)


def make_problem(data: Centered, prior: Tensor, damping: float = 0.01) -> Problem:
    """The problem of fitting the targets of `data`, staying near weights `prior` [N, K].

    Args:
        damping: as a share of the Hessian's mean diagonal; more where products in float32 have left
            it indefinite by more than that.  Weights of dead inputs are held to 0.
    """
    diagonal = data.xx.diagonal()
    mean = float(diagonal.mean().clamp_min(1e-12))
    strength = max(damping, 1e-9) * mean
    hessian = data.xx.clone()
    hessian.diagonal().add_(strength)
    factor, wrong = torch.linalg.cholesky_ex(hessian)
    while bool(wrong):
        hessian.diagonal().add_(9 * strength)
        strength *= 10
        factor, wrong = torch.linalg.cholesky_ex(hessian)
    held = prior.to(hessian) * (diagonal > DEAD * mean)
    weights = torch.cholesky_solve((data.yx + strength * held).T, factor).T
    return Problem(data, hessian, weights.contiguous(), strength)


def choose_damping(
    moments: Moments,
    prior: Tensor,
    keep: Tensor | None = None,
    dampings: Sequence[float] = DAMPINGS,
    rows: int = 48,
) -> float:
    """The damping whose weights, fitted on all folds but the last, do best on the last.

    It matters for pruned layers most: all that is left is moved to make up for what has gone, and
    with little damping it learns the texts that it is fitted on.

    Args:
        prior: [N, K], the dense weights.
        keep: bool [N, K], what is not pruned, or about that; absent: everything.
        rows: outputs to judge by, evenly spaced.

    Returns:
        One of `dampings`; the middle one where there is only one fold with rows in it.
    """
    used = [i for i, count in enumerate(moments.count) if count > 0]
    if len(used) < 2:
        return dampings[len(dampings) // 2]
    fitted, judged = moments.centered(used[:-1]), moments.centered(used[-1:])
    picked = torch.linspace(0, len(prior) - 1, min(rows, len(prior))).long()
    best, best_error = dampings[0], float("inf")
    for damping in dampings:
        problem = make_problem(fitted.of_outputs(picked), prior[picked], damping)
        weights = problem.weights
        if keep is not None:
            weights = solve_rows(problem.hessian, problem.weights, keep[picked])
        error = float(judged.of_outputs(picked).error(weights).sum())
        if error < best_error:
            best, best_error = damping, error
    return best


def row_batches(rows: int, width: int, size: int = 4) -> Iterator[slice]:
    """Slices of rows, each of which has a matrix [width, width] of `size`-byte elements."""
    step = max(1, BATCH_BYTES // max(1, width * width * size))
    yield from (slice(i, min(i + step, rows)) for i in range(0, rows, step))


def solve_rows(hessian: Tensor, weights: Tensor, keep: Tensor, close: float = CLOSE) -> Tensor:
    """The weights of least loss that are zero outside a mask.

    By conjugate gradients (Hestenes and Stiefel, 1952) in all rows side by side, preconditioned
    with the inverse of the whole Hessian, of which each row takes its part: a product of matrices
    a step, some tens of steps, where exact solving takes a factorization for each row.

    Args:
        hessian: float64 [K, K], positive definite.
        weights: [N, K], the minimum without a mask.
        keep: bool [N, K].
        close: the share of the residual at which it ends.

    Returns:
        Float64 [N, K]; the loss is above the least by about a share of `close` squared.
    """
    if bool(keep.all()):
        return weights.double()
    # In units in which every input has a variance of 1.
    size = hessian.diagonal().sqrt()
    scaled = hessian / size[:, None] / size
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(scaled)).float()
    aim, mask, single = weights.double() * size, keep.float(), scaled.float()
    solution = torch.zeros_like(aim)
    enough = None
    for _ in range(MOST_PASSES):  # float32 leaves something each time
        residual = ((aim - solution) @ scaled) * keep
        left = residual.square().sum(1)
        enough = close**2 * left if enough is None else enough
        if bool((left <= enough).all()):
            break
        solution += conjugate_gradients(single, inverse, residual.float(), mask)
    return solution / size


def conjugate_gradients(
    hessian: Tensor, inverse: Tensor, wanted: Tensor, mask: Tensor, most: int = MOST_STEPS
) -> Tensor:
    """x [N, K] with x H = wanted in a mask, and zero outside of it, each row for itself.

    Args:
        hessian: float32 [K, K].
        inverse: float32 [K, K], the inverse of about that; or [K], of its diagonal.
        wanted: [N, K], zero outside the mask.
        mask: [N, K], 0 or 1.
        most: steps; fewer where all rows have come nearer than :data:`CLOSE`.
    """

    def near(rows: Tensor) -> Tensor:
        return rows * inverse if inverse.dim() == 1 else (rows @ inverse) * mask

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(1, keepdim=True)

    solution, residual = torch.zeros_like(wanted), wanted
    direction = near(residual)
    size, enough = dot(residual, direction), (CLOSE / 2) ** 2 * dot(wanted, wanted)
    for step in range(most):
        along = (direction @ hessian) * mask
        length = size / dot(direction, along).clamp_min(1e-30)
        solution = solution + length * direction
        residual = residual - length * along
        if step % 4 == 3 and bool((dot(residual, residual) <= enough).all()):
            break
        nearer = near(residual)
        before, size = size, dot(residual, nearer)
        direction = nearer + size / before.clamp_min(1e-30) * direction
    return solution


def padded(problem: Problem, block: int) -> tuple[Tensor, Tensor]:
    """Weights [N, K'] and Hessian [K', K'] with inputs filled up to a multiple of `block`.

    The weights of what is added are 0.
    """
    width = problem.weights.shape[1]
    missing = -width % block
    if not missing:
        return problem.weights, problem.hessian
    pad = torch.nn.functional.pad
    hessian = pad(problem.hessian, (0, missing, 0, missing))
    hessian.diagonal()[width:] = hessian.diagonal()[:width].mean()
    return pad(problem.weights, (0, missing)), hessian
