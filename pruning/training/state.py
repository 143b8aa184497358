"""All that changes while a student is trained, and how it is kept and brought back."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, field
from typing import Any

import torch

from sparsec.pruning.ranges import Range, Rounding
from sparsec.pruning.training.network import Student
from sparsec.pruning.training.plan import Cycle


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


def new_optimizer(student: Student, rate: float) -> torch.optim.Optimizer:
    """AdamW over weights, and over the ranges' steps in a group of their own.  Without decay:
    weights are to stay near the teacher's, not near zero."""
    groups: list[dict[str, Any]] = [{"params": list(student.values)}]
    if student.ranges is not None:
        groups.append({"params": list(student.ranges.parameters())})
    return torch.optim.AdamW(groups, lr=rate, weight_decay=0.0, fused=True)


def snapshot(student: Student, optimizer: torch.optim.Optimizer, state: State) -> dict[str, Any]:
    """Copies of everything, of plain types and tensors."""
    ranges = logs = None
    if student.ranges is not None:
        ranges = {
            name: (astuple(one.range), one.factors) for name, one in student.ranges.read().items()
        }
        logs = [p.detach() for p in student.ranges.logs]
    return copy.deepcopy(
        {
            "values": {name: p.detach() for name, p in student.named_values().items()},
            "masks": student.masks,
            "ranges": ranges,
            "logs": logs,
            "optimizer": optimizer.state_dict(),
            "state": asdict(state),
        }
    )


def restore(
    kept: Mapping[str, Any], student: Student, state: State, rate: float
) -> torch.optim.Optimizer:
    """Bring back what :func:`snapshot` gave.

    Returns:
        The optimizer.
    """
    kept = copy.deepcopy(dict(kept))
    device = student.values[0].device
    student.ranges = None
    with torch.no_grad():
        for name, value in student.named_values().items():
            value.copy_(kept["values"][name])
        if kept["ranges"] is not None:
            found = {
                name: Rounding(Range(*numbers), factors)
                for name, (numbers, factors) in kept["ranges"].items()
            }
            for value, log in zip(student.begin_rounding(found).logs, kept["logs"], strict=True):
                value.copy_(log)
    student.masks = {name: mask.to(device) for name, mask in kept["masks"].items()}
    optimizer = new_optimizer(student, rate)
    optimizer.load_state_dict(kept["optimizer"])
    values = dict(kept["state"])
    values["cycles"] = tuple(Cycle(**cycle) for cycle in values["cycles"])
    values["curve"] = [Point(**point) for point in values["curve"]]
    for name, value in values.items():
        setattr(state, name, value)
    return optimizer
