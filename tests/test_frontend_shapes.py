"""The shape arithmetic and mask code that exporters write folds away, and means the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from sparsec.compiler.frontend import import_graph
from sparsec.compiler.interpreter import interpret
from sparsec.compiler.ir import BATCH
from sparsec.errors import UnsupportedError
from tests.frontend_support import BOOL, FLOAT, INT64, check, node, ops, save

X = ("x", FLOAT, ["batch", "sequence", 12])
MASK = ("attention_mask", INT64, ["batch", "sequence"])
IDS = ("ids", INT64, ["batch", "sequence"])
NUMBERS = {
    **{f"i{v}": np.array(v) for v in range(5)},
    **{f"v{v}": np.array([v]) for v in range(5)},
    "m1": np.array([-1]),
    "n1": np.array(-1),
    "f0": np.float32(0),
    "f1": np.float32(1),
    "min": np.float32(np.finfo(np.float32).min),
    "ninf": np.float32(-np.inf),
    "four": np.array([4]),
    "three": np.array([3]),
    "dim": np.array([12]),
}


def size(of: str, axis: int, name: str) -> list[onnx.NodeProto]:
    """TorchScript's ``x.size(axis)``."""
    return [
        node("Shape", of, f"{name}_shape"),
        node("Gather", f"{name}_shape i{axis}", name, axis=0),
        node("Unsqueeze", f"{name} v0", f"{name}_1"),
    ]


def expand_idiom(x: str, shape: str, out: str) -> list[onnx.NodeProto]:
    """TorchScript's ``x.expand(shape)``, where -1 keeps an extent."""
    return [
        node("Reshape", f"{shape} m1", f"{out}_s"),
        node("Shape", f"{out}_s", f"{out}_r"),
        node("ConstantOfShape", f"{out}_r", f"{out}_o", value=onnx.numpy_helper.from_array(
            np.array([1]))),
        node("Mul", f"{out}_o n1", f"{out}_m"),
        node("Equal", f"{out}_s {out}_m", f"{out}_e"),
        node("Where", f"{out}_e {out}_o {out}_s", f"{out}_w"),
        node("Expand", f"{x} {out}_w", out),
    ]  # fmt: skip


def run(
    folder: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[Any],
    outputs: list[Any],
    left: set[str],
    opset: int = 17,
    **constants: Any,
) -> None:
    """Check against ONNX Runtime, and that only the ops in `left` are left."""
    model = save(folder, nodes, inputs, outputs, NUMBERS | constants, opset=opset)
    assert set(ops(check(model, tolerance=1e-6))) <= left


def test_heads_split_and_merged(tmp_path: Path) -> None:
    nodes = [
        *size("x", 0, "b"),
        *size("x", 1, "s"),
        node("Concat", "b_1 s_1 three four", "view", axis=0),
        node("Reshape", "x view", "h"),
        node("Transpose", "h", "t", perm=[0, 2, 1, 3]),
        node("Relu", "t", "r"),
        node("Transpose", "r", "u", perm=[0, 2, 1, 3]),
        *size("u", 0, "b2"),
        node("Shape", "u", "us"),
        node("Slice", "us v2 v4 v0", "tail"),
        node("ReduceProd", "tail", "c", keepdims=1),
        node("Concat", "b2_1 m1 c", "merged", axis=0),
        node("Reshape", "u merged", "y"),
    ]
    run(tmp_path, nodes, [X], [("y", FLOAT, [0, 0, 0])], {"reshape", "transpose", "relu"})


def test_head_size_arithmetic(tmp_path: Path) -> None:
    """hidden // heads through Cast and Div, and 1 / sqrt(d), as TorchScript traces them."""
    nodes = [
        *size("x", 2, "c"),
        node("Div", "c i3", "d"),
        node("Cast", "d", "df", to=FLOAT),
        node("Sqrt", "df", "root"),
        node("Div", "f1 root", "scale"),
        node("Mul", "x scale", "m"),
        *size("x", 0, "b"),
        *size("x", 1, "s"),
        node("Mul", "b_1 s_1", "rows"),
        node("Unsqueeze", "d v0", "d1"),
        node("Concat", "rows m1 d1", "flat", axis=0),
        node("Reshape", "m flat", "f"),
        node("Shape", "x", "xs"),
        node("Reshape", "f xs", "y"),
    ]
    run(tmp_path, nodes, [X], [("y", FLOAT, [0, 0, 0])], {"mul", "reshape"})


