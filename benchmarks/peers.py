"""sparsec beside DeepSparse, OpenVINO and ONNX Runtime, on the same models and the same machine.

    make bench-peers                                  all, with plots: most of an hour
    python benchmarks/peers.py                        the table only
    python benchmarks/peers.py --preset tiny          a minute, to see that it works
    python benchmarks/peers.py --sparsity 0.9 --block 1
    python benchmarks/peers.py --form fp32 --block 1 --shapes 1x128

Each engine runs in a process of its own with its own packages, in the form that suits it best, on
the same inputs (no padding) and as many threads.  They are measured in turns, in short slices.
Outputs are compared with ONNX Runtime's: ! in the table says that an engine computes something
else.  OpenVINO takes bfloat16 for what is not int8 where the CPU has it; openvino-f32 does not.

The limit is the time that the non-zero blocks and the attention products need at the machine's
peak, or reading the weights, whichever is longer.  Absolute times hold for one machine only.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):  # run as a script
    sys.path[0] = str(ROOT)

from benchmarks.harness import limit, machine, models, report  # noqa: E402
from benchmarks.harness.comparison import CONTENDERS, Comparison, Point  # noqa: E402
from benchmarks.harness.installs import add_peer_python, peer_pythons  # noqa: E402
from benchmarks.harness.models import Recipe  # noqa: E402
from benchmarks.harness.turns import Slice  # noqa: E402
from examples.encoders import FORMS, PRESETS  # noqa: E402

ENGINES = "sparsec,deepsparse,openvino,ort-int8,ort-fp32"
SHAPES = "1x16,1x128,1x384,64x384"
CURVE_LENGTHS = (16, 32, 64, 128, 256, 384, 512)
CURVE_SPARSITIES = (0.0, 0.5, 0.8, 0.9, 0.95)
CURVE_LENGTH = 128

# From this many tokens on, a run takes so long that fewer rounds do.
LARGE = 8192
LARGE_ROUNDS = 3


def shapes(text: str) -> list[tuple[int, int]]:
    """``1x16,64x384`` as pairs of batch and length."""
    pairs = [tuple(int(part) for part in item.split("x")) for item in text.split(",")]
    if any(len(pair) != 2 or min(pair) < 1 for pair in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is not like {SHAPES}")
    return [(pair[0], pair[1]) for pair in pairs]


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="bert-base", help="size (default: %(default)s)")
    for name in ("layers", "hidden", "heads", "intermediate", "vocab"):
        add(f"--{name}", type=int, default=argparse.SUPPRESS, help="override the preset's")
    add("--form", choices=FORMS, default="sparseml", help="(default: %(default)s)")
    add("--sparsity", type=float, default=0.8, help="(default: %(default)s)")
    add("--block", type=int, default=4, help="input channels in a block (default: %(default)s)")
    add("--spread", type=float, default=0.0, help="of that over the channels (default: even)")
    add("--shapes", type=shapes, default=SHAPES, help="batch x length (default: %(default)s)")
    add("--engines", default=ENGINES, help=f"of {', '.join(CONTENDERS)} (default: %(default)s)")
    add("--cores", type=int, default=2, help="threads of every engine (default: %(default)s)")
    add("--rounds", type=int, default=5, help="turns of each engine (default: %(default)s)")
    add("--runs", type=int, default=10, help="runs in a turn, at least (default: %(default)s)")
    add("--seconds", type=float, default=0.5, help="of a turn, at least (default: %(default)s)")
    add("--longest", type=float, default=10.0, help="seconds of a turn (default: %(default)s)")
    add("--plots", action="store_true", help="measure and draw the two curves as well")
    add_peer_python(parser)
    add("--cache", type=Path, default=ROOT / "build" / "bench", help="models and environments")
    add("--results", type=Path, default=ROOT / "benchmarks" / "results", help="where to save")
    args = parser.parse_args(argv)
    if args.plots and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plots needs matplotlib, which the extra 'bench' installs")
    args.engines = args.engines.split(",")
    unknown = set(args.engines) - set(CONTENDERS)
    if unknown:
        parser.error(f"no such engine: {', '.join(sorted(unknown))}")
    return args


def recipe(args: argparse.Namespace) -> Recipe:
    """The model that the command line asks for."""
    preset = PRESETS[args.preset]
    names = {f.name for f in dataclasses.fields(preset)}
    changes = {key: value for key, value in vars(args).items() if key in names}
    config = dataclasses.replace(preset, head="token-classification", **changes)
    return Recipe(config, args.form, args.sparsity, args.block, spread=args.spread)


def environments(args: argparse.Namespace) -> tuple[dict[str, str], dict[str, str]]:
    """The interpreter of each engine, and why a peer has none."""
    # ONNX Runtime computes the references, so it is wanted in any case.
    wanted = sorted({"onnxruntime", *(CONTENDERS[c].engine for c in args.engines)} - {"sparsec"})
    pythons, skipped = peer_pythons({n: n for n in wanted}, args.cache, args.peer_python)
    return {"sparsec": sys.executable, **pythons}, skipped


class Bench:
    """The comparison and its model, point by point."""

    def __init__(self, args: argparse.Namespace, pythons: dict[str, str]) -> None:
        self.args = args
        self.recipe = recipe(args)
        names = [name for name in args.engines if CONTENDERS[name].engine in pythons]
        self.cpus = machine.pick_cpus(args.cores)
        turn = Slice(args.rounds, args.runs, args.seconds, args.longest)
        self.comparison = Comparison(args.cache, self.cpus, pythons, names, turn)

    def run(self, wanted: Recipe, points: Sequence[tuple[int, int]]) -> list[Point]:
        """Measure one model at some shapes."""
        cache = self.args.cache
        tell(f"making {wanted.title}")
        _, work = models.pruned_model(cache, wanted)
        buckets = sorted({length for _, length in points})
        artifact = models.artifact(cache, wanted, buckets)
        size = limit.weight_bytes(work)
        # Just before the engines' turn: clock frequencies change during a day.
        self.peak = limit.measure_peak(cache, len(self.cpus), size)
        turn = self.comparison.turn
        done = []
        for batch, length in points:
            tell(f"measuring {batch} x {length}")
            if batch * length >= LARGE:
                rounds = min(turn.rounds, LARGE_ROUNDS)
                self.comparison.turn = dataclasses.replace(turn, rounds=rounds)
            done.append(self.comparison.measure(wanted, batch, length, artifact, self.peak))
            self.comparison.turn = turn
        return done


def tell(line: str) -> None:
    """Progress, apart from the results."""
    print(line, file=sys.stderr, flush=True)


def save_curves(
    folder: Path,
    stem: str,
    title: str,
    about: str,
    names: Sequence[str],
    curves: dict[str, list[Point]],
    results: dict[str, Any],
) -> list[Path]:
    """Latency against length and against sparsity: tables and drawings."""
    from benchmarks.harness import plots

    tables = (report.speed_table(curve, names, report.pruned) for curve in curves.values())
    text = "\n\n".join([f"# {title[0].upper()}{title[1:]}", "Median latency.", *tables, about])
    paths = report.save(folder, f"{stem}-curves", text, results | {"curves": curves})
    paths += plots.plot_length(curves["length"], f"{title}; batch 1", folder / f"{stem}-length")
    config = results["model"].config
    paths += plots.plot_sparsity(
        curves["sparsity"],
        f"{config.layers} layers, {config.hidden} wide; 1 x {CURVE_LENGTH}; "
        f"{results['model'].form} form, blocks of {results['model'].block}",
        folder / f"{stem}-sparsity",
    )
    return paths


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, save.  Returns 1 when sparsec failed, or computed something else."""
    args = arguments(argv)
    described = machine.describe()
    args.cache = args.cache.absolute()
    pythons, skipped = environments(args)
    bench = Bench(args, pythons)
    names = bench.comparison.names

    single = dataclasses.replace(bench.recipe.config, layers=1)
    turn, bench.comparison.turn = bench.comparison.turn, Slice(rounds=1, runs=1, seconds=0)
    lengths = sorted({length for _, length in args.shapes})
    checks = bench.run(bench.recipe.with_(config=single), [(1, n) for n in lengths])
    bench.comparison.turn = turn
    points = bench.run(bench.recipe, args.shapes)
    peak = bench.peak
    curves: dict[str, list[Point]] = {}
    if args.plots:
        lengths = [n for n in CURVE_LENGTHS if n <= bench.recipe.config.max_position]
        curves["length"] = bench.run(bench.recipe, [(1, n) for n in lengths])
        curves["sparsity"] = [
            bench.run(bench.recipe.with_(sparsity=s), [(1, CURVE_LENGTH)])[0]
            for s in CURVE_SPARSITIES
        ]
    every = checks + points + [point for curve in curves.values() for point in curve]

    versions = ", ".join(f"{name} {v}" for name, v in sorted(bench.comparison.versions.items()))
    rate = f"VNNI {peak.vnni / 1e9:.2f} G/s and FMA {peak.fma / 1e9:.2f} G/s a core"
    title = bench.recipe.title
    about = "\n".join(
        [
            report.machine_text(described),
            f"- {versions}",
            f"- peak: {rate} ({4 * peak.lanes}-byte vectors), reading {peak.read / 1e9:.1f} GB/s",
            *report.failures(every, skipped),
        ]
    )
    text = "\n\n".join(
        [
            f"# {title[0].upper()}{title[1:]}",
            f"Median latency, or items per second of a batch; {len(bench.cpus)} threads each.",
            report.speed_table(points, names),
            report.ratio_table(points, names),
            report.ratio_table(points, names, "fastest runs", lambda timing: timing.min_ms),
            about,
            "Differences are relative to the reference's largest and mean absolute value. The "
            "reference is ONNX Runtime on the same file; for ORT int8 it is the float32 model.",
            report.detail_table(points),
            "One layer, where a rounding that falls the other way cannot grow (not a timing):",
            report.detail_table(checks),
        ]
    )
    print(text)
    stem = f"peers-{bench.recipe.name}"
    results: dict[str, Any] = {
        "model": bench.recipe,
        "machine": described,
        "load_average_after": machine.load_average(),
        "versions": bench.comparison.versions,
        "skipped": skipped,
        "threads": len(bench.cpus),
        "slice": bench.comparison.turn,
        "peak": peak,
    }
    saved = report.save(
        args.results, stem, text, results | {"single_layer": checks, "points": points}
    )
    if curves:
        saved += save_curves(args.results, stem, title, about, names, curves, results)
    for path in saved:
        tell(f"wrote {path}")
    wrong = [p for p in every if "sparsec" in p.agreement and not p.agreement["sparsec"].holds]
    missing = "sparsec" in names and any("sparsec" not in p.timings for p in every)
    return 1 if wrong or missing else 0


if __name__ == "__main__":
    sys.exit(main())
