"""Any number of rows and of threads: every tile height and every way to split a stage."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsec import targets
from sparsec.compiler.codegen import bucket
from sparsec.compiler.codegen.bucket import _products
from sparsec.compiler.editor import Editor
from sparsec.compiler.interpreter import interpret
from sparsec.compiler.ir import BATCH, Graph
from sparsec.compiler.lowering.linear import DENSE_CHANNELS, SLAB_QUADS, tile_units
from sparsec.runtime import cpu
from tests.lane_harness import Library, compile_graph, target_params

LENGTH = 53
#: Input and output channels: more than a slab, and no multiple of what is computed together.
K, N = 44, 84

Task = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32)
Run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, Task, ctypes.c_void_p, ctypes.c_int32)


class Parallel(ctypes.Structure):
    """``sparsec_parallel``: pieces one after the other, each on the next of some threads."""

    _fields_ = (("threads", ctypes.c_int32), ("run", Run))


def parallel(threads: int) -> tuple[Parallel, list[int]]:
    """That, and the number of pieces of each loop that it runs."""
    counts: list[int] = []

    def run(_: int, task: Callable[..., None], arg: int, count: int) -> None:
        counts.append(count)
        for i in reversed(range(count)):
            task(arg, i, i % threads)

    return Parallel(threads, Run(run)), counts


def layers() -> Graph:
    """Two layers in a row of each kind, sparse and dense: one stage of several waves."""
    rng = np.random.default_rng(0)
    e = Editor(name="rows", length=LENGTH)
    bytes_ = e.input("b", np.uint8, (BATCH, LENGTH, K))
    floats = e.input("f", np.float32, (BATCH, LENGTH, K))
    step = [e.constant(np.float32(64.0)), e.constant(np.uint8(128))]
    for keep in (0.2, 1.0):

        def weights(n: int, k: int, keep: float = keep) -> np.ndarray:
            kept = np.repeat(rng.random((n, k // 4)) < keep, 4, axis=1)
            return np.where(kept, rng.integers(-127, 128, (n, k)), 0).astype(np.int8)

        one = e.constant(np.float32(1.0))
        hidden = e.emit("qlinear", [bytes_, e.constant(weights(N, K)), one], x_zp=120)
        hidden = e.emit("quantize", [hidden, *step])
        e.outputs.append(e.emit("qlinear", [hidden, e.constant(weights(K, N)), one], x_zp=128))
        w = [e.constant(weights(n, k).astype(np.float32) / 127) for n, k in ((N, K), (K, N))]
        e.outputs.append(e.emit("linear", [e.emit("linear", [floats, w[0]]), w[1]]))
    return e.finish()


def run(
    library: Library, inputs: Sequence[np.ndarray], lengths: Sequence[int], threads: int
) -> tuple[list[np.ndarray], list[int]]:
    """Outputs, and the pieces of each loop; all memory starts as garbage."""
    batch = len(inputs[0])
    size = library.lib.sparsec_workspace_size(batch, threads)
    memory = np.full(size + 64, 0xA5, np.uint8)
    arrays = [np.ascontiguousarray(x) for x in inputs]
    outputs = [np.full((batch, LENGTH, K), np.float32(np.nan)) for _ in library.graph.outputs]
    pointers = [(ctypes.c_void_p * len(a))(*[x.ctypes.data for x in a]) for a in (arrays, outputs)]
    team, counts = parallel(threads)
    code = library.lib.sparsec_run(
        *pointers,
        ctypes.c_int64(batch),
        ctypes.c_void_p(np.asarray(lengths, np.int32).ctypes.data),
        ctypes.c_void_p(-(-memory.ctypes.data // 64) * 64),
        ctypes.byref(team),
    )
    assert code == 0
    return outputs, counts


@pytest.mark.parametrize("target", target_params())
def test_rows_and_threads_do_not_change_results(tmp_path: Path, target: str) -> None:
    """Integers are exact, and floats the same to the bit however rows and channels are split."""
    graph = layers()
    library = compile_graph(tmp_path, graph, target)
    rng = np.random.default_rng(1)
    most = 4
    inputs = [
        rng.integers(0, 256, (most, LENGTH, K)).astype(np.uint8),
        rng.standard_normal((most, LENGTH, K)).astype(np.float32),
    ]
    wanted = interpret(graph, inputs)
    whole, _ = run(library, inputs, [LENGTH] * most, 1)
    for i, (have, want) in enumerate(zip(whole, wanted, strict=True)):
        if i % 2:
            np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-4)
        else:
            np.testing.assert_array_equal(have, want)
    cases = [([n], t) for n in range(1, LENGTH + 1) for t in (1, 2, 3)]
    cases += [([LENGTH, 1, 0, n], t) for n in (0, 7, LENGTH) for t in (2, 5)]
    for lengths, threads in cases:
        have, _ = run(library, [x[: len(lengths)] for x in inputs], lengths, threads)
        for output, want in zip(have, whole, strict=True):
            for i, n in enumerate(lengths):
                np.testing.assert_array_equal(output[i, :n], want[i, :n])


def test_every_way_to_split_a_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows, channels, or whole shares by rows and the rest by channels: the same results."""
    # Which way is best depends on what a layer's weights cost: much on tiles.
    target = next(t for t in cpu.detect().targets() if targets.get(t).matrix is None)
    graph = layers()
    rng = np.random.default_rng(2)
    inputs = [
        rng.integers(0, 256, (1, LENGTH, K)).astype(np.uint8),
        rng.standard_normal((1, LENGTH, K)).astype(np.float32),
    ]
    found = {}
    for name, wait in (("rows", 1e9), ("free", 0.0)):
        monkeypatch.setattr(bucket, "WAIT_NS", wait)
        monkeypatch.setattr(bucket, "LINE_NS", 0.0)
        folder = tmp_path / name
        folder.mkdir()
        library = compile_graph(folder, graph, target)
        cases = [(n, threads) for n in range(1, LENGTH + 1) for threads in (2, 3)]
        found[name] = {case: run(library, inputs, [case[0]], case[1]) for case in cases}
    for case, (want, loops) in found["rows"].items():
        assert len(loops) == (case[0] > 16)
        for a, b in zip(found["free"][case][0], want, strict=True):
            np.testing.assert_array_equal(a, b)
    loops_of = {n: len(found["free"][n, 2][1]) for n in (16, 48)}
    assert loops_of[16] > 1  # by channels, wave by wave
    assert loops_of[48] == 1 + loops_of[16]  # two blocks by rows before


