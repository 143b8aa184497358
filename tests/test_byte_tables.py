"""Which quantized values are functions of one byte, and which."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.compiler.codegen.lanes import byte_tables
from sparsec.compiler.editor import Editor
from sparsec.compiler.interpreter import interpret
from sparsec.compiler.ir import BATCH, Graph

CHANNELS = 3


def chain(form: str, first: type = np.uint8, last: type = np.uint8) -> Graph:
    """quantize -> ... -> quantize, in several forms; the outputs are the first and the last."""
    e = Editor(name="chain", length=4)
    x = e.input("x", np.float32, (BATCH, 4, CHANNELS))
    wide = np.float32([0.5, 0.25, 1.0])

    def rounded(value: str, scale: np.ndarray, dtype: type) -> tuple[str, str]:
        parameters = [e.constant(scale), e.constant(np.full(scale.shape, 7, dtype))]
        q = e.emit("quantize", [value, *parameters], axis=2)
        return q, e.emit("dequantize", [q, *parameters], axis=2)

    step = np.float32(0.05)
    q, y = rounded(x, wide if form == "channels first" else np.asarray(step), first)
    if form != "short":
        y = e.emit("erf", [y])
    if form == "between":
        y = e.emit("mul", [rounded(y, np.asarray(step / 4), first)[1], y])
    if form == "channels between":
        y = e.emit("mul", [y, e.constant(wide)])
    if form == "not rounded":
        y = e.emit("mul", [y, x])
    if form == "two":
        y = e.emit("mul", [y, rounded(e.emit("exp", [x]), np.asarray(step), first)[1]])
    e.outputs += [q, rounded(y, np.asarray(step / 8), last)[0]]
    return e.finish()


def found(graph: Graph) -> byte_tables.ByteTable | None:
    return byte_tables.find(graph.outputs[1], graph, graph.producers(), lambda name: name)


@pytest.mark.parametrize("first", [np.uint8, np.int8])
@pytest.mark.parametrize("last", [np.uint8, np.int8])
@pytest.mark.parametrize("form", ["plain", "between", "channels first"])
def test_a_table_is_what_the_chain_gives(form: str, first: type, last: type) -> None:
    graph = chain(form, first, last)
    table = found(graph)
    assert (table is None) == (form == "channels first")
    if table is None:
        return
    assert table.source == graph.outputs[0]
    x = np.linspace(-15, 15, 4 * 4 * CHANNELS * 30, dtype=np.float32).reshape(-1, 4, CHANNELS)
    q, want = interpret(graph, [x])
    assert len(np.unique(q)) == 256
    np.testing.assert_array_equal(table.bytes[q.view(np.uint8)].view(want.dtype), want)


@pytest.mark.parametrize("form", ["short", "channels between", "not rounded", "two"])
def test_what_is_no_function_of_one_byte_has_none(form: str) -> None:
    assert found(chain(form)) is None
