"""The factor that replaces scale and step of a requantization: the same for every accumulator."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsec import targets
from sparsec.compiler.codegen.lanes.byte_scores import decay_table, probability_scale
from sparsec.compiler.codegen.lanes.requantize import accumulator_bounds, exact_factor
from sparsec.compiler.ir import Graph, Node


@settings(max_examples=150, deadline=None)
@given(
    scale=st.floats(1e-6, 1e-2),
    step=st.floats(1e-4, 1.0),
    zp=st.integers(0, 255),
    limit=st.integers(1, 300_000),
)
def test_factor_gives_the_same_bytes(scale: float, step: float, zp: int, limit: int) -> None:
    s, d = np.float32(scale), np.float32(step)
    bounds = np.array([limit])
    slope = np.array([float(s)])
    factor = exact_factor(lambda acc: acc * s, slope, float(d), zp, 0, 255, -bounds, bounds)
    if factor is None:
        return
    acc = np.arange(-limit, limit + 1).astype(np.float32)
    want = np.clip(np.rint(acc * s / d) + zp, 0, 255)
    have = np.clip(np.rint(acc * factor[0]) + zp, 0, 255)
    np.testing.assert_array_equal(have, want)


def test_most_layers_have_a_factor() -> None:
    """Or else the shorter epilogue would never be used."""
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(50):
        s, d = np.float32(rng.uniform(1e-5, 1e-3)), float(np.float32(rng.uniform(0.01, 0.2)))
        slope = np.array([float(s)])
        most = np.array([3_000_000])
        found += exact_factor(lambda a, s=s: a * s, slope, d, 128, 0, 255, -most, most) is not None
    assert found >= 35


@pytest.mark.parametrize(
    ("slope", "step", "limit"),
    [(-1e-3, 0.1, 1000), (0.0, 0.1, 1000), (1e-9, 0.1, 1 << 33), (1.0, 1e-9, 1 << 30)],
)
def test_no_factor_where_it_could_be_wrong(slope: float, step: float, limit: int) -> None:
    """Falling or constant values, accumulators that float32 does not hold, overflow."""
    bounds = np.array([limit])
    s = np.float32(slope)
    slopes = np.array([slope])
    assert exact_factor(lambda a: a * s, slopes, step, 0, 0, 255, -bounds, bounds) is None


def test_accumulator_bounds_are_reached() -> None:
    rng = np.random.default_rng(2)
    w = rng.integers(-128, 128, (5, 40)).astype(np.int8)
    bias = rng.integers(-1000, 1000, 5).astype(np.int32)
    low, high = accumulator_bounds(w, bias)
    for n in range(5):
        x = np.where(w[n] < 0, 255, 0)
        assert low[n] == (x * w[n].astype(int)).sum() + bias[n]
        assert high[n] == ((255 - x) * w[n].astype(int)).sum() + bias[n]


@pytest.mark.parametrize("decay", [1e-6, 0.02, 0.4, 5.0])
def test_decay_tables(decay: float) -> None:
    """The factors of each target multiply to e^(-decay d)."""
    d = np.arange(256)
    want = np.exp(-decay * d)
    rows = {target.vectors.lanes: target.vectors for target in targets.TARGETS}
    t16, t8, t4 = (decay_table(decay, rows[lanes]) for lanes in (16, 8, 4))
    np.testing.assert_allclose(t16[:16][d >> 4] * t16[16:][d & 15], want, rtol=3e-7, atol=1e-37)
    product = t8[:8][d >> 5] * (t8[8:16][(d >> 2) & 7] * t8[16:][d & 7])
    np.testing.assert_allclose(product, want, rtol=4e-7, atol=1e-37)
    np.testing.assert_allclose(t4, want, rtol=1e-7, atol=1e-37)


@pytest.mark.parametrize(
    ("scale", "usable"),
    [
        (1 / 255, True),
        (2.0**-30, True),
        (1e-12, False),
        (0.0, False),
        (-0.5, False),
        (np.inf, False),
    ],
)
def test_probabilities_have_a_scale_whose_steps_can_be_counted(scale: float, usable: bool) -> None:
    """Any file may say that a probability is 1e12 steps, or that a step is nothing."""
    node = Node("quantize", ("p", "scale", "zero"), ("q",))
    constants = {"scale": np.array(scale, np.float32), "zero": np.array(0, np.uint8)}
    found = probability_scale(Graph("prob", 1, ("p",), ("q",), (node,), constants, {}))
    assert found == (pytest.approx(scale) if usable else None)
