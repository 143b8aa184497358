"""What training needs of a model in torch, and the student: parameters with masks and rounding.

The same network runs as teacher and as student: it is a function of its inputs and of parameters
that are given by name, so the student's are its own, masked and rounded on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sparsec.pruning.engine.table import Table
from sparsec.pruning.ranges import Rounding
from sparsec.pruning.training.losses import Result
from sparsec.pruning.training.quantizers import Ranges, round_weight

OnInput = Callable[[str, Tensor], Tensor]
"""Called with a place's name and what passes there; its result goes on."""


@dataclass(frozen=True)
class Layer:
    """A linear layer.

    Attributes:
        weight: its parameter, `[N, K]`.
        place: what its input is called; layers that read the same have one place.
    """

    weight: str
    place: str


class Network(Protocol):
    """A model as a function of named inputs and named parameters."""

    @property
    def layers(self) -> Sequence[Layer]:
        """The linear layers, in the order in which they run."""

    def parameters_by_name(self) -> Mapping[str, Tensor]:
        """What can be trained; weights of layers are `[N, K]`."""

    def run(
        self,
        inputs: Mapping[str, Tensor],
        parameters: Mapping[str, Tensor],
        on_input: OnInput | None = None,
    ) -> Result:
        """Outputs and token states for int64 inputs `[B, S]`.

        Args:
            parameters: those that differ from :meth:`parameters_by_name`.
            on_input: called with what each layer multiplies.
        """


class _Masked(torch.autograd.Function):
    """A weight that is zero already where its mask says so, and that stays so: a pass over the
    gradients less than a product with the mask takes."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return torch.where(mask, grads[0], 0.0), None


def _own(value: Tensor) -> Tensor:
    """A copy whose rows lie one after the other, as those of masks do: what passes over both at
    once, and the optimizer, are several times slower otherwise."""
    return value.detach().clone(memory_format=torch.contiguous_format)


class Student(nn.Module):
    """A network's own parameters, its masks, and the ranges of its activations.

    Args:
        network: what is trained.
        masks: weights that are not pruned, bool `[N, K]` by parameter; those that are left out are
            not pruned.
        frozen: parameters that stay as they are.
        orders: int64 `[K]` by parameter: the order in which a layer's inputs lie in blocks; those
            that are left out: as they are.
        tables: parameters `[V, C]` that are trained by rows: the network only looks rows of them
            up.

    Attributes:
        orders: as given.
        masks: as given; changed by :meth:`prune`.
        ranges: of activations; None: they are not rounded, and neither are weights.
    """

    ranges: Ranges | None

    def __init__(
        self,
        network: Network,
        masks: Mapping[str, Tensor] | None = None,
        frozen: Sequence[str] = (),
        orders: Mapping[str, Tensor] | None = None,
        tables: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.network = network
        self.orders = dict(orders or {})
        self._names = [n for n in network.parameters_by_name() if n not in frozen]
        start = network.parameters_by_name()
        kinds = {name: Table if name in tables else nn.Parameter for name in self._names}
        self.values = nn.ParameterList([kind(_own(start[n])) for n, kind in kinds.items()])
        self.masks: dict[str, Tensor] = dict(masks or {})
        self._weights = {layer.weight: layer.place for layer in network.layers}
        self.ranges = None
        self._zero()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Student:
        """Masks go with the parameters to another device."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.masks = {name: fn(mask) for name, mask in self.masks.items()}
        return self

    def _zero(self) -> None:
        """Pruned weights are zero, so that nothing else need know of masks."""
        with torch.no_grad():
            for name, value in self.named_values().items():
                if name in self.masks:
                    value.mul_(self.masks[name])

    def named_values(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return dict(zip(self._names, self.values, strict=True))

    def dense(self) -> list[nn.Parameter]:
        """What is trained as a whole."""
        return [value for value in self.values if not isinstance(value, Table)]

    def tables(self) -> dict[str, Table]:
        """What is trained by rows, by name."""
        return {n: value for n, value in self.named_values().items() if isinstance(value, Table)}

    def prune(self, masks: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
        """Take new masks, and new weights where there are some."""
        self.masks.update(masks)
        with torch.no_grad():
            named = self.named_values()
            for name, weight in weights.items():
                named[name].copy_(weight)
        self._zero()

    def begin_rounding(self, roundings: Mapping[str, Rounding]) -> Ranges:
        """Compute with rounded weights and activations from now on; their ranges."""
        made: Ranges = Ranges(roundings).to(self.values[0].device)
        self.ranges = made
        return made

    def effective(self) -> dict[str, Tensor]:
        """Parameters as the network sees them: masked, and rounded once rounding has begun."""
        made: dict[str, Tensor] = {}
        for name, value in self.named_values().items():
            found: Tensor = value
            if name in self.masks:
                found = _Masked.apply(found, self.masks[name])  # type: ignore[no-untyped-call]
            if self.ranges is not None and name in self._weights:
                found = round_weight(found, self.ranges.factors(self._weights[name]))
            made[name] = found
        return made

    def forward(self, inputs: Mapping[str, Tensor], on_input: OnInput | None = None) -> Result:
        """Outputs and token states.

        Args:
            on_input: called at each place, before rounding.
        """
        ranges = self.ranges

        def pass_on(name: str, x: Tensor) -> Tensor:
            if on_input is not None:
                x = on_input(name, x)
            return ranges.apply_to(name, x) if ranges is not None and name in ranges else x

        hook = None if ranges is None and on_input is None else pass_on
        return self.network.run(inputs, self.effective(), hook)

    def sparsity(self) -> float:
        """Share of the weights of all layers that are zero."""
        named = self.named_values()
        zero = sum(int((named[w] == 0).sum()) for w in self._weights if w in named)
        count = sum(named[w].numel() for w in self._weights if w in named)
        return zero / max(1, count)
