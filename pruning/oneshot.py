"""One shot: every linear layer pruned and rounded in turn, without back-propagation.

Two runs of the model go side by side over all calibration texts, node by node: the dense one, and
the one that is pruned so far.  At a layer both stop.  The layer's inputs are those of the pruned
run; its targets are the dense run's outputs, and where the layer is added to a residual stream,
what that stream has lost by then as well.  Only what later nodes read is kept meanwhile, so memory
grows with the texts and not with the depth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparsec.compiler.ir import Graph
from sparsec.pruning import blocks, smoothing
from sparsec.pruning.batches import Batch
from sparsec.pruning.engine import TorchModel, Walk
from sparsec.pruning.gram import Moments
from sparsec.pruning.layers import Layer, Use
from sparsec.pruning.least_squares import Problem, choose_damping, make_problem, solve_rows
from sparsec.pruning.ranges import Histogram, Range, Rounding, search
from sparsec.pruning.rounding import round_weights, search_scale


@dataclass(frozen=True)
class Form:
    """What becomes of a layer.

    Attributes:
        sparsity: share of its 4-blocks that go: of those of the channels that it keeps.
        keep_inputs, keep_outputs: channels that it still reads and makes: the others go with their
            head or feed-forward channel; None: all.
        quantize: whether it computes with bytes.
    """

    sparsity: float = 0.0
    keep_inputs: tuple[int, ...] | None = None
    keep_outputs: tuple[int, ...] | None = None
    quantize: bool = True

    @property
    def prunes(self) -> bool:
        """Whether weights go."""
        return self.sparsity > 0 or self.keep_inputs is not None or self.keep_outputs is not None

    def places(self, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The outputs and inputs that stay, int64, of a layer with weights of that shape [N, K]."""
        chosen = (self.keep_outputs, self.keep_inputs)
        rows, columns = (
            torch.arange(count) if keep is None else torch.tensor(sorted(keep), dtype=torch.int64)
            for keep, count in zip(chosen, shape, strict=True)
        )
        return rows, columns


@dataclass(frozen=True, eq=False)
class Compressed:
    """A layer as it has become: y = x W^T + b.

    Attributes:
        name: of the stored matrix.
        weights: int8 [N, K]; float32 where it is not quantized.
        scale: float32 [N] or []; None where it is not quantized.
        bias: float32 [N].
        range: of the inputs; None where they stay floats.
        error: squared error of what it gives, as a share of the targets' variance.
        factors: float32 [K], what the inputs are multiplied with before they are rounded
            (`smoothing`): the weights are those of inputs that are; None: nothing.
    """

    name: str
    weights: Tensor
    scale: Tensor | None
    bias: Tensor
    range: Range | None
    error: float
    factors: Tensor | None = None

    @property
    def dense(self) -> Tensor:
        """The weights as floats [N, K], for inputs as they are."""
        if self.scale is None:
            return self.weights
        real = self.weights.float() * self.scale.reshape(-1, 1)
        return real if self.factors is None else real * self.factors

    @property
    def rounding(self) -> Rounding | None:
        """What becomes of its inputs; None where they stay floats."""
        return None if self.range is None else Rounding(self.range, self.factors)

    @property
    def sparsity(self) -> float:
        """Share of 4-blocks that are zero."""
        return block_sparsity(self.weights)


