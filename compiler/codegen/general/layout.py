"""Layout nodes: copies with strides, blocked transposes, and runs that are moved whole."""

from __future__ import annotations

from collections.abc import Sequence

from sparsec.compiler.codegen.general.extents import (
    ONE,
    ZERO,
    Extent,
    broadcast_strides,
    collapse,
    decode,
    extents,
    offset,
    product,
    strides,
    total,
)
from sparsec.compiler.codegen.general.render import Call, c_type

# Side of the square blocks in which two axes change places, in bytes: a cache line.
BLOCK = 64


def emit_reshape(call: Call) -> str:
    """A plain copy."""
    return _strided(call, [product(extents(call.outputs[0].shape))], [ONE])


def emit_expand(call: Call) -> str:
    """A copy that repeats elements."""
    shape = call.outputs[0].shape
    return _strided(call, extents(shape), broadcast_strides(call.inputs[0].shape, len(shape)))


def emit_slice(call: Call) -> str:
    """A copy with steps of any sign; starts and ends lie inside the axes."""
    attrs = call.node.attrs
    steps = strides(extents(call.inputs[0].shape))
    shape = extents(call.outputs[0].shape)
    base = []
    for start, axis, step in zip(attrs["starts"], attrs["axes"], attrs["steps"], strict=True):
        if start and steps[axis] != ZERO:
            base.append(str(steps[axis] * Extent(int(start))))
        steps[axis] = steps[axis] * Extent(int(step))
    return _strided(call, shape, steps, total(*base))


def emit_transpose(call: Call) -> str:
    """A copy of runs where the last axis stays, else blocks in which two axes change places."""
    source = strides(extents(call.inputs[0].shape))
    dims, (steps,) = collapse(
        extents(call.outputs[0].shape), [[source[p] for p in call.node.attrs["perm"]]]
    )
    if not dims or steps[-1] == ONE:
        return _strided(call, dims, steps)
    across = steps.index(ONE)
    out = strides(dims)
    outer = [k for k in range(len(dims) - 1) if k != across]
    block = BLOCK // call.inputs[0].dtype.itemsize
    blocks = f"(({dims[across]} + {block - 1}) / {block})"
    return call.render(
        "transpose",
        rows=f"({product(dims[k] for k in outer)} * {blocks})",
        work=product(dims),
        block=block,
        blocks=blocks,
        decode=decode("outer", [dims[k] for k in outer], "i", [[out[k] for k in outer]]),
        source=offset("i", [steps[k] for k in outer]),
        target=offset("i", [out[k] for k in outer]),
        across=dims[across],
        along=dims[-1],
        across_target=out[across],
        along_source=steps[-1],
    )


def _strided(call: Call, dims: Sequence[Extent], steps: Sequence[Extent], base: str = "0") -> str:
    work = product(dims)
    dims, (steps,) = collapse(dims, [steps])
    inner, step = (dims[-1], steps[-1]) if dims else (ONE, ONE)
    outer = dims[:-1]
    return call.render(
        "strided",
        rows=product(outer) if outer else inner,
        work=work,
        flat=not outer,
        decode=decode("row", outer, "i", [steps]),
        source=total(base, offset("i", steps[:-1])) if outer else base,
        inner=inner,
        step=step,
    )


def emit_concat(call: Call) -> str:
    """Runs of every input after one another."""
    return _joined(call, [extents(v.shape) for v in call.inputs], "concat")


def emit_split(call: Call) -> str:
    """Runs dealt out to the outputs."""
    return _joined(call, [extents(v.shape) for v in call.outputs], "split")


def _joined(call: Call, parts: Sequence[Sequence[Extent]], template: str) -> str:
    axis = int(call.node.attrs["axis"])
    whole = extents((call.outputs if template == "concat" else call.inputs)[0].shape)
    runs = [product(part[axis:]) for part in parts]
    starts = ["0"]
    for run in runs:
        starts.append(total(starts[-1], str(run)))
    return call.render(
        template,
        rows=product(whole[:axis]),
        work=product(whole),
        runs=[(k, str(run), starts[k]) for k, run in enumerate(runs) if run != ZERO],
        stride=product(whole[axis:]),
    )


def emit_gather(call: Call) -> str:
    """Runs picked by index."""
    data, indices = call.inputs
    axis = int(call.node.attrs["axis"])
    dims = extents(data.shape)
    count = product(extents(indices.shape))
    outer, inner = product(dims[:axis]), product(dims[axis + 1 :])
    if dims[axis] == ZERO:
        return outside(call)
    c_type(indices.dtype)
    lines = inner == ONE and outer != ONE  # single elements: a row is all picks of one line
    return call.render(
        "gather",
        rows=outer if lines else outer * count,
        work=outer * count * inner,
        count=count,
        extent=dims[axis],
        inner=inner,
        run=count if lines else inner,
        lines=lines,
        single=inner == ONE,
    )


def outside(call: Call, depth: int = 1, which: int = 0) -> str:
    """Indices into a table that is empty: all of them are outside, and the result is zeros.

    Args:
        call: of a node whose second input is the indices.
        depth: how many indices name a place.
        which: the one of these whose axis is empty.
    """
    c_type(call.inputs[1].dtype)
    places = extents(call.inputs[1].shape)
    return call.render(
        "outside",
        rows=product(places if depth == 1 else places[:-1]),
        work=ONE,
        depth=depth,
        which=which,
        size=product(extents(call.outputs[0].shape)),
    )
