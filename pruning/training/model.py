"""A whole model as what is trained: parameters of layers `[N, K]`, places, tables of rows."""

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
        tables: parameters `[V, C]` that rows are looked up in and that nothing else reads.
        fixed: other parameters that are looked up in, which are not to be trained: a head that
            shares a table gives all of its rows gradients at each step, and those of tokens that
            are in no text would drift from the others.
    """

    def __init__(self, model: TorchModel) -> None:
        self.model = model
        found = {layer.name: layer for layer in model.layers}
        first: dict[str, str] = {}
        self._place = {
            name: first.setdefault(layer.uses[0].x, name) for name, layer in found.items()
        }
        self.layers: Sequence[Layer] = tuple(Layer(name, self._place[name]) for name in found)
        self.tables, self.fixed = self._looked_up()
        self._turned = {name for name, layer in found.items() if layer.transposed}

    def _looked_up(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """See :attr:`tables` and :attr:`fixed`."""
        graph = self.model.opened.graph(self.model.opened.probe)
        read, otherwise = set(), set(graph.outputs)
        for node in graph.nodes:
            gathers = node.op.startswith("gather")
            if gathers:
                read.add(node.inputs[0])
            rows = node.op == "gather" and node.attrs["axis"] == 0
            otherwise.update(node.inputs[1:] if rows else node.inputs)
        names = [name for name, weight in self.model.weights.items() if name in read]
        free = [n for n in names if n not in otherwise and self.model.weights[n].dim() == 2]
        return tuple(free), tuple(name for name in names if name not in free)

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
