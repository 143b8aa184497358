"""Builds a core-IR graph through the real code generator and C compiler, and calls it by ctypes."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from sparsec import targets
from sparsec.compiler import build, toolchain
from sparsec.compiler.codegen import emit_buckets
from sparsec.compiler.ir import BatchDim, Graph, bind_shape
from tests import stand_ins

UBSAN = ["-fsanitize=undefined", "-fno-sanitize-recover=all"]

#: AMX's tiles, or what emulates them, take all the layers that they can.
TAKING_ALL = (1e-3, 1e-3, 0.1, 1e-3, 1e-3, 1e-3)


def target_params() -> list[Any]:
    """A pytest parameter for every ISA target, skipped with a reason where it can't run.

    Where 64-byte vectors are emulated those of `amx` are in the fast tests.
    """
    return stand_ins.parameters(slow=("avx512_vnni", "avx_vnni"))


def _target(name: str, precision: str = "fp32") -> targets.Target:
    """What runs a target's code here; what it chooses does not depend on where that is."""
    target = stand_ins.here(name, precision)
    if target.matrix is None:
        return target
    matrix = replace(target.matrix, weights=16 << 10, sweep=4, kept=0)
    return replace(target, matrix=matrix, costs=replace(targets.costs(target), matrix=TAKING_ALL))


def _spec(graph: Graph, name: str) -> SimpleNamespace:
    value = graph.values[name]
    shape = ["batch" if isinstance(d, BatchDim) else d for d in value.shape]
    return SimpleNamespace(name=name, dtype=value.dtype, shape=shape)


class Library:
    """A compiled graph."""

    def __init__(self, path: Path, graph: Graph) -> None:
        self.path = path
        self.graph = graph
        self.lib = ctypes.CDLL(str(path))
        self.lib.sparsec_workspace_size.restype = ctypes.c_size_t
        self.lib.sparsec_workspace_size.argtypes = [ctypes.c_int64, ctypes.c_int32]

    def run(
        self, inputs: Sequence[np.ndarray], lengths: Sequence[int] | None = None
    ) -> list[np.ndarray]:
        """Outputs for one batch, computed on one thread; all memory starts as garbage."""
        batch = inputs[0].shape[0]
        size = self.lib.sparsec_workspace_size(batch, 1)
        guard = 4096
        memory = np.full(size + guard + 64, 0xA5, np.uint8)
        start = -memory.ctypes.data % 64
        outputs = []
        for name in self.graph.outputs:
            value = self.graph.values[name]
            raw = np.full(bind_shape(value.shape, batch), 0, value.dtype)
            raw.reshape(-1).view(np.uint8)[:] = 0xA5
            outputs.append(raw)
        arrays = [np.ascontiguousarray(a) for a in inputs]
        ins = (ctypes.c_void_p * len(arrays))(*[a.ctypes.data for a in arrays])
        outs = (ctypes.c_void_p * len(outputs))(*[a.ctypes.data for a in outputs])
        counts = None if lengths is None else np.asarray(lengths, np.int32)
        code = self.lib.sparsec_run(
            ins,
            outs,
            ctypes.c_int64(batch),
            None if counts is None else ctypes.c_void_p(counts.ctypes.data),
            ctypes.c_void_p(memory.ctypes.data + start),
            None,
        )
        assert code == 0
        assert (memory[start + size : start + size + guard - 64] == 0xA5).all(), "workspace overrun"
        return outputs


def compile_graph(
    folder: Path,
    graph: Graph,
    target_name: str = "generic",
    extra: Sequence[str] = UBSAN,
    precision: str = "fp32",
) -> Library:
    """Emit, compile (with UBSan unless told otherwise) and load a graph."""
    target = _target(target_name, precision)
    cc = toolchain.find()
    if extra and (not isinstance(cc, toolchain.Gcc) or shutil.which("gcc") is None):
        extra = ()
    if stand_ins.emulates_vectors(target) and target.matrix is None:
        extra = ()  # amx has the same with sanitizers; they take a compiler four times as long
    signature = SimpleNamespace(
        inputs=[_spec(graph, n) for n in graph.inputs],
        outputs=[_spec(graph, n) for n in graph.outputs],
        mask_input=None,
    )
    emission = emit_buckets([graph], signature, target, "test")  # type: ignore[arg-type]
    tree = build.write_tree(folder, emission, cc, target)
    ((_, library, units),) = tree.buckets
    sources = [str(folder / u) for u in units]
    if tree.weights:
        sources.append(str(folder / "weights.S"))
    output = folder / f"one_{library}"
    flags = [f for f in cc.flags(target) if f != "-O3"]
    # What compilers take long for: portable C and emulated instructions.
    level = "-O0" if target_name == "generic" else "-O2"
    level = "-O1" if stand_ins.emulates_vectors(target) else level
    command = [*cc.command, *flags, level, *extra, "-shared", "-fPIC", f"-I{folder}"]
    subprocess.run(
        [*command, "-o", str(output), *sources, "-lm"], check=True, cwd=folder, capture_output=True
    )
    return Library(output, graph)
