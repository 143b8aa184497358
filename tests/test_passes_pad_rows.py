"""Layers of a few rows less than the others have: the patches of an image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sparsec.compiler.ir import BATCH, Graph
from sparsec.compiler.passes.pad_rows import pad_rows
from tests.passes_support import Builder, check, ops

ROWS, K, N = 16, 12, 8


def _image(form: str, own: int = 1) -> Graph:
    """A layer of patches, in front of whose rows there are `own` others, and two layers of all."""
    rng = np.random.default_rng(1)
    b = Builder()
    if form == "linear":
        x = b.input("x", np.float32, (BATCH, ROWS, K))
        y = b.op("linear", x, rng.normal(size=(N, K)))
        y = b.op("mul", b.op("add", y, rng.normal(size=N)), 0.5)
    else:
        x = b.input("x", np.uint8, (BATCH, ROWS, K))
        w = rng.integers(-127, 128, (N, K)).astype(np.int8)
        if form == "qlinear":
            y = b.op("qlinear", x, w, np.float32(0.01), x_zp=3)
        else:
            y = b.op("mul", b.op("cast", b.op("linear_integer", x, w), to=np.dtype("f4")), 0.01)
    first = b.op("expand", rng.normal(size=(1, own, N)), shape=(BATCH, own, N))
    tokens = b.op("concat", first, y, axis=1)
    for _ in range(2):
        tokens = b.op("linear", tokens, rng.normal(size=(N, N)))
    return b.graph(tokens)


@pytest.mark.parametrize("form", ["linear", "qlinear", "linear_integer"])
@pytest.mark.parametrize("own", [1, 2])
def test_a_layer_of_patches_gets_all_rows(form: str, own: int) -> None:
    graph = _image(form, own)
    after = check(graph, pad_rows, rtol=1e-5)
    layers = [n for n in after.nodes if n.op in ("linear", "qlinear", "linear_integer")]
    assert {after.values[n.output].shape for n in layers} == {(BATCH, ROWS + own, N)}
    (cut,) = (n for n in after.nodes if n.op == "slice")
    # The elementwise work stays with the layer.
    assert after.values[cut.inputs[0]].dtype == np.float32
    assert ops(after)["slice"] == 1 and ops(after)["concat"] == 2
    assert pad_rows(after) is after


def test_what_is_left_alone() -> None:
    far = _image("linear", own=3)
    assert pad_rows(far) is far
    text = replace(_image("linear"), length=17)
    assert pad_rows(text) is text
