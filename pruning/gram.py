"""Second moments of a layer's inputs and targets: all that layer-wise pruning needs of the data.

The inputs are those of the model pruned so far, the targets of the dense one.  What is fitted to
them is posed in `least_squares`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

#: Rows that are multiplied in float32 before they are added to the sums in float64: fewer take
#: longer than their products, more lose digits.
FEWEST, ROWS = 2048, 8192


class Moments:
    """Weighted sums over rows (tokens) of inputs x [K] and targets y [M], in float64.

    Rows go to several folds in turn, call by call, so that what is fitted on some can be judged on
    others (`least_squares.choose_damping`).

    Attributes:
        count: [F], total weight of each fold.
    """

    def __init__(
        self,
        inputs: int,
        targets: int | None = None,
        *,
        folds: int = 2,
        device: torch.device | str = "cpu",
    ) -> None:
        """Args:
        inputs, targets: K and M; targets absent: they are the inputs.
        folds: how many.
        device: where the sums are.
        """

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(folds, *shape, dtype=torch.float64, device=device)

        self.count = zeros()
        # [F, K], [F, K, K]; [F, M], [F, M, K], and squares of targets, [F, M].
        self._x, self._xx = zeros(inputs), zeros(inputs, inputs)
        self._same = targets is None
        if targets is None:
            self._y, self._yx = self._x, self._xx
        else:
            self._y, self._yx, self._yy = zeros(targets), zeros(targets, inputs), zeros(targets)
        self._calls = 0
        self._shift: tuple[Tensor, Tensor] | None = None
        # Rows, with roots of their weights, that are not in the sums yet.
        self._waiting: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(folds)]
        self._targets: list[list[Tensor]] = [[] for _ in range(folds)]

    @torch.no_grad()
    def add(self, x: Tensor, y: Tensor | None = None, weight: Tensor | None = None) -> None:
        """Take in a batch, into the next fold.

        Args:
            x: [..., K], inputs.
            y: [..., M], targets of the same rows; absent where they are the inputs.
            weight: [...], what each row counts (an attention mask); absent: 1.  Rows of weight 0
                may hold anything.

        Raises:
            ValueError: targets are missing, or given where they are the inputs.
        """
        if (y is None) != self._same:
            raise ValueError("these moments are of inputs and other targets, or of inputs alone")
        x = x.reshape(-1, x.shape[-1])
        y = None if y is None else y.reshape(-1, y.shape[-1])
        root = torch.ones(len(x), 1, dtype=x.dtype, device=x.device)
        if weight is not None:
            kept = weight.reshape(-1) > 0
            x, y = x[kept], None if y is None else y[kept]
            root = weight.reshape(-1)[kept].to(x.dtype).sqrt()[:, None]
        fold = self._calls % len(self.count)
        self._calls += 1
        self.count[fold] += root.double().square().sum()
        self._waiting[fold].append((x, root))
        if y is not None:
            self._targets[fold].append(y)
        if sum(len(rows) for rows, _ in self._waiting[fold]) >= FEWEST:
            self._settle(fold)

    def _settle(self, fold: int) -> None:
        """Add to a fold's sums what waits."""
        waiting, targets = self._waiting[fold], self._targets[fold]
        self._waiting[fold], self._targets[fold] = [], []
        if not waiting:
            return
        x, root = (torch.cat(parts) for parts in zip(*waiting, strict=True))
        y = None if self._same else torch.cat(targets)
        for first in range(0, len(x), ROWS):
            part = slice(first, first + ROWS)
            self._add(fold, x[part], None if y is None else y[part], root[part])

    def _add(self, fold: int, x: Tensor, y: Tensor | None, root: Tensor) -> None:
        if not len(x):
            return
        if self._shift is None:
            # Far from zero, float32 products of differences would be lost in their mean.
            means = x.mean(0)
            self._shift = means, means if y is None else y.mean(0)
        x = (x - self._shift[0]) * root
        self._x[fold] += (x * root).sum(0, dtype=torch.float64)
        self._xx[fold] += x.T @ x
        if y is not None:
            y = (y - self._shift[1]) * root
            self._y[fold] += (y * root).sum(0, dtype=torch.float64)
            self._yx[fold] += y.T @ x
            self._yy[fold] += y.square().sum(0, dtype=torch.float64)

    def through(self, weight: Tensor, bias: Tensor | None = None) -> Moments:
        """The moments of the same inputs with targets x W^T + b.

        With the dense model's inputs of a layer, that is its outputs; layers that read the same
        inputs share one accumulation.

        Args:
            weight: [N, K].
            bias: [N], or None.

        Raises:
            ValueError: targets are other than the inputs.
        """
        if not self._same:
            raise ValueError("these moments have targets of their own")
        self._settle_all()
        w = weight.to(self._xx)
        made = Moments(self._x.shape[1], len(w), folds=len(self.count), device=self._x.device)
        made.count, made._x, made._xx = self.count, self._x, self._xx
        made._y, made._yx = self._x @ w.T, w @ self._xx
        made._yy = (made._yx * w).sum(-1)
        made._calls = self._calls
        if self._shift is not None:
            offset = self._shift[1].to(w) @ w.T
            made._shift = self._shift[0], offset if bias is None else offset + bias.to(w)
        return made

    def _settle_all(self) -> None:
        for fold in range(len(self._waiting)):
            self._settle(fold)

    def centered(self, folds: Sequence[int] | None = None) -> Centered:
        """Means and covariances over some folds; absent: all.

        Raises:
            ValueError: no row was added to them.
        """
        self._settle_all()
        which = list(range(len(self.count)) if folds is None else folds)
        count = self.count[which].sum()
        if self._shift is None or not count > 0:
            raise ValueError("no row was added to these moments")
        x, y = self._x[which].sum(0) / count, self._y[which].sum(0) / count
        xx = self._xx[which].sum(0) / count
        yx = xx if self._same else self._yx[which].sum(0) / count
        yy = xx.diagonal() if self._same else self._yy[which].sum(0) / count
        return Centered(
            count=float(count),
            x_mean=x + self._shift[0],
            y_mean=y + self._shift[1],
            xx=xx - torch.outer(x, x),
            yx=yx - torch.outer(y, x),
            variance=(yy - y.square()).clamp_min(0),
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
