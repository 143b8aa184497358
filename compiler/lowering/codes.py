"""Float weights that are few-valued: bytes or nibbles, and a scale for each row or block of a row.

Weight-only quantization is written in many ways (DequantizeLinear, MatMulNBits, Cast and Mul, with
scales for a tensor, a channel or a block); whatever the way, the float weights of a layer are whole
numbers times a scale.  They are recognized by that, bit by bit, and stored as they came.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparsec.compiler.lowering.tile_packing import INPUTS

Array = np.ndarray[Any, Any]

#: Weights from which on a layer is worth it.
LEAST = 1 << 14

#: Inputs that may share a scale, besides all of a row: what quantizers offer.
BLOCKS = (256, 128, 64, 32, 16)

#: Up to this, bfloat16 has all whole numbers.
BFLOAT16_WHOLE = 256

#: The two nearest weights of a row or block may be up to so many steps apart.
WIDEST_GAP = 8


@dataclass(frozen=True, eq=False)
class Codes:
    """Weights float32 [N, K] as ``(code - zero) * scale``, the product rounded once.

    Attributes:
        bits: of a code, 4 or 8.
        block: inputs that share a scale; divides K.
        code: uint8 ``[N, K]``.
        zero: float32 ``[N, K / block]``, whole numbers.
        scale: float32 ``[N, K / block]``.
    """

    bits: int
    block: int
    code: Array
    zero: Array
    scale: Array


def find_codes(w: Array) -> Codes | None:
    """The codes of weights float32 [N, K]; None where they have none."""
    n, k = w.shape
    if w.size < LEAST or not np.isfinite(w).all():
        return None
    some = w[:: max(1, n // 8)]
    for block in (k, *(b for b in BLOCKS if b < k and k % b == 0)):
        if _steps(some.reshape(-1, block)) is None:
            continue
        found = _steps(w.reshape(-1, block))
        if found is not None:
            return _coded(*found, (n, k), block)
    return None


def _coded(number: Array, scale: Array, shape: tuple[int, int], block: int) -> Codes:
    low, high = number.min(axis=1, keepdims=True), number.max(axis=1, keepdims=True)
    bits = 4 if (high - low).max() < 16 else 8
    # One zero for all where there is one, as in most files.
    half = 1 << (bits - 1)
    common = low.min() >= -half and high.max() < half
    zero = np.full_like(low, half) if common else -low
    blocks = (shape[0], shape[1] // block)
    return Codes(
        bits=bits,
        block=block,
        code=(number + zero).astype(np.uint8).reshape(shape),
        zero=zero.astype(np.float32).reshape(blocks),
        scale=scale.reshape(blocks),
    )


def _steps(rows: Array) -> tuple[Array, Array] | None:
    """Whole numbers int32 and a float32 scale for each row, whose product is the row bit by bit."""
    size = np.abs(rows)
    least = np.where(size > 0, size, np.inf).min(axis=1).astype(np.float32)
    least[~np.isfinite(least)] = 1
    gaps = np.diff(np.sort(rows, axis=1), axis=1)
    # Neighbours are a step apart at least; below that is what rounding makes of equal ones.
    apart = gaps > size.max(axis=1, keepdims=True) / 1024
    gap = np.where(apart, gaps, np.inf).min(axis=1, initial=np.inf)
    number, scale = np.zeros(rows.shape, np.int32), least.copy()
    left = np.arange(len(rows))
    for widest in range(1, WIDEST_GAP + 1):
        # Of which number the least weight is the product says the gap, near enough.
        of = np.maximum(np.rint(np.minimum(least[left] / gap[left] * widest, 1024)), 1)
        near = (least[left] / of).astype(np.float32)
        for ulp in (0, 1, -1, 2, -2):
            trial = (near.view(np.int32) + ulp).view(np.float32)
            whole, fits = _whole(rows[left], trial)
            number[left[fits]], scale[left[fits]] = whole[fits], trial[fits]
            left, near = left[~fits], near[~fits]
            if not left.size:
                return number, scale
    return None


def _whole(rows: Array, scale: Array) -> tuple[Array, Array]:
    """The numbers nearest to rows / scales, and which rows are their products and fit a byte."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        whole = np.nan_to_num(np.rint(rows / scale[:, None]))
        same = (whole.astype(np.float32) * scale[:, None] == rows).all(axis=1)
    return whole, same & (whole.max(axis=1) - whole.min(axis=1) < 256)


