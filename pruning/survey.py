"""What pruning each layer costs, before anything is pruned: the error of the model's results.

For each layer the blocks are ranked once, by the dense model's own inputs, and its error is known
at every sparsity of a ladder.  How much of a layer's error comes through to the model's results is
measured at one of them, by a run with that layer alone pruned; the others are taken to come through
in proportion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsec.pruning import blocks
from sparsec.pruning.batches import Batch
from sparsec.pruning.engine import Outcome, TorchModel, Walk
from sparsec.pruning.gram import Moments
from sparsec.pruning.layers import Layer
from sparsec.pruning.least_squares import make_problem
from sparsec.pruning.oneshot import plain_form, stored_form
from sparsec.pruning.removal import Removal, choose, removal_order

#: Sparsities that are looked at.
LADDER = (0.25, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)

#: The one at which the way to the results is measured.
MEASURED = 0.8

#: Texts' tokens with which that is done.
TOKENS = 1024

#: A layer with fewer channels than this on either side is neither pruned nor rounded.
LEAST_CHANNELS = 16

DAMPING = 0.01

#: Outputs of a layer that are looked at, and the share of their blocks that is removed at once.
ROWS, RATE = 64, 0.2


@dataclass(frozen=True)
class Surveyed:
    """A layer, and what pruning it costs.

    Attributes:
        name: of the stored matrix.
        outputs, inputs: its channels.
        errors: by sparsity, the squared error of the model's results as a share of their size.
    """

    name: str
    outputs: int
    inputs: int
    errors: Mapping[float, float]


def quantizable(model: TorchModel) -> list[Layer]:
    """The layers that can compute with bytes: with some channels, a bias of their own, and a
    matrix that is no table besides."""
    return [
        layer
        for layer in model.layers
        if min(layer.outputs, layer.inputs) >= LEAST_CHANNELS and layer.bias and not layer.shared
    ]


def prunable(model: TorchModel) -> list[Layer]:
    """Those of them that belong to the encoder: what a head has left is too little to lose some.

    All of them, where no encoder is found.
    """
    layers = quantizable(model)
    if not model.state_names:
        return layers
    graph = model.opened.graph(model.opened.probe)
    made = {out: i for i, node in enumerate(graph.nodes) for out in node.outputs}
    values = dict(zip(graph.output_names, graph.outputs, strict=True))
    end = max(made.get(values[name], -1) for name in model.state_names)
    return [layer for layer in layers if layer.uses[0].node <= end]


Report = Callable[[Surveyed], None]


@torch.no_grad()
def survey(
    model: TorchModel,
    batches: Sequence[Batch],
    layers: Sequence[Layer],
    report: Report | None = None,
    known: Mapping[str, Surveyed] | None = None,
) -> list[Surveyed]:
    """What pruning each of some layers costs.

    Args:
        model: the dense model.
        batches: calibration texts.
        layers: in the order in which they are computed.
        report: called with each layer when it is done.
        known: layers that were looked at before.
    """
    graphs = [model.graph(model.length_of(batch.inputs)) for batch in batches]
    walks = [graph.start(batch.inputs) for graph, batch in zip(graphs, batches, strict=True)]
    uses = [
        {layer.name: layer.uses[0] for layer in model.uses(model.length_of(batch.inputs))}
        for batch in batches
    ]
    few = few_batches(batches)
    before = [model(batch.inputs, states=True) for batch in few]
    found = []
    last: tuple[str, Moments] | None = None
    for layer in layers:
        if known is not None and layer.name in known:
            found.append(known[layer.name])
        else:
            x = layer.uses[0].x
            if last is None or last[0] != x:
                last = x, _moments(layer, batches, walks, [u[layer.name].node for u in uses],
                                   [u[layer.name].x for u in uses])  # fmt: skip
            found.append(_look_at(model, layer, last[1], few, before))
        if report is not None:
            report(found[-1])
    return found


def few_batches(batches: Sequence[Batch]) -> list[Batch]:
    """A few batches from among all lengths."""
    chosen: list[Batch] = []
    tokens = 0
    step = max(1, len(batches) // 4)
    for batch in batches[::step]:
        chosen.append(batch)
        tokens += batch.tokens
        if tokens >= TOKENS:
            break
    return chosen


def _moments(
    layer: Layer,
    batches: Sequence[Batch],
    walks: Sequence[Walk],
    nodes: Sequence[int],
    values: Sequence[str],
) -> Moments:
    """Of the inputs that a layer has in the dense model."""
    moments = Moments(layer.inputs, folds=1)
    for batch, walk, node, value in zip(batches, walks, nodes, values, strict=True):
        walk.until(node)
        x = walk.value(value)
        moments.add(x, weight=batch.rows(x))
    return moments


def _look_at(
    model: TorchModel,
    layer: Layer,
    inputs: Moments,
    few: Sequence[Batch],
    before: Sequence[Outcome],
) -> Surveyed:
    dense = plain_form(layer, model.weights[layer.name].detach())
    bias = model.weights[layer.bias].detach()
    # Some outputs stand for all.
    rows = torch.linspace(0, len(dense) - 1, min(ROWS, len(dense))).long()
    centered = inputs.through(dense[rows], bias[rows]).centered()
    problem = make_problem(centered, dense[rows], DAMPING)
    count = -(-dense.shape[1] // blocks.BLOCK)
    removal = removal_order(problem, blocks.BLOCK, round(count * max(LADDER)), RATE)
    lost = {s: _loss(removal, choose(removal, s)) for s in LADDER}
    made = blocks.solve(problem, choose(removal, MEASURED))
    pruned, offset = dense.clone(), bias.clone()
    pruned[rows] = made.weights.float()
    offset[rows] = centered.bias(made.weights).float()
    replaced = {layer.name: stored_form(layer, pruned), layer.bias: offset}
    through = distance(
        before, [model(batch.inputs, weights=replaced, states=True) for batch in few], few
    )
    scale = through * len(dense) / len(rows) / max(lost[MEASURED], 1e-30)
    errors = {0.0: 0.0, **{s: scale * loss for s, loss in lost.items()}}
    return Surveyed(layer.name, layer.outputs, layer.inputs, errors)


def _loss(removal: Removal, keep: Tensor) -> float:
    """What the removals add up to that leave these blocks."""
    gone = (~keep).gather(1, removal.order)
    return float((removal.cost * gone).sum())


def distance(
    before: Sequence[Outcome], after: Sequence[Outcome], batches: Sequence[Batch]
) -> float:
    """Squared error of the last hidden states, or of the outputs where there are none, as a share
    of their own size; padding is left out."""
    lost = size = 0.0
    for one, two, batch in zip(before, after, batches, strict=True):
        for a, b in zip(_results(one), _results(two), strict=True):
            if a.ndim > 2 and a.shape[:2] == batch.mask.shape:
                a, b = a[batch.mask], b[batch.mask]
            lost += float((a - b).square().sum())
            size += float(a.square().sum())
    return lost / max(size, 1e-30)


def _results(outcome: Outcome) -> list[Tensor]:
    if outcome.states:
        return [outcome.states[-1]]
    return [value for value in outcome.outputs.values() if value.is_floating_point()]
