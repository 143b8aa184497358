"""Convolutions: products of weights with patches; runs of lines where a group has one channel."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

from sparsec.compiler.codegen.general.contraction import needs_sums, parameter_number
from sparsec.compiler.codegen.general.extents import (
    ONE,
    Extent,
    decode,
    offset,
    product,
    strides,
)
from sparsec.compiler.codegen.general.render import Call, NotGeneral, c_type, suffix
from sparsec.compiler.ops.contraction import conv_out

# Elements of a line that a depthwise kernel sums up at a time.
_COLUMNS = 64

# Taps of bytes whose sums floats hold: 256 * 255 * 255 is less than 2**24.
_EXACT = 256

# How a depthwise kernel reads lines whose places are next to each other.
_AS_IT_IS: dict[str, Any] = {"runs": [], "pitch": 0, "step": 1}

# Elements of lines that a depthwise kernel may copy, to the stack.
_COPIED = 16384

# Places between the lines of a result that are computed for nothing may be as many as this share of
# all; else patches are copied element by element.
_WASTE = 0.45


def emit_conv(call: Call) -> str:
    """Float convolution: a panel of patches at a time, in register blocks."""
    return _emit(call, None)


def emit_conv_integer(call: Call) -> str:
    """Exact convolution of bytes; zero points of x, and of w per tensor or per map."""
    zx, zw = parameter_number(call, 2), parameter_number(call, 3)
    per_map = zw and call.inputs[zw].shape
    return _emit(
        call, (f"x{zx}[0]" if zx else "0", f"x{zw}[{'{map}' if per_map else '0'}]" if zw else "0")
    )


@dataclass(frozen=True)
class _Geometry:
    """What a convolution reads and makes of one sample and group.

    Attributes:
        batch: samples.
        groups, maps: groups, and output maps of each.
        depth: weights of a map.
        size, out: extents of x and of the result behind the channels.
        steps: distances of neighbours in x, by axis; 0 along an extent of 1, where coordinates are
            0 anyway.
        moves: distances in x of the places of neighbouring results.
        apart: distances in x of neighbouring taps.
        kernel: taps by axis.
    """

    batch: Extent
    groups: int
    maps: int
    depth: int
    size: tuple[Extent, ...]
    out: tuple[Extent, ...]
    steps: tuple[int, ...]
    moves: tuple[int, ...]
    apart: tuple[int, ...]
    kernel: tuple[int, ...]

    @staticmethod
    def of(call: Call) -> _Geometry:
        """The geometry of a node.

        Raises:
            NotGeneral: it is too large for indices of 32 bits.
        """
        x, w = call.inputs[:2]
        attrs = call.node.attrs
        groups = int(attrs["groups"])
        size = [Extent.of(d) for d in x.shape[2:]]
        steps = [step.coef for step in strides(size)]
        found = _Geometry(
            batch=Extent.of(x.shape[0]),
            groups=groups,
            maps=int(str(w.shape[0])) // groups,
            depth=math.prod(int(str(d)) for d in w.shape[1:]),
            size=tuple(size),
            out=tuple(Extent(d) for d in conv_out(attrs, x.shape, w.shape)),
            steps=tuple(steps),
            moves=tuple(s * step for s, step in zip(attrs["strides"], steps, strict=True)),
            apart=tuple(d * step for d, step in zip(attrs["dilations"], steps, strict=True)),
            kernel=tuple(int(str(k)) for k in w.shape[2:]),
        )
        if max(found.plane, found.depth, found.places.coef) > 2**31 - 1:
            raise NotGeneral(f"a convolution of {list(x.shape)} is larger than 2**31")
        return found

    @property
    def plane(self) -> int:
        """Elements of a channel of x."""
        return product(self.size).coef

    @property
    def places(self) -> Extent:
        """Results of a map."""
        return product(self.out)

    @property
    def taps(self) -> list[int]:
        """Offsets in x of all taps; the last axis is the inner one."""
        every = itertools.product(*map(range, self.kernel))
        return [sum(map(int.__mul__, at, self.apart)) for at in every]

    @property
    def work(self) -> Extent:
        """Multiplications."""
        return self.batch * Extent(self.groups * self.maps * self.depth) * self.places


def _emit(call: Call, zeros: tuple[str, str] | None) -> str:
    """A convolution; `zeros` are C expressions of the zero points of bytes, that of w by map."""
    g = _Geometry.of(call)
    x, w = call.inputs[:2]
    types = (("x", x.dtype), ("w", w.dtype), ("y", call.outputs[0].dtype))
    context: dict[str, Any] = {
        "maps": g.maps,
        "groups": g.groups,
        "taps": g.taps,
        "plane": g.plane,
        **{f"{name}_type": c_type(dtype) for name, dtype in types},
        **{f"{name}_suffix": suffix(dtype) for name, dtype in types},
        "integer": zeros is not None,
    }
    if zeros:
        context |= {
            "x_zero": zeros[0],
            "left_sums": needs_sums("RIGHT", x, zeros[0]),
            "right_sums": needs_sums("LEFT", w, zeros[1]),
        }
    runs = _AS_IT_IS
    if zeros or g.moves[-1] > 1:
        runs = _runs(g.taps, g.apart[-1], g.kernel[-1], max(g.moves[-1], 1))
    small = len(runs["runs"]) * runs["pitch"] <= _COPIED and not (zeros and len(g.taps) > _EXACT)
    if g.depth == len(g.taps) and small:
        zero = {"w_zero": zeros[1].format(map="map")} if zeros else {}
        return _depthwise(call, g, context | zero | runs)
    zero = {"w_zero": zeros[1].format(map=f"group * {g.maps} + i")} if zeros else {}
    return _patches(call, g, context | zero, zeros is not None)


def _depthwise(call: Call, g: _Geometry, context: dict[str, Any]) -> str:
    """A map of one channel each: lines of results, tap by tap."""
    lines, ahead = list(g.out[:-1]), [Extent(m) for m in g.moves[:-1]]
    return call.render(
        "depthwise",
        rows=g.batch * Extent(g.groups * g.maps) * product(lines),
        work=g.work,
        columns=_COLUMNS,
        exact=_EXACT,
        lines=product(lines),
        decode=_coordinates(f"row % {product(lines)}", lines, ahead),
        source=offset("i", ahead),
        width=g.out[-1],
        **context,
    )


def _patches(call: Call, g: _Geometry, context: dict[str, Any], integer: bool) -> str:
    """A product of weights and patches of x, a panel of them at a time."""
    s = suffix(call.inputs[0].dtype)
    span = sum((d.coef - 1) * step for d, step in zip(g.out, g.steps, strict=True)) + 1
    flat = g.moves == g.steps and span * (1 - _WASTE) <= g.places.coef
    columns = span if flat else g.places
    nr, mc = ("OP_INT_NR", "OP_INT_MC") if integer else (f"OP_NR_{s}", "OP_MC")
    blocks = f"(({columns} + {nr} - 1) / {nr})"
    units = f"(({g.maps} + {mc} - 1) / {mc})"
    return call.render(
        "conv",
        rows=f"({g.batch} * {g.groups} * {blocks} * {units})",
        work=g.work,
        nr=nr,
        mc=mc,
        kc="OP_INT_KC" if integer else f"OP_KC_{s}",
        block=f"op_gemm_block_{s}",
        word=f"op_int_word_{s}(from, {'c' if flat else 'at[c]'})",
        depth=g.depth,
        places=g.places,
        span=columns,
        flat=flat,
        **(_in_order(g) if flat else _one_by_one(g)),
        **context,
    )


def _in_order(g: _Geometry) -> dict[str, Any]:
    """Patches that lie one element apart, those between the lines of the result included."""
    rank = len(g.out)
    results = strides(list(g.out))
    # The first coordinate counts for the target only.
    used = [*([results[0]] if rank > 1 else []), *[ONE] * max(rank - 1, 1)]
    inner = [f"i{k} < {g.out[k]}" for k in range(1, rank - 1)]
    return {
        "decode": _coordinates("place", list(g.size), used),
        "last": f"i{rank - 1}",
        "length": g.size[-1],
        "kept": g.out[-1],
        "inside": " && ".join([*inner, "kept > 0"]),
        "target": offset("i", results),
    }


def _one_by_one(g: _Geometry) -> dict[str, Any]:
    """Patches that each result finds by its coordinates."""
    every = [Extent(m) for m in g.moves]
    return {
        "decode": _coordinates("place", list(g.out), every),
        "source": offset("i", every),
    }


def _runs(taps: list[int], apart: int, last: int, step: int) -> dict[str, Any]:
    """How a depthwise kernel reads lines whose places are `step` elements apart.

    Args:
        taps: offsets of all taps; the last axis is the inner one.
        apart: distance of two taps along the last axis.
        last: taps along the last axis.
        step: distance of two places of a line.

    Returns:
        The runs that are copied, (begin, elements beyond one for each place), and the taps as
        offsets into those, `pitch` elements each.
    """
    runs: dict[int, int] = {}
    places = []
    for i, tap in enumerate(taps):
        ahead = i % last * apart // step
        begin = tap - ahead * step
        runs[begin] = max(runs.get(begin, 0), ahead)
        places.append((begin, ahead))
    pitch = _COLUMNS + max(runs.values())
    order = {begin: k for k, begin in enumerate(runs)}
    moved = [order[begin] * pitch + ahead for begin, ahead in places]
    return {"runs": list(runs.items()), "pitch": pitch, "step": step, "taps": moved}


def _coordinates(index: str, dims: list[Extent], used: list[Extent]) -> list[str]:
    """C statements for the coordinates i0, i1, ... that an expression with these factors uses."""
    return decode(f"({index})" if " " in index else index, dims, "i", [used])
