"""BERT-base with 80 % of its 4-blocks pruned: cost of compiling, size, memory, latency.

    python benchmarks/bert_base.py             some ten minutes; saves to benchmarks/results
    python benchmarks/bert_base.py --quick     a tiny model, seconds, saves nothing

Compiling and loading are measured in processes of their own.  Latencies are of one sequence on two
cores, each engine in a process of its own, in turns; ONNX Runtime runs the dense model, in
float32 and after its dynamic quantization, by two recipes, of which the faster counts: of the model
as it is, and of the model that its transformer optimizer fused first (which needs sympy).
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):  # run as a script
    sys.path[0] = str(ROOT)

import numpy as np  # noqa: E402

import sparsec  # noqa: E402
from benchmarks.harness import machine, models, report  # noqa: E402
from benchmarks.harness.turns import Slice, Worker, take_turns  # noqa: E402
from examples.encoders import PRESETS, EncoderConfig, random_batch  # noqa: E402

ONE, FIVE = [128], [16, 32, 64, 128, 384]
LENGTHS = (16, 128, 384)
CORES = 2

COMPILE = """
import json, os, pathlib, resource, sys, threading, time
import sparsec

PAGE = os.sysconf("SC_PAGESIZE")
peak, done = 0, threading.Event()

def resident(pid):
    # of a process and its descendants; those that end meanwhile count as nothing
    folder = pathlib.Path("/proc") / str(pid)
    try:
        size = int((folder / "statm").read_text().split()[1]) * PAGE
        children = " ".join(f.read_text() for f in folder.glob("task/*/children")).split()
    except OSError:
        return 0
    return size + sum(map(resident, children))

def watch():
    global peak
    while not done.wait(0.02):
        peak = max(peak, resident(os.getpid()))

model, output, buckets = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
watcher = threading.Thread(target=watch)
watcher.start()
start = time.perf_counter()
try:
    sparsec.compile(model, buckets=buckets, output=output, force=True)
    seconds = time.perf_counter() - start
finally:
    done.set()
    watcher.join()
own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"seconds": seconds, "own": own, "together": max(peak, own)}))
"""

RESIDENT = """
import json, sys
import numpy as np
import sparsec

def memory():
    lines = open("/proc/self/smaps_rollup").read().splitlines()[1:]
    fields = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return fields["Rss"], fields["Pss"]

sparsec.Engine, sparsec.Artifact, np.random
artifact, cores, buckets = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
before = memory()
engine = sparsec.Engine(artifact, num_cores=cores, buckets=buckets)
loaded = memory()
for length in engine.buckets:
    ids = np.ones((1, length), np.int64)
    engine.run([ids] * len(engine.input_names))
after = memory()
names = ("rss", "pss")
print(json.dumps({f"{when}_{n}": x - y for when, now in (("loaded", loaded), ("run", after))
                  for n, x, y in zip(names, now, before)} | {"python_rss": before[0]}))
