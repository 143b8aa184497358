"""Ops whose indices are data: what they refuse, and what compiled code may assume of batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsec.compiler.editor import Editor
from sparsec.compiler.interpreter import interpret
from sparsec.compiler.ir import BATCH
from sparsec.compiler.lowering.batch import separable


def emit(op: str, *inputs: tuple[Any, tuple[Any, ...]], **attrs: Any) -> Editor:
    edit = Editor(name="case")
    names = [edit.input(f"x{i}", dtype, shape) for i, (dtype, shape) in enumerate(inputs)]
    edit.outputs = list(edit.emit_multi(op, names, source=op, **attrs))
    return edit


F32, I64 = np.float32, np.int64


@pytest.mark.parametrize(
    ("op", "inputs", "attrs", "message"),
    [
        ("gather_elements", [(F32, (3, 4)), (I64, (3, 4))], {"axis": 2}, "axis 2"),
        ("gather_elements", [(F32, (3, 4)), (I64, (4, 4))], {"axis": 1}, "with indices"),
        ("gather_elements", [(F32, (3, 4)), (I64, (3,))], {"axis": 0}, "with indices"),
        ("gather_elements", [(F32, (3, 4)), (F32, (3, 4))], {"axis": 0}, "integer indices"),
        ("gather_elements", [(F32, (3, 4)), (I64, (BATCH, 4))], {"axis": 1}, "with indices"),
        ("gather_nd", [(F32, (3, 4)), (I64, (2, 3))], {"batch_dims": 0}, "gather_nd of"),
        ("gather_nd", [(F32, (3, 4)), (I64, (2, 1))], {"batch_dims": 1}, "batch extents differ"),
        ("gather_nd", [(F32, (3, 4)), (I64, ())], {"batch_dims": 0}, "with indices"),
        (
            "scatter_nd",
            [(F32, (3,)), (I64, (2, 1)), (F32, (3,))],
            {"reduction": "none"},
            "scatter_nd of",
        ),
        (
            "scatter_nd",
            [(F32, (3,)), (I64, (2, 1)), (I64, (2,))],
            {"reduction": "none"},
            "int64 into",
        ),
        ("scatter_nd", [(F32, (3,)), (I64, (2, 1)), (F32, (2,))], {"reduction": "xor"}, "'xor'"),
        (
            "scatter_elements",
            [(bool, (3,)), (I64, (2,)), (bool, (2,))],
            {"axis": 0, "reduction": "add"},
            "bool into bool",
        ),
        ("argmax", [(F32, (3, 0))], {"axis": 1, "keepdims": True, "last": False}, "no elements"),
        ("argmax", [(bool, (3,))], {"axis": 0, "keepdims": True, "last": False}, "bool"),
        ("topk", [(F32, (3, 4))], {"axis": 1, "k": 5, "largest": True}, "the top 5"),
        ("topk", [(F32, (BATCH, 4))], {"axis": 0, "k": 1, "largest": True}, "the top 1"),
    ],
)
def test_what_does_not_fit(op: str, inputs: Any, attrs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        emit(op, *inputs, **attrs)


@pytest.mark.parametrize("op", ["gather_elements", "gather_nd", "scatter_nd"])
def test_an_index_outside_is_an_error(op: str) -> None:
    x, at = (F32, (3, 2)), (I64, (1, 1))
    attrs: dict[str, Any] = {"gather_elements": {"axis": 0}, "gather_nd": {"batch_dims": 0}}.get(
        op, {"reduction": "none"}
    )
    more = [(F32, (1, 2))] if op == "scatter_nd" else []
    graph = emit(op, x, at, *more, **attrs).finish()
    arrays = [np.zeros((3, 2), F32), np.array([[3]]), np.ones((1, 2), F32)]
    with pytest.raises(IndexError, match="outside the 3 elements"):
        interpret(graph, arrays[: 2 + len(more)])
    arrays[1][...] = -3
    assert interpret(graph, arrays[: 2 + len(more)])[0].shape[-1] in (1, 2)


@pytest.mark.parametrize(
    ("op", "inputs", "attrs", "apart"),
    [
        ("gather_elements", [(F32, (BATCH, 4)), (I64, (BATCH, 2))], {"axis": 1}, True),
        ("gather_elements", [(F32, (BATCH, 4)), (I64, (BATCH, 4))], {"axis": 0}, False),
        ("gather_nd", [(F32, (BATCH, 4)), (I64, (BATCH, 2, 1))], {"batch_dims": 1}, True),
        ("gather_nd", [(F32, (BATCH, 4)), (I64, (BATCH, 1))], {"batch_dims": 0}, False),
        (
            "scatter_nd",
            [(F32, (BATCH, 4)), (I64, (BATCH, 1)), (F32, (BATCH, 4))],
            {"reduction": "add"},
            False,
        ),
        ("argmax", [(F32, (BATCH, 4))], {"axis": 1, "keepdims": True, "last": False}, True),
        ("argmax", [(F32, (BATCH, 4))], {"axis": 0, "keepdims": True, "last": False}, False),
        ("topk", [(F32, (BATCH, 4))], {"axis": 1, "k": 2, "largest": True}, True),
        ("reduce_prod", [(F32, (BATCH, 4))], {"axes": (1,), "keepdims": True}, True),
        ("reduce_prod", [(F32, (BATCH, 4))], {"axes": (0, 1), "keepdims": True}, False),
    ],
)
def test_whether_a_batch_can_be_cut(
    op: str, inputs: Any, attrs: dict[str, Any], apart: bool
) -> None:
    """A kernel that mixes sequences must see them all."""
    assert separable(emit(op, *inputs, **attrs).finish()) is apart


def test_tuples_of_no_indices_name_everything() -> None:
    x = np.arange(6, dtype=F32).reshape(1, 3, 2)
    one, two = (I64, (1, 3, 4, 0)), (F32, (4, 1, 3, 2))
    graph = emit("gather_nd", (F32, x.shape), one, batch_dims=2).finish()
    (out,) = interpret(graph, [x, np.zeros(one[1], I64)])
    np.testing.assert_array_equal(out, np.repeat(x[:, :, None], 4, 2))
    graph = emit("scatter_nd", (F32, x.shape), (I64, (4, 0)), two, reduction="add").finish()
    (out,) = interpret(graph, [x, np.zeros((4, 0), I64), np.ones(two[1], F32)])
    np.testing.assert_array_equal(out, x + 4)
