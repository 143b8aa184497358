"""Folding, common subexpressions, identities, layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsec.compiler.interpreter import interpret
from sparsec.compiler.ir import BATCH, Graph
from sparsec.compiler.passes import PIPELINE, run
from sparsec.compiler.passes.eliminate_common import eliminate_common
from sparsec.compiler.passes.fold_constants import fold_constants
from sparsec.compiler.passes.layout_chain import Step, shorten
from sparsec.compiler.passes.remove_identities import remove_identities
from sparsec.compiler.passes.sink_layout import sink_layout
from tests.passes_support import Builder, arrays_for, check, ops

S, C = 4, 6


def floats(b: Builder, *shape: Any) -> str:
    return b.input(f"x{len(b.inputs)}", np.float32, shape or (BATCH, S, C))


# fold_constants


def test_chains_of_constants_are_computed() -> None:
    b = Builder()
    x = floats(b)
    q = b.const(np.arange(C, dtype=np.int8))
    w = b.op("dequantize", q, np.float32(0.5), np.int8(2))
    w = b.op("mul", b.op("reshape", w, shape=(1, C)), 3.0)
    after = check(b.graph(b.op("add", x, w)), fold_constants)
    assert ops(after) == {"add": 1}
    assert len(after.constants) == 1


def test_what_depends_on_the_batch_size_is_not_folded() -> None:
    b = Builder()
    x = floats(b)
    row = b.op("expand", np.arange(C, dtype=np.float32), shape=(BATCH, S, C))
    after = check(b.graph(b.op("add", x, row)), fold_constants)
    assert ops(after)["expand"] == 1


def test_large_expansions_are_not_folded() -> None:
    b = Builder()
    big = b.op("expand", np.float32(1), shape=(1000, 1000))
    assert ops(fold_constants(b.graph(big)))["expand"] == 1


# eliminate_common


def test_equal_nodes_and_equal_constants_are_shared() -> None:
    b = Builder()
    x = floats(b)
    parts = [b.op("mul", b.op("exp", x), np.full(C, 2.0)) for _ in range(3)]
    after = check(b.graph(b.op("add", b.op("add", parts[0], parts[1]), parts[2])), eliminate_common)
    assert ops(after) == {"exp": 1, "mul": 1, "add": 2}
    assert len(after.constants) == 1


def test_what_differs_is_kept_apart() -> None:
    b = Builder()
    x = floats(b)
    big = np.zeros(1000, np.float32)
    other = big.copy()
    other[7] = 1  # off the sampled stride
    sums = [b.op("reduce_sum", b.const(v), axes=(0,), keepdims=False) for v in (big, other)]
    y = b.op("add", b.op("mul", x, 0.0), b.op("mul", x, -0.0))
    z = b.op(
        "add", b.op("cast", x, to="int32"), b.op("cast", b.op("cast", x, to="int64"), to="int32")
    )
    p = b.op("add", b.op("softmax", x, axis=1), b.op("softmax", x, axis=2))
    graph = b.graph(y, z, p, *sums)
    after = check(graph, eliminate_common)
    assert ops(after) == ops(graph)


def test_two_equal_results_stay_two_results() -> None:
    b = Builder()
    x = floats(b)
    after = check(b.graph(b.op("exp", x), b.op("exp", x)), eliminate_common)
    assert len(set(after.outputs)) == 2


# remove_identities


@pytest.mark.parametrize(
    ("op", "number", "first", "goes"),
    [
        ("mul", 1, False, True),
        ("mul", 1, True, True),
        ("div", 1, False, True),
        ("add", 0, True, True),
        ("sub", 0, False, True),
        ("div", 1, True, False),
        ("sub", 0, True, False),
        ("mul", 0, False, False),
        ("add", 1, False, False),
    ],
)
def test_neutral_elements(op: str, number: int, first: bool, goes: bool) -> None:
    b = Builder()
    x, c = floats(b), b.const(np.full((1, C), number, np.float32))
    y = b.op(op, c, x) if first else b.op(op, x, c)
    after = check(b.graph(b.op("exp", y)), remove_identities)
    assert ops(after)[op] == (0 if goes else 1)


def test_a_neutral_element_that_broadcasts_stays() -> None:
    b = Builder()
    x = floats(b, BATCH, 1, C)
    after = check(b.graph(b.op("add", x, np.zeros((S, C)))), remove_identities)
    assert ops(after)["add"] == 1


@pytest.mark.parametrize(
    ("types", "left"),
    [
        (("bool", "float32", "int64"), 1),
        (("int32", "float64", "int32"), 0),
        (("int32", "float32", "int32"), 2),  # float32 does not hold every int32
        (("float32", "bool", "float32"), 2),
        (("float32", "int32", "float32"), 2),
        (("int64", "int64", "int64"), 0),
    ],
)
def test_casts(types: tuple[str, ...], left: int) -> None:
    b = Builder()
    x = b.input("x", types[0], (BATCH, S))
    y = b.op("cast", b.op("cast", x, to=types[1]), to=types[2])
    assert ops(check(b.graph(y), remove_identities))["cast"] == left


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@given(scale=st.floats(2**-20, 2**10, width=32), zp=st.integers(-128, 255))
@settings(max_examples=20, deadline=None)
def test_requantizing_with_the_same_parameters(dtype: Any, scale: float, zp: int) -> None:
    b = Builder()
    info = np.iinfo(dtype)
    q = b.input("q", dtype, (256,))
    zero = dtype(np.clip(zp, info.min, info.max))
    y = b.op("quantize", b.op("dequantize", q, np.float32(scale), zero), np.float32(scale), zero)
    every = np.arange(info.min, info.max + 1).astype(dtype)
    assert not ops(check(b.graph(y), remove_identities, [every]))


def test_requantizing_with_other_parameters_stays() -> None:
    b = Builder()
    q = b.input("q", np.uint8, (BATCH, S))
    f = b.op("dequantize", q, np.float32(0.5), np.uint8(3))
    y = b.op("quantize", f, np.float32(0.5), np.uint8(4))
    z = b.op("quantize", f, np.float32(0.25), np.uint8(3))
    assert ops(check(b.graph(y, z), remove_identities)) == {"dequantize": 1, "quantize": 2}


def test_expand_in_front_of_broadcasting() -> None:
    b = Builder()
    x = floats(b, BATCH, 2, S, S)
    mask = b.op("expand", floats(b, BATCH, 1, 1, S), shape=(BATCH, 1, S, S))
    wide = b.op("expand", b.op("exp", mask), shape=(BATCH, 2, S, S))
    alone = b.op("expand", floats(b, BATCH, 1, 1, S), shape=(BATCH, 1, S, S))
    y = b.op("add", x, b.op("neg", mask))
    z = b.op("where", b.op("less", wide, 1.0), x, 0.5)
    graph = b.graph(y, z, b.op("add", alone, 1.0))
    after = check(sink_layout(graph), remove_identities)
    # Only the one whose extent nothing else provides is left.
    assert ops(after)["expand"] == 1


def test_slice_of_everything() -> None:
    b = Builder()
    x = floats(b)
    whole = b.op("slice", x, starts=(0,), ends=(S,), axes=(1,), steps=(1,))
    back = b.op("slice", x, starts=(S - 1,), ends=(-1,), axes=(1,), steps=(-1,))
    after = check(b.graph(b.op("sub", whole, back)), remove_identities)
    assert ops(after)["slice"] == 1


# layout


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_shortened_chains_do_the_same(data: st.DataObject) -> None:
    extents = data.draw(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=4))
    batch = data.draw(st.booleans())
    b = Builder()
    shape: tuple[Any, ...] = (BATCH, *extents) if batch else tuple(extents)
    x = floats(b, *shape)
    for _ in range(data.draw(st.integers(1, 5))):
        shape = b.values[x].shape
        if data.draw(st.booleans()):
            x = b.op("transpose", x, perm=tuple(data.draw(st.permutations(range(len(shape))))))
            continue
        i = data.draw(st.integers(0, len(shape) - 1))
        if data.draw(st.booleans()) and i + 1 < len(shape) and not (batch and i == 0):
            try:
                new = (*shape[:i], shape[i] * shape[i + 1], *shape[i + 2 :])
            except ValueError:
                continue
        elif shape[i] in (2, 4):
            new = (*shape[:i], 2, shape[i] // 2, *shape[i + 1 :])
        else:
            new = (*shape[:i], 1, *shape[i:])
        x = b.op("reshape", x, shape=new)
    graph = b.graph(x)
    after = check(graph, sink_layout)
    assert len(after.nodes) <= min(len(graph.nodes), 3) or any(
        n.op == "transpose" for n in after.nodes
    )
    again = sink_layout(after)
    assert [(n.op, dict(n.attrs)) for n in again.nodes] == [
        (n.op, dict(n.attrs)) for n in after.nodes
    ]


@pytest.mark.parametrize(
    ("shape", "steps", "final", "want"),
    [
        # Splitting heads and merging them again is nothing.
        (
            (BATCH, 4, 6),
            [
                Step("reshape", shape=(BATCH, 4, 2, 3)),
                Step("transpose", perm=(0, 2, 1, 3)),
                Step("reshape", shape=(BATCH * 2, 4, 3)),
                Step("reshape", shape=(BATCH, 2, 4, 3)),
                Step("transpose", perm=(0, 2, 1, 3)),
                Step("reshape", shape=(BATCH, 4, 6)),
            ],
            (BATCH, 4, 6),
            [],
        ),
        # The two transposes of K are one, which moves the channels as a whole.
        (
            (BATCH, 4, 6),
            [
                Step("reshape", shape=(BATCH, 4, 2, 3)),
                Step("transpose", perm=(0, 2, 1, 3)),
                Step("transpose", perm=(0, 1, 3, 2)),
            ],
            (BATCH, 2, 3, 4),
            [Step("transpose", perm=(0, 2, 1)), Step("reshape", shape=(BATCH, 2, 3, 4))],
        ),
        # Rows and batch are one axis, taken apart.
        (
            (BATCH * 4, 6),
            [
                Step("reshape", shape=(BATCH, 4, 6)),
                Step("reshape", shape=(BATCH, 4, 2, 3)),
                Step("transpose", perm=(0, 2, 1, 3)),
            ],
            (BATCH, 2, 4, 3),
            [Step("reshape", shape=(BATCH, 4, 2, 3)), Step("transpose", perm=(0, 2, 1, 3))],
        ),
        # A transpose that only moves extents of 1 is a reshape.
        (
            (BATCH, 1, 5),
            [Step("transpose", perm=(0, 2, 1))],
            (BATCH, 5, 1),
            [Step("reshape", shape=(BATCH, 5, 1))],
        ),
        # Splits that do not line up are left alone.
        (
            (6, 4),
            [
                Step("transpose", perm=(1, 0)),
                Step("reshape", shape=(3, 8)),
                Step("transpose", perm=(1, 0)),
            ],
            (8, 3),
            [
                Step("transpose", perm=(1, 0)),
                Step("reshape", shape=(3, 8)),
                Step("transpose", perm=(1, 0)),
            ],
        ),
    ],
)
def test_shorten(shape: Any, steps: list[Step], final: Any, want: list[Step]) -> None:
    assert shorten(shape, steps, final) == want


def test_layout_sinks_to_the_matrix_product() -> None:
    b = Builder()
    x = floats(b)
    h = b.op("reshape", x, shape=(BATCH, S, 2, 3))
    h = b.op("transpose", h, perm=(0, 2, 1, 3))
    h = b.op("mul", np.full((1, 1, 1, 1), 0.5), b.op("tanh", h))
    h = b.op("where", b.op("isnan", h), 0.0, h)
    h = b.op("quantize", h, np.full(1, 0.1), np.full(1, 7, np.uint8))
    h = b.op("dequantize", h, np.float32(0.1), np.uint8(7))
    h = b.op("transpose", h, perm=(0, 1, 3, 2))
    h = b.op("cast", b.op("cast", h, to="float64"), to="float32")
    after = check(
        b.graph(b.op("matmul", floats(b, BATCH, 2, S, S), b.op("transpose", h, perm=(0, 1, 3, 2)))),
        sink_layout,
    )
    order = [n.op for n in after.nodes]
    assert order[-3:] == ["reshape", "transpose", "matmul"]
    assert ops(after)["reshape"] == ops(after)["transpose"] == 1


def test_layout_sinks_through_ops_on_the_last_axis() -> None:
    b = Builder()
    rng = np.random.default_rng(0)
    x = floats(b)
    h = b.op("reshape", x, shape=(BATCH * S, C))
    h = b.op("linear", h, rng.normal(size=(5, C)))
    h = b.op("add", h, rng.normal(size=(1, 5)))
    h = b.op("layernorm", h, np.ones(5), np.zeros(5), eps=1e-5)
    h = b.op("softmax", h, axis=1)
    after = check(b.graph(b.op("reshape", h, shape=(BATCH, S, 5))), sink_layout)
    assert ops(after) == {"linear": 1, "add": 1, "layernorm": 1, "softmax": 1}


def test_layout_stays_where_it_cannot_sink() -> None:
    b = Builder()
    rng = np.random.default_rng(0)
    x = floats(b)
    heads = b.op("reshape", x, shape=(BATCH, S, 2, 3))
    one = b.op("mul", heads, rng.normal(size=3))  # varies along an axis that the reshape makes
    turned = b.op("transpose", x, perm=(0, 2, 1))
    two = b.op("add", turned, rng.normal(size=S))
    three = b.op("softmax", turned, axis=2)
    four = b.op("quantize", turned, np.full(C, 0.1), np.full(C, 3, np.int8), axis=1)
    five = b.op("add", turned, floats(b, BATCH, C, S))
    graph = b.graph(one, two, three, four, five)
    after = check(graph, sink_layout)
    assert [n.op for n in after.nodes if n.op in ("reshape", "transpose")] == [
        "reshape",
        "transpose",
    ]
    assert ops(after) == ops(graph)


def test_products_of_nothing_have_a_shape() -> None:
    """All reshapes of an empty tensor keep its count of elements: none."""
    b = Builder()
    nothing = b.op("reshape", floats(b, 2, 3, 0), shape=(5, 0))
    graph = b.graph(b.op("linear", nothing, np.zeros((4, 0))))
    assert check(graph, sink_layout).values[graph.outputs[0]].shape == (5, 4)


def test_part_of_a_chain_sinks() -> None:
    """A scale per channel moves up through what leaves the channels alone, and no further."""
    b = Builder()
    h = b.op("reshape", floats(b, BATCH, 24), shape=(BATCH, S, C))
    h = b.op("transpose", h, perm=(1, 0, 2))
    h = b.op("layernorm", b.op("mul", h, np.arange(C) + 1.0), np.ones(C), np.zeros(C), eps=0.1)
    after = check(b.graph(h), sink_layout)
    assert [n.op for n in after.nodes] == ["reshape", "mul", "layernorm", "transpose"]


def test_long_chains_sink_in_one_go() -> None:
    b = Builder()
    x = b.op("transpose", floats(b), perm=(0, 2, 1))
    for _ in range(1200):
        x = b.op("neg", x)
    after = check(b.graph(b.op("transpose", x, perm=(0, 2, 1))), sink_layout)
    assert ops(after) == {"neg": 1200}


def test_a_layout_read_twice_is_written_once() -> None:
    b = Builder()
    turned = b.op("transpose", floats(b), perm=(0, 2, 1))
    y, z = (b.op("matmul", floats(b, BATCH, S, C), turned) for _ in range(2))
    after = check(b.graph(b.op("add", y, z), turned), sink_layout)
    assert ops(after) == {"transpose": 1, "matmul": 2, "add": 1}


def test_near_misses_of_sinking() -> None:
    b = Builder()
    # Extents that agree by chance, along axes that do not.
    square = b.op("transpose", floats(b, BATCH, C, C), perm=(0, 2, 1))
    one = b.op("mul", square, np.arange(C) + 1.0)
    other = b.op("reshape", floats(b, BATCH, C * C), shape=(BATCH, C, C))
    two = b.op("sub", square, other)
    # One step, from different places.
    three = b.op("sub", b.op("reshape", floats(b, BATCH * C, C), shape=(BATCH, C, C)), other)
    cube = [floats(b, BATCH, S, S, S) for _ in range(2)]
    turned = [
        b.op("transpose", x, perm=p)
        for x, p in zip(cube, ((0, 2, 1, 3), (0, 1, 3, 2)), strict=True)
    ]
    six = b.op("sub", *turned)
    # The last axis stays where it is, and is not the one at work.
    rows = b.op("reshape", floats(b, BATCH * S, C), shape=(BATCH, S, C))
    four = b.op("softmax", rows, axis=1)
    five = b.op("quantize", rows, np.arange(C) * 0.1 + 0.1, np.zeros(C, np.int8), axis=2)
    graph = b.graph(one, two, three, four, five, six)
    after = check(graph, sink_layout)
    assert ops(after) == ops(graph)
    made = {out: n for n in after.nodes for out in n.outputs}
    assert {made[o].op for o in after.outputs} == {"mul", "sub", "softmax", "quantize"}


@pytest.mark.parametrize("first", ["matmul", "tanh"])
def test_readers_do_not_get_in_each_others_way(first: str) -> None:
    b = Builder()
    turned = b.op("transpose", floats(b), perm=(0, 2, 1))
    y = floats(b, BATCH, S, C)
    product = b.op("matmul", y, turned) if first == "matmul" else ""
    back = b.op("transpose", b.op("tanh", turned), perm=(0, 2, 1))
    product = product or b.op("matmul", y, turned)
    after = check(b.graph(product, back), sink_layout)
    assert ops(after) == {"transpose": 1, "matmul": 1, "tanh": 1}


def test_operands_in_one_layout_move_together() -> None:
    b = Builder()
    x, y = floats(b), floats(b)
    turned = [b.op("transpose", v, perm=(0, 2, 1)) for v in (x, y)]
    flat = b.op("transpose", b.op("add", *turned), perm=(0, 2, 1))
    assert ops(check(b.graph(flat), sink_layout)) == {"add": 1}


def test_work_is_done_before_expanding() -> None:
    b = Builder()
    m = b.input("m", np.int64, (BATCH, 1, 1, S))
    wide = b.op("cast", b.op("expand", m, shape=(BATCH, 1, S, S)), to="float32")
    after = check(b.graph(b.op("mul", b.op("sub", 1.0, wide), -1e4)), sink_layout)
    assert [n.op for n in after.nodes] == ["cast", "sub", "mul", "expand"]


# the pipeline


def test_constants_behind_an_expansion_to_the_batch_are_computed() -> None:
    b = Builder()
    x = floats(b, BATCH, 2, S, S)
    triangle = b.op("expand", np.tri(S), shape=(BATCH, 1, S, S))
    mask = b.op("mul", b.op("sub", 1.0, triangle), -1e4)
    after = check(b.graph(b.op("softmax", b.op("add", x, mask), axis=3)), run)
    assert ops(after)["sub"] == ops(after)["mul"] == 0


def test_run_reports_each_pass() -> None:
    b = Builder()
    graph = b.graph(b.op("mul", floats(b), 1.0))
    seen: list[tuple[int, str, Graph]] = []
    after = run(graph, on_pass=lambda *args: seen.append(args))
    assert [(i, n) for i, n, _ in seen] == list(enumerate(n for n, _ in PIPELINE))
    assert seen[-1][2] is after
    assert after.outputs == graph.inputs


def test_names_of_passes_are_distinct() -> None:
    names = [name for name, _ in PIPELINE]
    assert len(set(names)) == len(names)


def test_nodes_with_several_outputs_pass_through() -> None:
    b = Builder()
    x = floats(b)
    for _ in range(2):
        parts = b.emit_multi("split", [x], axis=2, sizes=(2, 4))
        x = b.op("concat", *(b.op("mul", p, 1.0) for p in reversed(parts)), axis=2)
    twins = [b.emit_multi("split", [x], axis=1, sizes=(1, 3)) for _ in range(2)]
    y = b.op("sub", b.op("exp", twins[0][1]), twins[1][1])
    after = check(b.graph(y, twins[0][0]), run)
    assert ops(after) == {"split": 3, "concat": 2, "exp": 1, "sub": 1}


UNARY = ["neg", "abs", "tanh", "sigmoid", "relu", "floor", "sign"]
BINARY = ["add", "sub", "mul", "min", "max"]


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_random_graphs_mean_the_same(data: st.DataObject) -> None:
    """Graphs of random ops, in which every pass finds something now and then."""
    b = Builder()
    values = [floats(b), floats(b, BATCH, 1, C), b.const(np.linspace(-1, 1, C))]
    draw = data.draw
    for _ in range(draw(st.integers(1, 14))):
        x = draw(st.sampled_from(values))
        shape = b.values[x].shape
        kind = draw(st.sampled_from(["unary", "binary", "scalar", "layout", "quantize", "reduce"]))
        if kind == "unary":
            y = b.op(draw(st.sampled_from(UNARY)), x)
        elif kind == "scalar":
            y = b.op(draw(st.sampled_from(BINARY)), x, draw(st.sampled_from([0.0, 1.0, -2.5])))
        elif kind == "binary":
            same = [v for v in values if b.values[v].shape == shape]
            y = b.op(draw(st.sampled_from(BINARY)), x, draw(st.sampled_from(same)))
        elif kind == "quantize":
            q = b.op("quantize", x, np.float32(0.03), np.int8(draw(st.integers(-9, 9))))
            y = b.op("dequantize", q, np.float32(0.03), np.int8(3))
        elif kind == "reduce":
            y = b.op("softmax", x, axis=draw(st.integers(0, len(shape) - 1)))
        elif draw(st.booleans()):
            y = b.op("transpose", x, perm=tuple(draw(st.permutations(range(len(shape))))))
        elif shape[-1] == C:
            y = b.op("reshape", x, shape=(*shape[:-1], 2, 3))
        else:
            y = b.op("reshape", x, shape=(*shape, 1))
        values.append(y)
    graph = b.graph(values[-1], values[len(values) // 2])
    after = check(graph, run, rtol=1e-5)
    inputs = arrays_for(graph, seed=1)
    for want, got in zip(interpret(graph, inputs), interpret(after, inputs), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
