"""Time of single int8 layers against the share of 4-blocks that are pruned.

    python benchmarks/layers.py             saves to benchmarks/results
    python benchmarks/layers.py --quick     one shape, seconds, saves nothing

Each layer is compiled twice, once and nine times in one graph, and the difference is what is
reported: kernels with their quantizing epilogue, without the conversion from row-major at the
start.  Square layers follow one another; others all read one input, and a 4-channel layer reads
each result.  All variants run in turns in one process, on one thread.  The peak is a loop of
VPDPBUSD on registers, measured in the same turns.  At last, each kernel with rows in lanes of the
compiler's table is timed on its case (``cases.py``).
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):  # run as a script
    sys.path[0] = str(ROOT)

from benchmarks.harness import kernels, machine, report  # noqa: E402
from benchmarks.harness.limit import Peak, measure_peak  # noqa: E402
from sparsec import targets  # noqa: E402
from sparsec.compiler.codegen.table import IN_LANES  # noqa: E402
from sparsec.compiler.editor import Editor  # noqa: E402
from sparsec.compiler.ir import BATCH, Graph  # noqa: E402
from sparsec.runtime import cpu  # noqa: E402

SPARSITIES = (0.0, 0.5, 0.8, 0.9, 0.95)
LAYERS = ((768, 768), (3072, 768), (768, 3072))  # output channels, input channels
TOKENS = (16, 128)
DEPTHS = (1, 9)

FULL, QUICK = (15, 0.03), (3, 0.005)  # turns, and seconds of a measurement

Key = tuple[int, int, int, float, int]  # n, k, tokens, sparsity, depth


def pruned(rng: np.random.Generator, n: int, k: int, sparsity: float) -> np.ndarray:
    """int8 weights [n, k] of which that share of aligned 1x4 blocks is zero, the same in no row."""
    w = rng.integers(1, 128, (n, k)) * rng.choice([-1, 1], (n, k))
    blocks = np.ones(n * k // 4, bool)
    blocks[rng.permutation(blocks.size)[: round(sparsity * blocks.size)]] = False
    return (w * np.repeat(blocks.reshape(n, k // 4), 4, axis=1)).astype(np.int8)


def chain(n: int, k: int, sparsity: float, tokens: int, depth: int) -> Graph:
    """`depth` layers of that shape with weights of their own, one after another where n == k."""
    rng = np.random.default_rng(1)
    e = Editor(name=f"layers_{n}x{k}", length=tokens)
    x = e.input("x", np.uint8, (BATCH, tokens, k))
    step, zero = e.constant(np.float32(0.05)), e.constant(np.uint8(128))
    scale = e.constant(np.float32(0.05 / (70 * np.sqrt(k * max(1 - sparsity, 0.01)))))
    total = ""
    for i in range(depth):
        w = e.constant(pruned(rng, n, k, sparsity))
        bias = e.constant(rng.integers(-999, 999, n).astype(np.int32))
        y = e.emit("qlinear", [x, w, scale, bias], x_zp=128, source=f"layer_{i}")
        q = e.emit("quantize", [y, step, zero], source=f"layer_{i}")
        if n == k:
            x = q
        else:
            # One narrow layer reads the result, so that it is made, and costs next to nothing.
            narrow = e.constant(pruned(rng, 4, n, 0.9))
            one = e.emit("qlinear", [q, narrow, scale], x_zp=128, source=f"reader_{i}")
            total = e.emit("add", [total, one], source=f"reader_{i}") if total else one
    if not total:
        narrow = e.constant(pruned(rng, 4, n, 0.9))
        total = e.emit("qlinear", [x, narrow, scale], x_zp=128, source="reader")
    e.outputs.append(total)
    return e.finish()


@dataclass
class Program:
    """A chain as a shared library, ready to be called."""

    library: ctypes.CDLL
    form: str
    blocks: int
    memory: list[np.ndarray]
    times: list[float] = field(default_factory=list)

    def call(self) -> None:
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in self.memory]
        x, y, workspace = pointers
        inputs, outputs = (ctypes.c_void_p * 1)(x), (ctypes.c_void_p * 1)(y)
        code = self.library.sparsec_run(inputs, outputs, ctypes.c_int64(1), None, workspace, None)
        if code:
            raise RuntimeError(f"sparsec_run: {code}")

    def measure(self, seconds: float) -> None:
        """Add one measurement: the mean of as many calls as fit into the time."""
        start = time.perf_counter()
        self.call()
        calls = max(1, int(seconds / max(time.perf_counter() - start, 1e-6)))
        start = time.perf_counter()
        for _ in range(calls):
            self.call()
        self.times.append((time.perf_counter() - start) / calls)


def compile_chain(folder: Path, graph: Graph, target: targets.Target) -> Program:
    """Emit, compile and load a graph."""
    library, bucket = kernels.load(folder, graph, target)
    workspace = library.sparsec_workspace_size(ctypes.c_int64(1), ctypes.c_int32(1))
    _, tokens, k = graph.values[graph.inputs[0]].shape
    x = kernels.aligned(int(tokens) * int(k))
    x[:] = np.random.default_rng(0).integers(0, 256, x.size)
    first = graph.nodes[0].inputs[1]
    blocks = graph.constants[first].reshape(-1, 4).any(axis=1)
    details = [k["detail"] for k in bucket.kernels if k["source"].startswith("layer_0")]
    form = "sparse" if "sparse" in details[0] else "dense"
    memory = [x, kernels.aligned(int(tokens) * 16), kernels.aligned(workspace)]
    return Program(library, form, int(blocks.sum()), memory)


def measure_kernels(target: targets.Target, folder: Path, quick: bool) -> list[kernels.Timed]:
    """Time the kernels with rows in lanes."""
    size = kernels.QUICK if quick else kernels.FULL
    return kernels.measure(IN_LANES, target, folder, size, *(QUICK if quick else FULL))


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description="time of int8 layers by sparsity")
    parser.add_argument("--quick", action="store_true", help="few, short measurements")
    parser.add_argument(
        "--results",
        default=ROOT / "benchmarks" / "results",
        metavar="DIR",
        help="where to save, unless --quick",
    )
    parser.add_argument("--target", default="auto", help="ISA target (default: the machine's best)")
    args = parser.parse_args()
    turns, seconds = QUICK if args.quick else FULL
    about = machine.describe()
    info = cpu.detect()
    target = targets.choose(args.target, info)
    layers = LAYERS[:1] if args.quick else LAYERS
    keys = [(n, k, t, s, d) for n, k in layers for t in TOKENS for s in SPARSITIES for d in DEPTHS]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def make(key: Key) -> Program:
            n, k, tokens, sparsity, depth = key
            where = folder / "_".join(map(str, key))
            return compile_chain(where, chain(n, k, sparsity, tokens, depth), target)

        with ThreadPoolExecutor(info.threads) as pool:
            programs = dict(zip(keys, pool.map(make, keys), strict=True))
        peaks = []
        for turn in range(turns):
            if turn % 5 == 0:
                peaks.append(measure_peak(folder, 1, 1 << 20))
            for program in programs.values():
                program.measure(seconds)
        timed = measure_kernels(target, folder / "kernels", args.quick)
    peak = max(peaks, key=lambda p: p.vnni)
    results = [
        evaluate(programs[(*key, DEPTHS[0])], programs[(*key, DEPTHS[1])], key, peak)
        for key in dict.fromkeys(k[:4] for k in keys)
    ]
    text = as_text(results, peak, target.name, about)
    text += kernels.section(timed, kernels.QUICK if args.quick else kernels.FULL)
    print(text)
    if not args.quick:
        content = {"machine": about, "target": target.name, "peak": peak, "layers": results}
        content["kernels"] = timed
        report.save(Path(args.results), "layers", text, content)


@dataclass(frozen=True)
class Result:
    """Time of one layer.

    Attributes:
        blocks: non-zero 1x4 blocks of its weights.
        median, least: seconds.
        share: of the time that the VPDPBUSD instructions for those blocks need; None without them.
    """

    n: int
    k: int
    tokens: int
    sparsity: float
    form: str
    blocks: int
    median: float
    least: float
    share: float | None


def evaluate(few: Program, many: Program, key: tuple[int, int, int, float], peak: Peak) -> Result:
    """The time that each further layer takes."""
    n, k, tokens, sparsity = key
    further = DEPTHS[1] - DEPTHS[0]
    median = (statistics.median(many.times) - statistics.median(few.times)) / further
    least = (min(many.times) - min(few.times)) / further
    vectors = -(-tokens // peak.lanes)
    share = many.blocks * vectors / peak.vnni / median if peak.vnni else None
    return Result(n, k, tokens, sparsity, many.form, many.blocks, median, least, share)


def fit(rows: Sequence[Result]) -> str:
    """How well the time of the sparse kernels is a constant plus a time for each non-zero block."""
    sparse = [r for r in rows if r.form == "sparse"]
    if len(sparse) < 3:
        return ""
    blocks = np.array([r.blocks for r in sparse], float)
    times = np.array([r.median for r in sparse])
    # Relative errors count: each row is divided by its time.
    terms = np.stack([1 / times, blocks / times], axis=1)
    (fixed, each), *_ = np.linalg.lstsq(terms, np.ones(len(times)), rcond=None)
    off = np.abs((fixed + each * blocks) / times - 1).max()
    return (
        f"Sparse: {fixed * 1e6:.1f} µs + {each * 1e9:.3f} ns for each non-zero block "
        f"({each / rows[0].median * rows[0].blocks:.2f} of what it takes in the dense kernel); "
        f"the rows are within {off:.0%} of that."
    )


def as_text(results: Sequence[Result], peak: Peak, target: str, about: dict[str, Any]) -> str:
    """Markdown: one table for each shape and number of tokens."""
    parts = [
        f"# int8 layers against the share of pruned 4-blocks, one thread, {target}",
        report.machine_text(about),
        f"Peak from registers: {peak.vnni / 1e9:.2f} G VPDPBUSD a second of {peak.lanes} tokens.",
    ]
    head = ["pruned", "kernel", "blocks left", "µs", "fastest", "of dense time", "of dense blocks",
            "of peak"]  # fmt: skip
    for n, k, tokens in dict.fromkeys((r.n, r.k, r.tokens) for r in results):
        rows = [r for r in results if (r.n, r.k, r.tokens) == (n, k, tokens)]
        dense = rows[0]
        cells = [
            [
                f"{r.sparsity:.0%}",
                r.form,
                str(r.blocks),
                report.number(r.median * 1e6),
                report.number(r.least * 1e6),
                f"{r.median / dense.median:.1%}",
                f"{r.blocks / dense.blocks:.1%}",
                "-" if r.share is None else f"{r.share:.0%}",
            ]
            for r in rows
        ]
        title = f"## {k} -> {n} channels, {tokens} tokens"
        parts += [title, report.table(head, cells), fit(rows)]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
