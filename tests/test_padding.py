"""Padding: a sequence in a longer bucket gives what the model gives for the sequence alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import sparsec
from sparsec.compiler import frontend, optimize, settle_buckets
from sparsec.compiler.axes import independent
from sparsec.compiler.frontend import Model
from sparsec.compiler.interpreter import interpret
from sparsec.serving.runner import EngineRunner, Features
from tests.frontend_support import FLOAT, INT64, Info, node, save
from tests.ort_reference import session

C, VOCAB, BUCKET = 8, 30, 12
RNG = np.random.default_rng(5)


def floats(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) / 2).astype(np.float32)


IDS: Info = ("input_ids", INT64, ["batch", "sequence"])
MASK: Info = ("attention_mask", INT64, ["batch", "sequence"])
TOKENS: Info = ("y", FLOAT, [0, 0, 0])
POOLED: Info = ("z", FLOAT, [0, 0])
WEIGHTS: dict[str, Any] = {
    **{name: floats(C, C) for name in ("wq", "wk", "wv")},
    "table": floats(VOCAB, C) * 2,
    "words": RNG.integers(-60, 60, (C, C)).astype(np.int8),
    "kernel": floats(C, C, 3),
    "one": np.float32(1),
    "zero": np.float32(0),
    "far": np.float32(-10000),
    "never": np.float32(-np.inf),
    "fine": np.float32(0.02),
    "coarse": np.float32(40),
    "high": np.uint8(255),
    "i0": np.array(0),
    "i1": np.array(1),
    "last": np.array(-1),
    "a0": np.array([0]),
    "a1": np.array([1]),
    "a2": np.array([2]),
    "lasts": np.array([-1]),
    "end": np.array([2**40]),
    "begin": np.array([-(2**40)]),
    "rows": np.array([-1, C]),
}
EMBED = [node("Gather", "table input_ids", "x")]


def attention(mask: str = "", x: str = "x", y: str = "y", keys: str = "") -> list[onnx.NodeProto]:
    """One head; `mask` is added to its scores."""
    keys = keys or x
    score = f"{y}s" if mask else f"{y}p"
    return [
        node("MatMul", f"{x} wq", f"{y}q"),
        node("MatMul", f"{keys} wk", f"{y}k"),
        node("MatMul", f"{keys} wv", f"{y}v"),
        node("Transpose", f"{y}k", f"{y}t", perm=[0, 2, 1]),
        node("MatMul", f"{y}q {y}t", f"{y}p"),
        *([node("Add", f"{y}p {mask}", score)] if mask else []),
        node("Softmax", score, f"{y}e", axis=-1),
        node("MatMul", f"{y}e {y}v", y),
    ]


ADDITIVE = [
    node("Cast", "attention_mask", "real", to=FLOAT),
    node("Sub", "one real", "gone"),
    node("Mul", "gone far", "drop"),
    node("Unsqueeze", "drop a1", "m"),
]
MASKED = [*EMBED, *ADDITIVE, *attention("m")]


def quantized(scale: str) -> list[onnx.NodeProto]:
    """The mask through 8 bits."""
    return [
        *EMBED,
        *ADDITIVE,
        node("QuantizeLinear", f"m {scale} high", "mq"),
        node("DequantizeLinear", f"mq {scale} high", "md"),
        *attention("md"),
    ]


@dataclass(frozen=True)
class Case:
    """A graph, what is to be found out about it, and whether it is compiled too."""

    nodes: Sequence[onnx.NodeProto]
    kind: str
    mask: str | None = None
    inputs: Sequence[Info] = (IDS,)
    output: Info = TOKENS
    compiled: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> Model:
        """The model, with those constants that it reads."""
        read = {name for n in self.nodes for name in n.input}
        constants = {k: v for k, v in {**WEIGHTS, **self.more}.items() if k in read}
        return save(folder, self.nodes, self.inputs, [self.output], constants, opset=18)


def pooled(op: str, **more: Any) -> Case:
    nodes = [*MASKED, node(op, "y a1", "z", keepdims=0)]
    return Case(nodes, "lengths", inputs=(IDS, MASK), output=POOLED, **more)


def masked(*tail: onnx.NodeProto, kind: str = "masked", **more: Any) -> Case:
    mask = None if kind != "masked" else "attention_mask"
    return Case([*MASKED, *tail], kind, mask, (IDS, MASK), **more)


KEY_PADDING: Info = ("key_padding_mask", INT64, ["batch", "sequence"])
CAUSAL = [
    node("Shape", "input_ids", "s", start=1, end=2),
    node("Concat", "s s", "ss", axis=0),
    node("Expand", "one ss", "ones"),
    node("Trilu", "ones", "lower", upper=0),
    node("Cast", "lower", "seen", to=TensorProto.BOOL),
    node("Where", "seen zero never", "m"),
]
CASES: dict[str, Case] = {
    "mask": masked(compiled=True),
    "no mask": Case([*EMBED, *attention()], "lengths", compiled=True),
    "marks padding by 1": Case(
        [
            *EMBED,
            node("Cast", "key_padding_mask", "gone", to=TensorProto.BOOL),
            node("Where", "gone never zero", "w"),
            node("Unsqueeze", "w a1", "m"),
            *attention("m"),
        ],
        "lengths",
        inputs=(IDS, KEY_PADDING),
        compiled=True,
    ),
    "mask that a quantizer killed": Case(
        quantized("fine"), "lengths", inputs=(IDS, MASK), compiled=True
    ),
    "mask that a quantizer kept": Case(quantized("coarse"), "masked", MASK[0], (IDS, MASK)),
    "mask on half": Case(
        [*MASKED, *attention(x="y", y="y2"), node("Add", "y y2", "y3")],
        "lengths",
        inputs=(IDS, MASK),
        output=("y3", FLOAT, [0, 0, 0]),
    ),
    "mask of -12": Case(
        [
            *EMBED,
            node("Cast", "attention_mask", "real", to=FLOAT),
            node("Sub", "real one", "gone"),
            node("Mul", "gone twelve", "drop"),
            node("Unsqueeze", "drop a1", "m"),
            *attention("m"),
        ],
        "lengths",
        inputs=(IDS, MASK),
        more={"twelve": np.float32(12)},
    ),
    "mask of queries and keys": Case(
        [
            *EMBED,
            node("Cast", "attention_mask", "real", to=FLOAT),
            node("Unsqueeze", "real a1", "keys"),
            node("Unsqueeze", "real a2", "queries"),
            node("Mul", "queries keys", "both"),
            node("Cast", "both", "seen", to=TensorProto.BOOL),
            node("Where", "seen zero lowest", "m"),
            *attention("m"),
        ],
        "lengths",
        "attention_mask",
        (IDS, MASK),
        more={"lowest": np.finfo(np.float32).min},
    ),
    "causal": Case([*EMBED, *CAUSAL, *attention("m")], "masked"),
    "two sequence axes": Case(
        [
            *EMBED,
            node("Gather", "table target", "t"),
            *attention(x="t", keys="x"),
        ],
        "lengths",
        inputs=(("input_ids", INT64, ["b", "src_len"]), ("target", INT64, ["b", "tgt_len"])),
        compiled=True,
    ),
    "maximum": pooled("ReduceMax", compiled=True),
    "minimum": pooled("ReduceMin"),
    "mean": pooled("ReduceMean", compiled=True),
    "sum": pooled("ReduceSum"),
    "L2": pooled("ReduceL2"),
    "log of sums": pooled("ReduceLogSumExp"),
    "product": pooled("ReduceProd"),
    "mean of real tokens": masked(
        node("Unsqueeze", "real a2", "r"),
        node("Mul", "y r", "yr"),
        node("ReduceSum", "yr a1", "total", keepdims=0),
        node("ReduceSum", "r a1", "count", keepdims=0),
        node("Div", "total count", "z"),
        output=POOLED,
    ),
    "mean, sequence first": Case(
        [
            *EMBED,
            node("Transpose", "x", "t", perm=[1, 0, 2]),
            node("ReduceMean", "t a0", "z", keepdims=0),
        ],
        "lengths",
        output=POOLED,
    ),
    "norm over the sequence": Case(
        [
            *EMBED,
            node("ReduceMean", "x a1", "mean"),
            node("Sub", "x mean", "y"),
        ],
        "lengths",
    ),
    "first token": masked(node("Gather", "y i0", "z", axis=1), output=POOLED),
    "second token": masked(node("Gather", "y i1", "z", axis=1), kind="exact", output=POOLED),
    "last token": masked(
        node("Gather", "y last", "z", axis=1), kind="lengths", output=POOLED, compiled=True
    ),
    "slice of the last token": masked(
        node("Slice", "y lasts end a1", "z"), kind="lengths", output=("z", FLOAT, [0, 0, 0])
    ),
    "reversed": Case([*EMBED, node("Slice", "x lasts begin a1 lasts", "y")], "exact"),
    "largest token": Case(
        [
            *EMBED,
            node("ReduceSum", "x a2", "sums", keepdims=0),
            node("ArgMax", "sums", "z", axis=1, keepdims=0),
        ],
        "lengths",
        output=("z", INT64, [0]),
    ),
    "best tokens": Case([*EMBED, node("TopK", "x a1", "y places", axis=1)], "exact"),
    "attention pooling": Case(
        [
            *EMBED,
            node("MatMul", "x column", "s"),
            node("Softmax", "s", "p", axis=1),
            node("Mul", "x p", "xp"),
            node("ReduceSum", "xp a1", "z", keepdims=0),
        ],
        "lengths",
        output=POOLED,
        more={"column": floats(C, 1)},
    ),
    "products of tokens": Case(
        [*EMBED, node("Transpose", "x", "t", perm=[0, 2, 1]), node("MatMul", "t x", "y")],
        "lengths",
    ),
    "running sum": Case([*EMBED, node("CumSum", "x i1", "y")], "masked"),
    "running sum from the end": Case([*EMBED, node("CumSum", "x i1", "y", reverse=1)], "lengths"),
    "convolution": Case(
        [
            *EMBED,
            node("Transpose", "x", "t", perm=[0, 2, 1]),
            node("Conv", "t kernel", "c", pads=[1, 1]),
            node("Transpose", "c", "y", perm=[0, 2, 1]),
        ],
        "lengths",
        compiled=True,
    ),
    "neighbours": Case(
        [
            *EMBED,
            node("Slice", "x a1 end a1", "after"),
            node("Pad", "after wide", "y"),
        ],
        "lengths",
        more={"wide": np.array([0, 0, 0, 0, 1, 0])},
    ),
    "windows by a table": Case(
        [
            *EMBED,
            node("Pad", "x around", "wide"),
            node("Shape", "input_ids", "s", start=1, end=2),
            node("Squeeze", "s a0", "count"),
            node("Range", "i0 count i1", "first"),
            node("Unsqueeze", "first a1", "column"),
            node("Add", "column three", "places"),
            node("Gather", "wide places", "windows", axis=1),
            node("ReduceSum", "windows a2", "y", keepdims=0),
        ],
        "lengths",
        more={"around": np.array([0, 1, 0, 0, 1, 0]), "three": np.arange(3)[None]},
    ),
    "range at run time": Case(
        [
            *EMBED,
            node("DynamicQuantizeLinear", "x", "q scale zp"),
            node("MatMulInteger", "q words zp", "i"),
            node("Cast", "i", "f", to=FLOAT),
            node("Mul", "f scale", "y"),
        ],
        "lengths",
        compiled=True,
    ),
    "maximum of the batch's tokens": Case(
        [
            *EMBED,
            node("Reshape", "x rows", "flat"),
            node("ReduceMax", "flat a0", "top"),
            node("Sub", "x top", "y"),
        ],
        "lengths",
    ),
}


def feed(case: Case, batch: int, length: int, marks: str) -> dict[str, np.ndarray]:
    """Random ids, and masks: all tokens real, or the last or first two dropped."""
    rng = np.random.default_rng(length)
    out = {}
    for name, _, _ in case.inputs:
        if "mask" not in name:
            out[name] = rng.integers(1, VOCAB, (batch, length))
            continue
        mask = np.ones((batch, length), np.int64)
        if length > 2 and marks != "whole":
            mask[:, slice(length - 2, None) if marks == "right" else slice(2)] = 0
        out[name] = 1 - mask if name.startswith("key") else mask
    return out


LENGTHS = (1, 2, 5, 11, 12)
MARKS = ("whole", "right", "left")


@pytest.mark.parametrize("name", CASES)
def test_padding_is_kept_out(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    model = case.save(tmp_path)
    settled = settle_buckets(model, frontend.signature(model), [BUCKET])
    assert (settled.kind, settled.mask_input) == (case.kind, case.mask), settled.reason
    assert bool(settled.reason) == (case.kind != "masked")
    (graph,) = optimize(settled)
    reference = session(model.path)
    for length in LENGTHS if case.kind != "exact" else (BUCKET,):
        for marks in MARKS if len(case.inputs) > 1 else MARKS[:1]:
            given = feed(case, 2, length, marks)
            want = reference.run(None, given)[0]
            whole = [np.pad(given[n], ((0, 0), (0, BUCKET - length))) for n in graph.inputs]
            got = interpret(graph, whole, [length] * 2)[0]
            got = got[tuple(map(slice, want.shape))]
            np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-5, err_msg=f"{length} {marks}")


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.compiled])
def test_compiled(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    model = case.save(tmp_path)
    artifact = sparsec.compile(model.path, buckets=[4, BUCKET])
    assert artifact.manifest.padding.kind == case.kind
    reference = session(model.path)
    for skip in (False, True):
        with sparsec.Engine(artifact, skip_padding=skip) as engine:
            assert engine.skip_padding == (skip and case.mask is not None)
            for length in LENGTHS:
                for marks in MARKS if len(case.inputs) > 1 else MARKS[:1]:
                    given = feed(case, 3, length, marks)
                    want, got = reference.run(None, given)[0], engine.run(given)[0]
                    if engine.skip_padding and marks == "right" and length > 2:
                        # What the mask drops at the end is not computed.
                        want, got = want[:, : length - 2], got[:, : length - 2]
                    error = f"{length} {marks}"
                    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-5, err_msg=error)


def test_what_cannot_be_repaired_is_refused_with_the_reason(tmp_path: Path) -> None:
    model = CASES["second token"].save(tmp_path)
    artifact = sparsec.compile(model.path, buckets=[4, BUCKET])
    assert artifact.manifest.supports_lengths is False
    with sparsec.Engine(artifact) as engine:
        given = feed(CASES["second token"], 2, 4, "whole")
        want = session(model.path).run(None, given)[0]
        np.testing.assert_allclose(engine.run(given)[0], want, rtol=1e-4, atol=1e-6)
        why = r"from length 5 to the bucket 12 .*Gather_\d+ \(slice\): it takes token 1"
        with pytest.raises(sparsec.InputError, match=why):
            engine.run(feed(CASES["second token"], 2, 5, "whole"))


def test_sequences_of_several_lengths_do_not_pad_each_other(tmp_path: Path) -> None:
    """Where no input is proved to be a mask, a pipeline's batch has one length."""
    case = CASES["maximum"]
    model = case.save(tmp_path)
    reference = session(model.path)
    items, wanted = [], []
    for length in (3, 7, 3, 12, 5):
        given = feed(case, 1, length, "whole")
        wanted.append(reference.run(None, given)[0][0])
        items.append(Features({name: a[0] for name, a in given.items()}, length))
    with EngineRunner(model.path, buckets=[BUCKET]) as runner:
        for out, want in zip(runner.infer(items), wanted, strict=True):
            np.testing.assert_allclose(out["z"], want, rtol=1e-4, atol=1e-6)