"""

FUSE = """
import os, sys
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers import optimizer
source, heads, hidden, output = sys.argv[1:]
fused = optimizer.optimize_model(
    source, model_type="bert", num_heads=int(heads), hidden_size=int(hidden), opt_level=0
)
fused.save_model_to_file(output + ".fused")
options = {"DefaultTensorType": 1}  # float32: shapes behind fused nodes are not inferred
quantize_dynamic(output + ".fused", output, weight_type=QuantType.QInt8, extra_options=options)
os.remove(output + ".fused")
"""


def child(script: str, *arguments: object) -> dict[str, Any]:
    """Run Python code in a process of its own and read the JSON that it prints last.

    Raises:
        RuntimeError: it failed; with its last words.
    """
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    lines = done.stdout.splitlines()
    result: dict[str, Any] = json.loads(lines[-1]) if lines and lines[-1][:1] == "{" else {}
    return result


@dataclasses.dataclass(frozen=True)
class Compilation:
    """What compiling for some buckets takes, and what comes of it.

    Attributes:
        seconds: wall time, model loading included.
        own: peak resident bytes of sparsec's process.
        together: the same with the C compilers that it runs, sampled.
        disk: bytes of the artifact's files by name.
        memory: of an Engine that loaded it and ran every bucket once: what it added.
        longest: the same of an Engine that loaded only the longest bucket.
    """

    buckets: Sequence[int]
    seconds: float
    own: int
    together: int
    disk: dict[str, int]
    memory: dict[str, int]
    longest: dict[str, int]


def compile_for(model: Path, buckets: Sequence[int], turns: int) -> tuple[Path, Compilation]:
    """Compile some times, and measure the fastest; then load it."""
    output = model.with_name(f"bench-{len(buckets)}.sparsec")
    runs = [child(COMPILE, model, output, json.dumps(buckets)) for _ in range(turns)]
    best = min(runs, key=lambda r: r["seconds"])
    disk = {p.name: p.stat().st_size for p in sorted(output.iterdir())}
    memory = child(RESIDENT, output, CORES, json.dumps(buckets))
    longest = child(RESIDENT, output, CORES, json.dumps([max(buckets)]))
    return output, Compilation(buckets, disk=disk, memory=memory, longest=longest, **best)


def quantized_models(cache: Path, recipe: models.Recipe) -> dict[str, Path]:
    """The dense model, dynamically quantized: as it is, and fused first where that works here."""

    def quantize(source: Path, destination: Path) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(source, destination, weight_type=QuantType.QInt8)

    made = {"int8": models.dense_int8_model(cache, recipe, quantize)}
    fused = made["int8"].with_name("dynamic-int8-fused.onnx")
    if not fused.exists():
        config = recipe.config
        source = models.dense_model(cache, recipe)
        part = fused.with_suffix(".part")
        try:
            child(FUSE, source, config.heads, config.hidden, part)
            part.rename(fused)
        except RuntimeError as error:  # its optimizer needs sympy
            why = str(error).strip().splitlines()[-1]
            print(f"ONNX Runtime with nodes fused first is skipped: {why}", file=sys.stderr)
    if fused.exists():
        made["int8, fused first"] = fused
    return made


def latencies(
    cache: Path, config: EncoderConfig, engines: dict[str, tuple[str, Path]], turn: Slice
) -> dict[int, dict[str, list[float]]]:
    """Seconds of each run, by length and engine."""
    cpus = machine.pick_cpus(CORES)
    results = {}
    for length in LENGTHS:
        inputs = cache / f"inputs-{length}.npz"
        np.savez(inputs, *random_batch(config, 1, length, seed=1, ragged=False))
        with contextlib.ExitStack() as stack:
            workers = {}
            for number, (name, (engine, model)) in enumerate(engines.items()):
                log = cache / "logs" / f"bert-base-{number}.txt"
                worker = stack.enter_context(Worker(sys.executable, log, cpus))
                worker.ask(
                    "load",
                    engine=engine,
                    model=str(model.absolute()),
                    inputs=str(inputs.absolute()),
                    threads=len(cpus),
                )
                workers[name] = worker
            times, failed = take_turns(workers, turn)
        for name, why in failed.items():
            print(f"{name} failed at {length} tokens: {why}", file=sys.stderr)
        results[length] = times
    return results


def mib(size: float) -> str:
    """Bytes as MiB."""
    return f"{size / 2**20:.0f} MiB" if size >= 10 * 2**20 else f"{size / 2**20:.1f} MiB"


def cost_table(compilations: dict[str, Compilation]) -> str:
    """What compiling takes and what an artifact needs, one column for each compilation."""
    made = compilations.values()
    rows = [
        ["compile", *(f"{c.seconds:.1f} s" for c in made)],
        ["compile, for each bucket", *(f"{c.seconds / len(c.buckets):.1f} s" for c in made)],
        ["peak memory of sparsec", *(mib(c.own) for c in made)],
        ["the same with its C compilers", *(mib(c.together) for c in made)],
        ["artifact on disk", *(mib(sum(c.disk.values())) for c in made)],
        [
            "of which weights",
            *(mib(sum(n for f, n in c.disk.items() if f.startswith("weights"))) for c in made),
        ],
        ["Engine loaded, RSS added", *(mib(c.memory["loaded_rss"]) for c in made)],
        ["every bucket run, RSS added", *(mib(c.memory["run_rss"]) for c in made)],
        ["every bucket run, PSS added", *(mib(c.memory["run_pss"]) for c in made)],
        ["only the longest bucket run, RSS added", *(mib(c.longest["run_rss"]) for c in made)],
    ]
    return report.table(["", *compilations], rows)


def latency_table(times: dict[int, dict[str, list[float]]]) -> str:
    """Medians in ms, and how many times faster sparsec is."""
    names = list(dict.fromkeys(name for by_name in times.values() for name in by_name))
    rows = []
    for length, by_name in times.items():
        median = {name: statistics.median(t) for name, t in by_name.items()}
        own = median.get("sparsec")
        cells = [str(length)]
        for name in names:
            if name not in median:
                cells.append("-")
            elif name == "sparsec" or own is None:
                cells.append(f"{report.number(1e3 * median[name])} ms")
            else:
                ratio = median[name] / own
                cells.append(f"{report.number(1e3 * median[name])} ms ({ratio:.1f}x)")
        rows.append(cells)
    return report.table(["tokens", *names], rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="a tiny model, short turns, nothing saved")
    add("--turns", type=int, default=2, help="compilations of each kind (default: %(default)s)")
    add("--rounds", type=int, default=7, help="turns of each engine (default: %(default)s)")
    add("--seconds", type=float, default=1.0, help="length of a turn (default: %(default)s)")
    add("--cache", type=Path, default=ROOT / "build" / "bench", help="where the models are kept")
    add("--results", type=Path, default=ROOT / "benchmarks" / "results", help="where to save")
    args = parser.parse_args(argv)

    described = machine.describe()
    preset = "tiny" if args.quick else "bert-base"
    recipe = models.Recipe(PRESETS[preset])
    turn = Slice(2, 3, 0.05) if args.quick else Slice(args.rounds, 10, args.seconds)
    compilations = {}
    for form in ("sparseml", "fp32"):
        variant = recipe if form == "sparseml" else recipe.with_(form="fp32", sparsity=0.0)
        model, _ = models.pruned_model(args.cache, variant)
        for buckets in (ONE, FIVE):
            count = f"{len(buckets)} bucket{'s' if len(buckets) > 1 else ''}"
            made = compile_for(model, buckets, 1 if args.quick else args.turns)
            compilations[
                f"{'int8, 80 % pruned' if form == 'sparseml' else 'fp32 dense'}, {count}"
            ] = made
    sparse = next(
        path for name, (path, c) in compilations.items() if "pruned" in name and len(c.buckets) > 1
    )
    dense = next(
        path for name, (path, c) in compilations.items() if "dense" in name and len(c.buckets) > 1
    )
    engines = {
        "sparsec": ("sparsec", sparse),
        "sparsec fp32 dense": ("sparsec", dense),
        "ONNX Runtime fp32": ("onnxruntime", models.dense_model(args.cache, recipe)),
    }
    for name, path in quantized_models(args.cache, recipe).items():
        engines[f"ONNX Runtime {name}"] = ("onnxruntime", path)
    times = latencies(args.cache, recipe.config, engines, turn)

    text = "\n\n".join(
        [
            f"# {preset}",
            f"{recipe.title[0].upper()}{recipe.title[1:]}.",
            report.machine_text(described),
            "## Compiling, size, memory",
            cost_table({name: c for name, (_, c) in compilations.items()}),
            f"## Latency of one sequence, {CORES} threads, median",
            latency_table(times),
        ]
    )
    print(text)
    if not args.quick:
        results = {
            "model": recipe,
            "machine": described,
            "load_average_after": machine.load_average(),
            "sparsec": sparsec.__version__,
            "compilations": {name: c for name, (_, c) in compilations.items()},
            "latencies": times,
        }
        for path in report.save(args.results, "bert-base", text, results):
            print(f"wrote {path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
