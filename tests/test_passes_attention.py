"""Attention, in the ways it is written, and what only looks like it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsec.compiler.ir import BATCH, Graph, Node
from sparsec.compiler.passes import run
from sparsec.compiler.passes.fuse_attention import fuse_attention
from tests.passes_support import Builder, check, ops

S, H, D = 5, 2, 4
C = H * D
QS, KS, VS, PS = (np.float32(v) for v in (0.021, 0.017, 0.03, 1 / 255))


@dataclass
class Form:
    """One way to write attention."""

    numbers: str = "float"  # float, integer, qdq, qdq p, qdq v
    rank: int = 4
    transposes_of_k: str = "one"  # one, two, late
    quantized: str = "early"  # before the heads are split, or "late"
    zps: tuple[int, int, int, int] = (131, 128, 120, 0)
    scale: str = "div"  # none, div, mul, q, both
    mask: str = "add"  # see _mask
    guard: bool = False  # Where(IsNaN(p), 0, p)
    fake: bool = False  # a quantize, dequantize pair among the scores
    tail: str = "none"  # what stands between p.v and the merge: none, mul, quantize
    merged: bool = True

    def build(self, b: Builder) -> Graph:
        x = [b.input(n, np.float32, (BATCH, S, C)) for n in ("q", "k", "v")]
        q, k, v = (b.op("tanh", name) for name in x)
        if self.scale in ("q", "both"):
            q = b.op("mul", q, 0.7)
        if self.scale == "both":
            k = b.op("mul", k, 0.7)
        bytes_of = {"float": "", "integer": "qkv", "qdq": "qkv", "qdq p": "qk", "qdq v": "qkv"}
        q = self.operand(b, q, QS, 0, "q" in bytes_of[self.numbers])
        k = self.operand(b, k, KS, 1, "k" in bytes_of[self.numbers], turned=True)
        v = self.operand(b, v, VS, 2, "v" in bytes_of[self.numbers])
        s = self.product(b, q, k, (0, 1), QS * KS)
        s = self.score(b, s)
        p = b.op("softmax", s, axis=self.rank - 1)
        if self.guard:
            p = b.op("where", b.op("isnan", p), 0.0, p)
        if self.numbers in ("integer", "qdq", "qdq p"):
            p = b.op("quantize", p, PS, np.uint8(self.zps[3]))
        if self.numbers in ("qdq", "qdq p"):
            p = b.op("dequantize", p, PS, np.uint8(self.zps[3]))
        o = self.product(b, p, v, (3, 2), PS * VS)
        if self.tail != "none":
            o = b.op("mul", o, 1.5)
        if self.tail == "quantize":
            o = b.op("quantize", o, np.float32(0.02), np.uint8(128))
        return b.graph(b.op("abs" if self.tail == "mul" else "cast", self.merge(b, o), **self.end))

    @property
    def end(self) -> dict[str, Any]:
        return {} if self.tail == "mul" else {"to": "float64"}

    def operand(
        self, b: Builder, x: str, scale: np.float32, zp: int, quantized: bool, turned: bool = False
    ) -> str:
        zero = np.uint8(self.zps[zp])

        def quantize(x: str) -> str:
            x = b.op("quantize", x, scale, zero)
            return x if self.numbers == "integer" else b.op("dequantize", x, scale, zero)

        if quantized and self.quantized == "early":
            x = quantize(x)
        x = b.op("reshape", x, shape=(BATCH, S, H, D))
        if turned and self.transposes_of_k == "one" and self.rank == 4:
            x = b.op("transpose", x, perm=(0, 2, 3, 1))
        else:
            x = b.op("transpose", x, perm=(0, 2, 1, 3))
            if self.rank == 3:
                x = b.op("reshape", x, shape=(BATCH * H, S, D))
            if turned:
                x = b.op("transpose", x, perm=(0, 1, 3, 2) if self.rank == 4 else (0, 2, 1))
        if quantized and self.quantized == "late":
            x = quantize(x)
        return x

    def product(
        self, b: Builder, left: str, right: str, zps: tuple[int, int], scale: np.float32
    ) -> str:
        if self.numbers != "integer":
            return b.op("matmul", left, right)
        zeros = [np.uint8(self.zps[i]) for i in zps]
        return b.op(
            "mul", b.op("cast", b.op("matmul_integer", left, right, *zeros), to="float32"), scale
        )

    def score(self, b: Builder, s: str) -> str:
        if self.scale in ("div", "mul"):
            s = b.op(self.scale, s, 2.0 if self.scale == "div" else 0.5)
        if self.fake:
            s = b.op("quantize", s, np.float32(0.01), np.int8(3))
            s = b.op("dequantize", s, np.float32(0.01), np.int8(3))
        if self.mask == "none":
            return s
        whole = (BATCH, H, S, S)
        if self.rank == 3:
            s = b.op("reshape", s, shape=whole)
        s = self.masked(b, s, whole)
        if self.rank == 3:
            s = b.op("reshape", s, shape=(BATCH * H, S, S))
        return s

    def masked(self, b: Builder, s: str, whole: Any) -> str:
        kind, _, form = self.mask.partition(" ")
        if kind == "causal":
            triangle = np.triu(np.full((S, S), -1e4, np.float32), 1)
            return b.op("add", s, triangle if form == "flat" else triangle[None, None])
        m = b.input("mask", np.int64, (BATCH, S))
        m = b.op("reshape", m, shape=(BATCH, 1, 1, S))
        if form == "rows":
            m = b.op("expand", m, shape=(BATCH, 1, S, S))
        elif form == "full":
            m = b.op("expand", m, shape=whole)
        if kind == "add":
            f = b.op("mul", b.op("sub", 1.0, b.op("cast", m, to="float32")), -1e4)
            return b.op("add", f, s) if form == "rows" else b.op("add", s, f)
        hidden = b.op("equal", m, np.int64(0))
        if kind == "where":
            return b.op("where", hidden, -1e4, s)
        return b.op("where", b.op("not", hidden), s, -1e4)

    def merge(self, b: Builder, o: str) -> str:
        if not self.merged:
            return o
        if self.rank == 3:
            o = b.op("reshape", o, shape=(BATCH, H, S, D))
        return b.op("reshape", b.op("transpose", o, perm=(0, 2, 1, 3)), shape=(BATCH, S, C))


MASKS = ["none", "causal", "causal flat"]
MASKS += [f"{kind}{form}" for kind in ("add", "where", "unless") for form in ("", " rows", " full")]


def attention_of(graph: Graph) -> Node:
    (node,) = (n for n in graph.nodes if n.op == "attention")
    return node


def fused(form: Form, rtol: float | None) -> Graph:
    """The graph after the pipeline; nothing is left of the attention but the one node."""
    after = check(form.build(Builder()), run, rtol=rtol)
    left = ops(after)
    assert left["attention"] == 1
    assert not left["matmul"] + left["matmul_integer"] + left["softmax"]
    assert left["transpose"] == (0 if form.merged else 1)
    return after


@settings(max_examples=50, deadline=None)
@given(st.data())
@pytest.mark.parametrize("numbers", ["float", "integer", "qdq", "qdq p", "qdq v"])
def test_attention_in_all_its_forms(numbers: str, data: st.DataObject) -> None:
    def draw(*choices: Any) -> Any:
        return data.draw(st.sampled_from(choices))

    form = Form(
        numbers=numbers,
        rank=draw(4, 3),
        transposes_of_k=draw("one", "two"),
        quantized=draw("early", "late"),
        zps=(*(data.draw(st.integers(0, 255)) for _ in range(3)), draw(0, 9)),
        scale=draw("none", "div", "mul", "q", "both"),
        mask=draw(*MASKS),
        guard=draw(False, True),
        fake=draw(False, True),
        tail=draw("none", "mul", "quantize"),
        merged=draw(True, True, True, False),
    )
    # Sums of integers are the same to the bit.  A float product that was made of dequantized
    # bytes may differ in its last bit, and so move a quantized number by one.
    after = fused(form, rtol=None if numbers == "integer" else 1e-5 if numbers == "float" else 0.05)
    node = attention_of(after)
    assert node.attrs["heads"] == H
    types = [after.values[n].dtype.name for n in node.inputs[:3]]
    quantized = {"float": "", "integer": "qkv", "qdq": "qkv", "qdq p": "qk", "qdq v": "qk"}[numbers]
    assert types == ["uint8" if c in quantized else "float32" for c in "qkv"]
    if numbers in ("integer", "qdq"):
        zps = tuple(node.attrs[n] for n in ("q_zp", "k_zp", "v_zp", "p_zp"))
        assert zps == form.zps
        assert node.attrs["qk_scale"] == pytest.approx(float(QS * KS))
        assert node.attrs["pv_scale"] == pytest.approx(float(PS * VS))
    else:
        assert node.attrs["pv_scale"] == 1.0
    # Masks stay as small as they came.
    extras = [after.values[n].shape for n in node.inputs[3:]]
    if form.mask == "none":
        assert extras == []
    elif form.mask.startswith("causal"):
        assert extras == [(S, S) if "flat" in form.mask else (1, 1, S, S)]
    else:
        assert extras == [(BATCH, 1, 1, S)]


def test_scores_of_bytes_are_exact_in_qdq_form() -> None:
    """With p left in float, the integer product is the float one to within its rounding."""
    after = fused(Form(numbers="qdq v", mask="none"), rtol=1e-5)
    assert attention_of(after).attrs["qk_scale"] == pytest.approx(float(QS * KS))


def test_names_of_the_source_are_kept() -> None:
    source = attention_of(fused(Form(numbers="integer"), rtol=None)).source
    assert source == "matmul_integer, cast, mul, softmax"


def test_several_layers() -> None:
    b = Builder()
    x = b.input("x", np.float32, (BATCH, S, C))
    mask = b.input("mask", np.float32, (BATCH, 1, 1, S))
    for _ in range(3):
        split = b.op("reshape", x, shape=(BATCH, S, H, D))
        q, kt = (b.op("transpose", split, perm=p) for p in ((0, 2, 1, 3), (0, 2, 3, 1)))
        p = b.op("softmax", b.op("add", b.op("matmul", q, kt), mask), axis=3)
        o = b.op("transpose", b.op("matmul", p, q), perm=(0, 2, 1, 3))
        x = b.op("add", x, b.op("reshape", o, shape=(BATCH, S, C)))
    after = check(b.graph(x), run, rtol=1e-5)
    assert ops(after) == {"attention": 3, "add": 3}


def test_rows_in_one_axis() -> None:
    """[B*S, C] rows, as exporters of other frameworks write them."""
    b = Builder()
    rows = [b.input(n, np.float32, (BATCH * S, C)) for n in "qkv"]
    q, k, v = (
        b.op("transpose", b.op("reshape", r, shape=(BATCH, S, H, D)), perm=(0, 2, 1, 3))
        for r in rows
    )
    s = b.op("matmul", q, b.op("transpose", k, perm=(0, 1, 3, 2)))
    o = b.op("matmul", b.op("softmax", s, axis=3), v)
    o = b.op("reshape", b.op("transpose", o, perm=(0, 2, 1, 3)), shape=(BATCH * S, C))
    after = check(b.graph(o), run, rtol=1e-5)
    assert ops(after) == {"reshape": 4, "attention": 1}


def test_a_relative_bias_that_is_a_product_is_an_extra() -> None:
    b = Builder()
    q, k, v = (b.input(n, np.float32, (BATCH, H, S, D)) for n in "qkv")
    bias = b.op("matmul", b.op("tanh", q), np.random.default_rng(0).normal(size=(D, S)))
    s = b.op("matmul", q, b.op("transpose", k, perm=(0, 1, 3, 2)))
    p = b.op("softmax", b.op("add", bias, b.op("mul", s, 0.5)), axis=3)
    after = check(b.graph(b.op("matmul", p, v)), run, rtol=1e-5)
    assert (ops(after)["attention"], ops(after)["matmul"]) == (1, 1)


def test_a_mask_for_each_merged_head() -> None:
    """Scores [B*H,S,S] with a mask [B*H,1,S], as torch.bmm attention writes them."""
    b = Builder()
    operands = []
    for name in "qkv":
        x = b.op("reshape", b.input(name, np.float32, (BATCH, S, C)), shape=(BATCH, S, H, D))
        x = b.op("transpose", x, perm=(0, 2, 1, 3))
        operands.append(b.op("reshape", x, shape=(BATCH * H, S, D)))
    q, k, v = operands
    s = b.op("matmul", q, b.op("transpose", k, perm=(0, 2, 1)))
    s = b.op("add", s, b.input("mask", np.float32, (BATCH * H, 1, S)))
    o = b.op("matmul", b.op("softmax", s, axis=2), v)
    o = b.op("transpose", b.op("reshape", o, shape=(BATCH, H, S, D)), perm=(0, 2, 1, 3))
    after = check(b.graph(b.op("reshape", o, shape=(BATCH, S, C))), run, rtol=1e-5)
    assert ops(after) == {"reshape": 1, "attention": 1}
    assert after.values[attention_of(after).inputs[3]].shape == (BATCH, H, 1, S)


def test_a_long_way_between_the_products() -> None:
    b = Builder()
    q, k, v = (b.input(n, np.float32, (BATCH, H, S, D)) for n in "qkv")
    s = b.op("matmul", q, b.op("transpose", k, perm=(0, 1, 3, 2)))
    for _ in range(1500):
        s = b.op("neg", s)
    graph = b.graph(b.op("matmul", b.op("softmax", s, axis=3), v))
    assert ops(check(graph, fuse_attention, rtol=1e-5))["attention"] == 1


def build_miss(miss: str) -> Graph:
    """Attention of float heads [B,H,S,D], spoiled in one way."""
    b = Builder()
    keys = S + 1 if miss == "cross length" else S
    q = b.input("q", np.float32, (BATCH, H, S, D))
    k = b.input("k", np.float32, (1 if miss == "shared keys" else BATCH, H, keys, D))
    v = b.input("v", np.float32, (BATCH, H, keys, D + 1 if miss == "wide values" else D))
    s = b.op("matmul", q, b.op("transpose", k, perm=(0, 1, 3, 2)))
    if miss == "cumsum":
        s = b.op("cumsum", s, axis=3)
    if miss == "scores per axis":
        s = b.op("quantize", s, np.full(S, 0.1), np.zeros(S, np.int8), axis=3)
        s = b.op("dequantize", s, np.float32(0.1), np.int8(0))
    p = b.op("softmax", b.op("mul", s, 0.5), axis=2 if miss == "other axis" else 3)
    weights = p
    if miss == "turned":
        weights = b.op("transpose", p, perm=(0, 1, 3, 2))
    if miss == "dropout":
        weights = b.op("mul", p, b.input("keep", np.float32, (BATCH, H, S, S)))
    o = b.op("matmul", weights, v)
    results = {
        "returned scores": [s],
        "scores read twice": [b.op("exp", s)],
        "returned weights": [p],
        "read twice": [b.op("exp", p)],
    }
    return b.graph(o, *results.get(miss, []))


@pytest.mark.parametrize(
    "miss",
    [
        "",
        "cross length",
        "shared keys",
        "wide values",
        "cumsum",
        "scores per axis",
        "other axis",
        "turned",
        "dropout",
        "returned scores",
        "scores read twice",
        "returned weights",
        "read twice",
    ],
)
def test_what_only_looks_like_attention(miss: str) -> None:
    after = check(build_miss(miss), run, rtol=1e-5)
    assert ops(after)["attention"] == (0 if miss else 1)
    assert ops(after)["matmul"] == (2 if miss else 0)


@pytest.mark.parametrize("miss", ["", "run-time zero point", "rows of zero points", "sum"])
def test_what_only_looks_like_integer_attention(miss: str) -> None:
    b = Builder()
    q, k, v = (b.input(n, np.uint8, (BATCH, H, S, D)) for n in "qkv")
    zp: Any = np.uint8(7)
    if miss == "run-time zero point":
        zp = b.input("zp", np.uint8, ())
    elif miss == "rows of zero points":
        zp = np.arange(S, dtype=np.uint8)
    acc = b.op("matmul_integer", q, b.op("transpose", k, perm=(0, 1, 3, 2)), zp, np.uint8(9))
    if miss == "sum":
        acc = b.op("add", acc, np.int32(3))
    s = b.op("mul", b.op("cast", acc, to="float32"), 1e-4)
    p = b.op("quantize", b.op("softmax", s, axis=3), PS, np.uint8(0))
    o = b.op("cast", b.op("matmul_integer", p, v, np.uint8(0), np.uint8(128)), to="float32")
    after = check(b.graph(o), run)
    assert ops(after)["attention"] == (0 if miss else 1)
    assert ops(after)["matmul_integer"] == (2 if miss else 0)
