"""Rounding to 8 bits while training: forward as the compiled model computes, gradients straight
through (Bengio et al., 2013); the ranges of activations are learnt as well, with the gradient of
Esser et al. (2020), "Learned step size quantization".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sparsec.pruning.ranges import Range, Rounding

WEIGHT_LIMIT = 127
"""Weights are symmetric: -127 to 127 steps."""


class _Round(torch.autograd.Function):
    """Activations rounded to steps; see :func:`round_activation`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        steps = x / scale
        rounded = steps.round()
        inside = (rounded >= low) & (rounded <= high)
        rounded = rounded.clamp(low, high)
        # Of the result by the scale: the rounding error inside, the limit outside.
        ctx.save_for_backward(inside, torch.where(inside, rounded - steps, rounded))
        ctx.levels = high - low
        return rounded * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        inside, by_scale = ctx.saved_tensors
        (grad,) = grads
        # Many elements pull at one scale: made as small as what pulls at a weight.
        share = 1 / (grad.numel() * ctx.levels) ** 0.5
        return grad * inside, (grad * by_scale).sum() * share, None, None


def round_activation(x: Tensor, scale: Tensor, range_: Range) -> Tensor:
    """x as 8 bits give it: nearest step, ties to even, clipped to the range.

    Gradient by x: passed on where x is inside the range, else 0.  By the scale: as in the paper.

    Args:
        scale: a scalar, which counts in the place of the range's.
        range_: whose zero point and limits count.
    """
    low, high = range_.low - range_.zero_point, range_.high - range_.zero_point
    result: Tensor = _Round.apply(x, scale, low, high)  # type: ignore[no-untyped-call]
    return result


def weight_scale(weight: Tensor) -> Tensor:
    """Steps of each output channel `[N, 1]` of weights `[N, K]`."""
    return weight.detach().abs().amax(1, keepdim=True).clamp(min=1e-8) / WEIGHT_LIMIT


def round_weight(weight: Tensor, factors: Tensor | None = None) -> Tensor:
    """Weights `[N, K]` as signed bytes give them, with a step for each output channel; gradients
    pass straight through.

    Args:
        factors: `[K]`, what inputs are multiplied with before they are rounded.
    """
    even = weight if factors is None else weight / factors
    scale = weight_scale(even)
    rounded = (even / scale).round() * scale
    if factors is not None:
        rounded = rounded * factors
    return weight + (rounded - weight).detach()


class Ranges(nn.Module):
    """Ranges of activations by name, whose steps are parameters.

    Args:
        roundings: where to start; their factors stay.

    The parameter is the logarithm of a step: it stays positive, and equal changes are equal shares.
    """

    def __init__(self, roundings: Mapping[str, Rounding]) -> None:
        super().__init__()
        self._roundings = dict(roundings)
        self.logs = nn.ParameterList(
            [nn.Parameter(torch.tensor(one.range.scale).log()) for one in roundings.values()]
        )
        self._index = {name: i for i, name in enumerate(roundings)}
        for i, one in enumerate(roundings.values()):
            self.register_buffer(f"factors_{i}", one.factors, persistent=False)

    def __contains__(self, name: str) -> bool:
        return name in self._index

    def factors(self, name: str) -> Tensor | None:
        """What x of that name is multiplied with before it is rounded."""
        found: Tensor | None = getattr(self, f"factors_{self._index[name]}")
        return found

    def apply_to(self, name: str, x: Tensor) -> Tensor:
        """x rounded in the range of that name, in float32."""
        scale, factors = self.logs[self._index[name]].exp(), self.factors(name)
        # bfloat16 is coarser than 8 bits of a range.
        even = x.float() if factors is None else x.float() * factors
        rounded = round_activation(even, scale, self._roundings[name].range)
        return (rounded if factors is None else rounded / factors).to(x.dtype)

    def read(self) -> dict[str, Rounding]:
        """The roundings as they are now."""
        found = {}
        for name, i in self._index.items():
            before = self._roundings[name]
            ends = replace(before.range, scale=float(self.logs[i].detach().exp()))
            found[name] = Rounding(ends, before.factors)
        return found
