"""Lane kernels against the numpy references: shapes, tails, patterns, saturation, zero points.

Each test compiles one graph that holds many cases, because the C compiler is what takes the time.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparsec import targets
from sparsec.compiler import toolchain
from sparsec.compiler.codegen.lanes import byte_scores, gelu, masks
from sparsec.compiler.editor import Editor
from sparsec.compiler.interpreter import interpret
from sparsec.compiler.ir import BATCH, BatchDim, Graph
from sparsec.compiler.lowering import groups, lanes
from sparsec.compiler.lowering.linear import Plans
from sparsec.compiler.lowering.words import (
    DEPTHS,
    Words,
    exceeds_pairs,
    moves,
    pack_words,
    split_pairs,
    split_words,
)
from sparsec.compiler.ops import OPS, infer
from sparsec.compiler.templates import environment, read_template
from tests import stand_ins
from tests.lane_harness import UBSAN, _target, compile_graph, target_params

TARGETS = target_params()
EVERYWHERE = stand_ins.parameters()

#: Ways to place the non-zero weights of a layer, [n, k] -> bool mask.
PATTERNS: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    "dense": lambda rng, n, k: np.ones((n, k), bool),
    "empty": lambda rng, n, k: np.zeros((n, k), bool),
    "blocks": lambda rng, n, k: np.repeat(rng.random((n, -(-k // 4))) < 0.2, 4, 1)[:, :k],
    "single": lambda rng, n, k: rng.random((n, k)) < 0.03,
    "rows": lambda rng, n, k: np.broadcast_to(rng.random((n, 1)) < 0.3, (n, k)),
    "last": lambda rng, n, k: np.broadcast_to(np.arange(k) == k - 1, (n, k)),
}


def lane_ops(graph: Graph) -> set[str]:
    """Ops that lowering puts into lanes."""
    choice = lanes.choose(graph)
    return {n.op for n in graph.nodes if choice.has(n)}


U, S, F = np.uint8, np.int8, np.float32
INT8 = [(1, 0, np.uint8), (30, 255, np.uint8), (64, -128, np.int8), (1700, 128, np.uint8)]


def int8_layers(rng: np.random.Generator, k: int, zp: int, dtype: type, length: int) -> Graph:
    """One quantized input into a layer for every pattern; results are the exact accumulators."""
    e = Editor(name="layers", length=length)
    x = e.input("x", dtype, (BATCH, length, k))
    for i, (name, pattern) in enumerate(PATTERNS.items()):
        n = (61, 1, 7, 18, 33, 5)[i]
        w = rng.integers(-128, 128, (n, k)).astype(np.int8)
        w[rng.random((n, k)) < 0.1] = rng.choice(np.array([-128, 127], np.int8))
        w = np.where(pattern(rng, n, k), w, 0).astype(np.int8)
        inputs = [x, e.constant(w), e.constant(np.float32(1.0))]
        if i % 2:
            inputs.append(e.constant(rng.integers(-(2**20), 2**20, n).astype(np.int32)))
        e.outputs.append(e.emit("qlinear", inputs, x_zp=zp, source=name))
    return e.finish()


def int8_cases() -> list[Any]:
    """A target, input channels, zero point and type; portable C takes a compiler long."""
    cases = []
    for target in EVERYWHERE:
        for k, zp, dtype in INT8:
            long = target.values == ("generic",) and k in (30, 64)
            marks = [*target.marks, pytest.mark.slow] if long else target.marks
            cases.append(pytest.param(*target.values, k, zp, dtype, marks=marks))
    return cases


@pytest.mark.parametrize(("target", "k", "zp", "dtype"), int8_cases())
def test_int8_linear_is_exact(tmp_path: Path, target: str, k: int, zp: int, dtype: type) -> None:
    rng = np.random.default_rng(k)
    length = 19
    graph = int8_layers(rng, k, zp, dtype, length)
    library = compile_graph(tmp_path, graph, target)
    info = np.iinfo(dtype)
    for batch in (1, 2, 5):
        x = rng.integers(info.min, info.max + 1, (batch, length, k)).astype(dtype)
        x[0, 0] = info.min
        x[-1, -1] = info.max
        for want, have in zip(interpret(graph, [x]), library.run([x]), strict=True):
            np.testing.assert_array_equal(have, want)


def float_layers(rng: np.random.Generator, k: int) -> Graph:
    """One float input into a layer for every pattern."""
    e = Editor(name="layers", length=7)
    x = e.input("x", np.float32, (BATCH, 7, k))
    for i, pattern in enumerate(PATTERNS.values()):
        n = (61, 1, 7, 18, 33, 5)[i]
        w = np.where(pattern(rng, n, k), rng.standard_normal((n, k)), 0).astype(np.float32)
        y = e.emit("linear", [x, e.constant(w)])
        e.outputs.append(e.emit("add", [y, e.constant(rng.standard_normal(n).astype(np.float32))]))
    return e.finish()


@pytest.mark.parametrize("target", EVERYWHERE)
@pytest.mark.parametrize("k", [1, 30, 700])
def test_float_linear(tmp_path: Path, target: str, k: int) -> None:
    rng = np.random.default_rng(k)
    graph = float_layers(rng, k)
    library = compile_graph(tmp_path, graph, target)
    for batch in (1, 3):
        a = rng.standard_normal((batch, 7, k)).astype(np.float32)
        for want, have in zip(interpret(graph, [a]), library.run([a]), strict=True):
            np.testing.assert_allclose(have, want, rtol=1e-5, atol=2e-6 * math.sqrt(k))


def test_plans_cover_both_forms_and_chunks() -> None:
    """The layers above do reach the sparse and the dense kernel, whole and in chunks."""
    graph = int8_layers(np.random.default_rng(1), 9000, 0, np.uint8, 4)
    plans = {n.source: Plans(_target("generic"), [4]).get(n, graph) for n in graph.nodes}
    assert plans["blocks"].sparse and plans["blocks"].chunks > 1
    assert not plans["dense"].sparse
    assert plans["empty"].sparse and plans["empty"].work == 0
    small = int8_layers(np.random.default_rng(1), 64, 0, np.uint8, 4)
    assert Plans(_target("generic"), [4]).get(small.nodes[2], small).chunks == 1
    floats = float_layers(np.random.default_rng(1), 700)
    runs = [
        Plans(_target("generic"), [floats.length]).get(n, floats)
        for n in floats.nodes
        if n.op == "linear"
    ]
    by_pattern = dict(zip(PATTERNS, runs, strict=True))
    assert by_pattern["blocks"].run == 4 and by_pattern["single"].run == 1
    assert by_pattern["blocks"].chunks > 1


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    n=st.integers(1, 40),
    k=st.integers(1, 600),
    density=st.floats(0.0, 1.0),
    # Tiles are in test_tiles.py.
    target=st.sampled_from([t.name for t in targets.TARGETS if t.matrix is None]),
    panels=st.booleans(),
    kind=st.sampled_from(["i8", "f32"]),
    block=st.sampled_from([1, 4]),
    seed=st.integers(0, 2**32 - 1),
)
def test_packed_stream_holds_every_weight_once(
    n: int,
    k: int,
    density: float,
    target: str,
    panels: bool,
    kind: str,
    block: int,
    seed: int,
) -> None:
    """Unpacking what the kernel reads gives the weights back."""
    rng = np.random.default_rng(seed)
    w = rng.integers(-128, 128, (n, k)).astype(np.int8)
    blocks = np.repeat(rng.random((n, -(-k // block))) < density, block, axis=1)
    w[~blocks[:, :k]] = 0
    e = Editor(name="one", length=4)
    if kind == "i8":
        x = e.input("x", np.uint8, (BATCH, 4, k))
        e.outputs.append(e.emit("qlinear", [x, e.constant(w), e.constant(np.float32(1))], x_zp=3))
    else:
        x = e.input("x", np.float32, (BATCH, 4, k))
        e.outputs.append(e.emit("linear", [x, e.constant(w.astype(np.float32))]))
    graph = e.finish()
    plan = Plans(targets.get(target), [4]).get(graph.nodes[0], graph, panels)
    # Entries of 4 int8 or of one float; those of one place add up.
    width, item = (4, np.int8) if kind == "i8" else (1, np.float32)
    rows = np.zeros((plan.quads * 4, plan.packs, width), np.float32)
    if plan.sparse:
        stream = plan.weights.view(item).reshape(-1, plan.run, 4, width)
        index = 0
        for chunk in range(plan.chunks):
            for quad in range(plan.quads):
                (step, twos), (last_step, last_twos) = plan.start[index : index + 2]
                shared = 2 * (last_step - step) - (last_twos - twos)
                at = 2 * twos
                for j in range(step, last_step):
                    # Steps that share come first, with one offset for two channels.
                    halves = 2 if j < step + shared else 1
                    for r in range(4):
                        offset = int(plan.offsets[at + r // halves])
                        pack = chunk * plan.chunk_packs + offset // 64
                        place = quad * 4 + r
                        row = plan.order[chunk, place] if plan.order.size else place
                        rows[row, pack : pack + plan.run] += stream[j, :, r]
                    at += 4 // halves
                assert at == 2 * last_twos
                index += 1
    elif plan.words:
        rows = plan.words.main[:, :, None].view(np.int8)
    else:
        dense = np.ascontiguousarray(plan.weights.transpose(0, 2, 1))
        rows = dense.reshape(-1, plan.packs, 1).view(item)[: plan.quads * 4]
    whole = rows.reshape(plan.quads * 4, -1).astype(np.float64)
    if plan.words:
        for channel, pack, rest in _rests(plan.words):
            whole[channel, 4 * pack : 4 * pack + 4] += rest
    np.testing.assert_array_equal(whole[:n, :k], w)
    if kind == "i8":
        want = -3 * w.astype(np.int64).sum(axis=1)
        np.testing.assert_array_equal(plan.bias[:n], want)
    assert plan.pairs == (kind == "i8" and target == "avx2")
    assert (plan.words is not None) == (plan.pairs and not plan.sparse)
    if plan.pairs:
        stored = plan.words.main if plan.words else plan.weights
        assert not exceeds_pairs(stored.reshape(1, -1)).any()


def _rests(words: Words) -> Iterator[tuple[int, int, np.ndarray]]:
    """Output channel, pack and weights [4] of what is multiplied apart."""
    for channel, (first, end) in enumerate(itertools.pairwise(words.start)):
        assert (words.channel[first:end] == channel).all()
        for i in range(first, end):
            weights = words.rest[i : i + 1].view(np.int8)
            yield channel, int(words.at[i]), weights.astype(np.float64)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_words_never_leave_16_bits(data: st.DataObject) -> None:
    """The parts add up to the whole; neither sums of 16 bits nor pairs of products leave them."""
    depth = data.draw(st.sampled_from(DEPTHS))
    packs = data.draw(st.integers(1, 9))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    spread = data.draw(st.sampled_from((5, 30, 60, 300)))
    w = np.clip(np.rint(rng.standard_normal((8, 4 * packs)) * spread), -128, 127).astype(np.int8)
    moved = data.draw(st.booleans())
    main, rest = split_words(w.view(np.int32), depth, moved)
    parts = np.concatenate([main[None], rest])
    np.testing.assert_array_equal(
        np.ascontiguousarray(parts).view(np.int8).sum(axis=0, dtype=np.int64), w
    )
    assert not exceeds_pairs(rest.reshape(-1, packs)).any()
    assert not exceeds_pairs(main).any()
    wide = np.ascontiguousarray(main).view(np.int8).astype(np.int64).reshape(8, packs, 2, 2)
    added = moves(main, depth)
    assert moved or not added.any()
    for group, first in enumerate(range(0, packs, depth)):
        sums = wide[:, first : first + depth]
        highest = 255 * np.maximum(sums, 0).sum(axis=(1, 3)) + added[:, group]
        lowest = 255 * np.minimum(sums, 0).sum(axis=(1, 3)) + added[:, group]
        assert (highest < 2**15).all()
        assert (lowest >= -(2**15)).all()
    words = pack_words(w.view(np.int32), depth, moved)
    np.testing.assert_array_equal(words.bias, -added.sum(axis=(1, 2), dtype=np.int64))
    whole = np.ascontiguousarray(words.main).view(np.int8).astype(np.float64)
    for channel, pack, more in _rests(words):
        whole[channel, 4 * pack : 4 * pack + 4] += more
    np.testing.assert_array_equal(whole, w)
    slab = data.draw(st.sampled_from((4, 8, 16)))
    stream = words.stream(slab)
    more = words.moves.size > 0
    assert len(stream) == 8 * packs + more * 8 * -(-packs // depth)
    # Slab by slab, group by group, channel by channel.
    channel, group = data.draw(st.integers(0, 7)), data.draw(st.integers(0, (packs - 1) // depth))
    first, last = channel // slab * slab, min(channel // slab * slab + slab, 8)
    at = first * (packs + more * -(-packs // depth))
    at += (last - first) * group * (depth + more)
    here = main[channel, group * depth : (group + 1) * depth]
    at += (channel - first) * (len(here) + more)
    np.testing.assert_array_equal(stream[at : at + len(here)], here)
    if more:
        pair = stream[at + len(here) : at + len(here) + 1].view(np.int16)
        np.testing.assert_array_equal(pair, added[channel, group])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-128, 127), min_size=4, max_size=40).filter(lambda w: len(w) % 4 == 0))
def test_pairs_never_saturate(weights: list[int]) -> None:
    """Halved packs add up to the whole, and no pair of products leaves 16 bits."""
    w = np.array([weights], np.int8)
    split = split_pairs(w.view(np.int32))
    parts = split.view(np.int8).reshape(-1, 2, 4).astype(np.int64)
    np.testing.assert_array_equal(parts.sum(axis=1).reshape(1, -1), w)
    for bytes_of in (np.maximum, np.minimum):
        extreme = 255 * bytes_of(parts, 0).reshape(-1, 2).sum(axis=1)
        assert ((extreme >= -(2**15)) & (extreme < 2**15)).all()
    assert not exceeds_pairs(split).any()


def emitted(e: Editor, op: str, options: list[list[str]], to_bool: bool) -> list[str]:
    """An op on those operands that it takes in lanes; `to_bool`: results that are truth values."""
    row, made = OPS[op].elementwise, []
    for names in options if row is not None and op != "cast" else []:
        values = [e.values[name] for name in names]
        try:
            ((dtype, _),) = infer(op, values, {})
        except (TypeError, ValueError):
            continue
        assert row is not None
        fits = row.vector(op, {}, [v.dtype for v in values]) is not None
        if fits and (np.dtype(dtype) == np.bool_) is to_bool:
            made.append(e.emit(op, names))
    return made


def elementwise_graph(channels: int, length: int) -> Graph:
    """Every op of numbers with an expression for lanes, behind a layer that brings x there.

    Truth values are in lanes inside attention only.
    """
    e = Editor(name="ops", length=length)
    x = e.input("x", np.float32, (BATCH, length, channels))
    y = e.emit("linear", [x, e.constant(np.eye(channels, dtype=np.float32))])
    rng = np.random.default_rng(1)
    c = e.constant(rng.uniform(0.5, 2.0, channels).astype(np.float32))
    s = e.constant(np.float32(0.75))
    byte = [e.constant(np.float32(0.05)), e.constant(np.uint8(100))]
    whole = e.emit("cast", [e.emit("quantize", [y, *byte])], to="int32")
    pairs = [[y, c], [s, y], [whole, e.constant(np.int32(90))]]
    for op in OPS:
        e.outputs += emitted(e, op, [*pairs, [y], [whole]], to_bool=False)
    e.outputs.append(e.emit("pow", [y, e.constant(np.float32(2.0))]))
    for approximate in ("none", "tanh"):
        e.outputs.append(e.emit("gelu", [y], approximate=approximate))
    for zp, dtype in ((0, np.uint8), (200, np.uint8), (-5, np.int8)):
        q = e.emit("quantize", [y, e.constant(np.float32(0.05)), e.constant(np.array(zp, dtype))])
        e.outputs.append(q)
        e.outputs.append(
            e.emit("dequantize", [q, e.constant(np.float32(0.05)), e.constant(np.array(zp, dtype))])
        )
    scales = e.constant(rng.uniform(0.01, 0.1, channels).astype(np.float32))
    zeros = e.constant(np.full(channels, 7, np.uint8))
    e.outputs.append(e.emit("quantize", [y, scales, zeros], axis=2))
    positions = e.constant(rng.standard_normal((1, length, channels)).astype(np.float32))
    e.outputs.append(e.emit("add", [y, positions]))
    return e.finish()


@pytest.mark.parametrize("target", TARGETS)
def test_elementwise_programs(tmp_path: Path, target: str) -> None:
    graph = elementwise_graph(6, 5)
    assert {n.op for n in graph.nodes} <= lane_ops(graph)
    library = compile_graph(tmp_path, graph, target, [])
    rng = np.random.default_rng(4)
    x = (rng.standard_normal((3, 5, 6)) * 4).astype(np.float32)
    x[0, 0] = [0.0, -0.0, 1e-30, 80.0, -80.0, 30000.0]
    with np.errstate(all="ignore"):
        expected = interpret(graph, [x])
    for name, want, have in zip(graph.outputs, expected, library.run([x]), strict=True):
        if want.dtype == np.float32:
            np.testing.assert_allclose(have, want, rtol=2e-6, atol=1e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(have, want, err_msg=name)


def truths_graph(length: int) -> Graph:
    """Attention whose scores are where(t, s, s / 2), again for each op that makes a t."""
    shape = (BATCH, 2, length, length)
    score, prob = Editor(name="score"), Editor(name="prob")
    prob.outputs = [prob.input("p", np.float32, shape)]
    s = first = score.input("s", np.float32, shape)
    half = score.constant(np.float32(0.5))
    whole = score.emit("cast", [score.emit("less", [s, half])], to="float32")
    byte = [score.constant(np.float32(0.25)), score.constant(np.uint8(3))]
    whole = score.emit("cast", [score.emit("quantize", [whole, *byte])], to="int32")
    five = score.constant(np.int32(5))
    truths = [score.emit("less", [s, half]), score.emit("less", [whole, five])]
    options = [[s, half], [whole, five], truths, [s], truths[:1]]
    for op in OPS:
        for truth in emitted(score, op, options, to_bool=True):
            s = score.emit("where", [truth, s, score.emit("mul", [s, half])])
    level = score.emit("cast", [score.emit("where", [truths[0], whole, five])], to="float32")
    score.outputs = [score.emit("add", [s, score.emit("mul", [level, first])])]
    e = Editor(name="truths", length=length)
    q, k, v = (e.input(name, np.float32, (BATCH, length, 8)) for name in "qkv")
    zero = dict.fromkeys(("q_zp", "k_zp", "v_zp", "p_zp"), 0)
    graphs = {"score": score.finish(), "prob": prob.finish()}
    scales = {"qk_scale": 1.0, "pv_scale": 1.0}
    e.outputs = [e.emit("attention", [q, k, v], heads=2, **graphs, **scales, **zero)]
    return e.finish()


@pytest.mark.parametrize("target", TARGETS)
def test_truth_values_in_scores(tmp_path: Path, target: str) -> None:
    graph = truths_graph(5)
    assert lane_ops(graph) == {"attention"}
    tested = {n.op for n in graph.nodes[0].attrs["score"].nodes}
    assert tested >= {"and", "or", "not", "isnan", "equal", "less", "greater_equal", "where"}
    rng = np.random.default_rng(6)
    inputs = [rng.standard_normal((3, 5, 8)).astype(np.float32) for _ in range(3)]
    (have,) = compile_graph(tmp_path, graph, target, []).run(inputs)
    np.testing.assert_allclose(have, interpret(graph, inputs)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target", TARGETS)
def test_quantize_divides(tmp_path: Path, target: str) -> None:
    """Values halfway between two steps, and their neighbours, round as x / scale does."""
    channels = 64
    e = Editor(name="ties", length=2)
    x = e.input("x", np.float32, (BATCH, 2, channels))
    y = e.emit("linear", [x, e.constant(np.eye(channels, dtype=np.float32))])
    rng = np.random.default_rng(8)
    scales = rng.uniform(1e-4, 3.0, channels).astype(np.float32)
    for zp, dtype in ((0, np.uint8), (128, np.uint8), (-3, np.int8)):
        zeros = e.constant(np.full(channels, zp, dtype))
        e.outputs.append(e.emit("quantize", [y, e.constant(scales), zeros], axis=2))
    graph = e.finish()
    library = compile_graph(tmp_path, graph, target, [])
    halves = rng.integers(-140, 270, (40, 2, channels)) + 0.5
    exact = (halves * scales).astype(np.float32)
    for values in (exact, np.nextafter(exact, np.float32(0)), np.nextafter(exact, np.float32(1e9))):
        for want, have in zip(interpret(graph, [values]), library.run([values]), strict=True):
            np.testing.assert_array_equal(have, want)
    huge = np.resize(np.float32([3e38, -3e38, 1e-40, 0.0]), (1, 2, channels))
    with np.errstate(over="ignore"):
        expected = interpret(graph, [huge])
    for want, have in zip(expected, library.run([huge]), strict=True):
        np.testing.assert_array_equal(have, want)


@pytest.mark.parametrize("target", TARGETS)
def test_requantized_layers_are_exact(tmp_path: Path, target: str) -> None:
    """Layers between bytes: what a panel saturates, rounds and shifts is what the references do."""
    length, k, n = 3, 64, 150
    rng = np.random.default_rng(11)
    e = Editor(name="panels", length=length)
    x = e.input("x", np.uint8, (BATCH, length, k))
    identity = e.constant(np.eye(n, dtype=np.int8))
    steps = ((0, 0.5), (128, 0.37), (255, 0.013), (-128, 0.25), (-3, 0.002), (127, 3.0))
    for i, (zp, step) in enumerate(steps):
        dtype = np.int8 if zp < 0 or zp == 127 else np.uint8
        kept = PATTERNS["dense" if i % 2 else "blocks"](rng, n, k)
        w = np.where(kept, rng.integers(-128, 128, (n, k)), 0).astype(np.int8)
        scale = rng.uniform(0.001, 0.01, n).astype(np.float32)
        y = e.emit("qlinear", [x, e.constant(w), e.constant(scale)], x_zp=100)
        bounds = [e.constant(np.float32(step)), e.constant(np.array(zp, dtype))]
        direct = e.emit("quantize", [y, *bounds])
        shifted = e.emit("add", [y, e.constant(rng.standard_normal(n).astype(np.float32))])
        for q in (direct, e.emit("quantize", [shifted, *bounds])):
            # Read through a layer that multiplies by one, so that it has to be a panel.
            e.outputs.append(e.emit("qlinear", [q, identity, e.constant(np.float32(1))], x_zp=0))
    graph = e.finish()
    library = compile_graph(tmp_path, graph, target)
    for _ in range(20):
        values = rng.integers(0, 256, (2, length, k)).astype(np.uint8)
        for want, have in zip(interpret(graph, [values]), library.run([values]), strict=True):
            np.testing.assert_array_equal(have, want)


def gelu_in_parts(e: Editor, x: str, types: tuple[type, type]) -> str:
    """GELU of which every part is quantized, to the first type, and its result to the second."""

    def rounded(value: str, scale: float, zero: int, dtype: type) -> tuple[str, str]:
        parameters = [e.constant(np.float32(scale)), e.constant(np.array(zero, dtype))]
        q = e.emit("quantize", [value, *parameters])
        return q, e.emit("dequantize", [q, *parameters])

    first, last = types
    low = np.iinfo(first).min
    _, x = rounded(x, 0.031, low + 130, first)
    _, y = rounded(e.emit("div", [x, e.constant(np.float32(2**0.5))]), 0.022, low + 127, first)
    _, y = rounded(e.emit("erf", [y]), 2 / 255, low + 128, first)
    _, y = rounded(e.emit("add", [y, e.constant(np.float32(1))]), 2 / 255, low, first)
    _, y = rounded(e.emit("mul", [x, y]), 0.032, low + 10, first)
    y = e.emit("mul", [y, e.constant(np.float32(0.5))])
    return rounded(y, 0.016, np.iinfo(last).min + 11, last)[0]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("types", [(U, U), (S, S), (U, S), (S, U)])
def test_functions_of_a_byte_are_tables(
    tmp_path: Path, target: str, types: tuple[type, type]
) -> None:
    """GELU between two layers, every part of which is quantized: exact."""
    rng = np.random.default_rng(3)
    length, k, n = 19, 24, 20
    e = Editor(name="parts", length=length)
    x = e.input("x", np.uint8, (BATCH, length, k))
    w = e.constant(rng.integers(-127, 128, (n, k)).astype(np.int8))
    made = e.emit("qlinear", [x, w, e.constant(np.float32(1.5e-4))], x_zp=128)
    q = gelu_in_parts(e, made, types)
    again = e.constant(rng.integers(-9, 9, (n, n)).astype(np.int8))
    zero = 0 if types[1] == S else 128
    e.outputs.append(e.emit("qlinear", [q, again, e.constant(np.float32(0.01))], x_zp=zero))
    graph = e.finish()
    library = compile_graph(tmp_path, graph, target)
    assert "8_by(" in (tmp_path / f"bucket_{length}" / "bucket.c").read_text()
    # Sums of all sizes.
    given = rng.integers(0, 256, (5, length, k)) * np.linspace(0, 1, 5)[:, None, None]
    inputs = [np.clip(given + rng.integers(0, 128, k), 0, 255).astype(np.uint8)]
    (want,), (have,) = interpret(graph, inputs), library.run(inputs)
    assert len(np.unique(want)) > 500
    np.testing.assert_array_equal(have, want)


@pytest.mark.parametrize("computed", [True, False], ids=["computed", "loaded"])
@pytest.mark.parametrize("target", TARGETS)
def test_layernorm(tmp_path: Path, target: str, computed: bool) -> None:
    """Of what is computed first, and of what a layer has left in lanes."""
    for channels in (1, 2, 7, 64):
        e = Editor(name="norm", length=3)
        x = e.input("x", np.float32, (BATCH, 3, channels))
        rng = np.random.default_rng(channels)
        gamma = e.constant(rng.standard_normal(channels).astype(np.float32))
        beta = e.constant(rng.standard_normal(channels).astype(np.float32))
        if computed:
            before = e.emit("add", [x, gamma])
        else:
            weights = (rng.standard_normal((channels, channels)) / 100).astype(np.float32)
            before = e.emit("linear", [x, e.constant(weights + np.eye(channels, dtype="f4"))])
        y = e.emit("layernorm", [before, gamma, beta], eps=1e-5)
        e.outputs += [y, before, e.emit("add", [y, before])]
        quantized = [y, e.constant(np.float32(0.05)), e.constant(np.uint8(99))]
        e.outputs.append(e.emit("quantize", quantized))
        graph = e.finish()
        library = compile_graph(tmp_path / str(channels), graph, target)
        source = (tmp_path / str(channels) / "bucket_3" / "bucket.c").read_text()
        assert ("vf_store(tmp" in source) == computed
        # A mean far from zero: what cancellation would spoil.
        x_value = (rng.standard_normal((7, 3, channels)) + 100).astype(np.float32)
        expected = interpret(graph, [x_value])
        for want, have in zip(expected, library.run([x_value]), strict=True):
            tolerance = 1 if want.dtype == np.uint8 else 2e-4
            np.testing.assert_allclose(
                have.astype(np.float64), want.astype(np.float64), rtol=2e-5, atol=tolerance
            )


def attention_graph(
    length: int,
    heads: int,
    dim: int,
    types: tuple[type, type, type, type],
    zps: tuple[int, int, int, int],
    extra_shape: tuple[int | BatchDim, ...],
    score_zero: np.ndarray | None = None,
    fill: bool | None = None,
    most: float = 1.0,
) -> Graph:
    """Attention whose operands come straight from the inputs.

    With `score_zero`, a zero point, scores are quantized in steps of 1.5 and back.  With `fill`,
    a truth value, they are -1e9 where the mask has it, instead of being added to.  Probabilities of
    `most` become the highest byte.
    """
    channels = heads * dim
    e = Editor(name="attention", length=length)
    names = [e.input(n, t, (BATCH, length, channels)) for n, t in zip("qkv", types, strict=False)]
    mask_type = np.dtype(np.float32 if fill is None else np.bool_)
    mask = e.input("mask", mask_type, extra_shape)
    full = (BATCH, heads, length, length)
    score = Editor(name="score")
    s = score.input("s", np.float32, full)
    m = score.input("m", mask_type, extra_shape)
    if score_zero is not None:
        parameters = [score.constant(np.float32(1.5)), score.constant(score_zero)]
        s = score.emit("quantize", [s, *parameters])
        s = score.emit("dequantize", [s, *parameters])
    s = score.emit("mul", [s, score.constant(np.float32(0.25))])
    least = score.constant(np.float32(-1e9))
    if fill is None:
        score.outputs.append(score.emit("add", [s, m]))
    else:
        score.outputs.append(score.emit("where", [m, least, s] if fill else [m, s, least]))
    prob = Editor(name="prob")
    p = prob.input("p", np.float32, full)
    if types[3] != np.float32:
        scale = prob.constant(np.float32(most / 255))
        p = prob.emit("quantize", [p, scale, prob.constant(np.array(zps[3], types[3]))])
    prob.outputs.append(p)
    e.outputs.append(
        e.emit(
            "attention",
            [*names, mask],
            heads=heads,
            q_zp=zps[0],
            k_zp=zps[1],
            v_zp=zps[2],
            p_zp=zps[3],
            qk_scale=0.00217,
            pv_scale=0.01,
            score=score.finish(),
            prob=prob.finish(),
        )
    )
    return e.finish()


VECTOR_TARGETS = [p for p in TARGETS if p.values[0] != "amx"]
FULL = (BATCH, 1, 1, 21)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("heads", "dim", "types", "zps", "extra"),
    [
        (3, 32, (U, U, U, U), (113, 128, 128, 0), FULL),
        (2, 64, (U, U, U, U), (255, 0, 17, 0), FULL),
        (1, 80, (S, S, S, S), (-7, 5, 0, -128), (BATCH, 1, 21, 21)),
        (2, 8, (U, S, S, U), (0, -128, 127, 0), (BATCH, 2, 21, 21)),
        (2, 4, (U, U, F, F), (100, 130, 0, 0), (1, 1, 21, 21)),
        (3, 7, (F, F, F, F), (0, 0, 0, 0), FULL),
        (2, 20, (F, F, U, U), (0, 0, 140, 0), (21,)),
    ],
)
def test_attention(
    tmp_path: Path,
    target: str,
    heads: int,
    dim: int,
    types: tuple[type, type, type, type],
    zps: tuple[int, int, int, int],
    extra: tuple[int | BatchDim, ...],
) -> None:
    length = 21
    graph = attention_graph(length, heads, dim, types, zps, extra)
    assert "attention" in lane_ops(graph)
    library = compile_graph(tmp_path, graph, target)
    rng = np.random.default_rng(dim)
    for batch in (1, 4):
        inputs = []
        for t in types[:3]:
            shape = (batch, length, heads * dim)
            if t == np.float32:
                inputs.append(rng.standard_normal(shape).astype(np.float32))
            else:
                info = np.iinfo(t)
                inputs.append(rng.integers(info.min, info.max + 1, shape).astype(t))
        shape = tuple(d.bind(batch) if isinstance(d, BatchDim) else d for d in extra)
        inputs.append(np.where(rng.random(shape) < 0.3, -1e9, 0).astype(np.float32))
        (want,) = interpret(graph, inputs)
        (have,) = library.run(inputs)
        assert_attention(have, want)


@pytest.mark.parametrize("target", VECTOR_TARGETS)
@pytest.mark.parametrize(
    ("types", "zps", "fill"),
    [
        ((F, F, F, F), (0, 0, 0, 0), True),
        ((F, F, U, U), (0, 0, 140, 0), False),
        ((U, S, F, F), (100, -7, 0, 0), None),
    ],
)
def test_attention_leaves_masked_keys_out(
    tmp_path: Path,
    target: str,
    types: tuple[type, type, type, type],
    zps: tuple[int, int, int, int],
    fill: bool | None,
) -> None:
    """Their probabilities are exactly 0: not even an infinite value of theirs shows."""
    length, heads, dim = 21, 2, 12
    graph = attention_graph(length, heads, dim, types, zps, FULL, fill=fill)
    found = masks.find(graph.nodes[0], graph)
    assert found is not None and found.scale == 0.25 and (found.constant is None) == (fill is None)
    library = compile_graph(tmp_path, graph, target, [])
    rng = np.random.default_rng(dim)
    kept = {
        "all": np.ones(length, bool),
        "tail masked": np.arange(length) < 10,
        "scattered": rng.random(length) < 0.4,
        "the last": np.arange(length) == 20,
        "none": np.zeros(length, bool),
    }
    for keep in kept.values():
        inputs: list[np.ndarray] = []
        for t in types[:3]:
            x = rng.standard_normal((3, length, heads * dim)).astype(np.float32)
            inputs.append(x if t == F else np.clip(x * 60 + 100, 0, 127).astype(t))
        groups = np.repeat(np.resize(keep, 24).reshape(6, 4).any(axis=1), 4)[:length]
        if types[2] == F and keep.any():
            inputs[2][:, ~groups] = np.inf
        # The third sequence keeps all; of the second, a bias says nothing.
        mask = np.stack([keep, keep, np.ones(length, bool)])[:, None, None]
        if types[2] == F:
            inputs[2][2] = 1.0
        if fill is None:
            added = np.where(mask, 0, rng.choice([-1e4, -1e9, -np.inf, np.finfo(F).min]))
            added[1] += 1.5
            given = added.astype(np.float32)
        else:
            given = mask ^ fill
        (have,) = library.run([*inputs, given])
        finite = [np.where(np.isinf(x), 0, x) if x.dtype == F else x for x in inputs]
        with np.errstate(all="ignore"):
            (want,) = interpret(graph, [*finite, given])
        if not np.isnan(want).any():  # all of -inf
            assert_attention(have, want)


@pytest.mark.parametrize("target", VECTOR_TARGETS)
def test_attention_that_a_mask_does_not_settle(tmp_path: Path, target: str) -> None:
    """Masked keys whose products make up for the mask have their share, as in ONNX."""
    length, heads, dim = 21, 2, 12
    graph = attention_graph(length, heads, dim, (F, F, F, F), (0, 0, 0, 0), FULL)
    library = compile_graph(tmp_path, graph, target)
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((4, length, heads * dim)).astype(np.float32) for _ in range(3))
    mask = np.zeros((4, 1, 1, length), np.float32)
    mask[..., 8:] = -1000
    q[0] *= 1000  # products up to thousands
    k[1, 12] = np.nan  # nothing is known of what it does
    mask[2, ..., 8:] = -100  # too little to be sure of
    k[3, :8], mask[3, ..., :8] = 0, -np.inf
    (have,) = library.run([q, k, v, mask])
    with np.errstate(all="ignore"):
        (want,) = interpret(graph, [q, k, v, mask])
    assert np.isnan(have[1]).all() and np.isnan(want[1]).all()
    for i in (0, 2, 3):
        assert_attention(have[i], want[i])
    (without,) = interpret(graph, [q, k, v, np.where(mask == -1000, -np.inf, mask)])
    assert np.abs(without[0] - want[0]).max() > 0.1


def assert_attention(have: np.ndarray, want: np.ndarray) -> None:
    """Equal but for one step of P here and there: p is rounded, exp differs in its last bits."""
    scale = np.abs(want).max()
    assert np.abs(have - want).max() <= 0.02 * scale
    assert np.abs(have - want).mean() <= 1e-4 * scale


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("heads", "dim", "types", "zps", "zero"),
    [
        (3, 32, (U, U, U, U), (113, 128, 128, 0), np.uint8(120)),
        (2, 64, (U, U, U, U), (255, 0, 17, 0), np.uint8(0)),
        (1, 80, (S, S, S, S), (-7, 5, 0, -128), np.int8(-3)),
        (2, 8, (U, S, S, U), (0, -128, 127, 0), np.int8(127)),
        (3, 100, (S, U, U, U), (-128, 128, 3, 0), np.uint8(255)),
    ],
)
def test_attention_with_byte_scores(
    tmp_path: Path,
    target: str,
    heads: int,
    dim: int,
    types: tuple[type, type, type, type],
    zps: tuple[int, int, int, int],
    zero: np.ndarray,
) -> None:
    length = 21
    graph = attention_graph(length, heads, dim, types, zps, FULL, np.asarray(zero))
    library = compile_graph(tmp_path, graph, target)
    assert byte_scores.find(graph.nodes[0], graph) is not None
    rng = np.random.default_rng(dim)
    masks = {
        "none": np.zeros(length),
        "tail": np.where(np.arange(length) < 10, 0, -1e4),
        "scattered": np.where(rng.random(length) < 0.4, 0, np.finfo(np.float32).min),
        "one": np.where(np.arange(length) == 20, 0, -np.inf),
        "all dropped": np.full(length, np.finfo(np.float32).min),
        "bias": rng.standard_normal(length),
        "bias and dropped": np.where(rng.random(length) < 0.4, -1.5, -1e9),
    }
    for name, mask in masks.items():
        inputs: list[np.ndarray] = []
        for t in types[:3]:
            info = np.iinfo(t)
            inputs.append(rng.integers(info.min, info.max + 1, (3, length, heads * dim)).astype(t))
        inputs[0][1] = inputs[0][1, 0, 0]  # a sequence of equal scores
        inputs.append(np.resize(mask, (3, 1, 1, length)).astype(np.float32))
        inputs[3][2] = 0
        (want,) = interpret(graph, inputs)
        (have,) = library.run(inputs)
        for i in range(3):
            assert np.isfinite(have[i]).all(), name
            assert_attention(have[i], want[i])


@pytest.mark.parametrize("zero", [None, np.uint8(120)], ids=["any scores", "byte scores"])
@pytest.mark.parametrize("most", [1.0, 0.5, 0.001])
@pytest.mark.parametrize("target", TARGETS)
def test_outputs_of_attention_do_not_saturate(
    tmp_path: Path, target: str, most: float, zero: np.ndarray | None
) -> None:
    """Sums in 16 bits of probabilities, as many as there can be, and of the lowest value."""
    length, dim = 40, 8
    types, zps = (U, U, U, S), (0, 128, 128, -128)
    extra = (BATCH, 1, 1, length)
    zero = None if zero is None else np.asarray(zero)
    graph = attention_graph(length, 1, dim, types, zps, extra, zero, most=most)
    library = compile_graph(tmp_path, graph, target)
    # Equal scores of all keys, of 20 (0.05 of 0.5 is 25.5 of 255, rounded up) and of 2.
    batch = 3
    same = np.full((batch, length, dim), 7, np.uint8)
    mask = np.full((batch, 1, 1, length), -1e9, np.float32)
    for i, keys in enumerate((length, 20, 2)):
        mask[i, ..., :keys] = 0
    for lowest in (0, 255):
        inputs = [same, same, np.full((batch, length, dim), lowest, np.uint8), mask]
        (want,) = interpret(graph, inputs)
        (have,) = library.run(inputs)
        np.testing.assert_allclose(have, want, rtol=1e-6)


@pytest.mark.parametrize("zero", [None, np.uint8(120)], ids=["any scores", "byte scores"])
@pytest.mark.parametrize("target", TARGETS)
def test_rows_beyond_the_lengths_are_not_computed(
    tmp_path: Path, target: str, zero: np.ndarray | None
) -> None:
    """Outputs of real rows equal those of a batch without padding; the others are zero."""
    length, channels = 21, 8
    types = (U, U, U, U)
    score_zero = None if zero is None else np.asarray(zero)
    zps = (100, 128, 128, 0)
    graph = attention_graph(length, 2, 4, types, zps, (BATCH, 1, 1, length), score_zero)
    library = compile_graph(tmp_path, graph, target)
    rng = np.random.default_rng(0)
    lengths = [21, 0, 1, 16, 5, 20, 3]
    batch = len(lengths)
    shape = (batch, length, channels)
    inputs = [rng.integers(0, 256, shape).astype(np.uint8) for _ in range(3)]
    mask = np.zeros((batch, 1, 1, length), np.float32)
    for row, real in zip(mask, lengths, strict=True):
        row[..., real:] = -1e30
    (want,) = interpret(graph, [*inputs, mask])
    (have,) = library.run([*inputs, np.zeros_like(mask)], lengths)
    for i, real in enumerate(lengths):
        assert not have[i, real:].any()
        if real:
            scale = np.abs(want[i, :real]).max()
            assert np.abs(have[i, :real] - want[i, :real]).max() <= 0.02 * scale


MATH = {
    "vf_exp": (np.exp, -103.0, 88.7, 2e-7, 0.0),
    "vf_erf": (np.vectorize(math.erf), -5.0, 5.0, 0.0, 2e-7),
    "vf_tanh": (np.tanh, -12.0, 12.0, 4e-7, 0.0),
    "vf_gelu": (
        lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
        -9.0,
        9.0,
        0.0,
        2e-6,
    ),
    "vf_phi": (lambda x: 0.5 * np.vectorize(math.erf)(x / math.sqrt(2)), 0.0, 9.0, 0.0, 2e-7),
    "vf_sigmoid": (lambda x: 1 / (1 + np.exp(-x)), -80.0, 80.0, 4e-7, 0.0),
}


@pytest.mark.parametrize("target", TARGETS)
def test_vector_math_error_bounds(tmp_path: Path, target: str) -> None:
    """The errors that vmath.h states, over dense samples; and the limits."""
    isa = _target(target)
    cc = toolchain.find()
    headers = ("sparsec.h", "rt.h", "lanes/vec.h", f"lanes/{isa.vectors.header}")
    for name in headers:
        (tmp_path / Path(name).name).write_text(read_template(name))
    vmath = environment().get_template("lanes/vmath.h.j2").render(phi=gelu.literals())
    (tmp_path / "vmath.h").write_text(vmath)
    functions = "".join(
        f"void each_{f}(float *x, long n) {{ for (long i = 0; i < n; i += VL) "
        f"vf_store(x + i, {f}(vf_load(x + i))); }}\n"
        for f in MATH
    )
    functions += (
        "void gelu_steps(float *x, long n, const float *table) { for (long i = 0; i < n; i += VL) "
        "vi_store(x + i, v_gelu_steps(vf_load(x + i), table)); }\n"
    )
    (tmp_path / "m.c").write_text(
        "#include <math.h>\n#include <string.h>\n"
        f'#include "rt.h"\n#include "{isa.vectors.header}"\n'
        f'#include "vec.h"\n#include "vmath.h"\n{functions}'
    )
    flags = [f for f in cc.flags(isa) if f != "-fvisibility=hidden"]
    command = [*cc.command, *flags, "-shared", "-o", "m.so", "m.c", "-lm"]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    library = ctypes.CDLL(str(tmp_path / "m.so"))

    def call(name: str, x: np.ndarray) -> np.ndarray:
        y = x.astype(np.float32)
        getattr(library, f"each_{name}")(ctypes.c_void_p(y.ctypes.data), ctypes.c_long(len(y)))
        return y

    for name, (exact, low, high, relative, absolute) in MATH.items():
        x = np.linspace(low, high, 1 << 16).astype(np.float32)
        x = np.concatenate([x, np.float32([0.0, -0.0, 1e-6, -1e-6] * 4)])
        want = exact(x.astype(np.float64))
        error = np.abs(call(name, x) - want)
        # Results below 2^-126 have no relative precision left.
        allowed = absolute + relative * np.abs(want) + 2.0**-149
        assert (error <= allowed).all(), f"{name}: {(error / np.maximum(allowed, 1e-300)).max()}"
    edge = call("vf_exp", np.float32([-np.inf, np.inf, np.nan, -200, 200, 0, -104, 89] * 2))
    np.testing.assert_array_equal(edge[:6], np.float32([0, np.inf, np.nan, 0, np.inf, 1]))
    for name in ("vf_tanh", "vf_erf"):
        edge = call(name, np.float32([-np.inf, np.inf, -1e30, 1e30] * 4))
        np.testing.assert_allclose(edge[:4], [-1, 1, -1, 1], rtol=1e-6)
    sums = np.rint(np.linspace(-(2.0**24), 2.0**24, 1 << 16)).astype(np.float32)
    for scale, step in ((3e-4, 0.02), (2e-6, 0.004), (0.04, 3.0), (1.1e-6, 1.3e-6)):
        steps = np.concatenate([sums, np.rint(sums / 4096)]).astype(np.float32)
        quotient = MATH["vf_gelu"][0](scale * steps.astype(np.float64)) / step
        table = gelu.steps_table(scale, step)
        library.gelu_steps(
            ctypes.c_void_p(steps.ctypes.data),
            ctypes.c_long(len(steps)),
            ctypes.c_void_p(table.ctypes.data),
        )
        error = np.abs(steps.view(np.int32) - quotient)
        assert (error <= 0.5 + 2e-6 / step + 4e-7 * np.abs(quotient)).all(), (scale, step)


def test_undefined_behaviour_would_be_seen(tmp_path: Path) -> None:
    """UBSan is really on in the other tests: the flags abort on a signed overflow."""
    cc = toolchain.find()
    if not isinstance(cc, toolchain.Gcc):
        pytest.skip("the sanitizer runtime comes with gcc")
    (tmp_path / "u.c").write_text("int main(int c, char **v) { return 2147483647 + c > 0; }")
    subprocess.run([*cc.command, *UBSAN, "-o", "u", "u.c"], check=True, cwd=tmp_path)
    assert subprocess.run([str(tmp_path / "u")], capture_output=True).returncode != 0


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("channels", [16, 30])
def test_numbers_known_at_run_time(tmp_path: Path, target: str, channels: int) -> None:
    """Quantization whose parameters are computed, and vectors of channels that are."""
    rng = np.random.default_rng(channels)
    e = Editor(name="dynamic", length=5)
    x = e.input("x", np.float32, (BATCH, 5, channels))
    span = e.input("span", np.float32, (BATCH, 1))
    highest = e.emit("reduce_max", [span], axes=(0, 1), keepdims=False)
    zero = e.emit("cast", [e.emit("mul", [highest, e.constant(np.float32(4000))])], to=np.uint8)
    same = e.emit("linear", [x, e.constant(np.eye(channels, dtype=np.float32))])
    q = e.emit("quantize", [same, highest, zero])
    w = rng.integers(-128, 128, (18, channels)).astype(np.int8)
    total = e.emit("linear_integer", [q, e.constant(w)])
    sums = e.constant(w.sum(axis=1, dtype=np.int32))
    part = e.emit("mul", [sums, e.emit("cast", [zero], to=np.int32)])
    shifted = e.emit("sub", [total, part])
    scales = e.emit("mul", [highest, e.constant(rng.random(18).astype(np.float32))])
    y = e.emit("mul", [e.emit("cast", [shifted], to=np.float32), scales])
    back = e.emit("dequantize", [q, highest, zero])
    e.outputs = [y, back]
    graph = e.finish()
    chosen = lanes.choose(graph)
    lanes_ops = {n.op for n in graph.nodes if chosen.has(n)}
    assert lanes_ops >= {"linear_integer", "quantize", "dequantize", "sub"}
    (layer,) = (
        {n.op for n in step.group.nodes}
        for step in groups.group(graph, chosen)
        if step.group is not None and "linear_integer" in {n.op for n in step.group.nodes}
    )
    assert layer == {"linear_integer", "sub", "cast", "mul"}  # no pass of its own for the rest
    library = compile_graph(tmp_path, graph, target)
    for batch in (1, 4):
        a = rng.standard_normal((batch, 5, channels)).astype(np.float32)
        b = rng.uniform(0.01, 0.03, (batch, 1)).astype(np.float32)
        for want, have in zip(interpret(graph, [a, b]), library.run([a, b]), strict=True):
            np.testing.assert_array_equal(have, want)
