"""Nodes whose indices are data.

An index outside of its axis is moved to the nearest element, and `rt->fault` says so.
"""

from __future__ import annotations

from sparsec.compiler.codegen.general.extents import (
    ONE,
    ZERO,
    Extent,
    decode,
    extents,
    offset,
    product,
    strides,
)
from sparsec.compiler.codegen.general.layout import outside
from sparsec.compiler.codegen.general.render import Call, c_type, suffix


def emit_gather_elements(call: Call) -> str:
    """One element for each index, at the index' own coordinates but for the axis."""
    x, indices = call.inputs
    axis = int(call.node.attrs["axis"])
    dims = extents(indices.shape)
    if x.shape[axis] == 0:
        return outside(call)
    steps, step = _without_axis(strides(extents(x.shape)), axis)
    last = steps.pop() == ZERO  # the axis itself, or an extent of 1
    c_type(indices.dtype)
    return call.render(
        "gather_elements",
        rows=product(dims[:-1]),
        work=product(dims),
        decode=decode("row", dims[:-1], "i", [steps]),
        base=offset("i", steps),
        step=step,
        last=last,
        inner=dims[-1],
        extent=Extent.of(x.shape[axis]),
    )


def _without_axis(steps: list[Extent], axis: int) -> tuple[list[Extent], Extent]:
    """Strides with that of the axis set to 0, and that one."""
    return [*steps[:axis], ZERO, *steps[axis + 1 :]], steps[axis]


def emit_gather_nd(call: Call) -> str:
    """One run for each tuple of indices."""
    x, indices = call.inputs
    shared, depth = int(call.node.attrs["batch_dims"]), int(str(indices.shape[-1]))
    dims, rows = extents(x.shape), extents(indices.shape)[:-1]
    if ZERO in dims[shared : shared + depth]:
        return outside(call, depth, dims[shared:].index(ZERO))
    inner = product(dims[shared + depth :])
    return call.render(
        "gather_nd",
        rows=product(rows),
        work=product(rows) * inner,
        count=product(rows[shared:]),
        shared=bool(shared),
        sample=product(dims[shared:]),
        depth=depth,
        terms=_terms(dims[shared:], depth),
        inner=inner,
    )


def _terms(dims: list[Extent], depth: int) -> list[tuple[Extent, Extent]]:
    """Extent and stride of the axes that a tuple of indices names."""
    return [(dims[i], product(dims[i + 1 :])) for i in range(depth)]


def emit_scatter_nd(call: Call) -> str:
    """A copy, then one run after another, since several may go to one place."""
    x, indices, _ = call.inputs
    depth = int(str(indices.shape[-1]))
    dims = extents(x.shape)
    if ZERO in dims[:depth]:
        return outside(call, depth, dims.index(ZERO))
    count, inner = product(extents(indices.shape)[:-1]), product(dims[depth:])
    return call.render(
        "scatter_nd",
        rows=ONE,
        work=product(dims),
        size=product(dims),
        count=count,
        depth=depth,
        terms=_terms(dims, depth),
        inner=inner,
        combine=_combine(call),
    )


def emit_scatter_elements(call: Call) -> str:
    """A copy, then one element after another."""
    x, indices, _ = call.inputs
    axis = int(call.node.attrs["axis"])
    if x.shape[axis] == 0:
        return outside(call)
    steps, step = _without_axis(strides(extents(x.shape)), axis)
    dims = extents(indices.shape)
    return call.render(
        "scatter_elements",
        rows=ONE,
        work=product(extents(x.shape)),
        size=product(extents(x.shape)),
        count=product(dims),
        decode=decode("row", dims, "i", [steps]),
        base=offset("i", steps),
        step=step,
        extent=Extent.of(x.shape[axis]),
        combine=_combine(call),
    )


def _combine(call: Call) -> str:
    """C expression of an element that was ``%s`` and meets the update ``%s``."""
    how = call.node.attrs["reduction"]
    dtype = call.inputs[0].dtype
    if how == "none":
        return ""
    if how in ("add", "mul") and dtype.kind == "f":
        return "%s + %s" if how == "add" else "%s * %s"
    return f"op_{how}_{suffix(dtype)}(%s, %s)"


def _begin(extent: Extent, inner: Extent) -> str:
    """Where line number `row` along an axis begins; `inner` elements are behind the axis."""
    if inner == ONE:
        return f"row * {extent}"
    return f"row / {inner} * {extent * inner} + row % {inner}"


def _lines(call: Call) -> tuple[list[Extent], Extent, Extent, Extent]:
    """Extents, and those in front of, along and behind the axis."""
    axis = int(call.node.attrs["axis"])
    dims = extents(call.inputs[0].shape)
    return dims, product(dims[:axis]), dims[axis], product(dims[axis + 1 :])


def emit_extreme_index(call: Call) -> str:
    """Position of the first (or last) extreme element of each line."""
    dims, outer, extent, inner = _lines(call)
    larger = call.node.op == "argmax"
    type_ = c_type(call.inputs[0].dtype)
    sign = ">" if larger else "<"
    return call.render(
        "argmax",
        rows=outer * inner,
        work=product(dims),
        type=type_,
        extent=extent,
        inner=inner,
        line=_begin(extent, inner),
        better=f"v {sign}{'=' if call.node.attrs['last'] else ''} best",
        floating=call.inputs[0].dtype.kind == "f",
        last=bool(call.node.attrs["last"]),
    )


def emit_topk(call: Call) -> str:
    """A heap of the best elements so far, in the output itself, then sorted in place."""
    dims, outer, extent, inner = _lines(call)
    k = int(call.node.attrs["k"])
    return call.render(
        "topk",
        rows=outer * inner,
        work=product(dims) * Extent(max(k, 1).bit_length()),
        type=c_type(call.inputs[0].dtype),
        extent=extent,
        inner=inner,
        line=_begin(extent, inner),
        k=k,
        sign=">" if call.node.attrs["largest"] else "<",
        floating=call.inputs[0].dtype.kind == "f",
        largest=bool(call.node.attrs["largest"]),
    )
