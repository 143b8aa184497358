"""The torch forms of core ops: equal to the numpy references, and differentiated rightly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sparsec.compiler.editor import Editor
from sparsec.compiler.interpreter import interpret, run_node
from sparsec.compiler.ir import FrozenAttrs, Graph, Node
from sparsec.compiler.ops import OPS
from sparsec.errors import InputError, UnsupportedError
from tests.test_ops_flow import CASES

torch = pytest.importorskip("torch")

from sparsec.pruning.engine import TorchGraph  # noqa: E402
from sparsec.pruning.engine.graph import run_form  # noqa: E402
from sparsec.pruning.engine.ops import FORMS, tensor_of, torch_dtype  # noqa: E402

NAMES = [f"{i}-{op}" for i, (op, _) in enumerate(CASES)]


def _node(op: str, attrs: Mapping[str, Any], count: int) -> Node:
    return Node(op, tuple(f"x{i}" for i in range(count)), ("y",), FrozenAttrs(attrs))


def _same(op: str, arrays: Sequence[np.ndarray], tolerance: float = 2e-6, **attrs: Any) -> None:
    """Both ways of computing an op, with all of its results."""
    node = _node(op, attrs, len(arrays))
    want = run_node(node, arrays)
    got = run_form(node, [tensor_of(a) for a in arrays])
    assert len(want) == len(got)
    for a, b in zip(want, got, strict=True):
        array = np.asarray(a)
        assert b.dtype == torch_dtype(array.dtype)
        assert tuple(b.shape) == array.shape
        if array.dtype.kind == "f":
            np.testing.assert_allclose(b.numpy(), array, rtol=tolerance, atol=tolerance)
        else:
            np.testing.assert_array_equal(b.numpy(), array)


def _arrays(graph: Graph, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    arrays = []
    for name in graph.inputs:
        value = graph.values[name]
        shape = tuple(int(str(d)) for d in value.shape)
        if value.dtype.kind == "f":
            arrays.append(rng.uniform(0.5, 2, shape).astype(value.dtype))
        elif value.dtype.itemsize == 1 and value.dtype.kind in "iu":
            arrays.append(rng.integers(0, 100, shape).astype(value.dtype))
        else:
            arrays.append(rng.integers(0, 2, shape).astype(value.dtype))
    return arrays


def test_every_op_has_a_form() -> None:
    assert set(FORMS) == set(OPS)


@pytest.mark.parametrize(("op", "graph"), CASES, ids=NAMES)
def test_forms_give_what_references_give(op: str, graph: Graph) -> None:
    for seed in range(3):
        arrays = _arrays(graph, seed)
        want = interpret(graph, arrays)
        module = TorchGraph(graph)
        given = dict(zip(graph.inputs, map(tensor_of, arrays), strict=True))
        got = module(given)
        for name, a in zip(graph.output_names, want, strict=True):
            np.testing.assert_allclose(got[name].detach().numpy(), a, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("op", "graph"), CASES, ids=NAMES)
def test_gradients_are_those_of_finite_differences(op: str, graph: Graph) -> None:
    (node,) = graph.nodes
    arrays = _arrays(graph, 0)
    places = [i for i, a in enumerate(arrays) if a.dtype.kind == "f"]
    results = run_form(node, [tensor_of(a) for a in arrays])
    floats = [k for k, r in enumerate(results) if r.is_floating_point()]
    if not places or not floats or not FORMS[op].gradient or op == "cast":
        assert not FORMS[op].gradient or not floats or not places or op == "cast"
        return

    def run(*values: Any) -> Any:
        operands = [tensor_of(a) for a in arrays]
        for i, value in zip(places, values, strict=True):
            operands[i] = value
        made = run_form(node, operands)
        return tuple(made[k] for k in floats)

    given = [tensor_of(arrays[i]).double().requires_grad_() for i in places]
    assert torch.autograd.gradcheck(run, given, fast_mode=True)


_SHAPES = hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=4)
_FLOATS = st.floats(-1e3, 1e3, width=32) | st.sampled_from([0.0, -0.0, np.inf, -np.inf, np.nan])
_PAIRS = ["add", "sub", "mul", "div", "min", "max", "equal", "less", "less_equal", "greater"]


@settings(max_examples=10)
@given(st.data(), _SHAPES)
@pytest.mark.parametrize("op", _PAIRS)
def test_elementwise_ops_broadcast(op: str, data: Any, shapes: Any) -> None:
    for dtype, elements in (
        (np.float32, _FLOATS),
        (np.int64, st.integers(-99, 99)),
        (np.int32, st.integers(-99, 99)),
    ):
        arrays = [data.draw(hnp.arrays(dtype, s, elements=elements)) for s in shapes.input_shapes]
        _same(op, arrays)


@settings(max_examples=10)
@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=4), elements=_FLOATS))
@pytest.mark.parametrize(
    "op", ["neg", "abs", "exp", "tanh", "sigmoid", "relu", "floor", "ceil", "round", "isnan", "erf"]
)
def test_functions_of_extremes(op: str, x: np.ndarray) -> None:
    _same(op, [x])


@settings(max_examples=10)
@given(
    hnp.arrays(np.int32, (2, 3), elements=st.integers(-9, 9)),
    hnp.arrays(np.int32, (2, 3), elements=st.integers(-9, 9)),
)
def test_integers_divide_by_anything(a: np.ndarray, b: np.ndarray) -> None:
    _same("div", [a, b])
    _same("mod", [a, b], fmod=0)
    _same("mod", [a, b], fmod=1)
    _same("pow", [a.astype(np.int64), np.abs(b).astype(np.int64) % 4])
    _same("pow", [a.astype(np.int64), b.astype(np.float32)])


@settings(max_examples=10)
@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=3, max_side=5), elements=_FLOATS),
    st.data(),
)
def test_slices_and_orders(x: np.ndarray, data: Any) -> None:
    axis = data.draw(st.integers(0, x.ndim - 1))
    extent = x.shape[axis]
    start, stop = sorted(data.draw(st.tuples(st.integers(0, extent), st.integers(0, extent))))
    step = data.draw(st.integers(1, 3))
    if start < stop:
        _same("slice", [x], starts=(start,), ends=(stop,), axes=(axis,), steps=(step,))
        _same("slice", [x], starts=(stop - 1,), ends=(start - 1,), axes=(axis,), steps=(-step,))
    else:
        _same("slice", [x], starts=(start,), ends=(stop,), axes=(axis,), steps=(1,))
    _same("topk", [x], axis=axis, k=data.draw(st.integers(0, extent)), largest=True)
    _same("topk", [x], axis=axis, k=extent, largest=False)
    for op in ("argmax", "argmin"):
        for last in (False, True):
            _same(op, [x], axis=axis, keepdims=last, last=last)
    for reverse in (False, True):
        for exclusive in (False, True):
            finite = np.nan_to_num(x, nan=1.0, posinf=2.0, neginf=3.0)
            given = {"axis": axis, "exclusive": exclusive, "reverse": reverse}
            _same("cumsum", [finite], 1e-4, **given)


@settings(max_examples=10)
@given(
    hnp.arrays(np.int32, hnp.array_shapes(max_dims=3, max_side=4), elements=st.integers(-9, 9)),
    st.data(),
)
def test_reductions_of_any_axes(x: np.ndarray, data: Any) -> None:
    axes = tuple(data.draw(st.sets(st.integers(0, x.ndim - 1))))
    for kind in ("sum", "prod", "mean", "max", "min"):
        for keep in (False, True):
            _same(f"reduce_{kind}", [x], axes=axes, keepdims=keep)
            _same(f"reduce_{kind}", [x.astype(np.float32)], axes=axes, keepdims=keep)
    empty = np.zeros((2, 0), np.float32)
    _same("reduce_max", [empty], axes=(1,), keepdims=False)
    _same("reduce_min", [empty.astype(np.int32)], axes=(1,), keepdims=True)


@settings(max_examples=10)
@given(st.data())
def test_indices_count_from_either_end(data: Any) -> None:
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    axis = data.draw(st.integers(0, 2))
    n = x.shape[axis]
    index = st.integers(-n, n - 1)
    _same("gather", [x, data.draw(hnp.arrays(np.int64, (2, 2), elements=index))], axis=axis)
    over = tuple(2 if i == axis else d for i, d in enumerate(x.shape))
    at = data.draw(hnp.arrays(np.int64, over, elements=index))
    _same("gather_elements", [x, at], axis=axis)
    updates = np.arange(at.size, dtype=np.float32).reshape(over) + 0.5
    for how in ("add", "mul", "min", "max"):
        _same("scatter_elements", [x, at, updates], axis=axis, reduction=how)
    places = data.draw(
        hnp.arrays(np.int64, (3, 2), elements=st.integers(-2, 1)), label="of scatter_nd"
    )
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    for how in ("add", "mul", "min", "max"):
        _same("scatter_nd", [x, places, rows], reduction=how)
    _same("scatter_nd", [x, places[:1], rows[:1]], reduction="none")
    _same("gather_nd", [x, places], batch_dims=0)
    _same("gather_nd", [x, places[:2, :1]], batch_dims=1)


def test_bad_indices_are_refused_by_both() -> None:
    node = _node("gather", {"axis": 0}, 2)
    arrays = [np.zeros((2, 3), np.float32), np.array([2], np.int64)]
    with pytest.raises(IndexError):
        run_node(node, arrays)
    with pytest.raises(IndexError, match="index 2 is outside the 2 elements"):
        run_form(node, [tensor_of(a) for a in arrays])


@settings(max_examples=10)
@given(
    hnp.arrays(np.float32, (3, 4), elements=_FLOATS),
    hnp.arrays(np.float32, (4,), elements=st.floats(2**-7, 2, width=32)),
    hnp.arrays(np.int8, (4,), elements=st.integers(-128, 127)),
)
def test_quantization_saturates(x: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> None:
    _same("quantize", [x, scale, zero], axis=1)
    _same("quantize", [x, scale[0], zero[0].astype(np.uint8)])
    (q,) = run_node(_node("quantize", {"axis": 1}, 3), [x, scale, zero])
    _same("dequantize", [q, scale, zero], axis=1)


def _chain(*ops: tuple[str, Mapping[str, Any]]) -> Graph:
    edit = Editor(name="chain")
    x = edit.input("x", np.float32, (2, 3))
    w = edit.constant(np.eye(3, dtype=np.float32), "weight")
    y = edit.emit("matmul", [x, w], source="product")
    for op, attrs in ops:
        y = edit.emit(op, [y], source=f"node {op}", **attrs)
    edit.outputs = [y]
    return edit.finish()


def test_nodes_without_a_gradient_are_listed() -> None:
    graph = _chain(("round", {}), ("relu", {}), ("sign", {}))
    with pytest.raises(UnsupportedError, match="2 nodes cannot be trained through") as caught:
        TorchGraph(graph)
    assert [(name, op) for name, op, _ in caught.value.nodes] == [
        ("node round", "round"),
        ("node sign", "sign"),
    ]
    # What only looks at a value does not stand in the way.
    TorchGraph(_chain(("relu", {}), ("argmax", {"axis": 1, "keepdims": False, "last": False})))


def test_parameters_have_the_names_of_constants() -> None:
    module = TorchGraph(_chain(("relu", {})))
    assert set(module.weights) == {"weight"}
    assert module.inputs == ("x",)
    x = torch.tensor([[1.0, -2.0, 3.0], [4.0, 5.0, -6.0]])
    (y,) = module({"x": x}).values()
    torch.testing.assert_close(y, x.relu())
    (other,) = module({"x": x}, weights={"weight": 2 * torch.eye(3)}).values()
    torch.testing.assert_close(other, 2 * y)
    y.sum().backward()
    torch.testing.assert_close(module.weights["weight"].grad, x.T @ (x > 0).float())


def test_inputs_must_fit() -> None:
    module = TorchGraph(_chain(("relu", {})))
    with pytest.raises(InputError, match="the input x is missing"):
        module({})
    with pytest.raises(InputError, match="is given"):
        module({"x": torch.zeros(2, 4)})
    with pytest.raises(InputError, match="is given"):
        module({"x": torch.zeros(2, 3, dtype=torch.int64)})
