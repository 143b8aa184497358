"""Ranges of tensors that are quantized at run time: found by the kernel that makes the tensor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsec.compiler.editor import Editor
from sparsec.compiler.interpreter import interpret
from sparsec.compiler.ir import BATCH, Graph
from sparsec.compiler.lowering import groups, lanes
from sparsec.compiler.passes.eliminate_common import eliminate_common
from sparsec.compiler.passes.fuse_extremes import fuse_extremes
from tests.lane_harness import compile_graph, target_params
from tests.passes_support import Builder, check, ops

TOKENS, CHANNELS = 21, 8


def reduced(b: Builder, x: str, op: str, fill: Any = None, real: str | None = None) -> str:
    """An extreme of x and 0, as a quantizer at run time writes it."""
    y = b.op(f"reduce_{op}", x, axes=(2,), keepdims=False)
    if real is not None:
        y = b.op("where", real, y, np.float32(fill))
    y = b.op(f"reduce_{op}", y, axes=(0, 1), keepdims=False)
    return b.op(op, y, np.float32(0))


@pytest.mark.parametrize("masked", [False, True])
def test_both_ends_become_one_node(masked: bool) -> None:
    b = Builder()
    x = b.input("x", np.float32, (BATCH, TOKENS, CHANNELS))
    real = b.input("real", np.bool_, (BATCH, TOKENS)) if masked else None
    ends = [reduced(b, x, "max", -np.inf, real), reduced(b, x, "min", np.inf, real)]
    after = eliminate_common(check(b.graph(b.op("sub", *ends)), fuse_extremes))
    assert ops(after) == {"extremes": 1, "sub": 1}


@pytest.mark.parametrize(
    ("fill", "axes", "zero"), [(-1.0, (2,), 0.0), (-np.inf, (1,), 0.0), (-np.inf, (2,), 1.0)]
)
def test_what_only_looks_like_a_range(fill: float, axes: tuple[int, ...], zero: float) -> None:
    """A fill that may win, rows that are no rows, a bound that is not 0."""
    b = Builder()
    x = b.input("x", np.float32, (BATCH, CHANNELS, CHANNELS))
    real = b.input("real", np.bool_, (BATCH, CHANNELS))
    y = b.op("reduce_max", x, axes=axes, keepdims=False)
    y = b.op("where", real, y, np.float32(fill))
    y = b.op("reduce_max", y, axes=(0, 1), keepdims=False)
    after = check(b.graph(b.op("max", y, np.float32(zero))), fuse_extremes)
    assert "extremes" not in ops(after)


def real_tokens(e: Editor, x: str, length: int) -> str:
    """Which tokens are real, as padding.settle writes it."""
    count = e.emit("reshape", [e.emit("lengths", [x], length=length)], shape=(BATCH, 1))
    steps = e.constant(np.arange(length, dtype=np.int32)[None])
    return e.emit("less", [steps, count])


def attention(e: Editor, x: str, tokens: int) -> str:
    """One head over x."""
    nested = []
    for name in ("score", "prob"):
        inner = Editor(name=name)
        s = inner.input("s", np.float32, (BATCH, 1, tokens, tokens))
        inner.outputs.append(inner.emit("mul", [s, inner.constant(np.float32(1.0))]))
        nested.append(inner.finish())
    zeros = dict.fromkeys(("q_zp", "k_zp", "v_zp", "p_zp"), 0)
    scales = {"qk_scale": 1.0, "pv_scale": 1.0, "score": nested[0], "prob": nested[1]}
    return e.emit("attention", [x, x, x], heads=1, **zeros, **scales)


def watched(channels: int, tokens: int = TOKENS) -> Graph:
    """Extremes of values of kernels of every family, and of the input; attention's come last."""
    rng = np.random.default_rng(channels)
    e = Editor(name="watched", length=tokens)
    x = e.input("x", np.float32, (BATCH, tokens, channels))
    q = e.input("q", np.uint8, (BATCH, tokens, 64))
    real = real_tokens(e, x, tokens)
    weights = rng.standard_normal((channels, channels)).astype(np.float32)
    bytes_of = rng.integers(-99, 100, (channels, 64)).astype(np.int8)
    one = e.constant(np.ones(channels, np.float32))
    shift = e.constant(rng.standard_normal(channels).astype(np.float32))
    layer = e.emit("qlinear", [q, e.constant(bytes_of), one], x_zp=9)
    values = [
        e.emit("add", [e.emit("linear", [x, e.constant(weights)]), shift]),
        e.emit("mul", [layer, shift]),
        e.emit("layernorm", [x, one, shift], eps=1e-5),
        e.emit("mul", [x, one]),
        attention(e, x, tokens),
    ]
    for y in values:
        e.outputs += e.emit_multi("extremes", [y, real])
    return e.finish()


