"""What a layer takes in each form: by the compiler's cost model for any target, or measured here.

The model is that which the compiler chooses tilings by; its times are of one core, and relative to
each other (`lowering.tiling`).  Measured times are those of the tilings that it chooses, each
compiled and run by `compiler.tune`, and kept for as long as the object lives.  What is no linear
layer (attention, normalization, embeddings) takes what a whole model took beyond its layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sparsec.compiler.lowering.tiling import (
    LayerClass,
    Tiling,
    blocks_of,
    by_model,
    candidates,
    estimate,
)
from sparsec.compiler.toolchain import Toolchain
from sparsec.compiler.tune import measure
from sparsec.errors import InputError
from sparsec.pruning.blocks import BLOCK
from sparsec.targets import Target


@dataclass(frozen=True)
class LayerForm:
    """A linear layer in one of its forms.

    Attributes:
        n, k: output and input channels that are left: fewer where heads or channels have gone.
        density: share of 4-blocks that are not zero.
        kind: "i8" or "f32".
        panels: whether its result is bytes that another layer reads.
    """

    n: int
    k: int
    density: float = 1.0
    kind: str = "i8"
    panels: bool = False

    @property
    def layer_class(self) -> LayerClass:
        """The class whose time it has."""
        return LayerClass.of(self.kind, self.n, self.k, self.density, self.panels)


@dataclass(eq=False)
class Latency:
    """Milliseconds of layers on a target, for batches of so many tokens.

    Attributes:
        target: the ISA.
        length: tokens of a sequence.
        batch_size: sequences at once.
        measured: seconds of one core by class, as far as they were measured.
        scale: what times of the cost model are multiplied by, to be like those that were measured.
    """

    target: Target
    length: int
    batch_size: int = 1
    measured: dict[LayerClass, float] = field(default_factory=dict)
    scale: float = 1.0

    @property
    def _rows(self) -> dict[int, int]:
        return blocks_of([self.length], self.batch_size)

    def milliseconds(self, form: LayerForm) -> float:
        """What a layer takes on one core: measured where its class was, else by the model.

        Layers without outputs or inputs, or without blocks, take nothing.
        """
        if not form.n or not form.k or not form.density:
            return 0.0
        if form.layer_class in self.measured:
            return self.measured[form.layer_class] * 1e3
        return self.model_milliseconds(form) * self.scale

    def model_milliseconds(self, form: LayerForm) -> float:
        """What a layer takes on one core by the cost model, at its exact density."""
        exact = LayerClass(form.kind, form.n, form.k, form.density, form.panels)
        return estimate(exact, self._tiling(form), self._rows[self.length], self.target) * 1e-6

    def _tiling(self, form: LayerForm) -> Tiling:
        layer = form.layer_class
        return by_model(layer, self.target, self._rows)[layer, self.length]

    def take_times(self, forms: Iterable[LayerForm], compiler: Toolchain, seed: int = 0) -> None:
        """Compile and time layers of random weights, of each class that was not measured yet.

        Args:
            forms: what to measure; dense ones and empty ones as well.
            compiler: what compiles them.
            seed: of the weights.

        Raises:
            HardwareError: this machine cannot run code for the target.
            ToolchainError: the compiler failed.
        """
        rng = np.random.default_rng(seed)
        wanted: dict[LayerClass, tuple[LayerForm, np.ndarray]] = {}
        for form in forms:
            layer = form.layer_class
            if form.n and form.k and form.density and layer not in self.measured:
                wanted.setdefault(layer, (form, random_weights(form, rng)))
        if not wanted:
            return
        weights = {layer: w for layer, (_, w) in wanted.items()}
        times = measure(weights, self._rows, self.target, compiler)
        modelled = 0.0
        for layer, (form, _) in wanted.items():
            tiling = self._tiling(form)
            assert tiling in candidates(layer, self.target)
            self.measured[layer] = times[layer, tiling][self.length]
            modelled += self.model_milliseconds(form)
        self.scale = sum(self.measured[layer] for layer in wanted) * 1e3 / modelled


def layer_milliseconds(
    n: int,
    k: int,
    density: float,
    target: Target,
    length: int,
    *,
    batch_size: int = 1,
    kind: str = "i8",
    panels: bool = False,
) -> float:
    """What a linear layer takes on one core by the cost model: see :class:`LayerForm`."""
    form = LayerForm(n, k, density, kind, panels)
    return Latency(target, length, batch_size).milliseconds(form)


def random_weights(form: LayerForm, rng: np.random.Generator) -> np.ndarray:
    """Weights of a form, int8 or float32 [n, k]; 4-blocks at random places are not zero."""
    shape = form.n, form.k
    keep = rng.random((form.n, -(-form.k // BLOCK))) < form.density
    mask = np.repeat(keep, BLOCK, axis=1)[:, : form.k]
    if form.kind == "i8":
        weights = rng.integers(1, 60, shape).astype(np.int8)
        return np.asarray(weights * mask * rng.choice([-1, 1], shape).astype(np.int8))
    return np.asarray(rng.standard_normal(shape).astype(np.float32) * mask)


def rest_milliseconds(whole: float, layers: Sequence[LayerForm], latency: Latency) -> float:
    """What a model takes beyond its linear layers, on one core.

    Args:
        whole: milliseconds of the whole model on one core, measured.
        layers: its layers as they are in it.

    Raises:
        InputError: the layers alone take longer: the times are not of one machine.
    """
    rest = whole - sum(latency.milliseconds(form) for form in layers)
    if rest < 0:
        raise InputError(
            f"the layers of a model of {whole:.3g} ms take {whole - rest:.3g} ms alone: measure "
            "both on one machine that does nothing else"
        )
    return rest
