"""A model whose channels lie in another order: it computes the same, and loses less by pruning.

Channels whose order is free (`axes`), and those inside of a head or of a gated feed-forward part
(`structure`), are laid so that those that matter to the same outputs become neighbours
(`grouping`).  The residual stream may be among them: its tables, norms and matrices change
together, and what the model gives out is put back into the old order by a Gather.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from sparsec.compiler.frontend import Model
from sparsec.pruning import grouping
from sparsec.pruning.axes import Axis, free_channels
from sparsec.pruning.batches import Batch
from sparsec.pruning.blocks import BLOCK
from sparsec.pruning.engine import TorchModel
from sparsec.pruning.engine.opened import stored
from sparsec.pruning.layers import Layer
from sparsec.pruning.oneshot import block_sparsity, plain_form
from sparsec.pruning.structure import Site, feeds, sites

#: Tokens that channels are looked at with.
TOKENS = 16_384

#: Share of a layer's blocks that are zero already, from which on they are not torn apart.
PRUNED = 0.01

#: Share of the blocks that goes, where the goal does not say it.
USUAL = 0.7


@dataclass(frozen=True)
class Order:
    """Channels in another order.

    Attributes:
        moves: by axis of stored tensors, the old place of what is at each.
        outputs: axes of the model's outputs that would have the order of `back`.
        back: where each old channel is now.
    """

    moves: Mapping[Axis, tuple[int, ...]]
    outputs: tuple[Axis, ...] = ()
    back: tuple[int, ...] = ()


def find_orders(
    model: Model,
    dense: TorchModel,
    layers: Sequence[Layer],
    batches: Sequence[Batch],
    sparsity: float | None = None,
) -> list[Order]:
    """Orders that lose less when blocks go; those that change what the model computes are left out.

    Args:
        model: what `dense` was made of.
        layers: those that are to lose blocks.
        batches: texts.
        sparsity: about which share of the blocks goes.
    """
    keep = 1 - (USUAL if sparsity is None else sparsity)
    worth = saliencies(dense, layers, batches)
    by_name = {layer.name: layer for layer in layers}
    free = _free(model, dense, by_name, worth, keep)
    taken = {axis for order in free for axis in order.moves}
    inside = _inside(dense, by_name, worth, keep, taken)
    (batch, *_) = batches
    kept = free if _same(model, dense, free, batch) else []
    return kept + inside if _same(model, dense, kept + inside, batch) else kept


def apply(model: Model, orders: Sequence[Order]) -> Model:
    """The model in other orders."""
    if not orders:
        return model
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    moves: dict[str, list[tuple[int, tuple[int, ...]]]] = {}
    for order in orders:
        for (name, axis), places in order.moves.items():
            moves.setdefault(name, []).append((axis, places))
    for name, tensor in stored(replace(model, proto=proto, cache={})).items():
        if name in moves:
            array = model.array(tensor)
            for axis, places in moves[name]:
                array = array.take(places, axis)
            made = numpy_helper.from_array(np.ascontiguousarray(array), tensor.name)
            made.data_type = tensor.data_type
            tensor.CopyFrom(made)
    for order in orders:
        for name, axis in order.outputs:
            _put_back(proto.graph, name, axis, order.back)
    return replace(model, proto=proto, cache={})


def _put_back(graph: onnx.GraphProto, name: str, axis: int, places: Sequence[int]) -> None:
    """An output in the old order, behind one in the new order that all others read."""
    new, at = f"{name}_reordered", f"{name}_order"
    for node in graph.node:
        for names in (node.input, node.output):
            for i, known in enumerate(names):
                if known == name:
                    names[i] = new
    graph.initializer.append(numpy_helper.from_array(np.array(places, np.int64), at))
    graph.node.append(
        helper.make_node("Gather", [new, at], [name], name=f"{name}_Gather", axis=axis)
    )


def saliencies(
    dense: TorchModel, layers: Sequence[Layer], batches: Sequence[Batch]
) -> dict[str, Tensor]:
    """What each weight is worth, [N, K]: its square times the variance of its input."""
    names = [layer.name for layer in layers]
    count = dict.fromkeys(names, 0.0)
    sums = {layer.name: torch.zeros(2, layer.inputs, dtype=torch.float64) for layer in layers}
    tokens = 0
    with torch.no_grad():
        for batch in batches:
            kept = dense(batch.inputs, keep=names).inputs or {}
            for name, seen in kept.items():
                for x in seen:
                    weight = batch.rows(x)
                    rows = x.flatten(0, -2)
                    if weight is not None:
                        rows = rows[weight.flatten() > 0]
                    count[name] += len(rows)
                    sums[name] += torch.stack([rows.sum(0), rows.square().sum(0)])
            tokens += batch.tokens
            if tokens >= TOKENS:
                break
        found = {}
        for layer in layers:
            mean, square = sums[layer.name] / max(count[layer.name], 1.0)
            variance = (square - mean.square()).clamp_min(0)
            matrix = plain_form(layer, dense.weights[layer.name].detach())
            found[layer.name] = (matrix.square() * variance).float()
    return found


def _free(
    model: Model,
    dense: TorchModel,
    layers: Mapping[str, Layer],
    worth: Mapping[str, Tensor],
    keep: float,
) -> list[Order]:
    """Orders of channels that are free as they are."""
    found = []
    for channels in free_channels(model, dense.opened):
        axes = set(channels.stored)
        readers = [layer for layer in layers.values() if _input_axis(layer) in axes]
        if not readers or any(_pruned(dense, layer) for layer in readers):
            continue
        order = grouping.best_order([worth[layer.name] for layer in readers], keep)
        back = tuple(order.argsort().tolist()) if channels.outputs else ()
        moves = dict.fromkeys(channels.stored, tuple(order.tolist()))
        found.append(Order(moves, channels.outputs, back))
    return found


def _inside(
    dense: TorchModel,
    layers: Mapping[str, Layer],
    worth: Mapping[str, Tensor],
    keep: float,
    taken: set[Axis],
) -> list[Order]:
    """Orders inside of heads, and of channels that several rows make."""
    graph = dense.opened.graph(dense.opened.probe)
    made = feeds(graph, list(layers.values()))
    found = []
    for site in sites(graph, list(layers.values())):
        reader = layers[site.reader]
        axis = _input_axis(reader)
        if axis in taken or _pruned(dense, reader):
            continue
        whole = site.size == 1
        if not whole and len(set(made.get(site.reader, ()))) != reader.inputs:
            continue  # heads share what they read
        order = grouping.best_order([worth[site.reader]], keep, within=None if whole else site.size)
        rows = _unit_rows(site, order) if whole else _rows(made[site.reader], order)
        moves: dict[Axis, tuple[int, ...]] = {axis: tuple(order.tolist())}
        for name, changed in rows.items():
            maker = layers[name]
            places = list(range(maker.outputs))
            for new, old in changed.items():
                places[new] = old
            moves[name, 1 - _input_axis(maker)[1]] = tuple(places)
            if maker.bias:
                moves[maker.bias, 0] = tuple(places)
        if taken.isdisjoint(moves):
            found.append(Order(moves))
    return found


def _unit_rows(site: Site, order: Tensor) -> dict[str, dict[int, int]]:
    """By maker, new row -> old row, where whole units change places."""
    found: dict[str, dict[int, int]] = {name: {} for name in site.makers}
    for place, old in enumerate(order.tolist()):
        for name, rows in site.units[place].rows.items():
            found[name].update(zip(rows, site.units[old].rows[name], strict=True))
    return found


def _rows(made: Sequence[tuple[str, int]], order: Tensor) -> dict[str, dict[int, int]]:
    """The same, where what a layer reads is made by one row each."""
    found: dict[str, dict[int, int]] = {}
    for place, old in enumerate(order.tolist()):
        (name, row), (_, source) = made[place], made[old]
        found.setdefault(name, {})[row] = source
    return found


def _input_axis(layer: Layer) -> Axis:
    """The axis of the stored matrix that runs over the layer's inputs."""
    return layer.name, 0 if layer.transposed else 1


def _pruned(dense: TorchModel, layer: Layer) -> bool:
    """Whether the layer has lost blocks before."""
    matrix = plain_form(layer, dense.weights[layer.name].detach())
    return layer.inputs < 2 * BLOCK or block_sparsity(matrix) >= PRUNED


@torch.no_grad()
def _same(model: Model, dense: TorchModel, orders: Sequence[Order], batch: Batch) -> bool:
    """Whether a model in other orders gives the same."""
    if not orders:
        return True
    wanted = dense(batch.inputs).outputs
    found = TorchModel(apply(model, orders))(batch.inputs).outputs
    return all(
        torch.allclose(found[name], value, rtol=1e-3, atol=1e-4 * _size(value))
        for name, value in wanted.items()
    )


def _size(value: Tensor) -> float:
    return float(value.abs().max()) if value.is_floating_point() and value.numel() else 0.0
