"""Channels of activations brought to about one size before they are rounded.

One step of 8 bits serves all channels of a tensor, and in transformers a few channels are ten times
as large as the others, which are left with a handful of levels.  So inputs are multiplied channel
by channel before they are rounded, x_k' = x_k / s_k, and weights the other way, W_nk' = W_nk s_k:

    s_k = (max |x_k|)^strength

which is the migration of Xiao et al., "SmoothQuant" (arXiv:2211.10438), with the strength chosen
for each tensor by the errors that both roundings leave.  It costs one multiplication in the
producer's epilogue.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: What is tried; 0 leaves inputs as they are.
STRENGTHS = (0.0, 0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

#: Error of an output, as a share of its variance, that is not worth a multiplication.
NEGLIGIBLE = 5e-5

#: A channel's size, at least, as a share of that of the largest.
LEAST = 1e-3

_WEIGHT_LEVELS, _LEVELS = 127, 255


class Extremes:
    """Sizes of the channels of a tensor.

    Attributes:
        low, high: [K], least and greatest value; zero always counts as seen.
        squares: float64 [K], weighted sum of squares; count: of weights.
        sums: float64 [K], weighted sum.
    """

    def __init__(self, channels: int) -> None:
        self.low, self.high = torch.zeros(channels), torch.zeros(channels)
        self.sums = torch.zeros(channels, dtype=torch.float64)
        self.squares = torch.zeros(channels, dtype=torch.float64)
        self.count = 0.0

    @torch.no_grad()
    def add(self, x: Tensor, rows: Tensor | None = None) -> None:
        """Take in a batch.

        Args:
            x: [..., K], float.
            rows: [...], what each row counts; rows of 0 may hold anything.
        """
        x = x.reshape(-1, x.shape[-1]).float().cpu()
        count = torch.ones(len(x)) if rows is None else rows.reshape(-1).float().cpu()
        if rows is not None:
            x, count = x[count > 0], count[count > 0]
        if not x.numel():
            return
        self.low = torch.minimum(self.low, x.amin(0))
        self.high = torch.maximum(self.high, x.amax(0))
        self.sums += (count @ x).double()
        self.squares += (count @ x.square()).double()
        self.count += float(count.sum())

    @property
    def size(self) -> Tensor:
        """Greatest absolute value of each channel [K]."""
        return torch.maximum(-self.low, self.high)

    def variance(self) -> Tensor:
        """Of each channel, float64 [K]."""
        mean = self.sums / max(self.count, 1e-30)
        return (self.squares / max(self.count, 1e-30) - mean.square()).clamp_min(0)


def choose(seen: Extremes, weights: Sequence[Tensor]) -> Tensor | None:
    """What channels are multiplied with before they are rounded: float32 [K]; None: nothing.

    Args:
        seen: of the inputs.
        weights: [N, K], of the layers that read them.
    """
    size = seen.size
    if not bool(size.max() > 0):
        return None
    size = size.clamp_min(LEAST * float(size.max()))
    matrix = torch.cat([w.float() for w in weights])
    energy = seen.squares / max(seen.count, 1e-30)
    variance = float((matrix.double().square() @ seen.variance()).sum())
    errors = [_error(seen, matrix, energy, size**strength) for strength in STRENGTHS]
    best = min(range(len(errors)), key=errors.__getitem__)
    if errors[0] - errors[best] <= NEGLIGIBLE * variance:
        return None
    factors = size ** -STRENGTHS[best]
    # The largest keeps its size: ranges stay readable.
    made: Tensor = factors * float(size.max()) ** STRENGTHS[best]
    return made.float()


def _error(seen: Extremes, weights: Tensor, energy: Tensor, scale: Tensor) -> float:
    """Expected squared error of all outputs, roundings taken as evenly spread."""
    step = float((seen.high / scale).max() - (seen.low / scale).min()) / _LEVELS
    inputs = float((weights.square().sum(0) * scale.square()).sum()) * step**2
    steps = (weights * scale).abs().amax(1) / _WEIGHT_LEVELS
    ours = float(steps.square().double().sum() * (energy / scale.square()).sum())
    return (inputs + ours) / 12
