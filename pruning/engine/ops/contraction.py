"""Torch forms of products, of quantization, and of the ops that only passes make.

Integers are multiplied in float64, where their sums are exact, as the references do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsec.compiler.ir import Graph
from sparsec.pruning.engine.ops.form import Attrs, Form, Results


def _matmul(attrs: Attrs, a: Tensor, b: Tensor) -> Results:
    return (torch.matmul(a, b),)


def _exact(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of integers as int32; what does not fit wraps."""
    return torch.matmul(a.double(), b.double()).to(torch.int64).to(torch.int32)


def _matmul_integer(
    attrs: Attrs, a: Tensor, b: Tensor, za: Tensor | None = None, zb: Tensor | None = None
) -> Results:
    left, right = a.to(torch.int32), b.to(torch.int32)
    if za is not None:
        rows = za.to(torch.int32)
        left = left - (rows[:, None] if za.ndim == 1 and za.numel() > 1 else rows)
    if zb is not None:
        right = right - zb.to(torch.int32)
    return (_exact(left, right),)


def _linear(attrs: Attrs, x: Tensor, w: Tensor) -> Results:
    return (torch.nn.functional.linear(x, w),)


def _linear_integer(attrs: Attrs, x: Tensor, w: Tensor) -> Results:
    return (_exact(x, w.T),)


def _convolve(attrs: Attrs, x: Tensor, w: Tensor) -> Tensor:
    functional = torch.nn.functional
    function = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}.get(w.ndim)
    if function is None:
        raise ValueError(f"torch has no convolution of {w.ndim - 2} spatial extents")
    return function(
        x, w, stride=tuple(attrs["strides"]), dilation=tuple(attrs["dilations"]),
        groups=int(attrs["groups"]),
    )  # fmt: skip


def _conv(attrs: Attrs, x: Tensor, w: Tensor) -> Results:
    return (_convolve(attrs, x, w),)


def _conv_integer(
    attrs: Attrs, x: Tensor, w: Tensor, zx: Tensor | None = None, zw: Tensor | None = None
) -> Results:
    left, right = w.to(torch.int32), x.to(torch.int32)
    if zw is not None:
        left = left - zw.to(torch.int32).reshape(-1, *[1] * (w.ndim - 1))
    if zx is not None:
        right = right - zx.to(torch.int32)
    exact = _convolve(attrs, right.double(), left.double())
    return (exact.round().to(torch.int64).to(torch.int32),)


def _along(attrs: Attrs, parameter: Tensor, rank: int) -> Tensor:
    """The parameter, shaped to broadcast against a tensor of that rank."""
    if parameter.numel() == 1:
        return parameter.reshape(())
    shape = [1] * rank
    shape[int(attrs.get("axis", 1))] = parameter.numel()
    return parameter.reshape(shape)


def _quantize(attrs: Attrs, x: Tensor, scale: Tensor, zp: Tensor) -> Results:
    limits = torch.iinfo(zp.dtype)
    y = torch.round(x / _along(attrs, scale, x.ndim)).double() + _along(attrs, zp, x.ndim)
    y = torch.nan_to_num(y, nan=limits.min, posinf=limits.max, neginf=limits.min)
    return (y.clamp(limits.min, limits.max).to(zp.dtype),)


def _dequantize(attrs: Attrs, q: Tensor, scale: Tensor, zp: Tensor) -> Results:
    shifted = q.to(torch.int64) - _along(attrs, zp, q.ndim).to(torch.int64)
    return (shifted.to(torch.float32) * _along(attrs, scale, q.ndim),)


def _extremes(attrs: Attrs, x: Tensor, real: Tensor | None = None) -> Results:
    kept = x.reshape(-1) if real is None else x[real].reshape(-1)
    zero = torch.cat([kept, kept.new_zeros(1)])
    return (zero.min(), zero.max())


def _qlinear(
    attrs: Attrs, x: Tensor, w: Tensor, scale: Tensor, bias: Tensor | None = None
) -> Results:
    acc = _exact(x.to(torch.int32) - int(attrs["x_zp"]), w.T)
    if bias is not None:
        acc = acc + bias
    return (acc.to(torch.float32) * scale,)


def _lengths(attrs: Attrs, x: Tensor) -> Results:
    given = attrs["_lengths"]
    if given is None:
        given = [int(attrs["length"])] * len(x)
    return (torch.as_tensor(given, dtype=torch.int32, device=x.device),)


def _heads_apart(x: Tensor, heads: int, zero: int) -> Tensor:
    """[B, S, H*D] -> [B, H, S, D]; integers with the zero point subtracted."""
    b, s, c = x.shape
    wide = x if x.is_floating_point() else x.to(torch.int32) - zero
    return wide.reshape(b, s, heads, c // heads).permute(0, 2, 1, 3)


def _product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    if a.is_floating_point():
        return torch.matmul(a, b)
    return _exact(a, b).to(torch.float32) * torch.tensor(scale, dtype=torch.float32)


def _attention(attrs: Attrs, q: Tensor, k: Tensor, v: Tensor, *extras: Tensor) -> Results:
    heads = int(attrs["heads"])
    score: Graph = attrs["score"]
    prob: Graph = attrs["prob"]
    q4 = _heads_apart(q, heads, int(attrs["q_zp"]))
    k4 = _heads_apart(k, heads, int(attrs["k_zp"]))
    v4 = _heads_apart(v, heads, int(attrs["v_zp"]))
    (s,) = attrs["_run"](score, [_product(q4, k4.transpose(-1, -2), attrs["qk_scale"]), *extras])
    (p,) = attrs["_run"](prob, [torch.softmax(s, dim=-1)])
    if not p.is_floating_point():
        p = p.to(torch.int32) - int(attrs["p_zp"])
    o = _product(p, v4, attrs["pv_scale"])
    return (o.permute(0, 2, 1, 3).reshape(q.shape),)


ROWS = [
    Form("matmul", _matmul),
    Form("matmul_integer", _matmul_integer, gradient=False),
    Form("conv", _conv),
    Form("conv_integer", _conv_integer, gradient=False),
    Form("linear", _linear),
    Form("linear_integer", _linear_integer, gradient=False),
    Form("quantize", _quantize, gradient=False),
    Form("dequantize", _dequantize, gradient=False),
    Form("extremes", _extremes),
    Form("lengths", _lengths),
    Form("qlinear", _qlinear, gradient=False),
    Form("attention", _attention),
]
