"""ONNX ops that move elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sparsec.compiler.frontend import symbolic
from sparsec.compiler.frontend.folding import FOLD_LIMIT
from sparsec.compiler.frontend.importer import Importer, OnnxNode, normal_axis, onnx_op
from sparsec.compiler.frontend.tensor import Fail, Tensor, constant, fixed
from sparsec.compiler.ir import BATCH, BatchDim, Dim, Shape, element_count

_LARGEST = (2**31 - 1, 2**63 - 1)
_FAR = 10**8
"""No batch is as large: from here on an index of a slice means its end, or its beginning if < 0."""


@onnx_op("Reshape", static=(1,))
def _reshape(c: Importer, n: OnnxNode) -> Tensor:
    """0 copies an extent (unless allowzero), one -1 takes what remains."""
    x = n[0]
    if n.version < 5:
        raise Fail("Reshape before opset 5 is not supported")
    target = c.ints(n[1])
    if not n.attrs.get("allowzero", 0):
        target = [x.shape[i] if d == 0 else d for i, d in enumerate(target)]
    target = _for_any_batch(c, x, target)
    if target.count(-1) > 1:
        raise Fail(f"the target shape {target} has more than one -1")
    if -1 in target:
        rest = element_count([d for d in target if d != -1])
        if rest == 0:
            raise Fail(f"the -1 in {target} is undefined")
        total = element_count(x.shape)
        if isinstance(rest, BatchDim) and not isinstance(total, BatchDim):
            raise Fail(f"{list(x.shape)} does not reshape to {target} for every batch size")
        if not isinstance(rest, BatchDim) and total % rest != 0:
            raise Fail(f"{list(x.shape)} does not reshape to {target}")
        target[target.index(-1)] = total // rest  # type: ignore[operator]
    return c.reshape(x, target)


def _for_any_batch(c: Importer, x: Tensor, target: list[Dim]) -> list[Dim]:
    """The target shape, where an export of a fixed batch size has written that size into it.

    For the size that was exported the result means the same.
    """
    size = c.exported_batch
    if not size or not target or any(isinstance(d, BatchDim) for d in target):
        return target
    first = target[0]
    if isinstance(first, BatchDim) or first <= 0 or first % size:
        return target
    if not x.shape or not isinstance(x.shape[0], BatchDim):
        return target
    if -1 in target and (first != size or x.shape[0] != BATCH):
        return target  # the -1 takes up the batch
    return [BatchDim(first // size), *target[1:]]


@onnx_op("Flatten")
def _flatten(c: Importer, n: OnnxNode) -> Tensor:
    x = n[0]
    axis = n.attrs.get("axis", 1)
    axis += len(x.shape) if axis < 0 else 0
    return c.reshape(x, (element_count(x.shape[:axis]), element_count(x.shape[axis:])))


def axes_of(c: Importer, n: OnnxNode, index: int, since: int) -> list[int] | None:
    """Axes from input `index` (from opset `since` on) or from the attribute; None if absent."""
    if n.version >= since:
        given = n.optional(index)
        return None if given is None else c.plain_ints(given)
    axes = n.attrs.get("axes")
    return None if axes is None else list(axes)


@onnx_op("Squeeze", static=(1,))
def _squeeze(c: Importer, n: OnnxNode) -> Tensor:
    x = n[0]
    axes = axes_of(c, n, 1, 13)
    if axes is None:
        drop = {i for i, d in enumerate(x.shape) if d == 1}
    else:
        drop = {normal_axis(a, len(x.shape)) for a in axes}
    if any(x.shape[i] != 1 for i in drop):
        raise Fail(f"axes {sorted(drop)} of {list(x.shape)} are not all 1")
    return c.reshape(x, [d for i, d in enumerate(x.shape) if i not in drop])


@onnx_op("Unsqueeze", static=(1,))
def _unsqueeze(c: Importer, n: OnnxNode) -> Tensor:
    x = n[0]
    axes = axes_of(c, n, 1, 13)
    if axes is None:
        raise Fail("it has no axes")
    return unsqueeze(c, x, axes)


def unsqueeze(c: Importer, x: Tensor, axes: Sequence[int]) -> Tensor:
    """The tensor with extents of 1 inserted at these axes of the result."""
    rank = len(x.shape) + len(axes)
    new = {normal_axis(a, rank) for a in axes}
    if len(new) != len(axes):
        raise Fail(f"axes {list(axes)} name one axis twice")
    rest = iter(x.shape)
    return c.reshape(x, [1 if i in new else next(rest) for i in range(rank)])


@onnx_op("Transpose")
def _transpose(c: Importer, n: OnnxNode) -> Tensor:
    return c.transpose(n[0], n.attrs.get("perm") or reversed(range(len(n[0].shape))))


@onnx_op("Concat")
def _concat(c: Importer, n: OnnxNode) -> Tensor:
    parts = [n[i] for i in range(len(n.inputs))]
    axis = normal_axis(n.attrs["axis"], len(parts[0].shape))
    parts = [p for p in parts if p.shape[axis] != 0] or parts[:1]
    return parts[0] if len(parts) == 1 else c.emit("concat", *parts, axis=axis)


@onnx_op("Split", static=(1,))
def _split(c: Importer, n: OnnxNode) -> Sequence[Tensor]:
    """Sizes: attribute before 13, input after; num_outputs since 18, its last part may be short.

    Without any of these, the parts are equal.
    """
    x = n[0]
    axis = normal_axis(n.attrs.get("axis", 0), len(x.shape))
    extent = x.shape[axis]
    if isinstance(extent, BatchDim):
        raise Fail("the batch cannot be split")
    given = n.optional(1)
    if given is not None:
        sizes = c.plain_ints(given)
    elif "split" in n.attrs:
        sizes = list(n.attrs["split"])
    else:
        count = n.attrs.get("num_outputs", len(n.outputs))
        if n.version < 18 and extent % count:
            raise Fail(f"{extent} elements of axis {axis} cannot be split into {count} equal parts")
        part = -(-extent // count)
        sizes = [max(0, min(part, extent - i * part)) for i in range(count)]
    return c.emit_multi("split", x, axis=axis, sizes=tuple(sizes))


@onnx_op("Slice", static=(1, 2, 3, 4))
def _slice(c: Importer, n: OnnxNode) -> Tensor:
    x = n[0]
    if n.version < 10:
        starts: list[Dim] = list(n.attrs["starts"])
        ends: list[Dim] = list(n.attrs["ends"])
        axes = list(n.attrs.get("axes", range(len(starts))))
        steps = [1] * len(starts)
    else:
        starts, ends = c.ints(n[1]), c.ints(n[2])
        given, strides = n.optional(3), n.optional(4)
        axes = list(range(len(starts))) if given is None else c.plain_ints(given)
        steps = [1] * len(starts) if strides is None else c.plain_ints(strides)
    cuts = []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis = normal_axis(axis, len(x.shape))
        first, last = _clamp(start, end, step, x.shape[axis])
        if (first, last, step) != (0, x.shape[axis], 1):
            if isinstance(first, BatchDim) or isinstance(last, BatchDim):
                raise Fail(f"[{start}:{end}:{step}] of axis {axis} depends on the batch size")
            cuts.append((first, last, axis, step))
    if not cuts:
        return x
    first_, last_, axes_, steps_ = zip(*cuts, strict=True)
    return c.emit("slice", x, starts=first_, ends=last_, axes=axes_, steps=steps_)


def _clamp(start: Dim, end: Dim, step: int, extent: Dim) -> tuple[Dim, Dim]:
    """Starts and ends as Python's ``range`` wants them, inside the axis."""
    if step == 0:
        raise Fail("a step of 0")
    if not isinstance(extent, BatchDim) and not isinstance(start, BatchDim):
        # An end that grows with the batch is past the end of a fixed axis only by luck.
        if isinstance(end, BatchDim):
            raise Fail(f"an end at {end} of an axis of {extent} depends on the batch size")
        # As in ONNX Runtime, the largest integers mean "to the end" backwards, too.
        stop = None if end in _LARGEST and step < 0 else end
        # A start before the axis is its first element, where Python's would be before it.
        first, last, _ = slice(max(start, -extent), stop, step).indices(extent)
        # `slice` and the core op agree on a negative step's end of -1: "through element 0".
        return first, last
    if step != 1:
        raise Fail("the batch is cut with a step")

    def inside(at: Dim) -> Dim:
        if isinstance(at, int) and abs(at) >= _FAR:
            return extent if at > 0 else 0
        at = extent + at if at < 0 else at
        return at if at <= extent else extent

    return inside(start), inside(end)


