"""Fit the cost model of linear layers to measured kernels.

    python benchmarks/cost_model.py            the best target of this machine, int8 and float
    python benchmarks/cost_model.py --target avx2

Measures layers of several shapes and densities with every tiling, fits the coefficients of
``compiler/lowering/tiling.py`` (relative error, none negative), and prints them with what a choice
by the model costs over the best measured one.  Takes some minutes on an idle machine.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):  # run as a script
    sys.path[0] = str(ROOT)

from sparsec import targets  # noqa: E402
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


def main() -> None:
    """Measure, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--target", default="auto", choices=("auto", *targets.NAMES))
    args = parser.parse_args()
    target = targets.choose(args.target, cpu.detect())
    for kind in ("i8", "f32"):
        times = measure(layers(kind), {b: b for b in BLOCKS}, target, toolchain.find())
        points = [(la, t, b, s) for (la, t), row in times.items() for b, s in row.items()]
        factors = {}
        for matrix in sorted({t.matrix for _, t, *_ in points}):
            mine = [p for p in points if p[1].matrix == matrix]
            seconds = np.array([s for *_, s in mine])
            a = np.array([made_of(la, t, b, target) for la, t, b, _ in mine])
            x = factors[matrix] = nonnegative_fit(a / seconds[:, None], np.ones(len(mine)))
            error = np.abs(a @ x / seconds - 1)
            name = "matrix" if matrix else kind
            print(f"{target.name} {name}: {', '.join(f'{v * 1e9:.3g}' for v in x)}  # ns")
            print(f"  error of the model: median {np.median(error):.1%}, worst {error.max():.1%}")
        loss = {}
        for layer, b in {(la, b) for la, _, b, _ in points}:
            mine = [
                (made_of(la, t, c, target) @ factors[t.matrix], s, t)
                for la, t, c, s in points
                if la == layer and c == b
            ]
            _, chosen, tiling = min(mine)
            loss[layer, b, tiling] = chosen / min(m[1] for m in mine) - 1
        worst = max(loss, key=loss.__getitem__)
        mean = np.mean(list(loss.values()))
        print(f"  its choices over the best: mean {mean:.2%}, worst {loss[worst]:.1%}: {worst}")


if __name__ == "__main__":
    main()
