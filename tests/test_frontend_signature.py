"""Which extents are the batch and the sequence, and which lengths a model works at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsec.compiler.frontend import Signature, import_graph, signature
from sparsec.compiler.interpreter import interpret
from sparsec.compiler.ir import BATCH
from sparsec.errors import ModelError, UnsupportedError
from tests.frontend_support import FLOAT, INT64, check, node, save

TABLE = np.random.default_rng(0).standard_normal((100, 8)).astype(np.float32)
POSITIONS = np.random.default_rng(1).standard_normal((1, 8, 8)).astype(np.float32)


def embed(folder: Path, inputs: list[Any], *more: Any, **constants: Any) -> Any:
    """ids -> rows of a table -> more nodes."""
    nodes = [node("Gather", "table input_ids", "e"), *more]
    last = nodes[-1].output[0]
    return save(folder, nodes, inputs, [(last, FLOAT, [0, 0, 0])], {"table": TABLE} | constants)


def shapes(found: Signature) -> list[tuple[Any, ...]]:
    return [spec.shape for spec in (*found.inputs, *found.outputs)]


@pytest.mark.parametrize(
    "names", [("batch", "sequence"), ("N", "L"), ("s72", "s16"), (None, None), ("a", None)]
)
def test_dynamic_axes_by_any_name(tmp_path: Path, names: tuple[Any, Any]) -> None:
    inputs = [("input_ids", INT64, list(names)), ("attention_mask", INT64, list(names))]
    model = embed(
        tmp_path,
        inputs,
        node("Cast", "attention_mask", "c", to=FLOAT),
        node("Unsqueeze", "c two", "m"),
        node("Mul", "e m", "y"),
        two=np.array([2]),
    )
    found = signature(model)
    token = ("batch", "sequence")
    assert shapes(found) == [token, token, ("batch", "sequence", 8)]
    assert [s.dtype for s in (*found.inputs, *found.outputs)] == ["int64", "int64", "float32"]
    assert found.mask_input == "attention_mask"
    assert found.has_sequence
    assert found.fixed_length is None
    assert import_graph(model, 6).values["input_ids"].shape == (BATCH, 6)
    check(model)


def test_numbers_equal_to_a_length_are_not_the_sequence(tmp_path: Path) -> None:
    """The width is 8, and so is the declared length."""
    model = embed(tmp_path, [("input_ids", INT64, ["batch", 8])])
    assert shapes(signature(model)) == [("batch", "sequence"), ("batch", "sequence", 8)]
    assert signature(model).fixed_length is None
    check(model, lengths=(8,))
    assert import_graph(model, 5).values["input_ids"].shape == (BATCH, 5)


def test_a_fixed_batch_is_overridden(tmp_path: Path) -> None:
    model = embed(tmp_path, [("input_ids", INT64, [1, 128])])
    assert shapes(signature(model)) == [("batch", "sequence"), ("batch", "sequence", 8)]
    one = ("position_ids", INT64, [1, "sequence"])
    model = embed(
        tmp_path,
        [("input_ids", INT64, ["batch", "sequence"]), one],
        node("Gather", "table position_ids", "p"),
        node("Add", "e p", "y"),
    )
    assert shapes(signature(model))[1] == (1, "sequence")
    check(model)


@pytest.mark.parametrize("size", [1, 3])
def test_a_fixed_batch_that_constants_repeat(tmp_path: Path, size: int) -> None:
    """Exporters fold the token in front of an image, and what masks are expanded to."""
    first = np.broadcast_to(TABLE[:1], (size, 1, 8))
    model = embed(
        tmp_path,
        [("input_ids", INT64, [size, 5]), ("mask", FLOAT, [size, 5])],
        node("Concat", "first e", "tokens", axis=1),
        node("Unsqueeze", "mask axis", "m"),
        node("Expand", "m target", "wide"),
        node("Concat", "ones wide", "whole", axis=1),
        node("Mul", "tokens whole", "y"),
        node("Add", "y offsets", "z"),
        first=np.ascontiguousarray(first),
        axis=np.array([2]),
        target=np.array([size, 5, 8]),
        ones=np.ones((size, 1, 8), np.float32),
        offsets=np.repeat(np.arange(48, dtype=np.float32).reshape(1, 6, 8), size, axis=0),
    )
    found = signature(model)
    assert [shape[0] for shape in shapes(found)] == ["batch"] * 3
    check(model, lengths=(5,), batches=(size,))
    graph = import_graph(model, 5)
    ids, mask = np.arange(20).reshape(4, 5), np.ones((4, 5), np.float32)
    (four,) = interpret(graph, [ids, mask])
    (one,) = interpret(graph, [ids[3:], mask[3:]])
    np.testing.assert_array_equal(four[3:], one)


@pytest.mark.parametrize("size", [1, 3])
def test_a_fixed_batch_whose_heads_meet_positions(tmp_path: Path, size: int) -> None:
    """[batch * heads, ..] times, and gathered at, what is the same for every sample."""
    block = np.random.default_rng(2).standard_normal((2, 4, 6)).astype(np.float32)
    places = np.random.default_rng(3).integers(0, 6, (2, 5, 5))
    model = embed(
        tmp_path,
        [("input_ids", INT64, [size, 5])],
        node("Reshape", "e apart", "r"),
        node("Transpose", "r", "t", perm=[0, 2, 1, 3]),
        node("Reshape", "t heads", "h"),
        node("MatMul", "h block", "m"),
        node("GatherElements", "m places", "g", axis=2),
        node("Reshape", "g whole", "y"),
        apart=np.array([size, 5, 2, 4]),
        heads=np.array([-1, 5, 4]),
        block=np.tile(block, (size, 1, 1)),
        places=np.tile(places, (size, 1, 1)),
        whole=np.array([size, 10, 5]),
    )
    assert shapes(signature(model)) == [("batch", "sequence"), ("batch", 10, 5)]
    check(model, lengths=(5,), batches=(size,))
    graph = import_graph(model, 5)
    ids = np.arange(20).reshape(4, 5)
    (four,), (one,) = interpret(graph, [ids]), interpret(graph, [ids[3:]])
    np.testing.assert_allclose(four[3:], one, rtol=1e-6)


def test_a_fixed_batch_that_matters(tmp_path: Path) -> None:
    """Samples that meet different constants are no batch."""
    model = embed(
        tmp_path,
        [("input_ids", INT64, [3, 5])],
        node("Add", "e offsets", "y"),
        offsets=np.arange(120, dtype=np.float32).reshape(3, 5, 8),
    )
    assert shapes(signature(model)) == [(3, 5), (3, 5, 8)]


def test_a_length_that_constants_insist_on(tmp_path: Path) -> None:
    model = embed(
        tmp_path,
        [("input_ids", INT64, ["batch", 8])],
        node("Add", "e positions", "y"),
        positions=POSITIONS,
    )
    found = signature(model)
    assert found.fixed_length == 8
    assert shapes(found) == [("batch", "sequence"), ("batch", "sequence", 8)]
    check(model, lengths=(8,))
    for length in (4, 16):
        with pytest.raises(UnsupportedError, match="only length 8 works") as caught:
            import_graph(model, length)
        assert caught.value.nodes == [("Add_1", "Add", f"extents {length} and 8 do not broadcast")]


@pytest.mark.parametrize("length", [0, 2**40])
def test_an_absurd_declared_length(tmp_path: Path, length: int) -> None:
    with pytest.raises(ModelError, match=f"absurd length {length}"):
        signature(embed(tmp_path, [("input_ids", INT64, ["batch", length])]))


def test_the_longest_length_of_a_position_table(tmp_path: Path) -> None:
    model = embed(
        tmp_path,
        [("input_ids", INT64, ["batch", "sequence"])],
        node("Shape", "input_ids", "s"),
        node("Slice", "s one two", "n"),
        node("Slice", "positions zero n one", "p"),
        node("Add", "e p", "y"),
        positions=POSITIONS,
        zero=np.array([0]),
        one=np.array([1]),
        two=np.array([2]),
    )
    check(model, lengths=(1, 7, 8))
    with pytest.raises(UnsupportedError, match=r"Length 100 is too long .* works up to length 8"):
        import_graph(model, 100)


def test_a_table_longer_than_the_export(tmp_path: Path) -> None:
    """Exported at 4 with room for 8: both sides of the declared length work."""
    model = embed(
        tmp_path,
        [("input_ids", INT64, ["batch", 4])],
        node("Shape", "input_ids", "s"),
        node("Slice", "s one two", "n"),
        node("Slice", "positions zero n one", "p"),
        node("Add", "e p", "y"),
        positions=POSITIONS,
        zero=np.array([0]),
        one=np.array([1]),
        two=np.array([2]),
    )
    assert signature(model).fixed_length is None
    for length in (3, 8):
        assert import_graph(model, length).length == length
    with pytest.raises(UnsupportedError, match=r"exported for length 4, and length 4 works.*short"):
        import_graph(model, 9)


def test_models_without_a_sequence(tmp_path: Path) -> None:
    w = np.ones((6, 3), np.float32)
    for batch in ("batch", None, 1, 32):
        x = ("x", FLOAT, [batch, 6])
        model = save(tmp_path, [node("MatMul", "x w", "y")], [x], [("y", FLOAT, [0, 0])], {"w": w})
        found = signature(model)
        assert shapes(found) == [("batch", 6), ("batch", 3)]
        assert not found.has_sequence
        assert found.mask_input is None
        assert import_graph(model, 0).length == 0
    check(save(tmp_path, [node("MatMul", "x w", "y")], [("x", FLOAT, ["b", 6])],
               [("y", FLOAT, [0, 0])], {"w": w}), lengths=(0,))  # fmt: skip


def test_float_sequences_and_square_masks(tmp_path: Path) -> None:
    inputs = [
        ("inputs_embeds", FLOAT, ["batch", "sequence", 8]),
        ("bias", FLOAT, ["batch", 1, "sequence", "sequence"]),
    ]
    nodes = [
        node("Squeeze", "bias one", "b"),
        node("MatMul", "b inputs_embeds", "y"),
        node("ReduceMean", "y", "pooled", axes=[1], keepdims=0),
    ]
    outputs = [("pooled", FLOAT, [0, 0]), ("b", FLOAT, [0, 0, 0])]
    model = save(tmp_path, nodes, inputs, outputs, {"one": np.array([1])})
    assert shapes(signature(model)) == [
        ("batch", "sequence", 8),
        ("batch", 1, "sequence", "sequence"),
        ("batch", 8),
        ("batch", "sequence", "sequence"),
    ]
    check(model)


@pytest.mark.parametrize(
    ("names", "mask"),
    [
        (("ids", "input_mask"), "input_mask"),
        (("ids", "padding_mask"), "padding_mask"),
        (("global_attention_mask", "attention_mask"), "attention_mask"),
        (("ids", "token_type_ids"), None),
        (("left_mask", "right_mask"), None),
    ],
)
def test_the_mask_input(tmp_path: Path, names: tuple[str, str], mask: str | None) -> None:
    inputs = [(name, INT64, ["batch", "sequence"]) for name in names]
    model = save(tmp_path, [node("Add", " ".join(names), "y")], inputs, [("y", INT64, [0, 0])])
    assert signature(model).mask_input == mask


def test_outputs_of_other_extents_are_unsupported(tmp_path: Path) -> None:
    ids = [("input_ids", INT64, ["batch", "sequence"])]
    for tail in (
        node("Reshape", "e rows", "y"),
        node("Concat", "e e", "y", axis=1),
        node("Transpose", "e", "y", perm=[2, 1, 0]),
    ):
        model = embed(tmp_path, ids, tail, rows=np.array([-1, 8]))
        if tail.op_type == "Transpose":
            assert shapes(signature(model))[1] == (8, "sequence", "batch")
            continue
        with pytest.raises(UnsupportedError, match=r"output y: its shape .* is not made of"):
            signature(model)


def test_extents_that_are_no_batch_are_taken_as_they_are(tmp_path: Path) -> None:
    """A graph that works with its own extents only: nothing in it is a batch or a sequence."""
    nodes = [
        node("MatMul", "square x", "mixed"),
        node("Reshape", "mixed shape", "flat"),
        node("Transpose", "flat", "y"),
    ]
    constants = {"square": np.eye(6, dtype=np.float32)[::-1], "shape": np.array([3, 8])}
    model = save(tmp_path, nodes, [("x", FLOAT, [6, 4])], [("y", FLOAT, [8, 3])], constants)
    found = signature(model)
    assert [s.shape for s in found.inputs] == [(6, 4)]
    assert [s.shape for s in found.outputs] == [(8, 3)]
    assert not found.has_sequence and found.mask_input is None
    check(model, lengths=(0,))


def test_scalars_and_images(tmp_path: Path) -> None:
    nodes = [
        node("Conv", "image w", "maps", pads=[1, 1, 1, 1]),
        node("Mul", "maps factor", "scaled"),
        node("ReduceMean", "scaled", "y", axes=[2, 3], keepdims=0),
    ]
    inputs = [("image", FLOAT, ["n", 3, 8, 8]), ("factor", FLOAT, [])]
    w = np.random.default_rng(0).standard_normal((5, 3, 3, 3)).astype(np.float32)
    model = save(tmp_path, nodes, inputs, [("y", FLOAT, [0, 0])], {"w": w})
    found = signature(model)
    assert [s.shape for s in found.inputs] == [("batch", 3, 8, 8), ()]
    assert [s.shape for s in found.outputs] == [("batch", 5)]
    check(model, lengths=(0,))
