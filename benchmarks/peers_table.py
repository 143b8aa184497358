"""The table of peers: many models and shapes, in short slices that may be spread over hours.

    python benchmarks/peers_table.py --prepare              models, artifacts: nothing is timed
    python benchmarks/peers_table.py --budget 50            measure for that many seconds
    python benchmarks/peers_table.py                        measure all points once more, and report
    python benchmarks/peers_table.py --report               the table of what there is
    python benchmarks/peers_table.py --rows "minilm int8" --masked 0.5

Engines take turns of under a second, so that whatever else a shared machine does meets all alike;
each call goes on with the points that have had the fewest turns and adds to what earlier ones
measured.  There is one result file for each microarchitecture, and medians and fastest deciles, and
the ratios of both, are reported.  Rows are in harness/rows.py; peers.py measures one model deeper:
its outputs, its limits, curves.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):  # run as a script
    sys.path[0] = str(ROOT)

from benchmarks.harness import machine, report, samples  # noqa: E402
from benchmarks.harness.comparison import compare  # noqa: E402
from benchmarks.harness.installs import PEERS, Unavailable, peer_python  # noqa: E402
from benchmarks.harness.rows import (  # noqa: E402
    ENTRANTS,
    ROWS,
    SHAPES,
    Row,
    artifact_of,
    file_of,
    inputs_of,
    selected,
    why_not,
)
from benchmarks.harness.samples import Samples  # noqa: E402
from benchmarks.harness.turns import Slice, Worker, WorkerError, take_turns  # noqa: E402
from sparsec import microarchitectures  # noqa: E402
from sparsec.runtime import cpu  # noqa: E402

#: A turn: some runs of an engine, under a second where one run is.
TURN = Slice(rounds=1, runs=1, seconds=0.25, longest=0.9)

#: Turns that a point gets each time its engines are loaded, within the budget.
TURNS = 8


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rows", default="", metavar="REGEX", help="those that it finds (default: all)")
    add("--shapes", default="", help="of these only, such as 1x16,1x128 (default: all)")
    add("--masked", type=float, default=0.0, help="share of each sequence (default: none)")
    add("--cores", type=int, default=2, help="threads of every engine (default: %(default)s)")
    add("--budget", type=float, default=0.0, help="seconds to measure for, about (default: all)")
    add("--prepare", action="store_true", help="make models and artifacts anew, then end")
    add("--report", action="store_true", help="make the table of what there is, then end")
    add("--note", default="", help="a line for the report, on the machine")
    add("--cache", type=Path, default=ROOT / "build" / "bench", help="models and samples")
    add("--results", type=Path, default=ROOT / "benchmarks" / "results", help="where to save")
    args = parser.parse_args(argv)
    args.cache = args.cache.absolute()
    if not 0 <= args.masked < 1:
        parser.error("--masked is a share: from 0, less than 1")
    return args


class Bench:
    """Engines, models and what was measured."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        found = cpu.detect()
        self.features = found.features
        identity = {"vendor": found.vendor, "family": found.family, "model": found.model}
        self.core = microarchitectures.of(found)
        masked = f"-masked{round(100 * args.masked)}" if args.masked else ""
        self.stem = f"table-{self.core}-{found.targets()[0]}{masked}"
        self.path = args.cache / f"{self.stem}.json"
        self.samples = Samples.load(self.path, machine.describe() | identity)
        self.cpus = machine.pick_cpus(args.cores)
        self.pythons: dict[str, str] = {"sparsec": sys.executable}
        for name in sorted({engine for engine, _ in ENTRANTS.values()} - {"sparsec"}):
            try:
                self.pythons[name] = peer_python(PEERS[name], args.cache, {})
            except Unavailable as reason:
                self.samples.skipped[name] = str(reason)
        self.rows = []
        for row in selected(ROWS, args.rows):
            reason = why_not(row, found.features)
            if reason:
                self.samples.skipped[row.key] = reason
            else:
                self.rows.append(row)

    def quantize(self, source: Path, destination: Path) -> None:
        """ONNX Runtime's dynamic quantization, in its own environment."""
        with self._worker("onnxruntime", "quantize") as worker:
            worker.ask("quantize", model=str(source), output=str(destination))

    def prepare(self) -> None:
        """Files of all rows, and their artifacts."""
        import sparsec

        for row in self.rows:
            tell(f"making {row.key}")
            for name, form in row.files.items():
                path = file_of(self.args.cache, row, form, self.quantize)
                if name == "sparsec":
                    artifact = artifact_of(self.args.cache, row, path)
                    lengths = sorted({length for _, length in self._shapes(row)})
                    sparsec.compile(
                        path, buckets=lengths, output=artifact, force=True, **row.options
                    )

    def points(self) -> list[tuple[Row, int, int]]:
        """Those that are wanted, those with the fewest turns first."""
        every = [(row, *shape) for row in self.rows for shape in self._shapes(row)]
        return sorted(every, key=lambda p: self.samples.rounds.get(title(*p), 0))

    def _shapes(self, row: Row) -> list[tuple[int, int]]:
        wanted = self.args.shapes.split(",") if self.args.shapes else []
        return [(b, n) for b, n in SHAPES[row.model] if not wanted or f"{b}x{n}" in wanted]

    def measure(self, row: Row, batch: int, length: int, end: float) -> None:
        """Some turns of all engines at one point, until about `end` at the latest."""
        point = title(row, batch, length)
        with TemporaryDirectory() as folder, ExitStack() as stack:
            box = Path(folder)
            inputs = inputs_of(row.model, batch, length, self.args.masked)
            np.savez(box / "x.npz", **{f"{i:02}": x for i, x in enumerate(inputs)})  # type: ignore[arg-type]
            workers = {}
            for name in row.files:
                engine, loader = ENTRANTS[name]
                if engine not in self.pythons:
                    continue
                worker = stack.enter_context(self._worker(engine, f"table-{name}"))
                try:
                    answer = worker.ask(
                        "load", engine=loader, model=str(self._model(row, name)),
                        inputs=str(box / "x.npz"), threads=len(self.cpus),
                    )  # fmt: skip
                except WorkerError as error:
                    self.samples.skipped[f"{point}, {name}"] = str(error)
                    continue
                self.samples.versions[engine] = answer["version"]
                workers[name] = worker
            for _ in range(TURNS):
                times, failed = take_turns(workers, TURN)
                self.samples.add(point, times, 1)
                for name, reason in failed.items():
                    self.samples.skipped[f"{point}, {name}"] = reason
                    workers.pop(name).close()
                if time.monotonic() > end:
                    break
            self._compare(point, workers, box)
        self.samples.save(self.path)

    def _model(self, row: Row, name: str) -> Path:
        path = file_of(self.args.cache, row, row.files[name], self.quantize)
        return artifact_of(self.args.cache, row, path) if name == "sparsec" else path

    def _compare(self, point: str, workers: dict[str, Worker], box: Path) -> None:
        """Results beside ONNX Runtime's."""
        if "ort" not in workers:
            return
        made = {}
        for name, worker in workers.items():
            worker.ask("outputs", path=str(box / f"{name}.npy"), rows=1)
            made[name] = np.load(box / f"{name}.npy")
        self.samples.agreement[point] = {
            name: round(compare(array, made["ort"])[1], 6)
            for name, array in made.items()
            if name != "ort"
        }

    def _worker(self, engine: str, log: str) -> Worker:
        return Worker(self.pythons[engine], self.args.cache / "logs" / f"{log}.log", self.cpus)

    def report(self) -> str:
        """The tables, with what they were measured on."""
        made = self.samples
        about = made.machine
        masked = self.args.masked
        lines = [
            f"# sparsec and others on {self.core}, target {about['targets'][0]}",
            f"{about['vendor']}, family {about['family']}, model {about['model']} "
            f"({about['cpu']}); {len(self.cpus)} threads each"
            + (f"; {masked:.0%} of each sequence masked, and computed all the same" * (masked > 0))
            + ". Latency of one sequence, sequences per second of a batch. "
            "Turns of under a second, one after the other, so that a neighbour meets all alike."
            + (f" {self.args.note}" if self.args.note else ""),
            samples.speeds(made),
            samples.ratios(made),
            report.machine_text(about),
            ", ".join(f"{name} {v}" for name, v in sorted(made.versions.items())),
            *(f"- {name} is skipped: {why}" for name, why in sorted(made.skipped.items())),
            "Results beside ONNX Runtime's on the same weights (its own form of them, so that "
            "roundings differ):",
            samples.agreements(made),
        ]
        return "\n\n".join(lines)


def title(row: Row, batch: int, length: int) -> str:
    """A point's name."""
    return f"{row.key} {batch}x{length}"


def tell(line: str) -> None:
    """Progress, apart from the results."""
    print(line, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare, measure, or report."""
    args = arguments(argv)
    bench = Bench(args)
    if args.prepare:
        bench.prepare()
        return 0
    if not args.report:
        end = time.monotonic() + (args.budget or float("inf"))
        for row, batch, length in bench.points():
            tell(f"measuring {title(row, batch, length)}")
            bench.measure(row, batch, length, end)
            if time.monotonic() > end:
                break
    if args.report or not args.budget:
        text = bench.report()
        print(text)
        stored = {k: v for k, v in vars(bench.samples).items() if k != "points"}
        points = {
            point: {name: samples.quantiles(ms) for name, ms in of.items() if ms}
            for point, of in bench.samples.points.items()
        }
        for path in report.save(args.results, bench.stem, text, stored | {"points": points}):
            tell(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
