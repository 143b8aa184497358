"""A model that was made, before it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from sparsec.pruning.layers import Layer
from sparsec.pruning.oneshot import Compressed
from sparsec.pruning.outcome import CurvePoint
from sparsec.pruning.planner import Plan


@dataclass(frozen=True, eq=False)
class Made:
    """A model that was made: layers, other parameters, the plan, how training went, and how many
    steps it had."""

    layers: Mapping[str, Compressed]
    others: Mapping[str, torch.Tensor]
    plan: Plan
    curve: tuple[CurvePoint, ...]
    steps: int = 0

    def sparsity(self, layers: Sequence[Layer]) -> float:
        """Share of the blocks of some layers that are zero."""
        size = sum(layer.outputs * layer.inputs for layer in layers)
        zero = sum(
            layer.outputs * layer.inputs * self.layers[layer.name].sparsity
            for layer in layers
            if layer.name in self.layers
        )
        return zero / size
