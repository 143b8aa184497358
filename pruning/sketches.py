"""Models that take as long as those to come, to measure plans by."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from sparsec.pruning.evaluation.parts import Latency
from sparsec.pruning.layers import Layer
from sparsec.pruning.made import Made
from sparsec.pruning.measure import sketch
from sparsec.pruning.oneshot import Form
from sparsec.pruning.planner import Plan
from sparsec.pruning.workspace import publishing_nowhere

Forms = Callable[[Plan], Mapping[str, Form]]
Write = Callable[[Made, Path], None]
Measure = Callable[[Sequence[Path], float], tuple[Latency, ...]]


class Sketches:
    """Models that take as long as those to come, in a temporary folder."""

    def __init__(
        self,
        output: Path,
        layers: Sequence[Layer],
        weights: Mapping[str, Tensor],
        forms: Forms,
        write: Write,
        measure: Measure,
    ) -> None:
        """
        Args:
            output: beside which they are made.
            layers: those that compute with bytes.
            weights: the dense model's, by name.
            forms: what becomes of each layer after a plan.
            write: ``write(made, folder)``.
            measure: ``measure(folders, seconds)``.
        """
        self.output, self.layers, self.weights = output, layers, weights
        self.forms, self.write, self.measure = forms, write, measure
        self._stack = contextlib.ExitStack()
        self.count = 0

    def __enter__(self) -> Sketches:
        self.folder = self._stack.enter_context(publishing_nowhere(self.output))
        self.dense = self._write(Plan())
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _write(self, chosen: Plan) -> Path:
        forms = self.forms(chosen)
        made = {
            layer.name: sketch(layer, self.weights[layer.name], forms[layer.name])
            for layer in self.layers
        }
        folder = self.folder / f"sketch{self.count}"
        self.count += 1
        folder.mkdir()
        self.write(Made(made, {}, chosen, ()), folder)
        return folder

    def measured(self, chosen: Plan, seconds: float) -> tuple[float, float]:
        """Milliseconds a text of the dense model in int8, and after a plan."""
        folder = self._write(chosen)
        dense, other = self.measure([self.dense, folder], seconds)
        return dense.median_ms, other.median_ms

    def against(self, folder: Path, seconds: float) -> tuple[Latency, Latency]:
        """Latencies of the dense model in int8, and of a model in a folder."""
        dense, other = self.measure([self.dense, folder], seconds)
        return dense, other
