"""Reductions, softmax, cumulative sums and layer normalization."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsec.compiler.codegen.general.extents import (
    ONE,
    ZERO,
    Extent,
    collapse,
    decode,
    extents,
    offset,
    product,
    strides,
    total,
)
from sparsec.compiler.codegen.general.render import Call, c_type, suffix

# Columns that are reduced together where the last axis is kept.
COLUMNS = 64

_LIMITS = {
    "float32": ("-INFINITY", "INFINITY"),
    "float64": ("-INFINITY", "INFINITY"),
    "int64": ("INT64_MIN", "INT64_MAX"),
    "int32": ("INT32_MIN", "INT32_MAX"),
    "int16": ("INT16_MIN", "INT16_MAX"),
    "int8": ("INT8_MIN", "INT8_MAX"),
    "uint64": ("0", "UINT64_MAX"),
    "uint32": ("0", "UINT32_MAX"),
    "uint16": ("0", "UINT16_MAX"),
    "uint8": ("0", "UINT8_MAX"),
}


def emit_extremes(call: Call) -> str:
    """The least and the greatest of 0 and all elements, of those rows that are real."""
    *rows, inner = extents(call.inputs[0].shape)
    return call.render(
        "extremes",
        rows=product(rows),
        work=product([*rows, inner]),
        inner=inner,
        masked=len(call.inputs) > 1,
    )


def emit_reduce(call: Call) -> str:
    """Sum, product, mean, maximum or minimum over any axes.

    Floats are added and multiplied in double, integers modulo 2**64, and converted at the end.
    """
    x = call.inputs[0]
    axes = set(call.node.attrs["axes"])
    whole = extents(x.shape)
    name = call.node.op.removeprefix("reduce_")
    kept_strides = strides([ONE if i in axes else d for i, d in enumerate(whole)])
    dims, (steps, targets) = collapse(whole, [strides(whole), kept_strides])
    kept = [k for k in range(len(dims)) if targets[k] != ZERO]
    reduced = [k for k in range(len(dims)) if targets[k] == ZERO]
    along = not kept or (bool(dims) and kept[-1] != len(dims) - 1)
    inner = dims[-1] if dims else ONE
    if dims:
        (reduced if along else kept).pop()
    rows = product(dims[k] for k in kept)
    count = product(d for i, d in enumerate(whole) if i in axes)
    blocks = f"(({inner} + {COLUMNS - 1}) / {COLUMNS})"
    source = [steps[k] for k in kept]
    return call.render(
        "reduce",
        rows=rows if along else f"({rows} * {blocks})",
        work=product(whole),
        **_accumulator(name, x.dtype),
        finish=_finish(name, x.dtype, count),
        along=along,
        inner=inner,
        columns=COLUMNS,
        blocks=blocks,
        decode=decode("row", [dims[k] for k in kept], "i", [source]),
        at=total(offset("i", source), offset("k", [steps[k] for k in reduced])),
        loops=[(f"k{n}", dims[k], steps[k]) for n, k in enumerate(reduced)],
    )


def _accumulator(name: str, dtype: np.dtype[Any]) -> dict[str, str]:
    """What a reduction keeps of the elements so far, where it begins, and how it takes one more."""
    made = {"suffix": suffix(dtype), "type": c_type(dtype)}
    if name in ("max", "min"):
        start = _LIMITS[dtype.name][name == "min"]
        return made | {"name": name, "operator": "", "accumulator": c_type(dtype), "start": start}
    wide = "double" if dtype.kind == "f" else "uint64_t"
    operator, start = ("*=", "1") if name == "prod" else ("+=", "0")
    name = "sum" if name == "mean" else name
    return made | {"name": name, "operator": operator, "accumulator": wide, "start": start}


def _finish(name: str, dtype: np.dtype[Any], count: Extent) -> str:
    """C expression of the result; ``%s`` stands for the accumulator."""
    if name != "mean":
        return f"({c_type(dtype)})%s"
    if dtype.kind == "f":
        return f"({c_type(dtype)})(%s / (double){count})"
    total = "%s" if dtype.name == "uint64" else "(int64_t)%s"
    return "0" if count == ZERO else f"({c_type(dtype)})({total} / {count})"


def emit_softmax(call: Call) -> str:
    """Softmax of runs, or of columns where other axes follow."""
    x = call.inputs[0]
    axis = int(call.node.attrs["axis"])
    dims = extents(x.shape)
    outer, inner = product(dims[:axis]), product(dims[axis + 1 :])
    blocks = f"(({inner} + {COLUMNS - 1}) / {COLUMNS})"
    return call.render(
        "softmax",
        rows=outer if inner == ONE else f"({outer} * {blocks})",
        work=product(dims),
        type=c_type(x.dtype),
        suffix=suffix(x.dtype),
        along=inner == ONE,
        extent=dims[axis],
        inner=inner,
        block=dims[axis] * inner,
        blocks=blocks,
        columns=COLUMNS,
    )


def emit_cumsum(call: Call) -> str:
    """Running sums, added in the order in which numpy adds them."""
    x = call.inputs[0]
    attrs = call.node.attrs
    axis = int(attrs["axis"])
    dims = extents(x.shape)
    add = "%s + %s" if x.dtype.kind == "f" else f"op_add_{suffix(x.dtype)}(%s, %s)"
    return call.render(
        "cumsum",
        rows=product(dims[:axis]),
        work=product(dims),
        extent=dims[axis],
        inner=product(dims[axis + 1 :]),
        block=product(dims[axis:]),
        reverse=bool(attrs.get("reverse")),
        exclusive=bool(attrs.get("exclusive")),
        add=add,
    )


def emit_layernorm(call: Call) -> str:
    """Mean, then variance of the centred values, both summed in double."""
    x = call.inputs[0]
    dims = extents(x.shape)
    return call.render(
        "layernorm",
        rows=product(dims[:-1]),
        work=product(dims),
        type=c_type(x.dtype),
        suffix=suffix(x.dtype),
        root="sqrtf" if c_type(x.dtype) == "float" else "sqrt",
        extent=dims[-1],
        eps=float(call.node.attrs["eps"]).hex(),
    )
