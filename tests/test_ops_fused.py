"""Contraction, quantization and fused ops against plain definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsec.compiler.editor import Editor
from sparsec.compiler.interpreter import interpret
from sparsec.compiler.ir import BATCH, Graph
from sparsec.compiler.ops import OPS


def ref(op: str, *arrays: Any, **attrs: Any) -> np.ndarray:
    (out,) = OPS[op].reference({**attrs, "_batch": 1, "_run": interpret}, *arrays)
    return out


def nested(name: str, shape: Any, *steps: Any, extras: Any = ()) -> Graph:
    e = Editor(name=name)
    x = e.input("x", np.float32, shape)
    names = [e.input(f"extra{i}", d, s) for i, (d, s) in enumerate(extras)]
    for step in steps:
        x = step(e, x, *names)
    e.outputs = [x]
    return e.finish()


U8 = st.integers(0, 255)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**31), st.booleans(), st.booleans(), st.sampled_from(["none", "scalar", "1"])
)
def test_matmul_integer_is_exact(seed: int, a_signed: bool, b_signed: bool, zps: str) -> None:
    rng = np.random.default_rng(seed)
    da, db = (np.int8 if s else np.uint8 for s in (a_signed, b_signed))
    m, k, n = rng.integers(1, 9, 3)

    def draw(dtype: Any, shape: Any) -> np.ndarray:
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max + 1, shape).astype(dtype)

    a, b = draw(da, (2, m, k)), draw(db, (2, k, n))
    args: list[Any] = [a, b]
    za: Any = 0
    zb: Any = 0
    if zps == "scalar":
        za, zb = draw(da, ()), draw(db, ())
        args += [za, zb]
    elif zps == "1":
        za, zb = draw(da, (m,)), draw(db, (n,))
        args += [za, zb]
        za = za[:, None]
    want = np.einsum(
        "bmk,bkn->bmn", a.astype(object) - np.int64(za), b.astype(object) - np.int64(zb)
    )
    got = ref("matmul_integer", *args)
    assert got.dtype == np.int32
    np.testing.assert_array_equal(got, want.astype(np.int32))


def test_integer_sums_beyond_float32_are_exact() -> None:
    a = np.full((1, 4097), 255, np.uint8)
    b = np.full((4097, 1), 255, np.uint8)
    assert ref("matmul_integer", a, b)[0, 0] == 4097 * 255 * 255
    x = np.full((1, 4097), 255, np.uint8)
    w = np.full((1, 4097), 127, np.int8)
    out = ref("qlinear", x, w, np.float32(1), np.array([3], np.int32), x_zp=0)
    assert out[0, 0] == np.float32(4097 * 255 * 127 + 3)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=8),
    st.floats(2**-20, 100, width=32),
    st.sampled_from([np.uint8, np.int8]),
    st.integers(-128, 255),
)
def test_quantize_rounds_half_to_even_and_saturates(
    xs: list[float], scale: float, dtype: Any, zp: int
) -> None:
    info = np.iinfo(dtype)
    zero = np.array(np.clip(zp, info.min, info.max), dtype)
    got = ref("quantize", np.array(xs, np.float32), np.float32(scale), zero)
    for x, y in zip(xs, got, strict=True):
        ratio = float(np.float32(np.float32(x) / np.float32(scale)))
        assert y == min(max(round(ratio) + int(zero), info.min), info.max)


def test_quantize_of_halves_infinities_and_nan() -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, np.inf, -np.inf, np.nan], np.float32)
    got = ref("quantize", x, np.float32(1), np.uint8(10))
    assert got.tolist() == [10, 12, 12, 10, 255, 0, 0]


def test_quantize_agrees_with_onnxruntime_along_an_axis() -> None:
    import onnx
    import onnxruntime

    rng = np.random.default_rng(1)
    x = rng.normal(size=(3, 4, 5)).astype(np.float32) * 3
    scale = np.array([0.01, 0.02, 0.05, 0.1], np.float32)
    zp = np.array([0, 3, 128, 255], np.uint8)
    h = onnx.helper
    nodes = [
        h.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=1),
        h.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=1),
    ]
    graph = h.make_graph(
        nodes,
        "g",
        [h.make_tensor_value_info("x", 1, x.shape)],
        [h.make_tensor_value_info("q", 2, x.shape), h.make_tensor_value_info("y", 1, x.shape)],
        [onnx.numpy_helper.from_array(scale, "s"), onnx.numpy_helper.from_array(zp, "z")],
    )
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 13)], ir_version=8)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    want_q, want_y = session.run(None, {"x": x})
    q = ref("quantize", x, scale, zp, axis=1)
    np.testing.assert_array_equal(q, want_q)
    np.testing.assert_array_equal(ref("dequantize", q, scale, zp, axis=1), want_y)


def test_dequantize_of_int32() -> None:
    q = np.array([-(2**31), 7], np.int32)
    assert ref("dequantize", q, np.float32(0.5), np.int32(0)).tolist() == [-(2.0**30), 3.5]


@pytest.mark.parametrize("x_type", [np.uint8, np.int8])
def test_qlinear(x_type: Any) -> None:
    rng = np.random.default_rng(2)
    info = np.iinfo(x_type)
    x = rng.integers(info.min, info.max + 1, (2, 3, 8)).astype(x_type)
    w = rng.integers(-128, 128, (5, 8)).astype(np.int8)
    scale = rng.random(5).astype(np.float32)
    bias = rng.integers(-999, 999, 5).astype(np.int32)
    acc = np.einsum("bsk,nk->bsn", x.astype(np.int64) - 7, w.astype(np.int64)) + bias
    got = ref("qlinear", x, w, scale, bias, x_zp=7)
    np.testing.assert_array_equal(got, acc.astype(np.float32) * scale)


def attention_attrs(shape: Any, score: Graph, prob: Graph, **attrs: Any) -> dict[str, Any]:
    base = {"heads": 2, "qk_scale": 1.0, "pv_scale": 1.0}
    zps = dict.fromkeys(("q_zp", "k_zp", "v_zp", "p_zp"), 0)
    return {**base, **zps, "score": score, "prob": prob, **attrs}


def test_attention_of_floats_with_a_mask() -> None:
    rng = np.random.default_rng(3)
    b, s, h, d = 2, 5, 2, 3
    q, k, v = rng.normal(size=(3, b, s, h * d)).astype(np.float32)
    mask = np.where(rng.random((b, 1, 1, s)) < 0.5, 0, -1e4).astype(np.float32)
    shape = (BATCH, h, s, s)
    score = nested(
        "score",
        shape,
        lambda e, x, m: e.emit("mul", [x, e.constant(np.float32(0.5))]),
        lambda e, x, m: e.emit("add", [x, m]),
        extras=[(np.float32, (BATCH, 1, 1, s))],
    )
    prob = nested("prob", shape)
    attrs = attention_attrs(shape, score, prob)
    e = Editor(name="g")
    ins = [e.input(n, np.float32, (BATCH, s, h * d)) for n in "qkv"]
    ins.append(e.input("m", np.float32, (BATCH, 1, 1, s)))
    e.outputs = [e.emit("attention", ins, **attrs)]
    (got,) = interpret(e.finish(), [q, k, v, mask])
    want = np.zeros((b, s, h * d))
    for i in range(b):
        for j in range(h):
            part = slice(j * d, (j + 1) * d)
            w = q[i, :, part] @ k[i, :, part].T * 0.5 + mask[i, 0]
            p = np.exp(w - w.max(-1, keepdims=True))
            want[i, :, part] = p / p.sum(-1, keepdims=True) @ v[i, :, part]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_attention_of_bytes() -> None:
    rng = np.random.default_rng(4)
    b, s, h, d = 2, 4, 2, 3
    q = rng.integers(0, 256, (b, s, h * d)).astype(np.uint8)
    k, v = rng.integers(-128, 128, (2, b, s, h * d)).astype(np.int8)
    shape = (BATCH, h, s, s)
    score = nested("score", shape)
    prob = nested(
        "prob",
        shape,
        lambda e, x: e.emit(
            "quantize", [x, e.constant(np.float32(1 / 255)), e.constant(np.uint8(2))]
        ),
    )
    attrs = attention_attrs(
        shape, score, prob, q_zp=131, k_zp=-3, v_zp=5, p_zp=2, qk_scale=1e-4, pv_scale=0.125
    )
    got = ref("attention", q, k, v, **attrs)
    for i in range(b):
        for j in range(h):
            part = slice(j * d, (j + 1) * d)
            qk = (q[i, :, part].astype(np.int32) - 131) @ (k[i, :, part].astype(np.int32) + 3).T
            w = qk.astype(np.float32) * np.float32(1e-4)
            p = np.exp(w - w.max(-1, keepdims=True))
            p8 = np.rint(p / p.sum(-1, keepdims=True) / np.float32(1 / 255)) + 2
            p8 = np.clip(p8, 0, 255).astype(np.int32)
            want = (p8 - 2) @ (v[i, :, part].astype(np.int32) - 5)
            np.testing.assert_array_equal(got[i, :, part], want.astype(np.float32) * 0.125)


def test_shapes_that_do_not_fit_are_refused() -> None:
    e = Editor(name="g")
    x = e.input("x", np.float32, (BATCH, 4, 8))
    q = e.input("q", np.uint8, (BATCH, 4, 8))
    w = e.constant(np.zeros((5, 7), np.float32))
    w8 = e.constant(np.zeros((5, 8), np.int8))
    one = e.constant(np.float32(1))
    with pytest.raises(ValueError, match="inner extents"):
        e.emit("matmul", [x, x])
    with pytest.raises(ValueError, match="weights"):
        e.emit("linear", [x, w])
    with pytest.raises(ValueError, match="matmul_integer of float32"):
        e.emit("matmul_integer", [x, w8])
    with pytest.raises(ValueError, match="zero point 300"):
        e.emit("qlinear", [q, w8, one], x_zp=300)
    with pytest.raises(ValueError, match="scale"):
        e.emit("qlinear", [q, w8, e.constant(np.ones(3, np.float32))], x_zp=0)
    with pytest.raises(ValueError, match="axis"):
        scale, zp = e.constant(np.ones(3, np.float32)), e.constant(np.zeros(3, np.uint8))
        e.emit("quantize", [x, scale, zp], axis=2)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_matmul_shape_is_numpy_s(data: st.DataObject) -> None:
    extent = st.integers(1, 3)
    a = tuple(data.draw(st.lists(extent, min_size=1, max_size=4)))
    b = tuple(data.draw(st.lists(extent, min_size=1, max_size=4)))
    e = Editor(name="g")
    ins = [e.input("a", np.float32, a), e.input("b", np.float32, b)]
    try:
        want = np.matmul(np.zeros(a), np.zeros(b)).shape
    except ValueError:
        with pytest.raises(ValueError):
            e.emit("matmul", ins)
        return
    assert e.values[e.emit("matmul", ins)].shape == want