@dataclass(frozen=True, eq=False)
class CodedWeights:
    """Codes as the kernel expands them, quad by quad (4 output channels side by side).

    Attributes:
        bits: of a code, 4 or 8.
        block: inputs that share a scale.
        codes: uint8 ``[quads, bytes]``: ``[K][4]``, K padded to a multiple of 4; or, of 4 bits,
            ``[K / 8][16]``: the low halves are 4 inputs, the high halves the next 4.  For tiles
            (:func:`pack_code_tiles`) ``[N / 32, K / 32, 32, 32]``, even inputs before odd ones; or,
            of 4 bits, ``[N / 32, K / 32, 32, 16]``, even inputs in the low halves; int8, of which
            the zero is 0, where they are `whole` and fit.
        scale: float32 ``[quads, K / block, 4]``; for tiles ``[N / 32, K / block, 32]``.
        zero: float32, in the same way, or ``[1]`` where all are equal.
        whole: the kernel multiplies whole numbers, which bfloat16 has, and scales their sums: tiles
            of channels that have one scale.
    """

    bits: int
    block: int
    codes: Array
    scale: Array
    zero: Array
    whole: bool = False

    @property
    def inputs(self) -> int:
        """Input channels with those that pad them."""
        return int(self.codes.shape[1]) // 4 * (8 // self.bits)


def pack_codes(found: Codes) -> CodedWeights:
    """The codes of a layer for its kernel."""
    n, k = found.code.shape
    rows = -(-n // 4) * 4
    step = 32 // found.bits
    code = np.zeros((rows, -(-k // step) * step), np.uint8)
    code[:n, :k] = found.code
    quads = code.reshape(rows // 4, 4, -1).transpose(0, 2, 1)
    if found.bits == 4:
        halves = quads.reshape(rows // 4, -1, 2, 16)
        quads = halves[:, :, 0] | halves[:, :, 1] << 4
    scale, zero = (
        np.concatenate([part, np.zeros((rows - n, part.shape[1]), np.float32)])
        .reshape(rows // 4, 4, -1)
        .transpose(0, 2, 1)
        for part in (found.scale, found.zero)
    )
    if (found.zero == found.zero.flat[0]).all():
        zero = found.zero[:1, 0]
    codes, scale, zero = map(np.ascontiguousarray, (quads.reshape(rows // 4, -1), scale, zero))
    return CodedWeights(found.bits, found.block, codes, scale, zero)


def fits_tiles(found: Codes) -> bool:
    """Whether the inputs of a tile have one scale: then :func:`pack_code_tiles` takes them."""
    return found.scale.shape[1] == 1 or found.block % INPUTS["f32"] == 0


def fits_bfloat16(found: Codes) -> bool:
    """Whether whole numbers can be multiplied, and sums scaled: channels have one scale, and
    bfloat16 has the numbers."""
    return found.scale.shape[1] == 1 and bool(np.abs(_numbers(found)).max() <= BFLOAT16_WHOLE)


def _numbers(found: Codes) -> Array:
    """Whole numbers int32 [N, K] of channels that have one scale."""
    return found.code - found.zero.astype(np.int32)


def pack_code_tiles(found: Codes) -> CodedWeights:
    """The codes of a layer in tiles of floats (``tile_packing.pack_floats``)."""
    n, k = found.code.shape
    wide = INPUTS["f32"]
    rows, inputs = -(-n // wide) * wide, -(-k // wide) * wide
    whole = fits_bfloat16(found)
    if whole and found.bits == 8:
        number = _numbers(found)
        signed = number.astype(np.int8)
        if (signed == number).all():
            found = replace(found, code=signed, zero=np.zeros_like(found.zero))
    code = np.zeros((rows, inputs), found.code.dtype)
    code[:n, :k] = found.code
    tiles = code.reshape(-1, wide, inputs // wide, wide // 2, 2).transpose(0, 2, 1, 4, 3)
    if found.bits == 4:
        tiles = tiles[..., 0, :] | tiles[..., 1, :] << 4
    scale, zero = (
        np.concatenate([part, np.zeros((rows - n, part.shape[1]), np.float32)])
        .reshape(-1, wide, part.shape[1])
        .transpose(0, 2, 1)
        for part in (found.scale, found.zero)
    )
    if (found.zero == found.zero.flat[0]).all():
        zero = found.zero[:1, 0]
    codes = tiles.reshape(len(scale), inputs // wide, wide, -1)
    codes, scale, zero = map(np.ascontiguousarray, (codes, scale, zero))
    return CodedWeights(found.bits, found.block, codes, scale, zero, whole)