def check_indices(indices: Tensor, extent: Dim, axis: int, part: Any = ...) -> None:
    """Refuse indices that are known at compile time and outside of an axis whose extent is.

    Args:
        indices: known or not.
        extent: of the axis.
        axis: for the message.
        part: which of the indices go along this axis.

    Raises:
        Fail: one of them is outside.
    """
    if not indices.known or isinstance(extent, BatchDim):
        return
    values = indices.contents()[part]
    wrong = values if indices.symbolic else values[(values < -extent) | (values >= extent)]
    if wrong.size:
        raise Fail(f"index {wrong.flat[0]} is outside the {extent} elements of axis {axis}")


@onnx_op("Gather")
def _gather(c: Importer, n: OnnxNode) -> Tensor:
    x, indices = n[0], n[1]
    axis = normal_axis(n.attrs.get("axis", 0), len(x.shape))
    extent = x.shape[axis]
    if indices.symbolic and not x.known:
        return _gather_flat(c, x, axis, indices)
    if indices.known and not isinstance(extent, BatchDim):
        values = indices.contents()
        check_indices(indices, extent, axis)
        if not indices.uniform and values.size == 1:
            # One element is a slice, which needs no index at run time.
            at = int(values.reshape(-1)[0]) % max(extent, 1)
            part = x
            if extent != 1:
                part = c.emit("slice", x, starts=(at,), ends=(at + 1,), axes=(axis,), steps=(1,))
            return c.reshape(part, (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))
    return c.emit("gather", x, indices, axis=axis)