def reference(channels: int, arrays: Sequence[np.ndarray], lengths: Sequence[int]) -> np.ndarray:
    """Extremes by the references: of each sequence alone, without its padding, then of all."""
    found = [
        interpret(watched(channels, n), [a[i : i + 1, :n] for a in arrays])
        for i, n in enumerate(lengths)
        if n
    ]
    ends = np.array(found).reshape(len(found), -1, 2)
    return np.stack([ends[..., 0].min(axis=0), ends[..., 1].max(axis=0)], axis=1)


def test_the_graph_above_has_a_kernel_of_each_kind() -> None:
    graph = watched(8)
    steps = groups.group(graph, lanes.choose(graph))
    kinds = [step.group.kind for step in steps if step.group and step.group.extremes]
    assert sorted(kinds) == ["attention", "linear", "linear", "map"]
    assert [step.node.op for step in steps if step.node][-1] == "extremes"


@pytest.mark.parametrize("target", target_params())
@pytest.mark.parametrize("channels", [8, 7])
def test_kernels_find_extremes_of_real_rows(tmp_path: Path, target: str, channels: int) -> None:
    library = compile_graph(tmp_path, watched(channels), target)
    rng = np.random.default_rng(1)
    for lengths in ([21], [21, 21, 21], [21, 0, 1, 16, 5], [3, 2, 21]):
        shape = (len(lengths), TOKENS, channels)
        x = rng.standard_normal(shape).astype(np.float32) + rng.choice([-3, 0, 3])
        x = x.astype(np.float32)
        q = rng.integers(0, 256, (*shape[:2], 64)).astype(np.uint8)
        for i, n in enumerate(lengths):  # padding is beyond all that is real
            x[i, n:], q[i, n:] = 1e6 * (-1) ** i, 255 * (i % 2)
        have = np.array(library.run([x, q], lengths)).reshape(-1, 2)
        want = reference(channels, [x, q], lengths)
        np.testing.assert_allclose(have, want, rtol=2e-5, atol=2e-5)
        assert (have[:, 0] <= 0).all() and (have[:, 1] >= 0).all()
        x[-1, 0, channels - 1] = np.nan
        have = np.array(library.run([x, q], lengths)).reshape(-1, 2)
        assert np.isnan(have[[0, 2, 3]]).all() and not np.isnan(have[1]).any()


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_extremes_are_of_rows_that_are_real(data: st.DataObject) -> None:
    """The reference, against each row by itself."""
    rows, columns = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    x = rng.standard_normal((2, rows, columns)).astype(np.float32) + data.draw(st.integers(-3, 3))
    real = rng.random((2, rows)) < 0.5
    e = Editor(name="ends")
    names = [e.input("x", np.float32, (BATCH, rows, columns))]
    names.append(e.input("real", np.bool_, (BATCH, rows)))
    e.outputs += e.emit_multi("extremes", names)
    low, high = interpret(e.finish(), [x.astype(np.float32), real])
    kept = [*x[real].astype(np.float32).ravel(), np.float32(0)]
    assert (low, high) == (min(kept), max(kept))
