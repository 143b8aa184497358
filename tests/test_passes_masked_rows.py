"""Rows of nothing but -inf: the Attention op's own test for them, and what only looks like it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsec.compiler.ir import BATCH, Graph
from sparsec.compiler.passes.masked_rows import masked_rows
from tests.passes_support import BATCH_SIZE, Builder, check, ops

S = 4


def _graph(bound: float = -np.inf, axes: tuple[int, ...] = (3,), other: bool = False) -> Graph:
    b = Builder()
    scores = b.input("scores", np.float32, (BATCH, 2, S, S))
    bias = b.input("bias", np.float32, (BATCH, 1, 1, S))
    wide = b.op("expand", bias, shape=(BATCH, 1, S, S))
    highest = b.op("reduce_max", wide, axes=axes, keepdims=True)
    empty = b.op("equal", highest, bound)
    softmax = b.op("softmax", b.op("add", scores, scores if other else bias), axis=3)
    return b.graph(b.op("where", empty, 0.0, softmax))


def _inputs() -> list[Any]:
    rng = np.random.default_rng(0)
    bias = np.where(rng.random((BATCH_SIZE, 1, 1, S)) < 0.5, -np.inf, 0).astype(np.float32)
    bias[0] = -np.inf  # a sequence in which nothing may be looked at
    bias[1] = 0
    return [rng.normal(size=(BATCH_SIZE, 2, S, S)).astype(np.float32), bias]


def test_guard_needs_only_the_probabilities() -> None:
    after = check(_graph(), masked_rows, _inputs())
    assert ops(after) == {"add": 1, "softmax": 1, "isnan": 1, "where": 1}


@pytest.mark.parametrize(
    "different", [{"bound": -1.0}, {"axes": (2,)}, {"other": True}], ids=lambda d: next(iter(d))
)
def test_what_only_looks_like_it_stays(different: dict[str, Any]) -> None:
    after = check(_graph(**different), masked_rows, _inputs())
    assert ops(after)["reduce_max"] == 1
