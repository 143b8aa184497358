"""The elementwise, layout and reduction rows: references against numpy and math, shape rules."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsec.compiler.ir import BATCH, BatchDim, FrozenAttrs, Value, bind_shape
from sparsec.compiler.ops import OPS, elementwise, infer, layout, reduction
from sparsec.interface import ELEMENTS

RNG = np.random.default_rng(7)


def value(dtype: Any, *shape: Any) -> Value:
    return Value("x", np.dtype(dtype), shape)


def at(**attrs: Any) -> FrozenAttrs:
    return FrozenAttrs(attrs)


def run(op: str, *arrays: Any, batch: int = 1, **attrs: Any) -> Any:
    """The reference's result, checked against the op's own type rule."""
    arrays = tuple(np.asarray(a) for a in arrays)
    results = OPS[op].reference({**attrs, "_batch": batch}, *arrays)
    types = infer(op, [value(a.dtype, *a.shape) for a in arrays], at(**attrs))
    for result, (dtype, shape) in zip(results, types, strict=True):
        assert result.dtype == dtype
        assert result.shape == bind_shape(shape, batch)
    return results[0] if len(results) == 1 else results


def test_erf_matches_math() -> None:
    x = np.concatenate([np.linspace(-12, 12, 4001), [1e-300, -1e-20, 0.46875, 4.0, -4.0]])
    want = np.array([math.erf(v) for v in x])
    np.testing.assert_allclose(run("erf", x), want, rtol=1e-15, atol=0)
    small = x.astype(np.float32)
    want32 = np.array([math.erf(float(v)) for v in small]).astype(np.float32)
    assert np.array_equal(run("erf", small), want32)
    assert np.isnan(run("erf", np.float32("nan")))
    assert np.array_equal(run("erf", np.array([np.inf, -np.inf])), [1.0, -1.0])


def test_gelu() -> None:
    x = np.linspace(-6, 6, 101, dtype=np.float32)
    exact = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x.tolist()]
    np.testing.assert_allclose(run("gelu", x, approximate="none"), exact, atol=1e-6)
    inner = [math.sqrt(2 / math.pi) * (v + 0.044715 * v**3) for v in x.tolist()]
    tanh = [0.5 * v * (1 + math.tanh(i)) for v, i in zip(x.tolist(), inner, strict=True)]
    np.testing.assert_allclose(run("gelu", x, approximate="tanh"), tanh, atol=1e-6)


@given(st.integers(-50, 50), st.integers(-9, 9).filter(bool))
def test_integer_division_truncates(a: int, b: int) -> None:
    assert run("div", np.int64(a), np.int64(b)) == int(a / b)
    assert run("mod", np.int64(a), np.int64(b), fmod=0) == a % b
    assert run("mod", np.int64(a), np.int64(b), fmod=1) == math.fmod(a, b)


def test_scalar_semantics() -> None:
    assert np.array_equal(run("round", np.array([0.5, 1.5, 2.5, -0.5])), [0, 2, 2, 0])
    assert np.array_equal(run("cast", np.array([-1.7, 1.7]), to=np.dtype(np.int64)), [-1, 1])
    assert np.array_equal(run("cast", np.array([0.0, 0.3]), to=np.dtype(bool)), [False, True])
    assert run("pow", np.float32(3), np.int64(2)) == np.float32(9)
    assert run("pow", np.int64(3), np.float32(2)) == 9
    assert run("sigmoid", np.float32(-200)) == 0
    assert run("add", np.uint8(250), np.uint8(10)) == 4
    assert np.array_equal(run("relu", np.array([-2, 3], np.int32)), [0, 3])
    assert np.array_equal(
        run("where", np.array([True, False]), np.int64(1), np.array([5, 6])), [1, 6]
    )


@pytest.mark.parametrize("name", [r.name for r in elementwise.ROWS])
def test_float32_stays_float32_and_broadcasts(name: str) -> None:
    op = OPS[name]
    a = (np.abs(RNG.standard_normal((3, 1, 4))) + 0.5).astype(np.float32)
    b = (np.abs(RNG.standard_normal((5, 1))) + 0.5).astype(np.float32)
    arity = {"where": 3}.get(name, 2)
    if name in ("not", "and", "or"):
        a, b = a > 1, b > 1
    args = [a > 1, a, b] if arity == 3 else [a, b]
    attrs = {"to": np.dtype(np.int32)} if name == "cast" else {}
    try:
        out = run(name, *args, **attrs)
        assert out.shape == (3, 5, 4)
    except (TypeError, ValueError):  # a unary op
        out = run(name, a, **attrs)
        assert out.shape == (3, 1, 4)
    assert op.elementwise
    assert not op.layout
    if out.dtype.kind == "f":
        assert out.dtype == np.float32


def test_broadcasting_of_batch_extents() -> None:
    assert elementwise.broadcast_shape((BATCH, 1, 4), (7, 1)) == (BATCH, 7, 4)
    assert elementwise.broadcast_shape((BATCH, 4), (BATCH, 1)) == (BATCH, 4)
    with pytest.raises(ValueError, match="do not broadcast"):
        elementwise.broadcast_shape((BATCH, 4), (3, 4))
    with pytest.raises(ValueError, match="do not broadcast"):
        elementwise.broadcast_shape((BATCH,), (BatchDim(2),))


@pytest.mark.parametrize(
    ("op", "dtypes", "message"),
    [
        ("add", ("float32", "int64"), "one dtype"),
        ("add", ("bool", "bool"), "does not take bool"),
        ("sqrt", ("int64",), "does not take int64"),
        ("and", ("int64", "int64"), "does not take int64"),
        ("where", ("int64", "float32", "float32"), "bool condition"),
    ],
)
def test_wrong_dtypes(op: str, dtypes: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        infer(op, [value(d, 2) for d in dtypes], at())


def test_reshape_binds_the_batch() -> None:
    x = np.arange(24)
    assert np.array_equal(
        OPS["reshape"].reference({"shape": (BATCH, 2, 4), "_batch": 3}, x)[0], x.reshape(3, 2, 4)
    )
    types = infer("reshape", [value("int64", BATCH, 6, 4)], at(shape=(BatchDim(6), 4)))
    assert types == [(np.dtype("int64"), (BatchDim(6), 4))]
    for shape in [(BATCH, 23), (24,), (BATCH, -1)]:
        with pytest.raises(ValueError, match="reshape"):
            infer("reshape", [value("int64", BATCH, 6, 4)], at(shape=shape))


BOUND = st.integers(-12, 12)


@settings(max_examples=60)
@given(st.integers(1, 9), BOUND, BOUND, st.sampled_from([1, 2, -1, -3]))
def test_slice_takes_what_python_takes(n: int, start: int, end: int, step: int) -> None:
    first, last, stride = slice(start, end, step).indices(n)
    x = RNG.standard_normal((2, n))
    attrs = {"starts": (first,), "ends": (last,), "axes": (1,), "steps": (stride,)}
    assert np.array_equal(run("slice", x, **attrs), x[:, start:end:step])


def test_slice_of_the_batch() -> None:
    attrs = {"starts": (0,), "ends": (1,), "axes": (0,), "steps": (1,)}
    assert infer("slice", [value("int64", BATCH, 4)], at(**attrs))[0][1] == (1, 4)
    with pytest.raises(ValueError, match="slice"):
        infer("slice", [value("int64", BATCH, 4)], at(**{**attrs, "ends": (2,)}))


def test_other_layout_ops() -> None:
    x = RNG.standard_normal((2, 3, 4)).astype(np.float32)
    assert np.array_equal(run("transpose", x, perm=(2, 0, 1)), x.transpose(2, 0, 1))
    assert np.array_equal(run("concat", x, x[:, :1], axis=1), np.concatenate([x, x[:, :1]], 1))
    assert np.array_equal(run("gather", x, np.array([[2, -1]]), axis=1), x[:, [[2, -1]]])
    left, right = run("split", x, axis=2, sizes=(1, 3))
    assert np.array_equal(left, x[..., :1])
    assert np.array_equal(right, x[..., 1:])
    out = OPS["expand"].reference({"shape": (BATCH, 3), "_batch": 5}, np.ones((1, 3)))[0]
    assert out.shape == (5, 3)
    concat = infer("concat", [value("int64", BATCH), value("int64", BATCH)], at(axis=0))
    assert concat[0][1] == (BatchDim(2),)
    with pytest.raises(ValueError, match="concat"):
        infer("concat", [value("int64", BATCH), value("int64", 1)], at(axis=0))
    with pytest.raises(ValueError, match="does not expand"):
        infer("expand", [value("int64", 2, 3)], at(shape=(2, 1)))
    assert all(row.layout and not row.elementwise for row in layout.ROWS)


def test_reductions() -> None:
    x = RNG.standard_normal((2, 3, 4)).astype(np.float32)
    for name, f in [("sum", np.sum), ("mean", np.mean), ("max", np.max), ("min", np.min)]:
        out = run(f"reduce_{name}", x, axes=(1,), keepdims=True)
        np.testing.assert_allclose(out, f(x, axis=1, keepdims=True), rtol=1e-6)
        assert run(f"reduce_{name}", x, axes=(0, 2), keepdims=False).shape == (3,)
        assert np.array_equal(run(f"reduce_{name}", x, axes=(), keepdims=True), x)
    assert run("reduce_mean", np.array([1, 2]), axes=(0,), keepdims=False) == 1
    assert run("reduce_mean", np.array([-1, -2]), axes=(0,), keepdims=False) == -1
    got = infer("reduce_sum", [value("float32", BATCH, 4)], at(axes=(0,), keepdims=False))
    assert got[0][1] == (4,)
    assert all(not row.elementwise and not row.layout for row in reduction.ROWS)


def test_softmax_and_layernorm() -> None:
    x = (RNG.standard_normal((3, 5)) * 30).astype(np.float32)
    wide = x.astype(np.float64)
    want = np.exp(wide) / np.exp(wide).sum(1, keepdims=True)
    np.testing.assert_allclose(run("softmax", x, axis=1), want, atol=1e-6)
    assert np.isnan(run("softmax", np.full((2,), -np.inf, np.float32), axis=0)).all()
    gamma, beta = RNG.standard_normal((2, 5)).astype(np.float32)
    norm = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-5)
    got = run("layernorm", x, gamma, beta, eps=1e-5)
    np.testing.assert_allclose(got, norm * gamma + beta, atol=1e-5)
    with pytest.raises(ValueError, match="layernorm"):
        infer(
            "layernorm",
            [value("float32", 2, 5), value("float32", 4), value("float32", 5)],
            at(eps=1e-5),
        )


def test_cumsum() -> None:
    x = np.array([[1, 2, 3], [4, 5, 6]])
    assert run("cumsum", x, axis=1, exclusive=0, reverse=0).tolist() == [[1, 3, 6], [4, 9, 15]]
    assert run("cumsum", x, axis=1, exclusive=1, reverse=0).tolist() == [[0, 1, 3], [0, 4, 9]]
    assert run("cumsum", x, axis=1, exclusive=0, reverse=1).tolist() == [[6, 5, 3], [15, 11, 6]]
    assert run("cumsum", x, axis=0, exclusive=1, reverse=1).tolist() == [[4, 5, 6], [0, 0, 0]]


@pytest.mark.parametrize("name", [name for name, row in OPS.items() if row.elementwise])
def test_what_an_op_takes_it_has_an_expression_for(name: str) -> None:
    row = OPS[name].elementwise
    assert row is not None
    shapes = [(2,), (2,), (2,)]
    written = 0
    for arity in (1, 2, 3):
        for dtypes in itertools.product(map(np.dtype, ELEMENTS), repeat=arity):
            values = [value(d, *shape) for d, shape in zip(dtypes, shapes, strict=False)]
            attrs = {"to": dtypes[-1], "axis": 0}
            try:
                infer(name, values, at(**attrs))
            except (TypeError, ValueError):
                continue
            text = row.element(name, attrs, dtypes, ["p", "q", "r"][:arity])
            assert text and "{" not in text, dtypes
            written += 1
    assert written
