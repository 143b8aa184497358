"""What sparsify makes and finds, as data, as JSON, and in lines for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from sparsec.pruning.evaluation import Evaluation
from sparsec.pruning.evaluation.parts import Latency, Number


@dataclass(frozen=True)
class Goal:
    """What is asked for; at most one is set, and none of them: bytes only.

    Attributes:
        sparsity: share of the 4-blocks of the encoder's layers that become zero.
        speedup: times as fast as the dense model in int8, at the lengths of the texts.
        keep: agreement with the dense model, at least, on texts held out.
    """

    sparsity: float | None = None
    speedup: float | None = None
    keep: float | None = None

    @property
    def prunes(self) -> bool:
        """Whether weights are to go."""
        return self != Goal() and self.sparsity != 0

    def __str__(self) -> str:
        if self.sparsity is not None:
            return f"{self.sparsity:.0%} of the encoder's 4-blocks pruned"
        if self.speedup is not None:
            return f"{self.speedup:g} times as fast as dense int8"
        if self.keep is not None:
            return f"the fastest with an agreement of {self.keep:g}"
        return "int8"


@dataclass(frozen=True)
class LayerOutcome:
    """What a layer has become.

    Attributes:
        name: of the node that computes it first.
        outputs, inputs: its channels.
        sparsity: share of its 4-blocks that are zero.
        quantized: whether it computes with bytes.
        error: squared error of what it gives on the calibration texts, as a share of the variance
            of what the dense one gives; not known after training.
    """

    name: str
    outputs: int
    inputs: int
    sparsity: float
    quantized: bool
    error: Number


@dataclass(frozen=True)
class CurvePoint:
    """How good the model was while it was trained: minutes, sparsity, agreement (mean)."""

    minutes: float
    sparsity: float
    agreement: Number


@dataclass(frozen=True)
class Sparsified:
    """What came out.

    Attributes:
        output: the folder; None: nothing was written, because the goal was missed.
        model: as it was given.
        goal, form, dialect, seed, minutes: as asked for.
        task: as what the models are compared.
        sparsity: share of the 4-blocks of the encoder's layers that are zero.
        layers: what each has become.
        evaluation: the result against the dense model, on texts held out.
        latency, baseline: of the result and of the dense model in int8; None: not measured.
        reached: whether the goal is reached.
        curve: of the training.
        steps: of the training: that many give the same result again, to the last bit, on the same
            machine.
        warnings: what is to be said.
        seconds: that it took, all runs together.
        texts: how many were used: to calibrate or train on, and held out.
    """

    output: str | None
    model: str
    goal: Goal
    form: str
    dialect: str
    seed: int
    minutes: float
    task: str
    sparsity: float
    layers: tuple[LayerOutcome, ...]
    evaluation: Evaluation
    latency: Latency | None
    baseline: Latency | None
    reached: bool
    warnings: tuple[str, ...]
    seconds: float
    texts: tuple[int, int]
    curve: tuple[CurvePoint, ...] = field(default=())
    steps: int = 0

    @property
    def path(self) -> Path | None:
        """The folder."""
        return None if self.output is None else Path(self.output)

    @property
    def speedup(self) -> float | None:
        """Times as fast as the dense model in int8; None: not measured."""
        if self.latency is None or self.baseline is None:
            return None
        return self.baseline.median_ms / self.latency.median_ms

    @property
    def agreement(self) -> Mapping[str, float]:
        """With the dense model, by metric; the first is the one that counts."""
        return self.evaluation.agreement

    def to_json(self) -> dict[str, Any]:
        """As values of JSON; null for what is no number."""
        made: dict[str, Any] = _adapter().dump_python(self, mode="json")
        return made

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Sparsified:
        """What :meth:`to_json` was made of."""
        return _adapter().validate_python(dict(values))

    def __str__(self) -> str:
        lines = [
            f"{self.goal}: {self.sparsity:.1%} of the encoder's 4-blocks are zero, "
            f"{sum(layer.quantized for layer in self.layers)} layers in int8"
        ]
        if self.speedup is not None and self.latency and self.baseline:
            lines.append(
                f"{self.speedup:.2f} times as fast as dense int8: {self.latency.median_ms:.3g} ms "
                f"a text instead of {self.baseline.median_ms:.3g}"
            )
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join([*lines, "", str(self.evaluation)])


@cache
def _adapter() -> TypeAdapter[Sparsified]:
    return TypeAdapter(Sparsified)
