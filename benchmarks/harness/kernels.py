"""The kernels of the compiler's table, each on its case, timed by the counters of --profile."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.cases import Size, graph, inputs
from benchmarks.harness import report
from sparsec.compiler import build, toolchain
from sparsec.compiler.codegen import BucketSource, emit_buckets
from sparsec.compiler.codegen.table import Kernel
from sparsec.compiler.ir import BatchDim, Graph, bind_shape
from sparsec.targets import Target

#: Of the cases that are saved, and of those that only show that all runs.
FULL, QUICK = Size(tokens=128, channels=768), Size(tokens=16, channels=64)


@dataclass(frozen=True)
class Timed:
    """The time of a kernel's case on one thread.

    Attributes:
        kernel, family: of its row.
        shape: as the manifest has it; "" where it does not say.
        seconds: median.
        rate: multiply-adds of 16 lanes a second that non-zero weights need; 0: none are counted.
    """

    kernel: str
    family: str
    shape: str
    seconds: float
    rate: float


def aligned(size: int) -> np.ndarray:
    """Zeroed bytes that begin at a multiple of 64."""
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size]


def load(
    folder: Path, made: Graph, target: Target, profile: bool = False
) -> tuple[ctypes.CDLL, BucketSource]:
    """Emit, compile and load a graph; with `profile`, its library has counters."""
    spec = {
        name: SimpleNamespace(
            name=name,
            dtype=made.values[name].dtype,
            shape=["batch" if isinstance(d, BatchDim) else d for d in made.values[name].shape],
        )
        for name in (*made.inputs, *made.outputs)
    }
    signature: Any = SimpleNamespace(
        inputs=[spec[n] for n in made.inputs],
        outputs=[spec[n] for n in made.outputs],
        mask_input=None,
    )
    emission = emit_buckets([made], signature, target, made.name, profile=profile)
    compiler = toolchain.find()
    tree = build.write_tree(folder, emission, compiler, target)
    libraries = build.compile_tree(tree, compiler, target, jobs=1)
    library = ctypes.CDLL(str(libraries[-1]))
    library.sparsec_workspace_size.restype = ctypes.c_size_t
    return library, emission.buckets[0]


def measure(
    rows: Iterable[Kernel], target: Target, folder: Path, size: Size, turns: int, seconds: float
) -> list[Timed]:
    """Time the kernels that a target has, on one sequence.

    Args:
        folder: for the C and the library.
        size: of the cases.
        turns: measurements of all.
        seconds: of one.
    """
    rows = [row for row in rows if row.is_for(target)]
    made, _ = graph([row.name for row in rows], size)
    library, bucket = load(folder, made, target, profile=True)
    workspace = library.sparsec_workspace_size(ctypes.c_int64(1), ctypes.c_int32(1))
    types = [made.values[name] for name in made.outputs]
    outputs = [np.zeros(bind_shape(value.shape, 1), value.dtype) for value in types]
    memory = [*inputs(made, 1), *outputs, aligned(workspace)]
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in memory]
    ins = (ctypes.c_void_p * len(made.inputs))(*pointers[: len(made.inputs)])
    outs = (ctypes.c_void_p * len(outputs))(*pointers[len(made.inputs) : -1])
    spent = [_turn(library, (ins, outs, pointers[-1]), bucket, seconds) for _ in range(turns)]
    return [_timed(row, bucket, spent) for row in rows]


def _turn(
    library: ctypes.CDLL, pointers: tuple[Any, Any, Any], bucket: BucketSource, seconds: float
) -> list[float]:
    """Seconds of each call of a bucket's kernels: the mean of the runs that fit into the time."""
    nanoseconds = (ctypes.c_uint64 * len(bucket.kernels))()
    runs = ctypes.c_uint64()
    ins, outs, workspace = pointers
    start = 0.0
    while not runs.value or time.perf_counter() - start < seconds:
        code = library.sparsec_run(ins, outs, ctypes.c_int64(1), None, workspace, None)
        if code:
            raise RuntimeError(f"sparsec_run: {code}")
        # The first one warms the caches.
        reset = not start
        start = start or time.perf_counter()
        library.sparsec_profile(nanoseconds, len(nanoseconds), ctypes.byref(runs), int(reset))
    return [spent / 1e9 / runs.value for spent in nanoseconds]


def _timed(row: Kernel, bucket: BucketSource, spent: Sequence[Sequence[float]]) -> Timed:
    at, call = next(
        (at, call)
        for at, call in enumerate(bucket.kernels)
        if call["entry"] == row.name and row.name in call["source"].split(", ")
    )
    seconds = statistics.median(turn[at] for turn in spent)
    blocks = -(-call["rows"] // 16)
    work = call["work_block"] * blocks + call["work_key"] * call["rows"] * blocks
    rate = (work + call["work_sample"]) / seconds if seconds else 0.0
    return Timed(row.name, row.family, call["shape"], seconds, rate)


def section(timed: Sequence[Timed], size: Size) -> str:
    """Markdown: a table with a line for each kernel."""
    cells = [
        [
            t.kernel,
            t.shape or "-",
            report.number(t.seconds * 1e6),
            report.number(t.rate / 1e9) if t.rate else "-",
        ]
        for t in timed
    ]
    head = ["kernel", "shape", "µs", "G multiply-adds of 16 lanes a second"]
    title = f"## Each kernel on its case: {size.tokens} rows of {size.channels} channels"
    return f"\n{title}\n\n{report.table(head, cells)}\n"
