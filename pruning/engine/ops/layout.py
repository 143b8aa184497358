"""Torch forms of the ops that move elements, and of those whose indices are data."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from sparsec.compiler.ir import bind_shape
from sparsec.pruning.engine.ops.form import Attrs, Form, Results
from sparsec.pruning.engine.table import Table


def _reshape(attrs: Attrs, x: Tensor) -> Results:
    return (x.reshape(bind_shape(attrs["shape"], attrs["_batch"])),)


def _transpose(attrs: Attrs, x: Tensor) -> Results:
    return (x.permute(tuple(attrs["perm"])),)


def _expand(attrs: Attrs, x: Tensor) -> Results:
    return (x.expand(bind_shape(attrs["shape"], attrs["_batch"])),)


def _concat(attrs: Attrs, *tensors: Tensor) -> Results:
    return (torch.cat(tensors, attrs["axis"]),)


def _slice(attrs: Attrs, x: Tensor) -> Results:
    for start, end, axis, step in zip(
        attrs["starts"], attrs["ends"], attrs["axes"], attrs["steps"], strict=True
    ):
        if step > 0:
            count = len(range(start, end, step))
            index: list[slice] = [slice(None)] * x.ndim
            index[axis] = slice(start, start + count * step, step)
            x = x[tuple(index)] if count else x.narrow(axis, 0, 0)
        else:
            places = torch.tensor(range(start, end, step), dtype=torch.int64, device=x.device)
            x = x.index_select(axis, places)
    return (x,)


def _inside(indices: Tensor, extent: int) -> Tensor:
    """Indices counted from the start; IndexError for one that is outside."""
    indices = indices.to(torch.int64)
    wrong = (indices < -extent) | (indices >= extent)
    if bool(wrong.any()):
        bad = int(indices[wrong].reshape(-1)[0])
        raise IndexError(f"index {bad} is outside the {extent} elements of its axis")
    return torch.where(indices < 0, indices + extent, indices)


def _gather(attrs: Attrs, x: Tensor, indices: Tensor) -> Results:
    axis = attrs["axis"]
    places = _inside(indices, x.shape[axis])
    if axis == 0 and isinstance(x, Table):
        return (functional.embedding(places, x, sparse=True),)
    shape = (*x.shape[:axis], *places.shape, *x.shape[axis + 1 :])
    return (x.index_select(axis, places.reshape(-1)).reshape(shape),)


def _split(attrs: Attrs, x: Tensor) -> Results:
    return torch.split(x, list(attrs["sizes"]), dim=attrs["axis"])


def _gather_elements(attrs: Attrs, x: Tensor, indices: Tensor) -> Results:
    axis = int(attrs["axis"])
    return (torch.gather(x, axis, _inside(indices, x.shape[axis])),)


def _gather_nd(attrs: Attrs, x: Tensor, indices: Tensor) -> Results:
    shared, depth = int(attrs["batch_dims"]), indices.shape[-1]
    spread = (1,) * (indices.ndim - 1 - shared)
    where = []
    for i, extent in enumerate(x.shape[:shared]):
        shape = [1] * shared
        shape[i] = extent
        own = torch.arange(extent, device=x.device).reshape(*shape, *spread)
        where.append(own)
    where += [_inside(indices[..., i], x.shape[shared + i]) for i in range(depth)]
    tail = x.shape[shared + depth :]
    out = x[tuple(where)] if where else x
    return (out.expand(*indices.shape[:-1], *tail),)


_REDUCTIONS = {"add": "sum", "mul": "prod", "min": "amin", "max": "amax"}


def _scatter(x: Tensor, axis: int, places: Tensor, updates: Tensor, how: str) -> Tensor:
    if how == "none":
        return x.scatter(axis, places, updates)
    return x.scatter_reduce(axis, places, updates, reduce=_REDUCTIONS[how], include_self=True)


def _scatter_elements(attrs: Attrs, x: Tensor, indices: Tensor, updates: Tensor) -> Results:
    axis = int(attrs["axis"])
    places = _inside(indices, x.shape[axis])
    return (_scatter(x, axis, places, updates, attrs["reduction"]),)


def _scatter_nd(attrs: Attrs, x: Tensor, indices: Tensor, updates: Tensor) -> Results:
    depth = indices.shape[-1]
    place = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=x.device)
    for i in range(depth):
        place = place * x.shape[i] + _inside(indices[..., i], x.shape[i])
    rows = math.prod(x.shape[:depth])
    width = math.prod(x.shape[depth:])
    flat = place.reshape(-1, 1).expand(-1, width)
    out = _scatter(x.reshape(rows, width), 0, flat, updates.reshape(-1, width), attrs["reduction"])
    return (out.reshape(x.shape),)


def _extreme(largest: bool, attrs: Attrs, x: Tensor) -> Results:
    axis, last = int(attrs["axis"]), bool(attrs["last"])
    x = x.flip(axis) if last else x
    find = torch.argmax if largest else torch.argmin
    out = find(x, dim=axis, keepdim=bool(attrs["keepdims"]))
    return (x.shape[axis] - 1 - out if last else out,)


def _topk(attrs: Attrs, x: Tensor) -> Results:
    axis, k = int(attrs["axis"]), int(attrs["k"])
    found = torch.sort(x, dim=axis, descending=bool(attrs["largest"]), stable=True)
    return found.values.narrow(axis, 0, k), found.indices.narrow(axis, 0, k)


ROWS = [
    Form("reshape", _reshape),
    Form("transpose", _transpose),
    Form("expand", _expand),
    Form("concat", _concat),
    Form("slice", _slice),
    Form("gather", _gather),
    Form("split", _split),
    Form("gather_elements", _gather_elements),
    Form("gather_nd", _gather_nd),
    Form("scatter_elements", _scatter_elements),
    Form("scatter_nd", _scatter_nd),
    Form("argmax", lambda attrs, x: _extreme(True, attrs, x)),
    Form("argmin", lambda attrs, x: _extreme(False, attrs, x)),
    Form("topk", _topk),
]
