"""A whole model as a torch module, for sequences of any length."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsec.compiler.cut import encoder_layers
from sparsec.compiler.frontend import Model
from sparsec.errors import InputError, ModelError
from sparsec.pruning.engine.graph import Lengths, OnInput, TorchGraph
from sparsec.pruning.engine.opened import Opened, open_model
from sparsec.pruning.engine.ops import tensor_of
from sparsec.pruning.layers import Layer, linear_layers, products

_KEPT = 64
"""Graphs of lengths that are kept; others are imported anew."""


@dataclass(frozen=True)
class Outcome:
    """What a run gives.

    Attributes:
        outputs: the model's outputs by name.
        states: hidden states of the tokens behind each encoder layer, [batch, sequence, channels],
            first layer first; empty if they were not asked for, or the model has no such layers.
        inputs: of the layers that were asked for, what each multiplied, [..., channels], one for
            each use.
    """

    outputs: Mapping[str, Tensor]
    states: tuple[Tensor, ...] = ()
    inputs: Mapping[str, Sequence[Tensor]] | None = None


class TorchModel(nn.Module):
    """A model of any architecture that the front end reads.

    Attributes:
        opened: the model with its weights as inputs.
        layers: its linear layers, in the order in which they are computed.
        state_names: ONNX tensors that hold the encoder layers' outputs.
    """

    def __init__(self, model: Model) -> None:
        """
        Args:
            model: from :func:`~sparsec.compiler.frontend.load_model`; it is not changed.

        Raises:
            ModelError: it is damaged.
            UnsupportedError: listing nodes that cannot be imported, or trained through.
        """
        super().__init__()
        states: list[str] = []
        with suppress(ModelError):
            states = encoder_layers(model)
        self.state_names = tuple(states)
        self.opened: Opened = open_model(model, self.state_names)
        self._names = tuple(self.opened.weights)
        self._weights = nn.ParameterList(
            nn.Parameter(tensor_of(self.opened.array(name))) for name in self._names
        )
        graph = self.opened.graph(self.opened.probe)
        self.layers: tuple[Layer, ...] = tuple(linear_layers(graph, self._names))
        self._graphs: OrderedDict[int, TorchGraph] = OrderedDict()
        self.graph(self.opened.probe)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TorchModel:
        """Constants of graphs go with the parameters to another device."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for graph in self._graphs.values():
            graph._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The parameters, by the names of the model's stored tensors and in their layout."""
        return dict(zip(self._names, self._weights, strict=True))

    @property
    def output_names(self) -> tuple[str, ...]:
        """The model's own outputs."""
        return tuple(spec.name for spec in self.opened.signature.outputs)

    def graph(self, length: int) -> TorchGraph:
        """The graph for a sequence length (0 without a sequence axis); weights are shared.

        Raises:
            InputError, UnsupportedError: the model does not take that length.
        """
        if length in self._graphs:
            self._graphs.move_to_end(length)
            return self._graphs[length]
        graph = self.opened.graph(length)
        uses = products(self.uses(length))
        made = TorchGraph(graph, self.weights, uses)
        device = self._weights[0].device if self._names else torch.device("cpu")
        for buffer in made.buffers():
            buffer.data = buffer.data.to(device)
        self._graphs[length] = made
        if len(self._graphs) > _KEPT:
            self._graphs.popitem(last=False)
        return made

    def uses(self, length: int) -> list[Layer]:
        """The linear layers as they lie in the graph of a length."""
        return linear_layers(self.opened.graph(length), self._names)

    def length_of(self, inputs: Mapping[str, Tensor]) -> int:
        """The sequence length of inputs; 0 without a sequence axis.

        Raises:
            InputError: they have none, or several.
        """
        found = set()
        for spec in self.opened.signature.inputs:
            if "sequence" in spec.shape and spec.name in inputs:
                axis = spec.shape.index("sequence")
                if inputs[spec.name].ndim != len(spec.shape):
                    raise InputError(f"{spec.name} must have {len(spec.shape)} axes")
                found.add(int(inputs[spec.name].shape[axis]))
        if len(found) > 1:
            raise InputError(f"inputs have several lengths: {sorted(found)}")
        if not found and self.opened.signature.has_sequence:
            names = ", ".join(spec.name for spec in self.opened.signature.inputs)
            raise InputError(f"inputs are missing: the model takes {names}")
        return found.pop() if found else 0

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        *,
        lengths: Lengths | None = None,
        weights: Mapping[str, Tensor] | None = None,
        on_input: OnInput | None = None,
        states: bool = False,
        keep: Sequence[str] = (),
    ) -> Outcome:
        """Run the model on a batch of sequences of one length, padded or not.

        Args:
            inputs: the model's inputs by name, integers [batch, sequence] for most.
            lengths: how many tokens of each sequence are real; None: what the mask says.
            weights: tensors to use in place of parameters: masked or rounded ones, for example.
            on_input: ``on_input(layer, x) -> x``, called with what each linear layer multiplies,
                before it does; it may replace it.
            states: whether to give hidden states.
            keep: names of layers whose inputs are to be given.

        Raises:
            InputError: an input is missing or does not fit.
        """
        kept: dict[str, list[Tensor]] = {name: [] for name in keep}

        def seen(layer: str, x: Tensor) -> Tensor:
            x = x if on_input is None else on_input(layer, x)
            if layer in kept:
                kept[layer].append(x)
            return x

        module = self.graph(self.length_of(inputs))
        hook = seen if kept else on_input
        found = module(inputs, lengths=lengths, weights=weights, on_input=hook)
        hidden = tuple(found[name] for name in self.state_names) if states else ()
        own = {name: found[name] for name in self.output_names}
        return Outcome(own, hidden, kept or None)
