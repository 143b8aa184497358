"""LayerNorm and GELU, in the ways they are written, and what only looks like them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsec.compiler.ir import BATCH
from sparsec.compiler.passes.fuse_gelu import fuse_gelu
from sparsec.compiler.passes.fuse_layernorm import fuse_layernorm
from tests.passes_support import Builder, check, ops

S, C = 5, 8
RNG = np.random.default_rng(0)
GAMMA, BETA = RNG.normal(size=(2, C)).astype(np.float32)


def floats(b: Builder, *shape: Any) -> str:
    return b.input(f"x{len(b.inputs)}", np.float32, shape or (BATCH, S, C))


class Norm:
    """LayerNorm out of single ops, each written in one of several ways."""

    def __init__(self, draw: Callable[[str, list[str]], str]) -> None:
        self.draw = draw
        self.axis = 2
        self.other: str | None = None

    def build(self, b: Builder, x: str, gamma: Any = GAMMA, beta: Any = BETA) -> str:
        draw = self.draw

        def swap(op: str, x: Any, y: Any) -> str:
            return b.op(op, x, y) if draw("order", ["xy", "yx"]) == "xy" else b.op(op, y, x)

        def centred(x: str) -> str:
            return b.op("sub", x, b.op("reduce_mean", x, axes=(self.axis,), keepdims=True))

        c = centred(x)
        c2 = centred(self.other or x) if draw("subs", ["one", "two"]) == "two" or self.other else c
        if draw("square", ["pow", "mul"]) == "mul":
            square = b.op("mul", c2, c2)
        else:
            two = draw("two", ["float32", "int64", "int32"])
            square = b.op("pow", c2, np.array(2).astype(two))
        var = b.op("reduce_mean", square, axes=(self.axis,), keepdims=True)
        var = swap("add", var, 1e-5)
        std = b.op("sqrt", var)
        form = draw("quotient", ["div", "reciprocal", "one over", "pow", "div pow", "gamma first"])
        if form == "div":
            n = b.op("div", c, std)
        elif form == "reciprocal":
            n = swap("mul", c, b.op("reciprocal", std))
        elif form == "one over":
            n = swap("mul", c, b.op("div", 1.0, std))
        elif form == "pow":
            n = swap("mul", c, b.op("pow", var, -0.5))
        elif form == "div pow":
            n = b.op("div", c, b.op("pow", var, 0.5))
        elif gamma is None:
            n = b.op("div", c, std)
        else:
            n = swap("mul", c, swap("mul", b.op("reciprocal", std), gamma))
            gamma = None
        if gamma is not None:
            n = swap("mul", n, gamma)
        return n if beta is None else swap("add", n, beta)


def first(name: str, choices: list[str]) -> str:
    return choices[0]


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_layernorm_in_all_its_forms(data: st.DataObject) -> None:
    def draw(name: str, choices: list[str]) -> str:
        return data.draw(st.sampled_from(choices), label=name)

    wide = data.draw(st.sampled_from([(C,), (1, C), (1, 1, C)]))
    gamma = data.draw(st.sampled_from([GAMMA.reshape(wide), None]))
    beta = data.draw(st.sampled_from([BETA.reshape(wide), None]))
    b = Builder()
    x = floats(b)
    y = Norm(draw).build(b, b.op("add", x, x), gamma, beta)
    after = check(b.graph(y), fuse_layernorm, rtol=1e-5)
    assert ops(after) == {"add": 1, "layernorm": 1}
    norm = after.nodes[-1]
    assert norm.attrs["eps"] == pytest.approx(1e-5)
    kept = [after.constants[n] for n in norm.inputs[1:]]
    np.testing.assert_array_equal(kept[0], np.ones(C) if gamma is None else GAMMA)
    np.testing.assert_array_equal(kept[1], np.zeros(C) if beta is None else BETA)


def test_a_second_scale_after_layernorm_stays() -> None:
    b = Builder()
    y = b.op("mul", Norm(first).build(b, floats(b)), 3.0 * GAMMA)
    assert ops(check(b.graph(y), fuse_layernorm, rtol=1e-5)) == {"layernorm": 1, "mul": 1}


def test_a_layernorm_that_others_read_halfway() -> None:
    b = Builder()
    n = Norm(first).build(b, floats(b), beta=None)
    after = check(b.graph(n, b.op("add", n, BETA)), fuse_layernorm, rtol=1e-5)
    assert ops(after) == {"layernorm": 1, "add": 1}


def near_miss_axis(b: Builder) -> str:
    norm = Norm(first)
    norm.axis = 1
    return norm.build(b, floats(b))


def near_miss_other_variance(b: Builder) -> str:
    norm = Norm(first)
    x, norm.other = floats(b), floats(b)
    return norm.build(b, x)


def near_miss_sum(b: Builder) -> str:
    x = floats(b)
    c = b.op("sub", x, b.op("reduce_mean", x, axes=(2,), keepdims=True))
    var = b.op("reduce_sum", b.op("mul", c, c), axes=(2,), keepdims=True)
    return b.op("div", c, b.op("sqrt", b.op("add", var, 1e-5)))


def near_miss_cube(b: Builder) -> str:
    x = floats(b)
    c = b.op("sub", x, b.op("reduce_mean", x, axes=(2,), keepdims=True))
    var = b.op("reduce_mean", b.op("abs", b.op("pow", c, 3.0)), axes=(2,), keepdims=True)
    return b.op("div", c, b.op("sqrt", b.op("add", var, 1e-5)))


def near_miss_uncentred(b: Builder) -> str:
    x = floats(b)
    var = b.op("reduce_mean", b.op("mul", x, x), axes=(2,), keepdims=True)
    return b.op("div", x, b.op("sqrt", b.op("add", var, 1e-5)))


def near_miss_reversed_sub(b: Builder) -> str:
    x = floats(b)
    c = b.op("sub", b.op("reduce_mean", x, axes=(2,), keepdims=True), x)
    var = b.op("reduce_mean", b.op("mul", c, c), axes=(2,), keepdims=True)
    return b.op("div", c, b.op("sqrt", b.op("add", var, 1e-5)))


def near_miss_inverted(b: Builder) -> str:
    x = floats(b)
    c = b.op("sub", x, b.op("reduce_mean", x, axes=(2,), keepdims=True))
    var = b.op("reduce_mean", b.op("mul", c, c), axes=(2,), keepdims=True)
    return b.op("mul", c, b.op("sqrt", b.op("add", var, 1e-5)))


def near_miss_positions(b: Builder) -> str:
    return Norm(first).build(b, floats(b), gamma=RNG.normal(size=(S, C)), beta=None)


@pytest.mark.parametrize(
    ("make", "norms"),
    [
        (near_miss_axis, 0),
        (near_miss_other_variance, 0),
        (near_miss_sum, 0),
        (near_miss_cube, 0),
        (near_miss_uncentred, 0),
        (near_miss_reversed_sub, 0),
        (near_miss_inverted, 0),
        (near_miss_positions, 1),  # the scale by position stays outside
    ],
)
def test_what_only_looks_like_layernorm(make: Callable[[Builder], str], norms: int) -> None:
    b = Builder()
    graph = b.graph(make(b))
    after = check(graph, fuse_layernorm, rtol=1e-5)
    assert ops(after)["layernorm"] == norms
    if not norms:
        assert ops(after) == ops(graph)
    else:
        assert ops(after) == {"layernorm": 1, "mul": 1}


# GELU


def factors_in_any_order(b: Builder, data: st.DataObject, factors: list[Any]) -> str:
    """The product of the factors, associated and ordered at random."""
    parts = list(factors)
    while len(parts) > 1:
        i, j = sorted(data.draw(st.permutations(range(len(parts))))[:2])
        right, left = parts.pop(j), parts.pop(i)
        if isinstance(right, float) and isinstance(left, str) and data.draw(st.booleans()):
            parts.append(b.op("div", left, 1 / right))
        else:
            pair = (left, right) if data.draw(st.booleans()) else (right, left)
            parts.append(b.op("mul", *pair))
    return str(parts[0])


def erf_argument(b: Builder, data: st.DataObject, x: str) -> str:
    root = data.draw(st.sampled_from([math.sqrt(2), 1.4142135, 1.41421]))
    if data.draw(st.booleans()):
        return b.op("div", x, root)
    return factors_in_any_order(b, data, [x, 1 / root])


def cube(b: Builder, data: st.DataObject, x: str) -> str:
    form = data.draw(st.sampled_from(["float pow", "int pow", "left", "right"]))
    if form.endswith("pow"):
        return b.op("pow", x, np.int64(3) if form == "int pow" else np.float32(3))
    square = b.op("mul", x, x)
    return b.op("mul", square, x) if form == "left" else b.op("mul", x, square)


def tanh_argument(b: Builder, data: st.DataObject, x: str) -> str:
    root = math.sqrt(2 / math.pi)
    if data.draw(st.booleans()):
        cubic = factors_in_any_order(b, data, [cube(b, data, x), 0.044715])
        return factors_in_any_order(b, data, [b.op("add", x, cubic), root])
    inner = b.op("mul", b.op("mul", x, 0.044715), x)
    return b.op("mul", b.op("mul", x, root), b.op("add", 1.0, inner))


@settings(max_examples=150, deadline=None)
@given(st.data())
@pytest.mark.parametrize("mode", ["erf", "tanh"])
def test_gelu_in_all_its_forms(mode: str, data: st.DataObject) -> None:
    b = Builder()
    x = floats(b)
    kind = data.draw(st.sampled_from(["input", "product", "sum"]))
    if kind == "product":
        x = b.op("mul", x, floats(b))  # a product of its own must not be taken apart
    elif kind == "sum":
        x = b.op("add", x, RNG.normal(size=C))
    argument = (erf_argument if mode == "erf" else tanh_argument)(b, data, x)
    gate = b.op(mode, argument)
    gate = b.op("add", gate, 1.0) if data.draw(st.booleans()) else b.op("add", 1.0, gate)
    y = factors_in_any_order(b, data, [x, gate, 0.5])
    after = check(b.graph(y), fuse_gelu, rtol=1e-4)
    wanted = {"product": {"mul": 1}, "sum": {"add": 1}}.get(kind, {})
    assert ops(after) == {**wanted, "gelu": 1}
    assert after.nodes[-1].attrs["approximate"] == ("none" if mode == "erf" else "tanh")


@pytest.mark.parametrize(
    ("half", "one", "root", "miss"),
    [
        (0.5, 1.0, math.sqrt(2), ""),
        (0.6, 1.0, math.sqrt(2), "half"),
        (0.5, 1.1, math.sqrt(2), "one"),
        (0.5, 1.0, 1.5, "root"),
        (0.5, 1.0, math.sqrt(2), "other input"),
        (0.5, 1.0, math.sqrt(2), "vector"),
        (0.5, 1.0, math.sqrt(2), "float64"),
    ],
)
def test_what_only_looks_like_gelu(half: float, one: float, root: float, miss: str) -> None:
    b = Builder()
    x = floats(b)
    number: Any = np.float32
    if miss == "float64":
        x, number = b.op("cast", x, to="float64"), lambda v: b.constant(np.float64(v))
    other = floats(b) if miss == "other input" else x
    halves = np.linspace(0.4, 0.6, C) if miss == "vector" else number(half)
    gate = b.op("add", b.op("erf", b.op("div", x, number(root))), number(one))
    y = b.op("mul", b.op("mul", other, gate), halves)
    after = check(b.graph(y), fuse_gelu, rtol=1e-5)
    assert ops(after)["gelu"] == (0 if miss else 1)
    assert ops(after)["erf"] == (1 if miss else 0)


@pytest.mark.parametrize("mode", ["erf of quotient", "erf of product", "tanh"])
def test_gelu_with_constants_of_half_precision(mode: str) -> None:
    def half(value: float) -> float:
        return float(np.float16(value))

    b = Builder()
    x = floats(b)
    if mode == "tanh":
        cube = b.op("mul", b.op("mul", x, b.op("mul", x, x)), half(0.044715))
        argument = b.op("mul", b.op("add", x, cube), half(math.sqrt(2 / math.pi)))
    elif mode == "erf of quotient":
        argument = b.op("div", x, half(math.sqrt(2)))
    else:
        argument = b.op("mul", x, half(math.sqrt(0.5)))
    gate = b.op("add", b.op("tanh" if mode == "tanh" else "erf", argument), 1.0)
    y = b.op("mul", b.op("mul", x, gate), 0.5)
    assert ops(check(b.graph(y), fuse_gelu, rtol=3e-4)) == {"gelu": 1}


def test_gated_gelu() -> None:
    b = Builder()
    x, up = floats(b), floats(b)
    gate = b.op("add", b.op("erf", b.op("div", x, math.sqrt(2))), 1.0)
    y = b.op("mul", b.op("mul", b.op("mul", x, gate), 0.5), up)
    assert ops(check(b.graph(y), fuse_gelu, rtol=1e-5)) == {"gelu": 1, "mul": 1}
