"""Second moments of a layer's inputs and targets: all that layer-wise pruning needs of the data.

The inputs are those of the model pruned so far, the targets of the dense one.  What is fitted to
them is posed in `least_squares`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

#: Rows that are multiplied in float32 before they are added to the sums in float64.
ROWS = 8192


class Moments:
    """Weighted sums over rows (tokens) of inputs x [K] and targets y [M], in float64.

    Rows go to several folds in turn, call by call, so that what is fitted on some can be judged on
    others (`least_squares.choose_damping`).

    Attributes:
        count: [F], total weight of each fold.
        x, y: [F, K], [F, M], sums of rows.
        xx: [F, K, K]; yx: [F, M, K]; yy: [F, M, M], or [F, M] where only the diagonal is kept.
    """

    def __init__(
        self,
        inputs: int,
        targets: int,
        *,
        folds: int = 2,
        full: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        """Args:
        inputs, targets: K and M.
        folds: how many.
        full: keep all products of targets, which :meth:`through` needs.
        device: where the sums are.
        """

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(folds, *shape, dtype=torch.float64, device=device)

        self.count = zeros()
        self.x, self.y = zeros(inputs), zeros(targets)
        self.xx, self.yx = zeros(inputs, inputs), zeros(targets, inputs)
        self.yy = zeros(targets, targets) if full else zeros(targets)
        self._calls = 0
        self._shift: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def add(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> None:
        """Take in a batch, into the next fold.

        Args:
            x: [..., K], inputs.
            y: [..., M], targets of the same rows.
            weight: [...], what each row counts (an attention mask); absent: 1.  Rows of weight 0
                may hold anything.
        """
        x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        root = None
        if weight is not None:
            kept = weight.reshape(-1) > 0
            x, y = x[kept], y[kept]
            root = weight.reshape(-1)[kept].to(x.dtype).sqrt()[:, None]
        fold = self._calls % len(self.count)
        self._calls += 1
        for first in range(0, len(x), ROWS):
            part = slice(first, first + ROWS)
            self._add(fold, x[part], y[part], None if root is None else root[part])

    def _add(self, fold: int, x: Tensor, y: Tensor, root: Tensor | None) -> None:
        if self._shift is None:
            # Far from zero, float32 products of differences would be lost in their mean.
            self._shift = x.mean(0), y.mean(0)
        x, y = x - self._shift[0], y - self._shift[1]
        if root is None:
            root = torch.ones(len(x), 1, dtype=x.dtype, device=x.device)
        x, y = x * root, y * root
        self.count[fold] += root.double().square().sum()
        self.x[fold] += (x * root).sum(0, dtype=torch.float64)
        self.y[fold] += (y * root).sum(0, dtype=torch.float64)
        self.xx[fold] += x.T @ x
        self.yx[fold] += y.T @ x
        self.yy[fold] += y.T @ y if self.yy.ndim == 3 else y.square().sum(0, dtype=torch.float64)

    def through(self, weight: Tensor, bias: Tensor | None = None) -> Moments:
        """The moments with targets y W^T + b in the place of y.

        With the dense model's inputs of a layer as y, that is its outputs; layers that read the
        same inputs share one accumulation.

        Args:
            weight: [N, M].
            bias: [N], or None.

        Raises:
            ValueError: only the diagonal of the targets' products was kept.
        """
        if self.yy.ndim != 3:
            raise ValueError("these moments were not accumulated with full=True")
        w = weight.to(self.yy)
        made = Moments(self.x.shape[1], len(w), folds=len(self.count), device=self.x.device)
        made.count, made.x, made.xx = self.count, self.x, self.xx
        made.y, made.yx = self.y @ w.T, w @ self.yx
        made.yy = ((w @ self.yy) * w).sum(-1)
        made._calls = self._calls
        if self._shift is not None:
            offset = self._shift[1].to(w) @ w.T
            made._shift = self._shift[0], offset if bias is None else offset + bias.to(w)
        return made

    def centered(self, folds: Sequence[int] | None = None) -> Centered:
        """Means and covariances over some folds; absent: all.

        Raises:
            ValueError: no row was added to them.
        """
        which = list(range(len(self.count)) if folds is None else folds)
        count = self.count[which].sum()
        if self._shift is None or not count > 0:
            raise ValueError("no row was added to these moments")
        x, y = self.x[which].sum(0) / count, self.y[which].sum(0) / count
        yy = self.yy[which].sum(0) / count
        variance = (yy.diagonal() if yy.ndim == 2 else yy) - y.square()
        return Centered(
            count=float(count),
            x_mean=x + self._shift[0],
            y_mean=y + self._shift[1],
            xx=self.xx[which].sum(0) / count - torch.outer(x, x),
            yx=self.yx[which].sum(0) / count - torch.outer(y, x),
            variance=variance.clamp_min(0),
        )


@dataclass(frozen=True, eq=False)
class Centered:
    """Means and covariances of inputs x [K] and targets y [N], float64.

    Attributes:
        count: total weight of the rows.
        x_mean, y_mean: [K], [N].
        xx: [K, K]; yx: [N, K]; variance: [N], of the targets.
    """

    count: float
    x_mean: Tensor
    y_mean: Tensor
    xx: Tensor
    yx: Tensor
    variance: Tensor

    def error(self, weights: Tensor) -> Tensor:
        """Mean squared error of each output [N] with weights [N, K] and the best bias."""
        w = weights.to(self.xx)
        both = ((w @ self.xx) * w).sum(-1) - 2 * (w * self.yx).sum(-1)
        return (both + self.variance).clamp_min(0)

    def relative_error(self, weights: Tensor) -> float:
        """Squared error of weights [N, K] over all outputs, as a share of the targets' variance."""
        return float(self.error(weights).sum() / self.variance.sum().clamp_min(1e-30))

    def bias(self, weights: Tensor) -> Tensor:
        """The bias [N] that makes the mean output exact for weights [N, K]."""
        return self.y_mean - weights.to(self.xx) @ self.x_mean

    def of_outputs(self, rows: Tensor) -> Centered:
        """The same for some of the targets: indices [n]."""
        return replace(
            self, y_mean=self.y_mean[rows], yx=self.yx[rows], variance=self.variance[rows]
        )
