"""A whole model as what is trained: parameters of layers `[N, K]`, places, tables that stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sparsec.pruning.engine import TorchModel
from sparsec.pruning.training.losses import Result
from sparsec.pruning.training.network import Layer, OnInput


class ModelNetwork:
    """A :class:`~sparsec.pruning.engine.TorchModel` as a network that can be trained.

    Attributes:
        model: as given; its own parameters are the teacher's and do not change.
        layers: its linear layers; those that read the same value have one place.
    """

    def __init__(self, model: TorchModel) -> None:
        self.model = model
        found = {layer.name: layer for layer in model.layers}
        first: dict[str, str] = {}
        self._place = {
            name: first.setdefault(layer.uses[0].x, name) for name, layer in found.items()
        }
        self.layers: Sequence[Layer] = tuple(Layer(name, self._place[name]) for name in found)
        self._turned = {name for name, layer in found.items() if layer.transposed}

    @property
    def tables(self) -> tuple[str, ...]:
        """Parameters that tokens are looked up in, and layers that share them: most of their rows
        are in no text, and must not drift from those that are."""
        read = set()
        graph = self.model.opened.graph(self.model.opened.probe)
        for node in graph.nodes:
            if node.op.startswith("gather"):
                read.add(node.inputs[0])
        return tuple(name for name in self.model.weights if name in read)

    def parameters_by_name(self) -> dict[str, Tensor]:
        """The model's parameters, layers `[N, K]`."""
        return {name: self._turn(name, w) for name, w in self.model.weights.items()}

    def stored(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameters in the layouts in which the model stores them."""
        return {name: self._turn(name, w) for name, w in parameters.items()}

    def _turn(self, name: str, weight: Tensor) -> Tensor:
        return weight.T if name in self._turned else weight

    def run(
        self,
        inputs: Mapping[str, Tensor],
        parameters: Mapping[str, Tensor],
        on_input: OnInput | None = None,
    ) -> Result:
        place = self._place
        hook = None
        if on_input is not None:
            see = on_input

            def hook(layer: str, x: Tensor) -> Tensor:
                return see(place[layer], x)

        # The teacher's own do not learn: the gradient of a table alone is as large as all layers'.
        own = {name: weight.detach() for name, weight in self.model.weights.items()}
        used = own | self.stored(parameters)
        found = self.model(inputs, weights=used, on_input=hook, states=True)
        return Result(found.outputs, found.states)


def best_device() -> torch.device:
    """A GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
