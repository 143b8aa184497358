"""Compiles groups of cases, runs them, and measures how far off the results are."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

import sparsec
from sparsec import targets
from sparsec.runtime import cpu
from tests.conformance.cases import Case, feeds, merged, widened

GROUP = 48
"""Cases that are compiled as one model."""


@dataclass(frozen=True)
class Result:
    """How a case went: what is wrong (None if nothing), and the largest errors.

    Attributes:
        ulp: in units of the last place of the expected value; 0 where outputs are no floats.
        absolute: largest difference of a finite value.
    """

    fault: str | None
    ulp: float
    absolute: float


def usable_targets() -> list[str]:
    """The portable target, and the best one where that has AVX-512."""
    best = targets.choose("auto", cpu.detect()).name
    return ["generic"] + ([best] if best in ("avx512_vnni", "amx") else [])


def groups(cases: Sequence[Case]) -> Iterator[list[Case]]:
    """Cases that can be one model: of the same operator sets."""

    def opsets(case: Case) -> str:
        return str(sorted((o.domain, o.version) for o in case.proto.opset_import))

    for _, same in itertools.groupby(sorted(cases, key=opsets), opsets):
        members = list(same)
        for start in range(0, len(members), GROUP):
            yield members[start : start + GROUP]


def run(cases: Sequence[Case], target: str) -> dict[str, Result]:
    """Compile cases as one model for a target, run it, and judge every case."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        onnx.save(merged(cases), folder / "cases.onnx")
        artifact = sparsec.compile(folder / "cases.onnx", target=target)
        with sparsec.Engine(artifact.path, num_cores=1) as engine:
            outputs = iter(engine.run(feeds(cases, engine.input_names)))
    return {case.name: judge(case, [next(outputs) for _ in case.outputs]) for case in cases}


def judge(case: Case, got: Sequence[np.ndarray]) -> Result:
    """What is wrong with the outputs of a case."""
    faults: list[str] = []
    ulp = absolute = 0.0
    for i, (array, want) in enumerate(zip(got, case.outputs, strict=True)):
        if array.shape != want.shape or array.dtype != widened(want.dtype):
            faults.append(f"output {i} is {array.dtype}{array.shape}")
            continue
        if array.dtype.kind != "f":
            if not np.array_equal(array, want):
                faults.append(f"output {i} differs at {np.argwhere(array != want)[:3].tolist()}")
            continue
        exact = want.astype(array.dtype)
        with np.errstate(all="ignore"):
            off = np.abs(array.astype(np.float64) - exact.astype(np.float64))
            off = np.where((array == exact) | (np.isnan(array) & np.isnan(exact)), 0, off)
            bound = case.atol + case.rtol * np.abs(exact.astype(np.float64))
            unit = np.spacing(np.maximum(np.abs(exact), np.finfo(array.dtype).tiny))
        if not np.all((off == 0) | (off <= bound)):
            faults.append(f"output {i} is off by {float(np.max(off))}")
        elif off.size and want.dtype == array.dtype:
            absolute = max(absolute, float(np.max(off)))
            ulp = max(ulp, float(np.max(off / unit)))
    return Result("; ".join(faults) or None, ulp, absolute)
