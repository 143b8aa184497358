"""Torch forms of reductions and of what is built on them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sparsec.pruning.engine.ops.form import Attrs, Form, Results


def _reduce(
    name: str, function: Callable[[Tensor, tuple[int, ...], bool], Tensor], gradient: bool = True
) -> Form:
    def compute(attrs: Attrs, x: Tensor) -> Results:
        axes = tuple(attrs["axes"])
        # torch takes no axes for all of them.
        out = function(x, axes, bool(attrs["keepdims"])) if axes else x
        return (out.to(x.dtype),)

    return Form(name, compute, gradient)


def _sum(x: Tensor, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    return x.sum(dim=axes, keepdim=keepdims)


def _mean(x: Tensor, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(dim=axes, keepdim=keepdims)
    total = x.to(torch.int64).sum(dim=axes, keepdim=keepdims)
    return torch.trunc(total.double() / (x.numel() // max(total.numel(), 1)))


def _prod(x: Tensor, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(dim=axis, keepdim=keepdims)
    return x


def _extreme(largest: bool, x: Tensor, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    if any(x.shape[axis] == 0 for axis in axes):
        kept = [1 if i in axes else d for i, d in enumerate(x.shape) if keepdims or i not in axes]
        return torch.full(kept, _least(x.dtype, largest), dtype=x.dtype, device=x.device)
    return (torch.amax if largest else torch.amin)(x, dim=axes, keepdim=keepdims)


def _least(dtype: torch.dtype, largest: bool) -> float:
    """What the extreme of nothing is."""
    if dtype.is_floating_point:
        return float("-inf") if largest else float("inf")
    limits = torch.iinfo(dtype)
    return limits.min if largest else limits.max


def _softmax(attrs: Attrs, x: Tensor) -> Results:
    return (torch.softmax(x, dim=attrs["axis"]),)


def _cumsum(attrs: Attrs, x: Tensor) -> Results:
    axis = attrs["axis"]
    x = x.flip(axis) if attrs.get("reverse") else x
    out = torch.cumsum(x, dim=axis, dtype=x.dtype)
    if attrs.get("exclusive"):
        first = torch.zeros_like(out.narrow(axis, 0, min(1, out.shape[axis])))
        out = torch.cat([first, out.narrow(axis, 0, max(0, out.shape[axis] - 1))], dim=axis)
    return (out.flip(axis) if attrs.get("reverse") else out,)


def _layernorm(attrs: Attrs, x: Tensor, gamma: Tensor, beta: Tensor) -> Results:
    norm = torch.nn.functional.layer_norm
    return (norm(x, (x.shape[-1],), gamma, beta, float(attrs["eps"])),)


ROWS = [
    _reduce("reduce_sum", _sum),
    _reduce("reduce_mean", _mean),
    _reduce("reduce_prod", _prod),
    _reduce("reduce_max", lambda x, axes, keep: _extreme(True, x, axes, keep)),
    _reduce("reduce_min", lambda x, axes, keep: _extreme(False, x, axes, keep)),
    Form("softmax", _softmax),
    Form("cumsum", _cumsum),
    Form("layernorm", _layernorm),
]