@pytest.mark.parametrize("era", ["-10000", "finfo", "where", "bool", "distilbert"])
def test_masks_of_several_eras(tmp_path: Path, era: str) -> None:
    scores = ("x", FLOAT, ["batch", 3, "sequence", "sequence"])
    unsqueeze = [
        node("Unsqueeze", "attention_mask v1", "m1d"),
        node("Unsqueeze", "m1d v2", "m"),
    ]
    additive = [
        *unsqueeze,
        node("Cast", "m", "mf", to=FLOAT),
        node("Sub", "f1 mf", "inv"),
    ]
    square = [
        *size("attention_mask", 0, "b"),
        *size("attention_mask", 1, "s"),
        node("Concat", "b_1 v1 s_1 s_1", "square", axis=0),
    ]
    body = {
        "-10000": [*additive, node("Mul", "inv big", "bias"), node("Add", "x bias", "z")],
        "finfo": [*additive, node("Mul", "inv min", "bias"), node("Add", "x bias", "z")],
        "where": [
            *square,
            *unsqueeze,
            *expand_idiom("m", "square", "e"),
            node("Cast", "e", "ef", to=FLOAT),
            node("Sub", "f1 ef", "inv"),
            node("Cast", "inv", "drop", to=BOOL),
            node("Where", "drop min inv", "bias"),
            node("Add", "x bias", "z"),
        ],
        "bool": [
            *square,
            *unsqueeze,
            node("Cast", "m", "keep", to=BOOL),
            node("Expand", "keep square", "e"),
            node("Where", "e f0 ninf", "bias"),
            node("Add", "x bias", "z"),
        ],
        "distilbert": [
            node("Equal", "attention_mask i0", "pad"),
            *size("attention_mask", 0, "b"),
            *size("x", 3, "k"),
            node("Concat", "b_1 v1 v1 k_1", "view", axis=0),
            node("Reshape", "pad view", "p"),
            node("Shape", "x", "xs"),
            node("Expand", "p xs", "pe"),
            node("Where", "pe min x", "z"),
        ],
    }[era]
    nodes = [*body, node("Softmax", "z", "y", axis=-1)]
    run(
        tmp_path,
        nodes,
        [scores, MASK],
        [("y", FLOAT, [0, 0, 0, 0])],
        {"reshape", "cast", "sub", "mul", "add", "softmax", "expand", "where", "equal"},
        big=np.float32(-10000),
    )


def test_position_ids(tmp_path: Path) -> None:
    """A buffer cut to the length, and a table: one constant of the length's rows."""
    nodes = [
        *size("ids", 1, "s"),
        node("Slice", "buffer v0 s_1 v1 v1", "positions"),
        node("Gather", "table positions", "p"),
        node("Gather", "words ids", "w"),
        node("Add", "w p", "y"),
    ]
    rng = np.random.default_rng(0)
    run(
        tmp_path,
        nodes,
        [IDS],
        [("y", FLOAT, [0, 0, 0])],
        {"gather", "add"},
        buffer=np.arange(32)[None],
        table=rng.standard_normal((32, 4)).astype(np.float32),
        words=rng.standard_normal((100, 4)).astype(np.float32),
    )


def test_positions_by_range_and_expand(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    nodes = [
        *size("ids", 1, "s"),
        node("Range", "i0 s i1", "r"),
        node("Unsqueeze", "r v0", "r1"),
        node("Shape", "ids", "shape"),
        *expand_idiom("r1", "shape", "positions"),
        node("Gather", "table positions", "p"),
        node("Gather", "table ids", "w"),
        node("Add", "w p", "y"),
    ]
    table = rng.standard_normal((100, 4)).astype(np.float32)
    run(tmp_path, nodes, [IDS], [("y", FLOAT, [0, 0, 0])], {"gather", "add", "expand"}, table=table)


def test_token_types_gathered_from_a_buffer(tmp_path: Path) -> None:
    """RoBERTa: positions from a cumulative sum, token types gathered at them from zeros."""
    nodes = [
        node("Equal", "ids i2", "pad"),
        node("Not", "pad", "real"),
        node("Cast", "real", "r", to=6),
        node("CumSum", "r i1", "c"),
        node("Mul", "c r", "cr"),
        node("Cast", "cr", "c64", to=INT64),
        node("Add", "c64 i1", "positions"),
        *size("ids", 0, "b"),
        node("Concat", "b_1 m1", "shape", axis=0),
        *expand_idiom("zeros", "shape", "types"),
        node("GatherElements", "types positions", "t", axis=1),
        node("Gather", "table t", "tt"),
        node("Gather", "table positions", "p"),
        node("Add", "tt p", "y"),
    ]
    run(
        tmp_path,
        nodes,
        [IDS],
        [("y", FLOAT, [0, 0, 0])],
        {"equal", "not", "cast", "cumsum", "mul", "add", "gather", "expand"},
        zeros=np.zeros((1, 40), np.int64),
        table=np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32),
    )


