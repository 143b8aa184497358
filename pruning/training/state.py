"""All that changes while a student is trained, and how it is kept and brought back."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparsec.pruning.ranges import Range, Rounding
from sparsec.pruning.training.network import Student
from sparsec.pruning.training.plan import Cycle
from sparsec.pruning.training.rows import RowAdam


@dataclass(frozen=True)
class Point:
    """How good the student was at some time.

    Attributes:
        step: how many steps were done.
        seconds: that training had taken, all runs together.
        sparsity: share of the weights of layers that are zero.
        quantized: whether it computed with 8 bits.
        loss: of the last steps, mean.
        agreement: with the teacher on held-out texts, mean; see :func:`losses.agreement`.
    """

    step: int
    seconds: float
    sparsity: float
    quantized: bool
    loss: float
    agreement: float


@dataclass
class State:
    """What changes beside parameters, masks, ranges and moments.

    Attributes:
        cycles: the plan.
        step: how many steps are done.
        cycle: which one was begun; -1: none.
        slower: what learning rates are multiplied with, since numbers were lost.
        retries: how often that was.
        seconds: that it took, all runs together.
        aside: seconds of them that were no steps: when cycles began, or the teacher read all texts.
        loss: of the last steps, a running mean.
        curve: what was measured.
    """

    cycles: tuple[Cycle, ...] = ()
    step: int = 0
    cycle: int = -1
    slower: float = 1.0
    retries: int = 0
    seconds: float = 0.0
    aside: float = 0.0
    loss: float = math.nan
    curve: list[Point] = field(default_factory=list)

    @property
    def pace(self) -> float:
        """Seconds that a step has taken."""
        return (self.seconds - self.aside) / max(1, self.step)


class Optimizer:
    """AdamW over weights, over the ranges' steps with a rate of their own, and the Adam of rows.
    Without decay: weights are to stay near the teacher's, not near zero.

    Args:
        student: what it moves.
        rows: of the student's tables; None: new ones.
    """

    def __init__(self, student: Student, rows: RowAdam | None = None) -> None:
        groups: list[dict[str, Any]] = [{"params": student.dense()}]
        if student.ranges is not None:
            groups.append({"params": list(student.ranges.parameters())})
        self.dense = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
        self.rows = RowAdam(student.tables()) if rows is None else rows
        self._rate = 0.0

    def set_rates(self, rate: float, of_ranges: float) -> None:
        """Learning rates from now on."""
        for group, found in zip(self.dense.param_groups, (rate, of_ranges), strict=False):
            group["lr"] = found
        self._rate = rate

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.dense.zero_grad(set_to_none=True)
        self.rows.zero_grad()

    def step(self) -> None:
        """A step of everything that has gradients."""
        self.dense.step()
        self.rows.step(self._rate)

    def squares(self, value: Tensor) -> Tensor | None:
        """Mean squared gradients of a parameter that is no table; None: not known yet."""
        found: Tensor | None = self.dense.state.get(value, {}).get("exp_avg_sq")
        return found


def snapshot(student: Student, optimizer: Optimizer, state: State) -> dict[str, Any]:
    """Copies of everything, of plain types and tensors; of tables, the rows that may have
    changed."""
    named, tables = student.named_values(), student.tables()
    ranges = logs = None
    if student.ranges is not None:
        ranges = {
            name: (astuple(one.range), one.factors) for name, one in student.ranges.read().items()
        }
        logs = [p.detach() for p in student.ranges.logs]
    kept: dict[str, Any] = copy.deepcopy(
        {
            "values": {name: named[name].detach() for name in named if name not in tables},
            "masks": student.masks,
            "ranges": ranges,
            "logs": logs,
            "optimizer": optimizer.dense.state_dict(),
            "state": asdict(state),
        }
    )
    return kept | {"rows": optimizer.rows.state()}


def restore(kept: Mapping[str, Any], student: Student, state: State) -> Optimizer:
    """Bring back what :func:`snapshot` gave.

    Returns:
        The optimizer.
    """
    kept = copy.deepcopy(dict(kept))
    device = student.values[0].device
    student.ranges = None
    with torch.no_grad():
        named = student.named_values()
        for name, value in kept["values"].items():
            named[name].copy_(value)
        if kept["ranges"] is not None:
            found = {
                name: Rounding(Range(*numbers), factors)
                for name, (numbers, factors) in kept["ranges"].items()
            }
            for value, log in zip(student.begin_rounding(found).logs, kept["logs"], strict=True):
                value.copy_(log)
    student.masks = {name: mask.to(device) for name, mask in kept["masks"].items()}
    optimizer = Optimizer(student)
    optimizer.dense.load_state_dict(kept["optimizer"])
    optimizer.rows.load(kept["rows"], student.network.parameters_by_name())
    values = dict(kept["state"])
    values["cycles"] = tuple(Cycle(**cycle) for cycle in values["cycles"])
    values["curve"] = [Point(**point) for point in values["curve"]]
    for name, value in values.items():
        setattr(state, name, value)
    return optimizer
