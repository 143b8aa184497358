"""Fit the cost model of linear layers to measured kernels.

    python benchmarks/cost_model.py            the best target of this machine, int8 and float
    python benchmarks/cost_model.py --target avx2 --write avx2.json

Measures layers of several shapes and densities with every tiling, fits the coefficients of
``compiler/lowering/tiling.py`` (relative error, none negative), and prints what a choice by the
model costs over the best measured one, and last the ``costs`` of this machine's row in
``sparsec/microarchitectures.py``.  Where the target has a unit for products of tiles, first what
that does (``tiles_probe.c``), then how many weights are best kept near and how many rows they
should meet (``Matrix``), which the fit then takes.  Takes a quarter of an hour;
``--quick`` shows in less that everything works.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):  # run as a script
    sys.path[0] = str(ROOT)

from sparsec import microarchitectures, scratch, targets  # noqa: E402
from sparsec.compiler import toolchain  # noqa: E402
from sparsec.compiler.codegen.bucket import headers_of  # noqa: E402
from sparsec.compiler.lowering.tiling import (  # noqa: E402
    LayerClass,
    Tiling,
    arrival,
    features,
    matrix_features,
)
from sparsec.compiler.templates import read_template  # noqa: E402
from sparsec.compiler.toolchain import Toolchain  # noqa: E402
from sparsec.compiler.tune import measure  # noqa: E402
from sparsec.runtime import cpu  # noqa: E402
from sparsec.targets import Target  # noqa: E402

SHAPES = ((768, 768), (3072, 768), (768, 3072), (384, 384), (1536, 384))
DENSITIES = (1.0, 0.5, 0.35, 0.2, 0.1, 0.05)
BLOCKS = (1, 2, 8, 24)

#: Bytes of weights that stay near a unit for tiles, and blocks that they meet, to choose from.
NEAR = (16 << 10, 32 << 10, 48 << 10)
SWEEPS = (4, 8, 16)


def layers(
    kind: str,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    densities: Sequence[float] = DENSITIES,
) -> dict[LayerClass, np.ndarray]:
    """Random layers: the packs of the grid's densities, some of them with panels."""
    rng = np.random.default_rng(0)
    made = {}
    for n, k in shapes:
        for density in densities:
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
        return matrix_features(layer, tiling, blocks, target)
    return features(layer, tiling, blocks, target.lanes)


def probe(target: Target, compiler: Toolchain, repeat: int) -> dict[str, tuple[float, float]]:
    """What the unit does: nanoseconds and cycles by name.

    Args:
        target: has a unit for products of tiles that runs here.
        repeat: trials of each.
    """
    with scratch.temporary("sparsec-probe-") as folder:
        headers = {"sparsec.h": read_template("sparsec.h"), **headers_of(target)}
        for name, text in headers.items():
            (folder / name).write_text(text, encoding="utf-8")
        program = folder / "probe"
        command = [*compiler.command, *compiler.base_flags(), "-std=gnu11", "-O2"]
        command += [*compiler.target_flags(target), f"-I{folder}"]
        source = ROOT / "benchmarks" / "tiles_probe.c"
        subprocess.run([*command, str(source), "-o", str(program), "-lm"], check=True)
        done = subprocess.run([program, str(repeat)], check=True, capture_output=True, text=True)
    rows = (line.split("\t") for line in done.stdout.splitlines())
    return {name: (float(ns), float(cycles)) for name, ns, cycles in rows}


def best_matrix(target: Target, compiler: Toolchain, quick: bool, rounds: int) -> Target:
    """The target with what its unit is fastest with; prints what each choice takes."""
    assert target.matrix is not None
    few = replace(target.tiles, sparse=(1,))
    dense = layers("i8", SHAPES[:1] if quick else SHAPES[:3], (1.0,))
    total: dict[tuple[int, int], float] = {}
    for near in NEAR[:1] if quick else NEAR:
        for sweep in SWEEPS[:2] if quick else SWEEPS:
            row = replace(
                target, tiles=few, matrix=replace(target.matrix, weights=near, sweep=sweep)
            )
            times = measure(dense, {b: b for b in (8, 24)}, row, compiler, rounds=rounds)
            took = sum(sum(of.values()) for (_, t), of in times.items() if t.form == "tiles")
            total[near, sweep] = took
            print(f"weights={near >> 10} << 10, sweep={sweep}: {took * 1e6:.0f} us")
    near, sweep = min(total, key=total.__getitem__)
    print(f"best: weights={near >> 10} << 10, sweep={sweep}")
    return replace(target, matrix=replace(target.matrix, weights=near, sweep=sweep))


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


def fit(kind: str, target: Target, quick: bool = False, rounds: int = 1) -> Fit:
    """Measure layers of a kind with all tilings, and fit."""
    made = layers(kind, SHAPES[1:3], DENSITIES[::2]) if quick else layers(kind)
    times = measure(made, {b: b for b in BLOCKS}, target, toolchain.find(), rounds=rounds)
    points = [(la, t, b, s) for (la, t), row in times.items() for b, s in row.items()]
    factors, errors = {}, []
    for matrix in sorted({t.matrix for _, t, *_ in points}):
        mine = [p for p in points if p[1].matrix == matrix]
        seconds = np.array([s for *_, s in mine])
        known = np.array([arrival(la, t, target) * 1e-9 for la, t, *_ in mine])
        a = np.array([made_of(la, t, b, target) for la, t, b, _ in mine])
        factors[matrix] = nonnegative_fit(a / seconds[:, None], 1 - known / seconds)
        errors += list(np.abs((a @ factors[matrix] + known) / seconds - 1))
    losses = []
    for layer, blocks in {(la, b) for la, _, b, _ in points}:
        mine = [p for p in points if p[0] == layer and p[2] == blocks]
        modelled = [
            made_of(la, t, b, target) @ factors[t.matrix] + arrival(la, t, target) * 1e-9
            for la, t, b, _ in mine
        ]
        best = min(s for *_, s in mine)
        losses.append(mine[int(np.argmin(modelled))][3] / best - 1)
    rounded = {m: tuple(float(f"{v * 1e9:.3g}") for v in x) for m, x in factors.items()}
    return Fit(rounded, float(np.median(errors)), max(errors), float(np.mean(losses)))


def main() -> None:
    """Measure, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--target", default="auto", choices=("auto", *targets.NAMES))
    parser.add_argument("--write", type=Path, metavar="FILE", help="the same as JSON")
    parser.add_argument("--rounds", type=int, default=3, help="of measuring; the best count")
    parser.add_argument("--quick", action="store_true", help="two shapes only, and rough figures")
    args = parser.parse_args()
    machine = cpu.detect()
    core = microarchitectures.of(machine)
    target = microarchitectures.tuned(targets.choose(args.target, machine), core)
    targets.prepare(target.name)
    if target.matrix is not None:
        for name, (ns, cycles) in probe(target, toolchain.find(), 3 if args.quick else 300).items():
            print(f"{name:52} {ns:10.3g} ns {cycles:10.4g} cycles")
        target = best_matrix(target, toolchain.find(), args.quick, args.rounds)
    fits = {kind: fit(kind, target, args.quick, args.rounds) for kind in ("i8", "f32")}
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
