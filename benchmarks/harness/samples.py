"""Latencies that accumulate over many short runs, and the table made of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.report import amount, number, table
from benchmarks.harness.rows import LABELS

#: Latencies of one engine at one point that are kept at most.
KEPT = 4000


@dataclass
class Samples:
    """What was measured on one microarchitecture.

    Attributes:
        machine: as harness.machine describes it, with the CPU's family and model.
        points: milliseconds by point ("bert-base int8 80% 1x128") and entrant.
        rounds: turns that each point has had.
        agreement: mean difference to ONNX Runtime's result on the same weights, relative to its
            mean size, likewise.
        skipped: why there is nothing of a point, or an entrant at it.
        versions: of the engines.
    """

    machine: dict[str, Any]
    points: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    rounds: dict[str, int] = field(default_factory=dict)
    agreement: dict[str, dict[str, float]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def load(path: Path, machine: dict[str, Any]) -> Samples:
        """Those of a file, or none."""
        if not path.exists():
            return Samples(machine)
        stored = json.loads(path.read_text(encoding="utf-8"))
        return Samples(**stored | {"machine": machine})

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asdict(self)), encoding="utf-8")
        part.replace(path)

    def add(self, point: str, latencies: Mapping[str, Sequence[float]], rounds: int) -> None:
        """More latencies of a point, in seconds."""
        of = self.points.setdefault(point, {})
        for name, seconds in latencies.items():
            of[name] = (of.get(name, []) + [round(1e3 * s, 4) for s in seconds])[-KEPT:]
        self.rounds[point] = self.rounds.get(point, 0) + rounds


def quantiles(milliseconds: Sequence[float]) -> tuple[float, float]:
    """The median and the fastest decile."""
    return float(np.median(milliseconds)), float(np.quantile(milliseconds, 0.1))


def speeds(samples: Samples) -> str:
    """What each engine takes: medians."""
    names = [n for n in LABELS if any(n in of for of in samples.points.values())]
    rows = []
    for point, of in samples.points.items():
        batch = int(point.rsplit(" ", 1)[1].partition("x")[0])
        cells = [amount(quantiles(of[n])[0], batch) if of.get(n) else "-" for n in names]
        rows.append([point, *cells, str(samples.rounds[point])])
    return table(["model", *(LABELS[n] for n in names), "turns"], rows)


def ratios(samples: Samples) -> str:
    """How many times longer the others take: of the medians / of the fastest deciles."""
    names = [n for n in LABELS if n != "sparsec" and any(n in of for of in samples.points.values())]
    rows = []
    for point, of in samples.points.items():
        if not of.get("sparsec"):
            continue
        ours = quantiles(of["sparsec"])
        theirs = [quantiles(of[n]) if of.get(n) else None for n in names]
        cells = [
            f"{number(t[0] / ours[0])} / {number(t[1] / ours[1])}" if t else "-" for t in theirs
        ]
        rows.append([point, *cells])
    return table(["sparsec against, median / fastest decile", *(LABELS[n] for n in names)], rows)


def agreements(samples: Samples) -> str:
    """How far results are from ONNX Runtime's on the same weights."""
    rows = [
        [f"{point}, {LABELS[name]}", f"{difference:.3%}"]
        for point, of in samples.agreement.items()
        for name, difference in of.items()
    ]
    return table(["", "mean difference"], rows)
