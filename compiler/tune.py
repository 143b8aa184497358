"""``sparsec compile --tune``: measure ways to compute linear layers on this machine, and choose.

Each class of layers (shape, density, form of the result) is compiled with every candidate tiling,
with its own weights, and run on one core for the rows of each bucket.  How weights are stored (form
and chunks) is chosen once for all buckets, because they share them; the height of a tile for each.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sparsec import scratch, targets
from sparsec.arguments import argument
from sparsec.compiler import build
from sparsec.compiler.codegen import emit_buckets
from sparsec.compiler.editor import Editor
from sparsec.compiler.frontend import Signature, TensorSpec
from sparsec.compiler.ir import BATCH, Graph
from sparsec.compiler.lowering.tiling import (
    LayerClass,
    Tiling,
    Tilings,
    blocks_of,
    candidates,
    choose,
)
from sparsec.compiler.toolchain import Toolchain
from sparsec.errors import HardwareError
from sparsec.progress import Step
from sparsec.runtime import cpu
from sparsec.runtime.cpu import usable_cores
from sparsec.targets import Target

#: Weights of a layer for each class: int8 or float32 ``[N, K]``.
Layers = Mapping[LayerClass, np.ndarray]

ROWS = 16  # rows of a block, and of the graph that is measured
SLICES = 7
SLICE_NS = 4_000_000


def tune(
    layers: Layers,
    lengths: Sequence[int],
    batch_size: int,
    target: Target,
    compiler: Toolchain,
    jobs: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Tilings:
    """Measure the candidates for every layer and choose the fastest.

    Args:
        layers: weights of a layer of each class.
        lengths: of the buckets.
        batch_size: sequences that run at once.
        target, compiler: what the code is for, and what compiles it.
        jobs: compilers to run at once; as many as usable cores when absent.
        progress: called with a line for each step.

    Raises:
        HardwareError: this machine cannot run code for the target.
        ToolchainError: the compiler failed.
    """
    missing = target.missing(cpu.detect().features)
    if missing:
        raise HardwareError(
            f"{argument('tune', True)} measures on this machine, which cannot run {target.name} "
            f"(it lacks {', '.join(missing)}): tune on one that can, and pass the record on with "
            f"{argument('tuning')}"
        )
    rows = blocks_of(lengths, batch_size)
    return choose(measure(layers, rows, target, compiler, jobs, progress))


def measure(
    layers: Layers,
    rows: Mapping[int, int],
    target: Target,
    compiler: Toolchain,
    jobs: int | None = None,
    progress: Callable[[str], None] | None = None,
    rounds: int = 1,
) -> dict[tuple[LayerClass, Tiling], dict[int, float]]:
    """Seconds that layers take on one core, by class, tiling and key of `rows`.

    Args:
        rows: what to measure for: blocks of 16 rows by any key.
        layers, target, compiler, jobs, progress: as for :func:`tune`.
        rounds: how often to measure everything, the best of which counts: on a machine that others
            use, whose cores are slow for seconds at a time.
    """
    tell = progress or (lambda _: None)
    count = max((len(candidates(layer, target)) for layer in layers), default=0)
    measured: dict[tuple[LayerClass, Tiling], dict[int, float]] = {}
    with scratch.temporary("sparsec-tune-") as folder:

        def write(index: int) -> _Candidate:
            return _write(folder / str(index), layers, index, target, compiler)

        def make(candidate: _Candidate) -> Path:
            return build.compile_tree(candidate.tree, compiler, target, jobs=1)[-1]

        with ThreadPoolExecutor(max_workers=jobs or usable_cores()[1]) as pool:
            written = list(pool.map(write, range(count)))
            # Where a tiling means nothing to any layer, its code is another's.
            distinct = {candidate.digest: candidate for candidate in written}
            line = f"compiling {len(distinct)} tilings of {len(layers)} kinds of layers"
            tell(Step(line, "measuring tilings", 0, len(distinct)))
            made = dict(zip(distinct, pool.map(make, distinct.values()), strict=True))
        targets.prepare(target.name)
        times: dict[tuple[str, int], list[float]] = {}
        turns = [(digest, library) for _ in range(rounds) for digest, library in made.items()]
        for number, (digest, library) in enumerate(turns, 1):
            line = f"measuring tiling {number} of {len(turns)}"
            tell(Step(line, "measuring tilings", number - 1, len(turns)))
            for b in set(rows.values()):
                took = _measure(distinct[digest], library, b)
                times[digest, b] = list(map(min, took, times.get((digest, b), took)))
    for index, candidate in enumerate(written):
        for i, layer in enumerate(layers):
            tiling = candidates(layer, target)[index]
            measured[layer, tiling] = {n: times[candidate.digest, b][i] for n, b in rows.items()}
    return measured


def _graph(layers: Layers) -> Graph:
    """Every layer once, between bytes or floats as in its model."""
    e = Editor(name="tune", length=ROWS)
    inputs: dict[tuple[str, int], str] = {}
    for i, (of, weights) in enumerate(layers.items()):
        dtype = np.uint8 if of.kind == "i8" else np.float32
        key = (of.kind, of.k)
        if key not in inputs:
            inputs[key] = e.input(f"x{len(inputs)}", dtype, (BATCH, ROWS, of.k))
        w = e.constant(weights)
        source = f"layer{i}"
        if of.kind != "i8":
            e.outputs.append(e.emit("linear", [inputs[key], w], source=source))
            continue
        scale = e.constant(np.float32(1e-3))
        y = e.emit("qlinear", [inputs[key], w, scale], x_zp=128, source=source)
        if of.panels:
            # Nothing is computed of the result, but it has to be there in panels.
            step = [e.constant(np.float32(0.05)), e.constant(np.uint8(128))]
            q = e.emit("quantize", [y, *step], source=source)
            none = e.constant(np.zeros((4, of.n), np.int8))
            y = e.emit("qlinear", [q, none, scale], x_zp=0, source=f"reader{i}")
        e.outputs.append(y)
    return e.finish()


@dataclass(frozen=True)
class _Candidate:
    """The C of a graph of all layers, and where in the profile's rows each of them is.

    Attributes:
        digest: of all that is compiled.
    """

    graph: Graph
    tree: build.CTree
    digest: str
    calls: tuple[int, ...]


def _write(
    folder: Path, layers: Layers, index: int, target: Target, compiler: Toolchain
) -> _Candidate:
    """Every layer with its candidate of this index."""
    graph = _graph(layers)
    tilings = Tilings({(layer, ROWS): candidates(layer, target)[index] for layer in layers})

    def spec(name: str) -> TensorSpec:
        value = graph.values[name]
        rest = [d for d in value.shape[1:] if isinstance(d, int)]
        return TensorSpec(name, value.dtype, ("batch", *rest))

    signature = Signature(
        inputs=tuple(map(spec, graph.inputs)),
        outputs=tuple(map(spec, graph.outputs)),
        mask_input=None,
    )
    emission = emit_buckets([graph], signature, target, "tune", profile=True, tilings=tilings)
    tree = build.write_tree(folder, emission, compiler, target)
    digest = hashlib.sha256(emission.weights)
    for name, text in sorted(emission.buckets[0].files.items()):
        digest.update(f"{name} {text}".encode())
    sources = [row["source"].split(", ")[0] for row in emission.buckets[0].kernels]
    calls = tuple(sources.index(f"layer{i}") for i in range(len(layers)))
    return _Candidate(graph, tree, digest.hexdigest(), calls)


def _measure(candidate: _Candidate, library: Path, blocks: int) -> list[float]:
    """Seconds that each layer takes for so many blocks of rows on one core, at best."""
    graph = candidate.graph
    lib = ctypes.CDLL(str(library))
    lib.sparsec_workspace_size.restype = ctypes.c_size_t
    lib.sparsec_workspace_size.argtypes = [ctypes.c_int64, ctypes.c_int32]
    rng = np.random.default_rng(0)

    def array(name: str) -> np.ndarray:
        value = graph.values[name]
        shape = (blocks, *value.shape[1:])
        if value.dtype == np.uint8:
            return rng.integers(0, 256, shape).astype(np.uint8)  # type: ignore[arg-type]
        return rng.standard_normal(shape).astype(np.float32)  # type: ignore[arg-type]

    arrays = [[array(n) for n in names] for names in (graph.inputs, graph.outputs)]
    pointers = [(ctypes.c_void_p * len(a))(*[x.ctypes.data for x in a]) for a in arrays]
    memory = np.zeros(lib.sparsec_workspace_size(blocks, 1) + 64, np.uint8)
    workspace = ctypes.c_void_p(-(-memory.ctypes.data // 64) * 64)
    calls = lib.sparsec_profile(None, 0, ctypes.byref(ctypes.c_uint64()), 0)
    spent, runs = (ctypes.c_uint64 * calls)(), ctypes.c_uint64()
    best = [float("inf")] * calls
    lib.sparsec_run(*pointers, ctypes.c_int64(blocks), None, workspace, None)
    for _ in range(SLICES):
        lib.sparsec_profile(spent, calls, ctypes.byref(runs), 1)
        total = 0
        while total < SLICE_NS:
            lib.sparsec_run(*pointers, ctypes.c_int64(blocks), None, workspace, None)
            lib.sparsec_profile(spent, calls, ctypes.byref(runs), 0)
            total = sum(spent)
        best = [min(b, s / runs.value) for b, s in zip(best, spent, strict=True)]
    return [best[i] * 1e-9 for i in candidate.calls]
