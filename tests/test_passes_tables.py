"""Tables of bytes that a file writes as floats stay bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sparsec.compiler.editor import Editor
from sparsec.compiler.interpreter import interpret
from sparsec.compiler.ir import BATCH, Graph
from sparsec.compiler.passes.code_tables import code_tables
from tests.lane_harness import compile_graph

ROWS, CHANNELS, LENGTH = 301, 64, 5


def lookup(table: np.ndarray) -> Graph:
    """Rows of a table, normalized, so that they are read in lanes."""
    e = Editor(name="lookup", length=LENGTH)
    ids = e.input("ids", np.int64, (BATCH, LENGTH))
    x = e.emit("gather", [e.constant(table), ids], axis=0)
    ends = [e.constant(np.full(CHANNELS, v, np.float32)) for v in (1.5, 0.25)]
    e.outputs.append(e.emit("layernorm", [x, *ends], eps=1e-5))
    e.outputs.append(x)
    return e.finish()


def numbers(low: int, high: int) -> np.ndarray:
    rng = np.random.default_rng(high)
    return rng.integers(low, high, (ROWS, CHANNELS)).astype(np.float32)


SCALES = np.random.default_rng(3).uniform(0.001, 0.2, (ROWS, 1)).astype(np.float32)
CODED = {
    "a scale for each row": (numbers(-127, 128) * SCALES, np.int8),
    "one scale": (numbers(-128, 128) * np.float32(0.0173), np.int8),
    "rows of zeros": (numbers(-127, 128) * np.where(SCALES > 0.1, SCALES, 0), np.int8),
    "a scale for each block": (
        numbers(-8, 8) * np.repeat(SCALES * np.array([1, 0.7, 2.2, 0.1], np.float32), 16, 1),
        np.uint8,
    ),
    "few steps": (numbers(-8, 8) * SCALES, np.uint8),
}


@pytest.mark.parametrize("name", CODED)
def test_coded_tables_stay_bytes(tmp_path: Path, name: str) -> None:
    table, stored = CODED[name]
    graph = lookup(table)
    made = code_tables(graph)
    tables = [a for a in made.constants.values() if a.shape == table.shape]
    assert [a.dtype for a in tables] == [stored]
    ids = np.random.default_rng(0).integers(0, ROWS, (3, LENGTH))
    ids[0, :2] = 0, ROWS - 1
    want = interpret(graph, [ids])
    for have, right in zip(interpret(made, [ids]), want, strict=True):
        np.testing.assert_array_equal(have, right)
    normalized, rows = compile_graph(tmp_path, made, "generic").run([ids])
    np.testing.assert_array_equal(rows, want[1])
    np.testing.assert_allclose(normalized, want[0], rtol=1e-5, atol=1e-5)


def test_other_tables_stay_as_they_are() -> None:
    rng = np.random.default_rng(1)
    one_off = CODED["one scale"][0].copy()
    one_off[17, 3] += np.float32(1e-4)
    wide = numbers(-300, 300) * np.float32(0.5)
    for table in (rng.standard_normal((ROWS, CHANNELS)).astype(np.float32), one_off, wide):
        made = code_tables(lookup(table))
        assert [a.dtype for a in made.constants.values() if a.ndim == 2] == [np.float32]
