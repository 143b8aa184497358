"""ONNX convolutions: layers of patches where those lie side by side, else the core's `conv`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsec.compiler.frontend.importer import Importer, OnnxNode, onnx_op
from sparsec.compiler.frontend.onnx_ops.layout import pad_constant
from sparsec.compiler.frontend.onnx_ops.quantization import parameter
from sparsec.compiler.frontend.tensor import Fail, Tensor, fixed
from sparsec.compiler.ir import Shape


@dataclass(frozen=True)
class _Geometry:
    """Where a convolution's patches lie; one entry per spatial axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    out: tuple[int, ...]
    groups: int

    @property
    def tiles(self) -> bool:
        """True where patches neither overlap nor leave gaps, as in an embedding of patches."""
        return (
            self.kernel == self.strides
            and all(d == 1 for d in self.dilations)
            and not any((*self.before, *self.after))
        )


def _geometry(n: OnnxNode, x: Tensor, w: Tensor) -> _Geometry:
    rank = len(x.shape) - 2
    if rank < 1 or len(w.shape) != rank + 2:
        raise Fail(f"a convolution of {list(x.shape)} with weights {list(w.shape)}")
    size = tuple(fixed(d) for d in x.shape[2:])
    kernel = tuple(n.attrs.get("kernel_shape") or map(fixed, w.shape[2:]))
    strides = tuple(n.attrs.get("strides") or (1,) * rank)
    dilations = tuple(n.attrs.get("dilations") or (1,) * rank)
    pads = list(n.attrs.get("pads") or (0,) * (2 * rank))
    groups = int(n.attrs.get("group", 1))
    if kernel != tuple(map(fixed, w.shape[2:])):
        raise Fail(f"kernel_shape {list(kernel)} for weights {list(w.shape)}")
    if {len(strides), len(dilations)} != {rank} or len(pads) != 2 * rank:
        raise Fail("strides, dilations or pads do not fit the number of axes")
    if min((*strides, *dilations)) < 1 or min(pads) < 0:
        raise Fail("strides and dilations must be positive, and pads not negative")
    if groups < 1 or w.shape[1] * groups != x.shape[1] or fixed(w.shape[0]) % groups:
        raise Fail(f"{groups} groups of {list(x.shape)} with weights {list(w.shape)}")
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    auto = str(n.attrs.get("auto_pad", "NOTSET"))
    if auto not in ("NOTSET", ""):
        pads = _automatic(auto, size, strides, spans)
    before, after = tuple(pads[:rank]), tuple(pads[rank:])
    out = tuple((size[i] + before[i] + after[i] - spans[i]) // strides[i] + 1 for i in range(rank))
    if min(out) < 1:
        raise Fail(f"a kernel of {list(kernel)} is larger than its input {list(size)}")
    return _Geometry(kernel, strides, dilations, before, after, out, groups)


def _automatic(
    auto: str, size: Sequence[int], strides: Sequence[int], spans: Sequence[int]
) -> list[int]:
    """What ``auto_pad`` puts before each axis, then what it puts behind each."""
    if auto == "VALID":
        return [0] * (2 * len(size))
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        raise Fail(f"auto_pad {auto}")
    less, more = [], []
    for extent, step, span in zip(size, strides, spans, strict=True):
        total = max(0, (-(-extent // step) - 1) * step + span - extent)
        less.append(total // 2)
        more.append(total - total // 2)
    return less + more if auto == "SAME_UPPER" else more + less


def _patches(c: Importer, x: Tensor, g: _Geometry) -> Tensor:
    """[N, C, *size] -> [N, places, C * kernel elements], of patches side by side."""
    rank = len(g.kernel)
    x = _cropped(c, x, g)
    batch, channels = x.shape[:2]
    apart = [e for o, k in zip(g.out, g.kernel, strict=True) for e in (o, k)]
    x = c.reshape(x, (batch, channels, *apart))
    inner, outer = range(3, 3 + 2 * rank, 2), range(2, 2 + 2 * rank, 2)
    rows = c.transpose(x, (0, *outer, 1, *inner))
    return c.reshape(rows, (batch, math.prod(g.out), fixed(channels) * math.prod(g.kernel)))


def _cropped(c: Importer, x: Tensor, g: _Geometry) -> Tensor:
    """Without what is left over at the end of each axis."""
    for i, (o, k) in enumerate(zip(g.out, g.kernel, strict=True), start=2):
        if x.shape[i] != o * k:
            x = c.emit("slice", x, starts=(0,), ends=(o * k,), axes=(i,), steps=(1,))
    return x


@dataclass(frozen=True)
class _Sums:
    """What a convolution sums up: [N, places, M] for a layer of patches, else [N, M, *out]."""

    tensor: Tensor
    rows: bool
    shape: Shape

    def per_map(self, c: Importer, p: Tensor) -> Tensor:
        """A parameter [M], or one number, shaped to broadcast against the sums."""
        apart = (1,) * (len(self.shape) - 2)
        return p if self.rows or not p.shape else c.reshape(p, (*p.shape, *apart))

    def back(self, c: Importer, y: Tensor) -> Tensor:
        """The result, laid out like the sums, as [N, M, *out]."""
        return c.reshape(c.transpose(y, (0, 2, 1)), self.shape) if self.rows else y


def _convolve(
    c: Importer,
    n: OnnxNode,
    x: Tensor,
    w: Tensor,
    fill: Tensor,
    product: Callable[[Tensor, Tensor], Tensor],
    op: str,
    *zeros: Tensor | None,
) -> _Sums:
    """The sums of a convolution.

    Args:
        fill: what stands in the padding.
        product: ``[N, places, depth] @ [depth, M]``, for patches that neither overlap nor leave
            gaps: that is a linear layer, whose rows are the patches.
        op: the core op for all others, which reads `zeros` besides.
    """
    g = _geometry(n, x, w)
    batch, maps = x.shape[0], fixed(w.shape[0])
    shape = (batch, maps, *g.out)
    if g.tiles and g.groups == 1:
        rows = _patches(c, x, g)
        weights = c.transpose(c.reshape(w, (maps, fixed(rows.shape[-1]))), (1, 0))
        return _Sums(product(rows, weights), True, shape)
    for i in range(len(g.kernel)):
        x = pad_constant(c, x, 2 + i, g.before[i], g.after[i], fill)
    attrs: dict[str, Any] = {"strides": g.strides, "dilations": g.dilations, "groups": g.groups}
    return _Sums(c.emit(op, x, w, *zeros, **attrs), False, shape)


@onnx_op("Conv")
def _conv(c: Importer, n: OnnxNode) -> Tensor:
    x, w = n[0], n[1]
    zero = c.scalar(0, x)
    sums = _convolve(c, n, x, w, zero, lambda a, b: c.emit("matmul", a, b), "conv")
    bias, out = n.optional(2), sums.tensor
    return sums.back(c, out if bias is None else c.emit("add", out, sums.per_map(c, bias)))


def _integer_sums(
    c: Importer, n: OnnxNode, x: Tensor, w: Tensor, zx: Tensor | None, zw: Tensor | None
) -> _Sums:
    """Padding counts as 0, so it holds x's zero point."""
    zx = parameter(c, zx) if zx else None
    zw = parameter(c, zw) if zw else None
    fill = zx if zx is not None else c.scalar(0, x)

    def product(a: Tensor, b: Tensor) -> Tensor:
        return c.emit("matmul_integer", a, b, zx, zw)

    return _convolve(c, n, x, w, fill, product, "conv_integer", zx, zw)


@onnx_op("ConvInteger")
def _conv_integer(c: Importer, n: OnnxNode) -> Tensor:
    sums = _integer_sums(c, n, n[0], n[1], n.optional(2), n.optional(3))
    return sums.back(c, sums.tensor)


@onnx_op("QLinearConv")
def _qlinear_conv(c: Importer, n: OnnxNode) -> Tensor:
    """Integer sums + bias -> float32 * (x's scale * w's scale) -> quantize."""
    sums = _integer_sums(c, n, n[0], n[3], n[2], n[5])
    bias, total = n.optional(8), sums.tensor
    total = total if bias is None else c.emit("add", total, sums.per_map(c, bias))
    scale = c.emit("mul", parameter(c, n[1]), parameter(c, n[4]))
    out = c.emit("mul", c.cast(total, np.float32), sums.per_map(c, scale))
    return sums.back(c, c.emit("quantize", out, parameter(c, n[6]), parameter(c, n[7]), axis=0))