@onnx_op("Expand", static=(1,))
def _expand(c: Importer, n: OnnxNode) -> Tensor:
    x, target = n[0], c.ints(n[1])
    size = c.exported_batch
    if size and size > 1 and target[:1] == [size] and len(target) >= len(x.shape):
        lead = x.shape[0] if len(target) == len(x.shape) else 1
        if lead == BATCH or (lead == 1 and not x.known):
            target = [BATCH, *target[1:]]
    return c.expand(x, target)


@onnx_op("Tile", static=(1,))
def _tile(c: Importer, n: OnnxNode) -> Tensor:
    """[a, b] tiled (r, s): reshape to [1, a, 1, b], expand to [r, a, s, b], reshape."""
    x = n[0]
    repeats = c.ints(n[1])
    if len(repeats) != len(x.shape):
        raise Fail(f"{len(repeats)} repeats for rank {len(x.shape)}")
    if all(r == 1 for r in repeats):
        return x
    shape = [r * d for r, d in zip(repeats, x.shape, strict=True)]
    if all(r == 1 or d == 1 for r, d in zip(repeats, x.shape, strict=True)):
        return c.expand(x, shape)
    apart = [e for d in x.shape for e in (1, d)]
    spread = [e for r, d in zip(repeats, x.shape, strict=True) for e in (r, d)]
    return c.reshape(c.expand(c.reshape(x, apart), spread), shape)


