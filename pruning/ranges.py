"""Ranges of activations chosen by the error that quantization to 8 bits leaves, not by extremes.

A histogram of the values is kept while calibration texts run; then scale and zero point are those
of the least mean squared error over a grid of clipping ratios (as in Nagel et al., "A white paper
on neural network quantization", arXiv:2106.08295, section 3.1).  Channels may count by how much the
layers that read them make of their errors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Bins on each side of zero.
BINS = 4096

#: Clipping ratios that are tried for each end of the range.
RATIOS = 48


@dataclass(frozen=True)
class Range:
    """A quantization of float32 to 8 bits: q = round(x / scale) + zero_point, saturated.

    Attributes:
        scale, zero_point: as in ONNX.
        low, high: least and greatest q: 0 and 255, or -128 and 127.
        error: mean squared error over what it was chosen by.
    """

    scale: float
    zero_point: int
    low: int
    high: int
    error: float


@dataclass(frozen=True, eq=False)
class Rounding:
    """How a layer's inputs become bytes.

    Attributes:
        range: of the inputs, multiplied with the factors.
        factors: float32 [K]; None: 1.
    """

    range: Range
    factors: Tensor | None = None

    def scaled(self, x: Tensor) -> Tensor:
        """Inputs x [..., K] times the factors, as bytes stand for them."""
        if self.factors is not None:
            x = x * self.factors
        found = self.range
        q = ((x / found.scale).round() + found.zero_point).clamp(found.low, found.high)
        return (q - found.zero_point) * found.scale

    def __call__(self, x: Tensor) -> Tensor:
        """The same, without the factors again."""
        x = self.scaled(x)
        return x if self.factors is None else x / self.factors


class Histogram:
    """Weighted counts of values around zero; the range grows as needed, by doubling.

    Attributes:
        low, high: least and greatest value seen; zero always counts as seen.
        counts: float64 [2 * BINS], from -limit to limit.
        limit: where the bins end.
    """

    def __init__(self) -> None:
        self.low = self.high = 0.0
        self.limit = 0.0
        self.counts = torch.zeros(2 * BINS, dtype=torch.float64)

    @torch.no_grad()
    def add(self, x: Tensor, rows: Tensor | None = None, channels: Tensor | None = None) -> None:
        """Take in a batch.

        Args:
            x: [..., C], float.
            rows: [...], what each row counts (an attention mask); rows of 0 may hold anything.
            channels: [C], what each channel counts.
        """
        x = x.reshape(-1, x.shape[-1]).float()
        count = torch.ones((), dtype=torch.float32, device=x.device)
        if rows is not None:
            kept = rows.reshape(-1) > 0
            x, count = x[kept], rows.reshape(-1)[kept].float()[:, None]
        if channels is not None:
            count = count * channels.float()
        if not x.numel():
            return
        self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))
        self._grow(max(-self.low, self.high))
        if self.limit == 0.0:
            return
        place = ((x / self.limit + 1) * BINS).long().clamp_(0, 2 * BINS - 1).flatten()
        weights = count.expand_as(x).flatten().double()
        self.counts += torch.bincount(place, weights, minlength=2 * BINS).cpu()

    def _grow(self, limit: float) -> None:
        if self.limit == 0.0:
            self.limit = limit
        while self.limit < limit:
            self.limit *= 2
            pairs = self.counts.view(-1, 2).sum(1)
            self.counts = torch.nn.functional.pad(pairs, (BINS // 2, BINS // 2))

    @property
    def centers(self) -> Tensor:
        """The values that bins stand for, float64 [2 * BINS]."""
        at = torch.arange(2 * BINS, dtype=torch.float64) + 0.5
        return (at / BINS - 1) * self.limit


def search(
    histogram: Histogram, low: int = 0, high: int = 255, zero_point: int | None = None
) -> Range:
    """The range of least mean squared error.

    Args:
        low, high: least and greatest quantized value.
        zero_point: where it is fixed (0 of signed bytes, 128 of unsigned ones in symmetric
            schemes); None: it is chosen too.
    """
    used = histogram.counts > 0
    if not bool(used.any()):
        return Range(1.0, low if zero_point is None else zero_point, low, high, 0.0)
    x, counts = histogram.centers[used], histogram.counts[used]
    ratios = torch.linspace(1, 0, RATIOS + 1, dtype=torch.float64)[:-1]
    if zero_point is None:
        down, up = torch.meshgrid(histogram.low * ratios, histogram.high * ratios, indexing="ij")
        scale = ((up - down) / (high - low)).flatten()
        zero = (low - down.flatten() / scale).round().clamp(low, high)
    else:
        ends = [v for v in ((histogram.high, high), (histogram.low, low)) if v[1] != zero_point]
        reach = max(value / (end - zero_point) for value, end in ends)
        scale = reach * ratios
        zero = torch.full_like(scale, zero_point)
    errors = torch.cat(
        [
            _error(x, counts, s[:, None], z[:, None], low, high)
            for part in (slice(i, i + 64) for i in range(0, len(scale), 64))
            for s, z in ((scale[part], zero[part]),)
        ]
    )
    best = int(errors.argmin())
    return Range(float(scale[best]), int(zero[best]), low, high, float(errors[best]))


def _error(x: Tensor, counts: Tensor, scale: Tensor, zero: Tensor, low: int, high: int) -> Tensor:
    """Mean squared errors [S] of quantizing values x [V], of weights counts [V]."""
    q = ((x / scale).round() + zero).clamp(low, high)
    return (((q - zero) * scale - x).square() @ counts) / counts.sum()
