"""Fit the cost model of linear layers to measured kernels.

    python benchmarks/cost_model.py            the best target of this machine, int8 and float
    python benchmarks/cost_model.py --target avx2 --write avx2.json

Measures layers of several shapes and densities with every tiling, fits the coefficients of
``compiler/lowering/tiling.py`` (relative error, none negative), and prints what a choice by the
model costs over the best measured one, and last the ``costs`` of this machine's row in
``sparsec/microarchitectures.py``.  Takes some minutes on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):  # run as a script
    sys.path[0] = str(ROOT)

from sparsec import microarchitectures, targets  # noqa: E402
from sparsec.compiler import toolchain  # noqa: E402
from sparsec.compiler.lowering.tiling import (  # noqa: E402
    LayerClass,
    Tiling,
    features,
    matrix_features,
)
from sparsec.compiler.tune import measure  # noqa: E402
from sparsec.runtime import cpu  # noqa: E402
from sparsec.targets import Target  # noqa: E402

SHAPES = ((768, 768), (3072, 768), (768, 3072), (384, 384), (1536, 384))
DENSITIES = (1.0, 0.5, 0.35, 0.2, 0.1, 0.05)
BLOCKS = (1, 8, 24)


def layers(kind: str) -> dict[LayerClass, np.ndarray]:
    """Random layers: the packs of the grid's densities, some of them with panels."""
    rng = np.random.default_rng(0)
    made = {}
    for n, k in SHAPES:
        for density in DENSITIES:
            panels = kind == "i8" and n >= k
            if kind == "i8":
                w = rng.integers(-60, 61, (n, k)).astype(np.int8)
                w += w == 0
            else:
                w = rng.standard_normal((n, k)).astype(np.float32)
            w *= np.repeat(rng.random((n, k // 4)) < density, 4, axis=1)
            made[LayerClass.of(kind, n, k, density, panels)] = w
    return made


def nonnegative_fit(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Least squares with coefficients >= 0: those that come out negative are dropped in turn."""
    free = np.ones(a.shape[1], bool)
    while True:
        x = np.zeros(a.shape[1])
        x[free] = np.linalg.lstsq(a[:, free], b, rcond=None)[0]
        if (x >= 0).all():
            return x
        free[np.argmin(x)] = False


def made_of(layer: LayerClass, tiling: Tiling, blocks: int, target: Target) -> np.ndarray:
    """What the time of a layer is made of, for the unit that computes it."""
    if tiling.matrix:
        assert target.matrix is not None
        return matrix_features(layer, blocks, target.lanes, target.matrix.sweep)
    return features(layer, tiling, blocks, target.lanes)


@dataclass(frozen=True)
class Fit:
    """What was fitted for one kind of layers.

    Attributes:
        factors: nanoseconds, by whether tiles compute the layer.
        error, worst: of the model, relative: in the middle, and the largest.
        loss: by how much its choices take longer than the best, on average.
    """

    factors: dict[bool, tuple[float, ...]]
    error: float
    worst: float
    loss: float


def fit(kind: str, target: Target) -> Fit:
    """Measure layers of a kind with all tilings, and fit."""
    times = measure(layers(kind), {b: b for b in BLOCKS}, target, toolchain.find())
    points = [(la, t, b, s) for (la, t), row in times.items() for b, s in row.items()]
    factors, errors = {}, []
    for matrix in sorted({t.matrix for _, t, *_ in points}):
        mine = [p for p in points if p[1].matrix == matrix]
        seconds = np.array([s for *_, s in mine])
        a = np.array([made_of(la, t, b, target) for la, t, b, _ in mine])
        factors[matrix] = nonnegative_fit(a / seconds[:, None], np.ones(len(mine)))
        errors += list(np.abs(a @ factors[matrix] / seconds - 1))
    losses = []
    for layer, blocks in {(la, b) for la, _, b, _ in points}:
        mine = [p for p in points if p[0] == layer and p[2] == blocks]
        modelled = [made_of(la, t, b, target) @ factors[t.matrix] for la, t, b, _ in mine]
        best = min(s for *_, s in mine)
        losses.append(mine[int(np.argmin(modelled))][3] / best - 1)
    rounded = {m: tuple(float(f"{v * 1e9:.3g}") for v in x) for m, x in factors.items()}
    return Fit(rounded, float(np.median(errors)), max(errors), float(np.mean(losses)))


def main() -> None:
    """Measure, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--target", default="auto", choices=("auto", *targets.NAMES))
    parser.add_argument("--write", type=Path, metavar="FILE", help="the same as JSON")
    args = parser.parse_args()
    machine = cpu.detect()
    core = microarchitectures.of(machine)
    target = microarchitectures.tuned(targets.choose(args.target, machine), core)
    fits = {kind: fit(kind, target) for kind in ("i8", "f32")}
    for kind, made in fits.items():
        print(
            f"{kind}: error of the model {made.error:.1%} in the middle, {made.worst:.1%} at "
            f"worst; its choices take {made.loss:.2%} longer than the best on average"
        )
    print(
        f"# {machine.brand}: {machine.vendor}, family {machine.family}, model {machine.model}\n"
        f'name="{core}"\n"{target.name}": Costs(\n'
        f"    i8={fits['i8'].factors[False]},\n    f32={fits['f32'].factors[False]},\n"
        f"    matrix={fits['i8'].factors.get(True, ())},\n)"
    )
    if args.write:
        identity = {k: getattr(machine, k) for k in ("brand", "vendor", "family", "model")}
        record = {"machine": identity, "name": core, "target": target.name}
        record |= {kind: asdict(made) for kind, made in fits.items()}
        args.write.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