@onnx_op("Pad", static=(1, 3))
def _pad(c: Importer, n: OnnxNode) -> Tensor:
    """Constant padding is a concat, other modes are gathers; negative pads cut."""
    x = n[0]
    mode = n.attrs.get("mode", "constant")
    if mode not in ("constant", "edge", "reflect", "wrap"):
        raise Fail(f"mode {mode} is not supported")
    pads = list(n.attrs["pads"]) if n.version < 11 else c.plain_ints(n[1])
    fill = n.optional(2)
    value = fill if fill is not None else c.scalar(n.attrs.get("value", 0), x)
    given = n.optional(3)
    rank = len(x.shape)
    axes = [normal_axis(a, rank) for a in c.plain_ints(given)] if given else list(range(rank))
    if len(pads) != 2 * len(axes):
        raise Fail(f"{len(pads)} pads for {len(axes)} axes")
    for i, axis in enumerate(axes):
        before, after = pads[i], pads[i + len(axes)]
        if before < 0 or after < 0:
            extent = fixed(x.shape[axis])
            start, end = max(0, -before), extent - max(0, -after)
            x = c.emit("slice", x, starts=(start,), ends=(end,), axes=(axis,), steps=(1,))
        before, after = max(before, 0), max(after, 0)
        if mode == "constant":
            x = pad_constant(c, x, axis, before, after, value)
        elif before or after:
            extent = fixed(x.shape[axis])
            if not extent or before + after > min(extent * 2**16, FOLD_LIMIT // 8):
                raise Fail(f"pads of {before} and {after} around {extent} elements")
            at = np.pad(np.arange(extent), (before, after), mode=mode)
            x = c.emit("gather", x, constant(at, "padded"), axis=axis)
    return x


def pad_constant(
    c: Importer, x: Tensor, axis: int, before: int, after: int, value: Tensor
) -> Tensor:
    """The tensor with a number (a tensor of one element) around it along one axis."""
    if not before and not after:
        return x
    if isinstance(x.shape[axis], BatchDim):
        raise Fail("the batch is padded")
    one = c.reshape(value, (1,) * len(x.shape))
    front, back = (
        c.expand(one, (*x.shape[:axis], size, *x.shape[axis + 1 :])) for size in (before, after)
    )
    parts = [part for part, size in ((front, before), (x, 1), (back, after)) if size]
    return c.emit("concat", *parts, axis=axis)


@onnx_op("DepthToSpace")
def _depth_to_space(c: Importer, n: OnnxNode) -> Tensor:
    """[B, C, H, W] -> [B, C / s^2, H s, W s]: channels become places."""
    x, size = n[0], int(n.attrs["blocksize"])
    batch, maps, height, width = x.shape
    last = n.attrs.get("mode", "DCR") == "CRD"
    kept = fixed(maps) // size**2
    apart = (kept, size, size) if last else (size, size, kept)
    perm = (0, 1, 4, 2, 5, 3) if last else (0, 3, 4, 1, 5, 2)
    spread = c.transpose(c.reshape(x, (batch, *apart, height, width)), perm)
    return c.reshape(spread, (batch, kept, height * size, width * size))


@onnx_op("SpaceToDepth")
def _space_to_depth(c: Importer, n: OnnxNode) -> Tensor:
    """[B, C, H s, W s] -> [B, s^2 C, H, W]: places become channels."""
    x, size = n[0], int(n.attrs["blocksize"])
    batch, maps, height, width = x.shape
    rows, columns = fixed(height) // size, fixed(width) // size
    apart = c.reshape(x, (batch, maps, rows, size, columns, size))
    perm = (0, 1, 3, 5, 2, 4) if n.attrs.get("mode", "DCR") == "CRD" else (0, 3, 5, 1, 2, 4)
    return c.reshape(c.transpose(apart, perm), (batch, size**2 * maps, rows, columns))


@onnx_op("Trilu", static=(1,))
def _trilu(c: Importer, n: OnnxNode) -> Tensor:
    x = n[0]
    given = n.optional(1)
    k = c.plain_ints(given)[0] if given is not None else 0
    rows, columns = x.shape[-2:]
    if isinstance(rows, BatchDim) or isinstance(columns, BatchDim):
        raise Fail("a triangle of the batch")
    k = max(-rows, min(k, columns))  # beyond, numpy's integers would overflow
    full = np.ones((rows, columns), np.bool_)
    keep = constant(np.triu(full, k) if n.attrs.get("upper", 1) else np.tril(full, k), "triangle")
    if x.dtype == np.bool_:
        return c.emit("and", x, keep)
    return c.emit("where", keep, x, c.scalar(0, x))


def check_tuples(indices: Tensor, extents: Shape, first: int = 0) -> None:
    """Like :func:`check_indices` for tuples of indices; the first of each is along axis `first`."""
    depth = fixed(indices.shape[-1])
    if indices.known and not indices.symbolic and depth <= len(extents):
        stored = indices.contents().shape[-1]  # 1 where all are the same
        for i in range(depth):
            at = min(i, stored - 1)
            check_indices(indices, extents[i], first + i, (..., slice(at, at + 1)))


@onnx_op("GatherND")
def _gather_nd(c: Importer, n: OnnxNode) -> Tensor:
    """Indices x[b, k, ..] of every sample's own index b and constant k are special.

    They are a gather along the other indexed axes, taken as one.
    """
    x, indices = n[0], n[1]
    if not indices.symbolic:
        shared = int(n.attrs.get("batch_dims", 0))
        check_tuples(indices, x.shape[shared:], shared)
        return c.emit("gather_nd", x, indices, batch_dims=shared)
    table = indices.contents()
    count = table.shape[-1]
    if not indices.shape or count != indices.shape[-1] or not 1 <= count <= len(x.shape):
        raise Fail("its indices are not supported")
    _check_per_sample(indices.shape[:-1])
    extents = x.shape[1:count]
    if x.shape[0] != BATCH:
        raise Fail("the batch is indexed together with other axes")
    if not all(v == symbolic.INDEX for v in table[..., 0].flat):
        raise Fail("it is supported only with compile-time indices, the first along the batch")
    flat = np.zeros(table.shape[:-1], object)
    for i, extent in enumerate(extents, start=1):
        flat = flat * extent + _inside(table[..., i], fixed(extent))
    x = c.reshape(x, (x.shape[0], element_count(extents), *x.shape[count:]))
    return _gather_samples(c, x, 0, flat, indices.shape[:-1])


def _gather_flat(c: Importer, x: Tensor, axis: int, indices: Tensor) -> Tensor:
    """Gather from an axis of batch * S elements at S * b + k: every sample from its own part."""
    extent = x.shape[axis]
    size = extent.coef if isinstance(extent, BatchDim) else 0
    parts = (*x.shape[:axis], BATCH, size, *x.shape[axis + 1 :])

    def own(v: object) -> object:
        return v.offset if isinstance(v, symbolic.PerSample) and v.stride == size else None

    offsets = np.frompyfunc(own, 1, 1)(indices.contents())
    _check_per_sample(indices.shape)
    if any(v is None for v in np.asarray(offsets, object).flat):
        raise Fail("its indices are not supported: they mix the samples of a batch")
    return _gather_samples(c, c.reshape(x, parts), axis, _inside(offsets, size), indices.shape)


def _check_per_sample(shape: Shape) -> None:
    batch = [i for i, d in enumerate(shape) if isinstance(d, BatchDim)]
    if len(batch) != 1 or shape[batch[0]] != BATCH or any(d != 1 for d in shape[: batch[0]]):
        raise Fail(f"indices of shape {list(shape)} along the batch are not supported")


def _inside(values: np.ndarray, extent: int) -> np.ndarray:
    """Integer indices, negative ones counted from the end."""
    numbers = [v for v in np.asarray(values, object).flat if isinstance(v, int)]
    if len(numbers) < values.size or any(not -extent <= v < extent for v in numbers):
        raise Fail(f"an index is outside the {extent} elements of its axis")
    return np.asarray(values % extent, object)


def _gather_samples(c: Importer, x: Tensor, axis: int, at: np.ndarray, shape: Shape) -> Tensor:
    """x [.., batch, S, ..] gathered at positions that are the same for every sample.

    Args:
        axis: the batch axis of x; its successor is gathered from.
        at: positions, uniform along the batch.
        shape: of the indices, which replaces both axes.
    """
    full = tuple(1 if isinstance(d, BatchDim) else d for d in shape)
    flat = np.broadcast_to(at, full).reshape(-1).astype(np.int64)
    out = (*x.shape[:axis], *shape, *x.shape[axis + 2 :])
    if not np.array_equal(flat, np.arange(fixed(x.shape[axis + 1]))):
        x = c.emit("gather", x, constant(flat, "positions"), axis=axis + 1)
    return c.reshape(x, out)


@onnx_op("GatherElements")
def _gather_elements(c: Importer, n: OnnxNode) -> Tensor:
    """Of a constant that varies along `axis` only it is a gather."""
    x, indices = n[0], n[1]
    axis = normal_axis(n.attrs.get("axis", 0), len(x.shape))
    check_indices(indices, x.shape[axis], axis)
    table = np.zeros(0) if indices.known or not x.known or x.symbolic else x.contents()
    first = table[tuple(slice(None) if i == axis else slice(0, 1) for i in range(table.ndim))]
    if not table.size or np.any(table != first):
        return c.emit("gather_elements", x, indices, axis=axis)
    if np.all(first == first.reshape(-1)[0]):
        return c.expand(constant(first.reshape(-1)[0]), indices.shape)
    flat = np.broadcast_to(first.reshape(-1), (fixed(x.shape[axis]),))
    return c.emit("gather", constant(flat.copy(), x.hint), indices, axis=0)


@onnx_op("NonZero", static=(0,))
def _non_zero(c: Importer, n: OnnxNode) -> Tensor:
    """Its result's shape depends on the data: only of what is known at compile time."""
    x = n[0]
    if not x.known or x.symbolic or x.uniform:
        raise Fail("how much it gives depends on the values of the inputs")
    array = x.contents()
    return constant(np.stack(np.nonzero(array)) if array.ndim else np.zeros((0, 1), np.int64))
