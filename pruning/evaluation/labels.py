"""Names of labels: those of two models, and those that users give."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsec.errors import InputError
from sparsec.pruning.evaluation.models import Contender

_NO_NAME = re.compile(r"LABEL_\d+")


def shared_labels(
    reference: Contender, candidate: Contender
) -> tuple[list[str], NDArray[np.int64], list[str]]:
    """The labels of two models.

    Returns:
        (names in the reference's order, the candidate's output for each, what is to be said).

    Raises:
        InputError: the models have different labels.
    """
    names, others = _labels(reference), _labels(candidate)
    if len(names) != len(others):
        raise InputError(
            f"the outputs do not match: the candidate has {len(others)} labels "
            f"({_list(others)}), the reference {len(names)} ({_list(names)})"
        )
    if sorted(names) == sorted(others):
        return names, np.array([others.index(name) for name in names], np.int64), []
    unnamed = [all(map(_NO_NAME.fullmatch, side)) for side in (names, others)]
    if not any(unnamed):
        raise InputError(
            f"the outputs do not match: the candidate's labels are {_list(others)}, the "
            f"reference's {_list(names)}"
        )
    said = "one of the models does not name its labels: they are taken in the other's order"
    return (others if unnamed[0] else names), np.arange(len(names), dtype=np.int64), [said]


def _labels(model: Contender) -> list[str]:
    shape = model.pipeline.runner.output_shapes[model.pipeline.reads[0]]
    width = shape[-1]
    if not isinstance(width, int):
        raise InputError(f"{model.found.path}: it is not known how many labels the model has")
    return model.found.files.labels(width)


def class_index(label: Any, names: Sequence[str], where: str) -> int:
    """The output for a label, which is a name, or the number of an output.

    Raises:
        InputError: the model has no such label.
    """
    if isinstance(label, str):
        if label in names:
            return names.index(label)
        found = [i for i, name in enumerate(names) if name.lower() == label.strip().lower()]
        if len(found) == 1:
            return found[0]
        if label.strip().isdigit():
            label = int(label)
    if isinstance(label, (int, np.integer)) and 0 <= label < len(names):
        return int(label)
    raise InputError(f"{where}: the models have no label {label!r}; they have {_list(names)}")


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
