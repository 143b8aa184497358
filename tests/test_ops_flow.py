"""What the op table says of axes, against what the references do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from sparsec.compiler.axes import flow_of
from sparsec.compiler.editor import Editor
from sparsec.compiler.interpreter import interpret
from sparsec.compiler.ir import Graph
from sparsec.compiler.ops import OPS

F, I64, B8, U8 = np.float32, np.int64, np.bool_, np.uint8
Example = tuple[Sequence[tuple[Any, tuple[int, ...]]], Mapping[str, Any]]

_TWO: list[tuple[Any, tuple[int, ...]]] = [(F, (3, 1, 4)), (F, (5, 4))]
_ARITY = {"where": 3}
_BOOLS = {"not", "and", "or"}
_BINARY = {
    *("add", "sub", "mul", "div", "pow", "mod", "min", "max", "and", "or", "equal"),
    *("less", "less_equal", "greater", "greater_equal"),
}


def _elementwise(op: str) -> Example:
    if op == "where":
        return [(B8, (3, 1, 4)), (F, (5, 4)), (F, (3, 5, 1))], {}
    if op in ("quantize", "dequantize"):
        first = F if op == "quantize" else U8
        return [(first, (3, 5, 4)), (F, (5,)), (U8, (5,))], {"axis": 1}
    dtype = B8 if op in _BOOLS else F
    shapes = _TWO if op in _BINARY else [(F, (3, 5, 4))]
    return [(dtype, shape) for _, shape in shapes], {"to": "int32"} if op == "cast" else {}


X: tuple[Any, tuple[int, ...]] = (F, (3, 5, 4))
EXAMPLES: dict[str, list[Example]] = {
    **{op: [_elementwise(op)] for op, row in OPS.items() if row.elementwise},
    "reshape": [([X], {"shape": (3, 20)})],
    "transpose": [([X], {"perm": (2, 0, 1)})],
    "expand": [([(F, (5, 1))], {"shape": (3, 5, 4)})],
    "concat": [([X, (F, (3, 2, 4))], {"axis": 1})],
    "slice": [([X], {"starts": (1, 0), "ends": (5, 4), "axes": (1, 2), "steps": (2, 1)})],
    "gather": [([X, (I64, (2, 6))], {"axis": 1}), ([X, (I64, ())], {"axis": 0})],
    "split": [([X], {"axis": 1, "sizes": (2, 3)})],
    "gather_elements": [([X, (I64, (3, 2, 4))], {"axis": 1}), ([X, (I64, (2, 5, 4))], {"axis": 2})],
    "gather_nd": [
        ([X, (I64, (3, 6, 1))], {"batch_dims": 1}),
        ([X, (I64, (6, 2))], {"batch_dims": 0}),
    ],
    "scatter_elements": [([X, (I64, (3, 2, 4)), (F, (3, 2, 4))], {"axis": 1, "reduction": "add"})],
    "scatter_nd": [([X, (I64, (2, 1)), (F, (2, 5, 4))], {"reduction": "add"})],
    "argmax": [([X], {"axis": 1, "keepdims": True, "last": False})],
    "argmin": [([X], {"axis": 2, "keepdims": False, "last": True})],
    "topk": [([X], {"axis": 1, "k": 2, "largest": True})],
    **{
        f"reduce_{kind}": [
            ([X], {"axes": (1,), "keepdims": True}),
            ([X], {"axes": (0, 2), "keepdims": False}),
        ]
        for kind in ("sum", "prod", "mean", "max", "min")
    },
    "extremes": [([X], {}), ([X, (np.bool_, (3, 5))], {})],
    "softmax": [([X], {"axis": 1})],
    "cumsum": [([X], {"axis": 1, "exclusive": False, "reverse": False})],
    "layernorm": [([X, (F, (4,)), (F, (4,))], {"eps": 1e-5})],
    "matmul": [
        ([(F, (2, 1, 3, 4)), (F, (5, 4, 6))], {}),
        ([(F, (4,)), (F, (5, 4, 6))], {}),
        ([(F, (5, 3, 4)), (F, (4,))], {}),
    ],
    "matmul_integer": [
        ([(U8, (2, 3, 4)), (U8, (4, 6)), (U8, (3,)), (U8, (6,))], {}),
        ([(U8, (2, 3, 4)), (U8, (2, 4, 6)), (U8, (2, 3, 1)), (U8, (2, 1, 6))], {}),
        ([(U8, (3, 4)), (U8, (4, 6)), (U8, ()), (U8, ())], {}),
    ],
    "conv": [([(F, (2, 4, 6)), (F, (3, 4, 3))], {"strides": (1,), "dilations": (1,), "groups": 1})],
    "conv_integer": [
        (
            [(U8, (2, 4, 6)), (U8, (3, 4, 3)), (U8, ()), (U8, (3,))],
            {"strides": (1,), "dilations": (1,), "groups": 1},
        )
    ],
    "linear": [([X, (F, (6, 4))], {})],
    "linear_integer": [([(U8, (3, 5, 4)), (np.int8, (6, 4))], {})],
    "qlinear": [([(U8, (3, 5, 4)), (np.int8, (6, 4)), (F, (6,)), (np.int32, (6,))], {"x_zp": 3})],
    "attention": [],  # below: its attributes are graphs
    "lengths": [],  # what it gives is no function of its operand
}


def _attention() -> Graph:
    def nested(name: str, extras: Sequence[tuple[int, ...]]) -> Graph:
        edit = Editor(name=name)
        s = edit.input("s", F, (3, 2, 5, 5))
        for i, shape in enumerate(extras):
            s = edit.emit("add", [s, edit.input(f"extra{i}", F, shape)])
        edit.outputs = [s]
        return edit.finish()

    edit = Editor(name="attention")
    names = [edit.input(n, F, (3, 5, 8)) for n in "qkv"]
    extras = [(3, 1, 1, 5), (2, 5, 5)]
    names += [edit.input(f"x{i}", F, shape) for i, shape in enumerate(extras)]
    zero = dict.fromkeys(("q_zp", "k_zp", "v_zp", "p_zp"), 0)
    out = edit.emit(
        "attention",
        names,
        heads=2,
        score=nested("score", extras),
        prob=nested("prob", ()),
        qk_scale=1.0,
        pv_scale=1.0,
        **zero,
    )
    edit.outputs = [out]
    return edit.finish()


def _graph(op: str, example: Example) -> Graph:
    inputs, attrs = example
    edit = Editor(name="one")
    names = [edit.input(f"x{i}", dtype, shape) for i, (dtype, shape) in enumerate(inputs)]
    edit.outputs = list(edit.emit_multi(op, names, **attrs))
    return edit.finish()


def test_every_op_has_an_example() -> None:
    assert set(EXAMPLES) == set(OPS)


CASES = [(op, _graph(op, e)) for op, examples in EXAMPLES.items() for e in examples]
CASES.append(("attention", _attention()))


def _numbers(graph: Graph, rng: np.random.Generator) -> list[np.ndarray]:
    arrays = []
    for name in graph.inputs:
        value = graph.values[name]
        shape = tuple(int(str(d)) for d in value.shape)
        if value.dtype.kind == "f":
            arrays.append(np.asarray(rng.uniform(0.5, 2, shape), value.dtype))
        else:
            # Indices too: the shortest axis that they look into is 2 long in every example.
            high = 2 if value.dtype.kind in "ib" and value.dtype != np.int32 else 9
            arrays.append(np.asarray(rng.integers(0, high, shape), value.dtype))
    return arrays


@pytest.mark.parametrize("op", [name for name, row in OPS.items() if row.last_axis])
def test_ops_over_the_last_axis_mix_no_other(op: str) -> None:
    inputs, attrs = EXAMPLES[op][0]
    last = len(inputs[0][1]) - 1
    (node,) = (graph := _graph(op, (inputs, {**attrs, "axis": last}))).nodes
    flow = flow_of(node, graph.values)
    (lines,) = flow.lines
    assert {axis for i, axis in flow.mixed if i == 0} == {last}
    assert list(lines[:last]) == [((0, axis),) for axis in range(last)]


@pytest.mark.parametrize(
    ("op", "graph"), CASES, ids=[f"{i}-{op}" for i, (op, _) in enumerate(CASES)]
)
def test_axes_that_line_up_do_not_mix(op: str, graph: Graph) -> None:
    """Other elements at one index of an operand change results at that index only."""
    rng = np.random.default_rng(0)
    (node,) = graph.nodes
    flow = flow_of(node, graph.values)
    arrays = _numbers(graph, rng)
    before = interpret(graph, arrays)
    if flow.regroups:
        assert op == "reshape"
        return
    assert [len(lines) for lines in flow.lines] == [a.ndim for a in before]
    for i, array in enumerate(arrays):
        for axis, extent in enumerate(array.shape):
            lined = [[(i, axis) in line for line in lines] for lines in flow.lines]
            assert extent == 1 or (i, axis) in flow.mixed or all(map(any, lined)), (i, axis)
            if extent == 1 or (i, axis) in flow.mixed:
                continue
            (places,) = {lines.index(True) for lines in lined}
            index = int(rng.integers(min(extent, before[0].shape[places])))
            others = _numbers(graph, rng)[i]
            changed = np.array(array)
            np.moveaxis(changed, axis, 0)[index] = np.moveaxis(others, axis, 0)[index]
            after = interpret(graph, [*arrays[:i], changed, *arrays[i + 1 :]])
            for old, new, along in zip(before, after, lined, strict=True):
                (place,) = np.flatnonzero(along)
                kept = np.delete(np.arange(old.shape[place]), index)
                np.testing.assert_array_equal(np.take(old, kept, place), np.take(new, kept, place))


@pytest.mark.parametrize(
    ("op", "graph"), CASES, ids=[f"{i}-{op}" for i, (op, _) in enumerate(CASES)]
)
def test_what_is_not_mixed_is_computed_piece_by_piece(op: str, graph: Graph) -> None:
    """Operands taken in another order along an axis give results in that order."""
    rng = np.random.default_rng(1)
    (node,) = graph.nodes
    flow = flow_of(node, graph.values)
    arrays = _numbers(graph, rng)
    before = interpret(graph, arrays)
    for place in range(before[0].ndim if not flow.regroups else 0):
        if not all(len(lines) > place for lines in flow.lines):
            continue
        axes = {axis for lines in flow.lines for axis in lines[place]}
        extents = {arrays[i].shape[a] for i, a in axes} | {a.shape[place] for a in before}
        if not axes or axes & flow.mixed or len(extents) > 1:
            continue
        order = rng.permutation(extents.pop())
        given = [
            np.take(array, order, dict(axes)[i]) if i in dict(axes) else array
            for i, array in enumerate(arrays)
        ]
        after = interpret(graph, given)
        for old, new in zip(before, after, strict=True):
            np.testing.assert_allclose(np.take(old, order, place), new, rtol=1e-5)
