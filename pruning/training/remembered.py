"""What the teacher says of every example, computed once and kept on disk.

A training shows each example many times, and the teacher never changes: its run is a third of what
the student's forward and backward run cost.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparsec.pruning.training.batches import Batch, Batches
from sparsec.pruning.training.losses import Kind, Result

_INDEX = "index.json"

SHARE = 0.25
"""Share of a disk's free space that may be taken."""

LARGEST = 60_000.0
"""Numbers that half precision holds, with room."""

Run = Callable[[Batch], Result]
"""The teacher's run of a batch."""

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class _Kept:
    """A tensor of the result: `[B, S, ...]` is kept by token, `[B, ...]` by example."""

    by_token: bool
    rows: np.ndarray


class Remembered:
    """The teacher's outputs and token states, by example.

    Args:
        folder: where they are.
        batches: the examples.
    """

    def __init__(self, folder: Path, batches: Batches) -> None:
        index = json.loads((folder / _INDEX).read_text("utf-8"))["tensors"]
        self._starts = batches.starts
        self._kept = {
            name: _Kept(by_token, np.load(folder / f"{i}.npy", mmap_mode="r"))
            for i, (name, by_token) in enumerate(index)
        }

    def result(self, batch: Batch) -> Result:
        """What the teacher's run of a batch gave, float32; padding is zero."""
        found = {name: self._of(kept, batch) for name, kept in self._kept.items()}
        states = [value for name, value in found.items() if name.startswith("state:")]
        outputs = {
            name.removeprefix("output:"): value
            for name, value in found.items()
            if name.startswith("output:")
        }
        return Result(outputs, states)

    def _of(self, kept: _Kept, batch: Batch) -> Tensor:
        numbers = list(batch.numbers)
        if not kept.by_token:
            return torch.from_numpy(kept.rows[numbers].astype(np.float32))
        made = np.zeros((*batch.mask.shape, *kept.rows.shape[1:]), np.float32)
        for row, number in zip(made, numbers, strict=True):
            start, end = self._starts[number], self._starts[number + 1]
            row[: end - start] = kept.rows[start:end]
        return torch.from_numpy(made)


def can_be(kinds: Mapping[str, Kind]) -> bool:
    """Whether padding counts in no output, so that it need not be kept."""
    return Kind.NUMBERS not in kinds.values()


def remember(
    folder: Path, batches: Batches, run: Run, kinds: Mapping[str, Kind], fingerprint: str
) -> Remembered | None:
    """Run the teacher on all examples; what is there already is taken.

    Args:
        folder: to make; it is there whole or not at all.
        run: the teacher.
        kinds: of the outputs that count.
        fingerprint: of all that the answers depend on; where it has changed, they are computed
            anew.

    Returns:
        None: a number is larger than half precision holds, or they would take more than a share of
        what is free on the disk.

    Raises:
        OSError: it could not be written.
    """
    if not can_be(kinds):
        return None
    if folder.exists():
        if json.loads((folder / _INDEX).read_text("utf-8"))["fingerprint"] == fingerprint:
            return Remembered(folder, batches)
        shutil.rmtree(folder)
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        tensors = _write(part, batches, run, kinds)
        if tensors is None:
            return None
        index = {"fingerprint": fingerprint, "tensors": tensors}
        (part / _INDEX).write_text(json.dumps(index), "utf-8")
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Remembered(folder, batches)


def _write(
    folder: Path, batches: Batches, run: Run, kinds: Mapping[str, Kind]
) -> list[tuple[str, bool]] | None:
    """Files of all results, and which tensor is in which; None: they do not fit."""
    kept: dict[str, _Kept] = {}
    for batch in batches.epoch():
        values = _tensors(run(batch), kinds)
        if not kept:
            made = _make(folder, values, batch, batches)
            if made is None:
                return None
            kept = made
        for name, value in values.items():
            if not bool((value.abs() <= LARGEST).all()):
                return None
            _put(kept[name], value.half().numpy(), batch, batches.starts)
    for one in kept.values():
        assert isinstance(one.rows, np.memmap)
        one.rows.flush()
    return [(name, one.by_token) for name, one in kept.items()]


def _tensors(result: Result, kinds: Mapping[str, Kind]) -> dict[str, Tensor]:
    found = {f"output:{name}": result.outputs[name] for name in kinds}
    found |= {f"state:{i}": state for i, state in enumerate(result.states)}
    return {name: value.float().cpu() for name, value in found.items()}


def _make(folder: Path, values: Tensors, batch: Batch, batches: Batches) -> dict[str, _Kept] | None:
    """Empty files; None: they would be too large."""
    shapes = {}
    for name, value in values.items():
        by_token = tuple(value.shape[:2]) == batch.mask.shape
        rows = int(batches.starts[-1]) if by_token else len(batches.starts) - 1
        shapes[name] = by_token, (rows, *value.shape[2 if by_token else 1 :])
    size = sum(2 * int(np.prod(shape)) for _, shape in shapes.values())
    if size > SHARE * shutil.disk_usage(folder).free:
        return None
    return {
        name: _Kept(
            by_token,
            np.lib.format.open_memmap(folder / f"{i}.npy", "w+", np.dtype(np.float16), shape),
        )
        for i, (name, (by_token, shape)) in enumerate(shapes.items())
    }


def _put(kept: _Kept, values: np.ndarray, batch: Batch, starts: np.ndarray) -> None:
    if not kept.by_token:
        kept.rows[list(batch.numbers)] = values
        return
    for row, number in zip(values, batch.numbers, strict=True):
        start, end = starts[number], starts[number + 1]
        kept.rows[start:end] = row[: end - start]