def test_relative_position_buckets(tmp_path: Path) -> None:
    """MPNet: Range, Sub, Abs, Less, Log, Min, Where: all of constants."""
    nodes = [
        *size("x", 1, "s"),
        node("Range", "i0 s i1", "r"),
        node("Unsqueeze", "r v1", "q"),
        node("Unsqueeze", "r v0", "k"),
        node("Sub", "k q", "rel"),
        node("Neg", "rel", "n"),
        node("Less", "n i0", "neg"),
        node("Cast", "neg", "side", to=INT64),
        node("Mul", "side i4", "base"),
        node("Abs", "n", "a"),
        node("Less", "a i2", "small"),
        node("Max", "a i1", "a1"),
        node("Cast", "a1", "af", to=FLOAT),
        node("Log", "af", "l"),
        node("Cast", "l", "li", to=INT64),
        node("Add", "li i2", "large"),
        node("Min", "large i3", "large3"),
        node("Where", "small a large3", "bucket"),
        node("Add", "bucket base", "at"),
        node("Gather", "table at", "bias"),
        node("Transpose", "bias", "t", perm=[2, 0, 1]),
        node("ReduceSum", "t v0", "rs", keepdims=0),
        node("MatMul", "rs x", "y"),
    ]
    table = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    run(tmp_path, nodes, [X], [("y", FLOAT, [0, 0, 0])], {"matmul"}, table=table)


def test_causal_mask(tmp_path: Path) -> None:
    nodes = [
        *size("x", 1, "s"),
        node("Concat", "s_1 s_1", "square", axis=0),
        node("ConstantOfShape", "square", "full", value=onnx.numpy_helper.from_array(
            np.array([-1e4], np.float32))),
        node("Trilu", "full i1", "future", upper=1),
        *size("x", 0, "b"),
        node("Concat", "b_1 s_1 s_1", "whole", axis=0),
        node("Expand", "future whole", "bias"),
        node("MatMul", "x xt", "scores"),
        node("Add", "scores bias", "z"),
        node("Softmax", "z", "y"),
    ]  # fmt: skip
    nodes.insert(0, node("Transpose", "x", "xt", perm=[0, 2, 1]))
    run(tmp_path, nodes, [X], [("y", FLOAT, [0, 0, 0])], {"transpose", "matmul", "add", "softmax"})


@pytest.mark.parametrize("form", ["gather", "gather_nd"])
def test_masks_indexed_by_sample(tmp_path: Path, form: str) -> None:
    """transformers 5: mask[arange(batch), arange(length)], as torch's two exporters write it."""
    head = [
        node("Cast", "attention_mask", "keep", to=BOOL),
        node("Shape", "attention_mask", "shape"),
        node("Gather", "shape i0", "b"),
        node("Gather", "shape i1", "s"),
        node("Range", "i0 b i1", "samples"),
        node("Range", "i0 s i1", "tokens"),
        node("Unsqueeze", "samples v123", "b4"),
        node("Unsqueeze", "tokens v012", "k4"),
        node("Unsqueeze", "tokens v013", "q4"),
        node("GreaterOrEqual", "q4 i0", "ge"),
        node("And", "ge yes", "and1"),
    ]
    gather = [
        node("Flatten", "keep", "flat", axis=0),
        node("Mul", "b4 s", "row"),
        node("Add", "k4 row", "at"),
        node("Squeeze", "flat v0", "flat1"),
        node("Gather", "flat1 at", "m"),
    ]
    gather_nd = [
        node("Max", "b4 k4", "both"),
        node("Shape", "both", "full"),
        node("Expand", "b4 full", "b5"),
        node("Expand", "k4 full", "k5"),
        node("Unsqueeze", "b5 m1", "b6"),
        node("Unsqueeze", "k5 m1", "k6"),
        node("Concat", "b6 k6", "at", axis=-1),
        node("GatherND", "keep at", "m"),
    ]
    tail = [
        node("And", "and1 m", "all"),
        node("Where", "all f0 min", "y"),
    ]
    run(
        tmp_path,
        [*head, *(gather if form == "gather" else gather_nd), *tail],
        [MASK],
        [("y", FLOAT, [0, 0, 0, 0])],
        {"cast", "reshape", "expand", "where"},
        yes=np.array(True),
        v123=np.array([1, 2, 3]),
        v012=np.array([0, 1, 2]),
        v013=np.array([0, 1, 3]),
    )


