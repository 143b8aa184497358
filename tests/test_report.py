"""What inspect says about a graph: patterns found, and why nodes run on general kernels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sparsec.compiler import report
from sparsec.compiler.ir import BATCH, Graph
from sparsec.compiler.passes import run
from tests.passes_support import Builder

S, C = 6, 8


def _attention(b: Builder, axis: int = 2, late: bool = False, shown: bool = False) -> Graph:
    x = b.input("x", np.float32, (BATCH, S, C))
    rng = np.random.default_rng(0)
    q, k, v = (b.op("linear", x, rng.normal(size=(C, C)).astype(np.float32)) for _ in range(3))
    scores = b.op("matmul", q, b.op("transpose", k, perm=(0, 2, 1)))
    p = b.op("softmax", scores, axis=axis)
    if late:
        p = b.op("mul", p, b.input("gate", np.float32, (BATCH, 1, S)))
    y = b.op("matmul", p, v)
    graph = b.graph(y, scores) if shown else b.graph(y)
    return run(replace(graph, length=S, tokens=S))


def test_what_was_recognized() -> None:
    graph = _attention(Builder())
    assert report.fusions(graph) == {"attention float": 1, "linear float": 3}
    assert report.general(graph)[0] == []


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ({"axis": 1}, "the softmax is not over the last axis"),
        ({"late": True}, "the probabilities meet another tensor"),
        ({"shown": True}, "scores or probabilities are also read elsewhere"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_why_attention_is_general(form: dict[str, Any], reason: str) -> None:
    named, _ = report.general(_attention(Builder(), **form))
    assert [row["op"] for row in named] == ["matmul", "softmax", "matmul"]
    assert all(reason in row["reason"] for row in named)


def test_why_layers_are_general() -> None:
    b = Builder()
    x = b.input("x", np.float32, (BATCH, 3, S, C))
    y = b.op("linear", x, np.ones((C, C), np.float32))
    q = b.input("q", np.uint8, (BATCH, S, C))
    z = b.op("matmul_integer", q, np.ones((C, C), np.int8))
    m = b.op("matmul", x, b.op("transpose", x, perm=(0, 1, 3, 2)))
    graph = b.graph(y, z, m)
    named, others = report.general(replace(graph, length=S, tokens=S))
    reasons = {row["op"]: row["reason"] for row in named}
    assert "its input is not made of rows" in reasons["linear"]
    assert "not a product with a constant scale" in reasons["matmul_integer"]
    assert "multiplies two activations" in reasons["matmul"]
    assert others == {"transpose": 1}


def test_why_convolutions_are_general() -> None:
    b = Builder()
    x = b.input("x", np.float32, (BATCH, 2, S, S))
    attrs = {"strides": (1, 1), "dilations": (1, 1), "groups": 1}
    graph = b.graph(b.op("conv", x, np.ones((3, 2, 3, 3), np.float32), **attrs))
    (row,), _ = report.general(graph)
    assert row["op"] == "conv" and "patches overlap" in row["reason"]