def block_sparsity(weights: Tensor) -> float:
    """Share of 4-blocks of weights [N, K] that are zero: as they lie, or without the inputs that
    no output reads, which are cut out of the file."""
    read = weights[:, (weights != 0).any(0)]
    whole = len(weights) * -(-weights.shape[1] // blocks.BLOCK)
    return 1 - min(_used_blocks(weights), _used_blocks(read)) / whole


def _used_blocks(weights: Tensor) -> int:
    padded = torch.nn.functional.pad(weights != 0, (0, -weights.shape[1] % blocks.BLOCK))
    return int(padded.view(len(weights), -1, blocks.BLOCK).any(-1).sum())


def stored_form(layer: Layer, weights: Tensor) -> Tensor:
    """Weights [N, K] as the model stores them."""
    return weights.T.contiguous() if layer.transposed else weights


def plain_form(layer: Layer, stored: Tensor) -> Tensor:
    """Stored weights as [N, K]."""
    return stored.T.contiguous() if layer.transposed else stored


@dataclass(eq=False)
class Settings:
    """How layers are solved.

    Attributes:
        per_channel: a weight scale for each output, else one for the layer.
        signed: activations as int8, else as uint8.
        damping: None: chosen for each layer by what it leaves on texts held out.
        sweeps: exchanges of blocks after they were chosen (`blocks.support`).
    """

    per_channel: bool = True
    signed: bool = False
    damping: float | None = None
    sweeps: int = 0


@dataclass(eq=False)
class Run:
    """The model pruned so far.

    Attributes:
        model: the dense model.
        made: what layers have become, by name.
        weights: tensors in the place of parameters.
        roundings: of layers' inputs.
        prunes: whether weights of any of them are gone.
    """

    model: TorchModel
    made: dict[str, Compressed] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    roundings: dict[str, Rounding] = field(default_factory=dict)
    prunes: bool = False

    def put(self, layer: Layer, made: Compressed) -> None:
        """Let a layer be what it has become."""
        self.made[layer.name] = made
        self.weights[layer.name] = stored_form(layer, made.dense)
        if layer.bias:
            self.weights[layer.bias] = made.bias
        if made.rounding is not None:
            self.roundings[layer.name] = made.rounding

    def on_input(self, layer: str, x: Tensor) -> Tensor:
        """What a layer multiplies: rounded, where it is quantized."""
        found = self.roundings.get(layer)
        return x if found is None else found(x)


#: Damping of layers that are only rounded.
ROUNDING_DAMPING = 0.01

Report = Callable[[Layer, Compressed], None]


class OneShot:
    """The two runs over calibration texts, and where they have come."""

    def __init__(
        self, model: TorchModel, batches: Sequence[Batch], settings: Settings | None = None
    ) -> None:
        """
        Args:
            model: dense; it is not changed.
            batches: calibration texts.
        """
        self.model = model
        self.batches = batches
        self.settings = settings or Settings()
        self.run = Run(model)
        self._uses = [self._of_length(batch) for batch in batches]
        graphs = [model.graph(model.length_of(batch.inputs)) for batch in batches]
        self._dense = [g.start(b.inputs) for g, b in zip(graphs, batches, strict=True)]
        self._small = [
            g.start(b.inputs, weights=self.run.weights, on_input=self.run.on_input)
            for g, b in zip(graphs, batches, strict=True)
        ]

    def _of_length(self, batch: Batch) -> dict[str, Layer]:
        length = self.model.length_of(batch.inputs)
        return {layer.name: layer for layer in self.model.uses(length)}

    @torch.no_grad()
    def compress(
        self,
        forms: Mapping[str, Form],
        report: Report | None = None,
        known: Mapping[str, Compressed] | None = None,
    ) -> Run:
        """Prune and round layers, in the order in which they are computed.

        Args:
            forms: what is to become of each; the others stay as they are.
            report: called with each layer when it is done.
            known: layers that are done already: from an earlier run with the same settings.
        """
        roundings: dict[str, Rounding] = {}
        for layer in self.model.layers:
            form = forms.get(layer.name)
            if form is None:
                continue
            if known is not None and layer.name in known:
                made = known[layer.name]
            else:
                made = self._solve(layer, form, roundings)
            self.run.put(layer, made)
            self.run.prunes |= form.prunes
            if made.rounding is not None:
                roundings[layer.uses[0].x] = made.rounding
            if report is not None:
                report(layer, made)
        return self.run

    # -- one layer --------------------------------------------------------------------------------

    def _solve(self, layer: Layer, form: Form, roundings: Mapping[str, Rounding]) -> Compressed:
        dense = plain_form(layer, self.model.weights[layer.name].detach())
        found = None
        if form.quantize:
            # Layers that read the same values share their rounding, as they do in the file.
            found = roundings.get(layer.uses[0].x) or self._rounding(layer)
        factors = None if found is None else found.factors
        # Where nothing has gone there is nothing to make up for: weights stay as they are.
        whole = not form.prunes and not self.run.prunes
        moments = self.moments(layer, factors, own=whole)
        prior = dense if factors is None else dense / factors
        made = solve(moments, prior, form, self.settings)
        ends = None if found is None else found.range
        return Compressed(
            layer.name, made.weights, made.scale, made.bias, ends, made.error, factors
        )

    def _rounding(self, layer: Layer) -> Rounding:
        """What becomes of a layer's inputs: errors count by what their readers make of them."""
        readers = [
            plain_form(other, self.model.weights[other.name].detach())
            for other in self.model.layers
            if other.uses[0].x == layer.uses[0].x
        ]
        seen = smoothing.Extremes(layer.inputs)
        for batch, _, small, _ in self._stopped(layer):
            seen.add(small, batch.rows(small))
        factors = smoothing.choose(seen, readers)
        importance = sum(matrix.square().sum(0) for matrix in readers)
        assert isinstance(importance, Tensor)
        if factors is not None:
            importance = importance / factors.square()
        histogram = Histogram()
        for batch, _, small, _ in self._stopped(layer):
            x = small if factors is None else small * factors
            histogram.add(x, batch.rows(small), importance)
        low, high = (-128, 127) if self.settings.signed else (0, 255)
        return Rounding(search(histogram, low, high), factors)

    def moments(self, layer: Layer, factors: Tensor | None = None, *, own: bool = False) -> Moments:
        """Of a layer's inputs, times factors where they are given, and of its targets.

        Rounding is left out of the inputs: the weights that are best for noisy inputs are smaller
        than the dense ones, and what they miss is the same in all tokens, where noise is averaged
        away.

        Args:
            own: targets are what the dense weights make of the pruned run's inputs.
        """
        moments = Moments(layer.inputs, layer.outputs)
        weight = plain_form(layer, self.model.weights[layer.name].detach())
        bias = self.model.weights[layer.bias].detach() if layer.bias else None
        for batch, dense, small, lost in self._stopped(layer):
            target = torch.nn.functional.linear(small if own else dense, weight, bias)
            if lost is not None and not own:
                target = target + lost
            x = small if factors is None else small * factors
            moments.add(x, target, batch.rows(x))
        return moments

    def _stopped(self, layer: Layer) -> Iterable[tuple[Batch, Tensor, Tensor, Tensor | None]]:
        """(batch, what the dense layer multiplies, the same of the pruned run, and what the
        residual stream that the layer is added to has lost) at each of its uses."""
        walks = zip(self.batches, self._uses, self._dense, self._small, strict=True)
        for batch, uses, dense, small in walks:
            first, *more = uses[layer.name].uses
            self._advance(first, dense, small)
            lost = self._lost(first, dense, small)
            yield batch, dense.value(first.x), small.value(first.x), lost
            if more:
                yield from self._ahead(batch, more)

    def _advance(self, use: Use, dense: Walk, small: Walk) -> None:
        for walk in (dense, small):
            walk.until(use.node)

    def _ahead(
        self, batch: Batch, uses: Sequence[Use]
    ) -> Iterable[tuple[Batch, Tensor, Tensor, Tensor | None]]:
        """Later uses of a shared layer, as in the dense model: nothing is pruned there yet."""
        walk = self.model.graph(self.model.length_of(batch.inputs)).start(batch.inputs)
        for use in uses:
            walk.until(use.node)
            x = walk.value(use.x)
            yield batch, x, x, None

    @staticmethod
    def _lost(use: Use, dense: Walk, small: Walk) -> Tensor | None:
        """What is missing in the stream that a layer's result is added to; None if it is not."""
        other = residual(dense.module.graph, use)
        if other is None:
            return None
        try:
            return dense.value(other) - small.value(other)
        except KeyError:
            return None  # it is computed later


def residual(graph: Graph, use: Use) -> str | None:
    """The run-time value that a layer's result is added to, of the same shape."""
    readers = [node for node in graph.nodes[use.end :] if use.y in node.inputs]
    if len(readers) != 1 or readers[0].op != "add" or use.y in graph.outputs:
        return None
    others = [name for name in readers[0].inputs if name != use.y]
    same = len(others) == 1 and graph.values[others[0]].shape == graph.values[use.y].shape
    return others[0] if same and others[0] not in graph.constants else None


@dataclass(frozen=True, eq=False)
class Solved:
    """A layer's least squares with a form: see :class:`Compressed`."""

    weights: Tensor
    scale: Tensor | None
    bias: Tensor
    error: float


def solve(moments: Moments, dense: Tensor, form: Form, settings: Settings) -> Solved:
    """The best layer of a form.

    Args:
        moments: of its inputs and targets.
        dense: [N, K], what it was.
    """
    damping = settings.damping
    if damping is None and not form.prunes:
        damping = ROUNDING_DAMPING
    if damping is None:
        about = blocks.likely_mask(moments.centered(), dense, form.sparsity)
        damping = choose_damping(moments, dense, about)
    problem = make_problem(moments.centered(), dense, damping)
    weights, mask = problem.weights, None
    if form.prunes:
        weights, mask = _pruned(problem, form, settings.sweeps)
    if not form.quantize:
        return _finished(problem, weights.float(), None, form)
    scale = search_scale(problem, weights, settings.per_channel)
    rounded = round_weights(problem, weights, scale, mask)
    return _finished(problem, rounded, scale, form)


def _pruned(problem: Problem, form: Form, sweeps: int) -> tuple[Tensor, Tensor]:
    """The best weights float64 [N, K], and which of them stay, bool [N, K].

    Blocks are those of the channels that stay, side by side: the others are cut out of the file.
    """
    rows, columns = form.places(problem.weights.shape)
    inner = problem.within(rows, columns)
    left, keep = inner.weights, torch.ones_like(inner.weights, dtype=torch.bool)
    if form.sparsity > 0:
        found = blocks.support(inner, form.sparsity, sweeps=sweeps)
        keep = blocks.expand(found, blocks.BLOCK, len(columns))
        left = solve_rows(inner.hessian, inner.weights, keep)
    weights = torch.zeros_like(problem.weights)
    mask = torch.zeros_like(weights, dtype=torch.bool)
    weights[rows[:, None], columns], mask[rows[:, None], columns] = left, keep
    return weights, mask


def _finished(problem: Problem, weights: Tensor, scale: Tensor | None, form: Form) -> Solved:
    real = weights.double()
    if scale is not None:
        real = real * scale.double().reshape(-1, 1)
    bias = problem.data.bias(real).float()
    if form.keep_outputs is not None:
        # What nobody reads any more is not worth a number.
        kept = torch.zeros_like(bias)
        kept[form.places(real.shape)[0]] = 1
        bias = bias * kept
    return Solved(weights, scale, bias, problem.data.relative_error(real))