FREE: dict[str, tuple[list[onnx.NodeProto], bool]] = {
    "attention": (attention(), True),
    "sequence first": ([node("Transpose", "x", "y", perm=[1, 0, 2])], True),
    "rows": ([node("Reshape", "x rows", "f"), node("Relu", "f", "y")], True),
    "mean": ([node("ReduceMean", "x a0", "y")], False),
    "mean of rows": ([node("Reshape", "x rows", "f"), node("ReduceMean", "f a0", "y")], False),
    "softmax": ([node("Softmax", "x", "y", axis=0)], False),
    "running sum": ([node("CumSum", "x i0", "y")], False),
    "first sample": ([node("Gather", "x i0", "y", axis=0)], False),
    "extent of 1 taken away": ([node("Squeeze", "x a0", "y")], False),
    "all products": (
        [
            node("Reshape", "x rows", "f"),
            node("Transpose", "f", "t", perm=[1, 0]),
            node("MatMul", "f t", "y"),
        ],
        False,
    ),
    "largest of all": ([node("ReduceMax", "x", "top"), node("Div", "x top", "y")], False),
}


@pytest.mark.parametrize("name", FREE)
@pytest.mark.parametrize("length", [6, "sequence"])
def test_a_fixed_batch_is_free_only_where_samples_are_apart(
    tmp_path: Path, name: str, length: Any
) -> None:
    tail, free = FREE[name]
    inputs = [("input_ids", INT64, [1, length])]
    case = Case([*EMBED, *tail], "", inputs=inputs, output=("y", FLOAT, [0, 0, 0]))
    rank = {"rows": 2, "mean of rows": 2, "all products": 2, "first sample": 2}.get(name, 3)
    rank = 2 if name == "extent of 1 taken away" else rank
    case = Case(case.nodes, "", inputs=inputs, output=("y", FLOAT, [0] * rank))
    model = case.save(tmp_path)
    if name == "rows" and length == "sequence":
        return  # rows of several sequences are no output that can be trimmed
    found = frontend.signature(model)
    batch = "batch" if free and name != "rows" else 1
    assert found.inputs[0].shape[0] == batch, found
    graph = frontend.import_graph(model, 6)
    ids = np.random.default_rng(0).integers(0, VOCAB, (1, 6))
    want = session(model.path).run(None, {"input_ids": ids})[0]
    np.testing.assert_allclose(interpret(graph, [ids])[0], want, rtol=1e-4, atol=1e-6)
    assert batch == 1 or independent(graph)


def test_the_range_of_a_dynamic_quantization_leaves_a_fixed_batch_free(tmp_path: Path) -> None:
    case = CASES["range at run time"]
    fixed = Case(case.nodes, "", inputs=[("input_ids", INT64, [1, "sequence"])])
    assert frontend.signature(fixed.save(tmp_path)).inputs[0].shape == ("batch", "sequence")
