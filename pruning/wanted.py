"""What a run is asked for, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparsec import targets
from sparsec.arguments import argument
from sparsec.errors import InputError
from sparsec.pruning import export
from sparsec.pruning.outcome import Goal
from sparsec.runtime import cpu
from sparsec.serving.pipelines.base import ENGINES

FORMS = ("auto", "blocks", "channels", "int8")


@dataclass(frozen=True)
class Wanted:
    """Arguments of :func:`sparsify`, checked."""

    goal: Goal
    form: str
    minutes: float
    steps: int | None
    dialect: str
    target: str
    engine: str
    threads: int | None
    seed: int
    max_length: int | None
    seconds: float
    force: bool

    @property
    def trains(self) -> bool:
        """Whether anything is trained."""
        return self.minutes > 0 or self.steps is not None

    def check(self) -> None:
        """Refuse what no run could do.

        Raises:
            InputError: says what is wrong.
        """
        if self.form not in FORMS:
            raise InputError(
                f"{argument('form')} must be one of {', '.join(FORMS)}, not {self.form!r}"
            )
        if self.dialect not in export.DIALECTS:
            raise InputError(
                f"{argument('dialect')} must be one of {', '.join(export.DIALECTS)}, "
                f"not {self.dialect!r}"
            )
        if self.minutes > 0 and self.steps is not None:
            raise InputError(f"give {argument('minutes')} or {argument('steps')}, not both")
        if self.form == "int8" and self.goal != Goal():
            raise InputError(f"{argument('form', 'int8')} prunes nothing: give it without a goal")
        if self.engine not in ENGINES:
            raise InputError(
                f"{argument('engine')} must be one of {', '.join(ENGINES)}, not {self.engine!r}"
            )
        targets.choose(self.target, cpu.detect())


def number(name: str, value: float, least: float) -> float:
    right = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not right or not least <= value < math.inf:
        raise InputError(f"{argument(name)} must be a number of at least {least:g}, not {value!r}")
    return float(value)


def goal_of(sparsity: float | None, speedup: float | None, keep: float | None, form: str) -> Goal:
    """The goal.

    Raises:
        InputError: there are several, none, or one that makes no sense.
    """
    given = [n for n, v in (("sparsity", sparsity), ("speedup", speedup), ("keep", keep))
             if v is not None]  # fmt: skip
    if len(given) > 1:
        raise InputError(f"give one goal, not {' and '.join(map(argument, given))}")
    if not given and form != "int8":
        raise InputError(
            f"say what is wanted: {argument('sparsity', 0.8)}, {argument('speedup', 3)}, "
            f"{argument('keep', 0.99)}, or {argument('form', 'int8')}, which prunes nothing"
        )
    if sparsity is not None and not 0 <= number("sparsity", sparsity, 0) < 1:
        raise InputError(f"{argument('sparsity')} must be at least 0 and below 1, not {sparsity!r}")
    if speedup is not None and not 1 <= number("speedup", speedup, 0) <= 100:
        raise InputError(f"{argument('speedup')} must be from 1 to 100, not {speedup!r}")
    if keep is not None and not 0 < number("keep", keep, 0) <= 1:
        raise InputError(f"{argument('keep')} must be above 0 and at most 1, not {keep!r}")
    return Goal(sparsity, speedup, keep)
