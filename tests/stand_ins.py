"""What runs the code of targets that this CPU cannot run: the same code on emulated instructions.

Vectors are emulated by ``tests/vectors_emulated.h`` on AVX2, tiles by
``templates/lanes/tiles_emulated.h`` in portable C.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparsec import targets
from sparsec.runtime import cpu
from sparsec.targets import Target

HEADER = Path(__file__).with_name("vectors_emulated.h")

#: What the header emulates, by the macro that asks for it.
EMULATED = {
    "EMULATED_AVX512": {
        *("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni"),
        *("avx512vbmi2", "avx512bf16"),
    },
    "EMULATED_AVXVNNI": {"avxvnni"},
}

#: Compiler flags by which any code is compiled on emulated instructions.
FLAGS = {macro: ("-mavx2", "-mfma", f"-D{macro}", "-include", str(HEADER)) for macro in EMULATED}


def on_emulated_vectors(target: Target) -> Target:
    """The target on emulated vectors: its header, its registers, its choices."""
    ((macro, features),) = (
        (m, f) for m, f in EMULATED.items() if not f.isdisjoint(target.features)
    )
    return replace(
        target,
        features=tuple(f for f in target.features if f not in features),
        tuning=("-mprefer-vector-width=256", *FLAGS[macro][2:]),
        bf16=None if target.bf16 is None else tuple(f for f in target.bf16 if f not in features),
    )


def emulates_vectors(target: Target) -> bool:
    """Whether that is what the row does."""
    return str(HEADER) in target.tuning


def on_emulated_tiles(target: Target) -> Target:
    """The target on tiles in portable C."""
    assert target.matrix is not None
    return replace(
        target,
        features=tuple(f for f in target.features if not f.startswith("amx")),
        matrix=replace(target.matrix, header="tiles_emulated.h"),
        bf16=tuple(f for f in target.bf16 or () if not f.startswith("amx")),
        prepare=None,
    )


def stand_in(target: Target) -> Target:
    """The target itself where it runs, else its code with as little emulated as must be."""
    able = cpu.detect().features
    if any(feature.startswith("amx") for feature in target.missing(able)):
        target = on_emulated_tiles(target)
    if any(not emulated.isdisjoint(target.missing(able)) for emulated in EMULATED.values()):
        target = on_emulated_vectors(target)
    return target


def here(name: str, precision: str = "fp32") -> Target:
    """What runs a target's code here."""
    return stand_in(targets.at(targets.get(name), precision))


#: Every target, or what stands in for it here, by name.
HERE = {name: here(name) for name in targets.NAMES}


def install(monkeypatch: pytest.MonkeyPatch, *rows: Target) -> None:
    """Make these the rows of their names, of :data:`HERE` unless others are given."""
    named = {row.name: row for row in rows or HERE.values()}
    table = targets.table(*(named.get(t.name, t) for t in targets.TARGETS))
    monkeypatch.setattr(targets, "TARGETS", table)


def runs(row: Target) -> bool:
    """Whether this machine runs a row."""
    info = cpu.detect()
    return row.runs_on(info.arch, info.features)


def parameters(slow: Iterable[str] = ()) -> list[Any]:
    """A pytest parameter for the name of every target, skipped with a reason where even what
    stands in for it can't run; those of `slow` that are emulated here run in the slow tests."""
    params = []
    for target in targets.TARGETS:
        row = HERE[target.name]
        marks = []
        if not runs(row):
            lacks = ", ".join(row.missing(cpu.detect().features)) or row.arch
            marks.append(pytest.mark.skip(reason=f"this CPU lacks {lacks}"))
        elif row != target and target.name in slow:
            marks.append(pytest.mark.slow)
        params.append(pytest.param(target.name, marks=marks))
    return params
