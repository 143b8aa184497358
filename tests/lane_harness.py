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
import pytest

from sparsec import targets
from sparsec.compiler import build, toolchain
from sparsec.compiler.codegen import emit_buckets
from sparsec.compiler.ir import BatchDim, Graph, bind_shape
from sparsec.runtime import cpu

UBSAN = ["-fsanitize=undefined", "-fno-sanitize-recover=all"]

#: What runs the kernels of targets that this CPU cannot run.  AVX-VNNI's have the AVX-512 encoding
#: of the same instruction, AMX's an emulation beside vectors of 32 bytes: it takes all the layers
#: that it can.
STAND_INS = {
    "avx_vnni": replace(
        targets.get("avx_vnni"), features=("avx2", "fma", "avx512f", "avx512vl", "avx512vnni")
    ),
    "amx": replace(
        targets.get("avx2"),
        name="amx",
        bf16=(),
        matrix=targets.Matrix(header="tiles_emulated.h", weights=16 << 10, sweep=4, kept=0),
        costs=replace(
            targets.costs(targets.get("avx2")), matrix=(1e-3, 1e-3, 0.1, 1e-3, 1e-3, 1e-3)
        ),
    ),
}


def target_params() -> list[Any]:
    """A pytest parameter for every ISA target, skipped with a reason where it can't run."""
    info = cpu.detect()
    params = []
    for target in targets.TARGETS:
        missing = target.missing(info.features)
        if missing and not STAND_INS.get(target.name, target).missing(info.features):
            missing = ()
        marks = [pytest.mark.skip(reason=f"this CPU lacks {', '.join(missing)}")] if missing else []
        params.append(pytest.param(target.name, marks=marks))
    return params


def _target(name: str) -> targets.Target:
    target = next(t for t in targets.TARGETS if t.name == name)
    if target.missing(cpu.detect().features) and name in STAND_INS:
        return STAND_INS[name]
    return target


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
    target = targets.at(_target(target_name), precision)
    cc = toolchain.find()
    if extra and (not isinstance(cc, toolchain.Gcc) or shutil.which("gcc") is None):
        extra = ()
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
    level = "-O0" if target_name == "generic" else "-O2"  # portable C takes a compiler long
    command = [*cc.command, *flags, level, *extra, "-shared", "-fPIC", f"-I{folder}"]
    subprocess.run(
        [*command, "-o", str(output), *sources, "-lm"], check=True, cwd=folder, capture_output=True
    )
    return Library(output, graph)
