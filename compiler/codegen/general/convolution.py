"""Convolutions: products of weights with patches; runs of lines where a group has one channel."""

from __future__ import annotations

import itertools
import math
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


def _emit(call: Call, zeros: tuple[str, str] | None) -> str:
    x, w = call.inputs[:2]
    y = call.outputs[0]
    attrs = call.node.attrs
    groups = int(attrs["groups"])
    maps, depth = int(str(w.shape[0])) // groups, math.prod(int(str(d)) for d in w.shape[1:])
    size = [Extent.of(d) for d in x.shape[2:]]
    out = [Extent(d) for d in conv_out(attrs, x.shape, w.shape)]
    plane = product(size).coef
    # strides() gives 0 along an extent of 1, where coordinates are 0 anyway.
    steps = [step.coef for step in strides(size)]
    moves = [s * step for s, step in zip(attrs["strides"], steps, strict=True)]
    apart = [d * step for d, step in zip(attrs["dilations"], steps, strict=True)]
    kernel = [range(int(str(k))) for k in w.shape[2:]]
    taps = [sum(map(int.__mul__, at, apart)) for at in itertools.product(*kernel)]
    if max(plane, depth, math.prod(d.coef for d in out)) > 2**31 - 1:
        raise NotGeneral(f"a convolution of {list(x.shape)} is larger than 2**31")
    context = {
        "maps": maps,
        "groups": groups,
        "taps": taps,
        "plane": plane,
        "x_type": c_type(x.dtype),
        "w_type": c_type(w.dtype),
        "y_type": c_type(y.dtype),
        "x_suffix": suffix(x.dtype),
        "w_suffix": suffix(w.dtype),
        "y_suffix": suffix(y.dtype),
        "integer": zeros is not None,
    }
    if zeros:
        x_zero, w_zero = zeros
        context |= {"x_zero": x_zero, "left_sums": needs_sums("RIGHT", x, x_zero)}
        context |= {"right_sums": needs_sums("LEFT", w, w_zero)}
    batch = Extent.of(x.shape[0])
    places = product(out)
    work = batch * Extent(groups * maps * depth) * places
    copied = zeros is not None or moves[-1] > 1
    runs = _runs(taps, apart[-1], len(kernel[-1]), max(moves[-1], 1)) if copied else _AS_IT_IS
    small = len(runs["runs"]) * runs["pitch"] <= _COPIED and not (zeros and len(taps) > _EXACT)
    if depth == len(taps) and small:
        lines, ahead = out[:-1], [Extent(m) for m in moves[:-1]]
        if zeros:
            context["w_zero"] = w_zero.format(map="map")
        return call.render(
            "depthwise",
            rows=batch * Extent(groups * maps) * product(lines),
            work=work,
            columns=_COLUMNS,
            exact=_EXACT,
            lines=product(lines),
            decode=_coordinates(f"row % {product(lines)}", lines, ahead),
            source=offset("i", ahead),
            width=out[-1],
            **(context | runs),
        )
    if zeros:
        context["w_zero"] = w_zero.format(map=f"group * {maps} + i")
    s = suffix(x.dtype)
    span = sum((d.coef - 1) * step for d, step in zip(out, steps, strict=True)) + 1
    flat = moves == steps and span * (1 - _WASTE) <= places.coef
    coordinates = size if flat else out
    context |= {
        "nr": "OP_INT_NR" if zeros else f"OP_NR_{s}",
        "mc": "OP_INT_MC" if zeros else "OP_MC",
        "kc": "OP_INT_KC" if zeros else f"OP_KC_{s}",
        "block": f"op_gemm_block_{s}",
        "word": f"op_int_word_{s}(from, {'c' if flat else 'at[c]'})",
        "depth": depth,
        "places": places,
        "span": span if flat else places,
        "flat": flat,
    }
    if flat:
        rank = len(out)
        results = strides(out)
        # The first coordinate counts for the target only.
        used = [*([results[0]] if rank > 1 else []), *[ONE] * max(rank - 1, 1)]
        inner = [f"i{k} < {out[k]}" for k in range(1, rank - 1)]
        context |= {
            "decode": _coordinates("place", coordinates, used),
            "last": f"i{rank - 1}",
            "length": size[-1],
            "kept": out[-1],
            "inside": " && ".join([*inner, "kept > 0"]),
            "target": offset("i", results),
        }
    else:
        every = [Extent(m) for m in moves]
        context |= {
            "decode": _coordinates("place", coordinates, every),
            "source": offset("i", every),
        }
    blocks = f"(({context['span']} + {context['nr']} - 1) / {context['nr']})"
    units = f"(({maps} + {context['mc']} - 1) / {context['mc']})"
    return call.render(
        "conv",
        rows=f"({batch} * {groups} * {blocks} * {units})",
        work=work,
        **context,
    )


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