def test_gather_nd_of_other_positions(tmp_path: Path) -> None:
    """x[b, k, j] for every sample b, with negative and repeated positions."""
    nodes = [
        node("Shape", "x", "shape"),
        node("Gather", "shape i0", "b"),
        node("Range", "i0 b i1", "samples"),
        node("Unsqueeze", "samples v12", "b3"),
        node("Concat", "b_1 v2 v1", "full", axis=0),
        node("Expand", "b3 full", "b4"),
        node("Expand", "picks full2", "p4"),
        node("Concat", "b4 p4", "at", axis=-1),
        node("GatherND", "x at", "y"),
    ]
    nodes[4:4] = size("x", 0, "b")[2:]
    nodes[7:7] = [node("Concat", "b_1 v2 v2", "full2", axis=0)]
    run(
        tmp_path,
        nodes,
        [("x", FLOAT, ["batch", 5, 12])],
        [("y", FLOAT, [0, 0])],
        {"reshape", "gather"},
        v12=np.array([1, 2]),
        picks=np.array([[[4, -1], [0, 3]]]),
    )


def test_constants_along_the_batch(tmp_path: Path) -> None:
    """ones(batch, length) as a mask: known, but not of a known shape."""
    nodes = [
        node("Shape", "ids", "s"),
        node("ConstantOfShape", "s", "ones", value=onnx.numpy_helper.from_array(np.array([1]))),
        node("Unsqueeze", "ones v1", "u"),
        node("Unsqueeze", "u v2", "v"),
        node("Cast", "v", "m", to=FLOAT),
        node("Sub", "f1 m", "n"),
        node("Mul", "n min", "bias"),
        node("Transpose", "bias", "t", perm=[0, 3, 1, 2]),
        node("Reshape", "t s", "r"),
        node("Cast", "ids", "f", to=FLOAT),
        node("Add", "f r", "y"),
    ]
    run(tmp_path, nodes, [IDS], [("y", FLOAT, [0, 0])], {"cast", "add"})


def test_a_constant_output_along_the_batch(tmp_path: Path) -> None:
    nodes = [node("Shape", "ids", "s"), node("ConstantOfShape", "s", "y")]
    model = save(tmp_path, nodes, [IDS], [("y", FLOAT, [0, 0])])
    graph = check(model)
    assert graph.values[graph.outputs[0]].shape == (BATCH, 16)
    assert interpret(graph, [np.zeros((4, 16), np.int64)])[0].shape == (4, 16)


def test_the_batch_size_as_a_number(tmp_path: Path) -> None:
    """A mean over the batch's tokens, written as a sum and a count."""
    nodes = [
        node("Shape", "ids", "s"),
        node("Gather", "s i0", "b"),
        node("Mul", "b v3", "c"),
        node("Sub", "c i1", "d"),
        node("Mul", "ids d", "y"),
    ]
    left = {"expand", "reduce_sum", "add", "mul"}
    run(tmp_path, nodes, [IDS], [("y", INT64, [0, 0])], left, v3=np.array(3))


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([node("Shape", "ids", "s"), node("Gather", "s i0", "b"), node("Mul", "b b", "c"),
          node("Mul", "ids c", "y")], "not linear in the batch size"),
        ([node("Shape", "ids", "s"), node("Gather", "s i0", "b"), node("Equal", "b i1", "e"),
          node("Where", "e ids i0", "y")], "depends on the batch size"),
        ([node("Reshape", "ids v4", "y")], "element count"),
        ([node("ReduceMax", "ids", "n", keepdims=0), node("Unsqueeze", "n v0", "count"),
          node("Expand", "i1 count", "y")], "depends on the values of the inputs"),
        ([node("Shape", "ids", "s"), node("Gather", "s i0", "b"), node("Range", "i0 b i1", "r"),
          node("Unsqueeze", "r v1", "u"), node("Add", "ids u", "y")], "used as data"),
        ([node("Slice", "ids v1 v3 v0", "y")], "depends on the batch size"),
    ],
)  # fmt: skip
def test_what_depends_on_the_batch_is_an_error(
    tmp_path: Path, nodes: list[onnx.NodeProto], message: str
) -> None:
    model = save(tmp_path, nodes, [IDS], [("y", INT64, [0, 0])], NUMBERS)
    with pytest.raises(UnsupportedError, match=message):
        import_graph(model, 5)