@given(units=st.integers(1, 600), tile=st.integers(1, 4), unit=st.sampled_from([8, 16]))
@settings(deadline=None)
def test_sparse_tiles_cover_all_units(units: int, tile: int, unit: int) -> None:
    """Tiles are those that there are, begin where blocks do, and differ by little.

    The arithmetic of ``call.c.j2`` and ``TILES_OF``.
    """
    per_block = 16 // unit
    heights = tile_units(tile, unit)
    most = heights[0]
    regular = most // per_block * per_block
    count = 1 if units <= most else -(-(units - most % per_block) // regular)
    blocks, at = -(-units // per_block), 0
    for i in range(1, count + 1):
        end = blocks * i // count * per_block if i < count else units
        assert end - at in heights
        assert i == count or end % per_block == 0
        at = end
    assert at == units


@given(rows=st.integers(1, 16), target=st.sampled_from(targets.TARGETS))
def test_dense_tiles_cover_all_rows(rows: int, target: targets.Target) -> None:
    """Functions are there for every part that the rows of a block are cut into."""
    for kind in _products(target):
        assert DENSE_CHANNELS % (kind["wide"] * target.lanes) == 0
        if rows <= kind["few"]:
            continue
        tiles = -(-rows // kind["most"])
        ends = [rows * i // tiles for i in range(tiles + 1)]
        for first, end in pairwise(ends):
            assert kind["low"] <= end - first <= kind["most"]
    assert SLAB_QUADS * 4 % DENSE_CHANNELS == 0


@pytest.mark.parametrize("target", targets.TARGETS, ids=lambda t: t.name)
def test_one_row_more_is_no_cliff(target: targets.Target) -> None:
    """What rows cost, beside the weights that are read once: the rows that are computed.

    A sparse layer computes whole vectors, so that its first steps are steeper.
    """
    allowed = {17: 1.33, 33: 1.25, 65: 1.15, 129: 1.1}
    for n, most in allowed.items():
        assert n / (n - 1) < most  # dense layers: row by row
        units = -(-n // target.unit) * target.unit
        if target.unit == 8 and n > 17:
            assert units / (n - 1) <= most
        assert units - n < target.unit
