"""Channels in another order: which may change places, and what is gained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from examples.encoders import EncoderConfig, Export, write_random
from sparsec.compiler.frontend import Model, load_model

torch = pytest.importorskip("torch")
torch.set_num_threads(1)

from sparsec.pruning import grouping, reorder  # noqa: E402
from sparsec.pruning.axes import Channels, free_channels  # noqa: E402
from sparsec.pruning.batches import Batch  # noqa: E402
from sparsec.pruning.engine import TorchModel  # noqa: E402
from sparsec.pruning.prepare import prepared  # noqa: E402
from sparsec.pruning.reorder import Order  # noqa: E402
from sparsec.pruning.structure import feeds, sites  # noqa: E402
from sparsec.pruning.survey import prunable  # noqa: E402
from sparsec.pruning.workspace import Workspace  # noqa: E402

# ---- which channels become neighbours ------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 30), st.integers(1, 12), st.sampled_from([0.2, 0.5]))
def test_an_order_loses_no_more_than_the_old_one_or_that_by_size(
    seed: int, width: int, rows: int, keep: float
) -> None:
    rng = np.random.default_rng(seed)
    worth = torch.from_numpy(rng.exponential(size=(rows, width)) * rng.exponential(size=width))
    order = grouping.best_order([worth], keep)
    assert sorted(order.tolist()) == list(range(width))
    by_size = worth.sum(0).argsort(descending=True)
    least = min(grouping.lost(worth, keep), grouping.lost(worth[:, by_size], keep))
    assert grouping.lost(worth[:, order], keep) <= least + 1e-5


def test_channels_that_belong_together_are_found() -> None:
    rng = np.random.default_rng(0)
    # Outputs read 4 of 32 channels each, all about alike: blocks are there, but scattered.
    blocks = rng.integers(0, 8, 40)
    worth = np.where(np.arange(32) // 4 == blocks[:, None], rng.uniform(1, 1.1, (40, 32)), 0.01)
    scattered = torch.from_numpy(worth[:, rng.permutation(32)])
    assert grouping.lost(scattered, 1 / 8) > 0.5
    order = grouping.best_order([scattered], 1 / 8, rounds=40)
    assert grouping.lost(scattered[:, order], 1 / 8) < 0.3


def test_channels_stay_with_their_head() -> None:
    worth = torch.from_numpy(np.random.default_rng(1).exponential(size=(20, 32)))
    order = grouping.best_order([worth], 0.5, within=8)
    assert torch.equal(order.sort().values, torch.arange(32))
    assert torch.equal(order // 8, torch.arange(32) // 8)
    assert grouping.lost(worth[:, order], 0.5) < grouping.lost(worth, 0.5)
    # Blocks would lie across heads of 6.
    assert torch.equal(grouping.best_order([worth[:, :30]], 0.5, within=6), torch.arange(30))


def test_layers_count_alike() -> None:
    rng = np.random.default_rng(2)
    one, other = (torch.from_numpy(rng.exponential(size=(9, 16))) for _ in range(2))
    same = grouping.best_order([one, 1000 * other], 0.5)
    assert torch.equal(same, grouping.best_order([one, other], 0.5))


# ---- which channels may change places ------------------------------------------------------------


def shuffled(channels: Channels, seed: int) -> Order:
    """Any order of some channels."""
    order = np.random.default_rng(seed).permutation(channels.count)
    return Order(
        dict.fromkeys(channels.stored, tuple(order.tolist())),
        channels.outputs,
        tuple(np.argsort(order).tolist()),
    )


def check_all(model: Model, inputs: dict[str, Any]) -> list[Channels]:
    """All free channels of a model, each of which was shuffled without any effect."""
    dense = TorchModel(model)
    found = free_channels(model, dense.opened)
    with torch.no_grad():
        wanted = dense(inputs).outputs
        for seed, channels in enumerate(found):
            order = shuffled(channels, seed)
            got = TorchModel(reorder.apply(model, [order]))(inputs).outputs
            for name, value in wanted.items():
                torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-4)
    return found


#: Between two layers of 24 channels: what is done, and whether the channels' order stays free.
BETWEEN: dict[str, tuple[list[tuple[str, list[str], dict[str, Any]]], bool]] = {
    "vector": ([("Mul", ["x", "vector"], {}), ("Tanh", [], {})], True),
    "scalar": ([("Add", ["x", "scalar"], {})], True),
    "norm": ([("LayerNormalization", ["x", "vector", "other"], {"axis": -1})], True),
    "norm over tokens": ([("LayerNormalization", ["x", "both", "both"], {"axis": 1})], False),
    "softmax": ([("Softmax", ["x"], {"axis": -1})], True),
    "sum beside": (
        [("ReduceMean", ["x"], {"axes": [2], "keepdims": 1}), ("Sub", ["x", ""], {})], True,
    ),
    "sum of tokens": ([("ReduceSum", ["x", "one"], {"keepdims": 0})], True),
    "turned twice": (
        [("Transpose", ["x"], {"perm": [2, 0, 1]}), ("Transpose", [], {"perm": [1, 2, 0]})], True,
    ),
    "flat": ([("Reshape", ["x", "to_rows"], {}), ("Reshape", ["", "to_eights"], {})], True),
    "heads": ([("Reshape", ["x", "to_heads"], {}), ("Reshape", ["", "to_tokens"], {})], False),
    "slice": ([("Slice", ["x", "zero", "half", "two"], {}), ("Concat", ["", ""], {"axis": 2})],
              False),
    "turned round": ([("Slice", ["x", "last", "first", "two", "back"], {})], False),
    "concat of tokens": (
        [("Concat", ["x", "x"], {"axis": 1}), ("ReduceMax", [], {"axes": [1], "keepdims": 0})],
        True,
    ),
    "cumulative": ([("CumSum", ["x", "two"], {})], False),
    "fixed table": ([("Add", ["x", "table"], {})], True),
}  # fmt: skip


@pytest.mark.parametrize("name", BETWEEN)
def test_channels_between_two_layers(name: str, tmp_path: Path) -> None:
    steps, free = BETWEEN[name]
    rng = np.random.default_rng(3)

    def numbers(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    def places(*values: int) -> np.ndarray:
        return np.array(values, np.int64)

    constants = {
        "words": numbers(50, 16), "first_weight": numbers(16, 24), "second_weight": numbers(24, 12),
        "first_bias": numbers(24), "vector": numbers(24), "other": numbers(24),
        "scalar": np.float32(0.5), "both": numbers(8, 24), "table": numbers(1, 1, 24),
        "zero": places(0), "one": places(1), "two": places(2), "half": places(12),
        "last": places(-1), "first": places(-100), "back": places(-1),
        "to_rows": places(-1, 24), "to_heads": places(0, 0, 3, 8), "to_tokens": places(0, 0, 24),
        "to_eights": places(-1, 8, 24),
    }  # fmt: skip
    constants["two"] = places(2) if name != "cumulative" else np.array(2, np.int64)
    nodes = [
        helper.make_node("Gather", ["words", "ids"], ["embedded"]),
        helper.make_node("MatMul", ["embedded", "first_weight"], ["product"]),
        helper.make_node("Add", ["product", "first_bias"], ["x"]),
    ]
    value = "x"
    for i, (op, names, attributes) in enumerate(steps):
        inputs = [n or value for n in (names or [value])]
        value = f"step_{i}"
        nodes.append(helper.make_node(op, inputs, [value], **attributes))
    nodes.append(helper.make_node("MatMul", [value, "second_weight"], ["out"], name="second"))
    read = {n for node in nodes for n in node.input}
    graph = helper.make_graph(
        nodes,
        "between",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 8])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items() if k in read],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    ids = torch.from_numpy(rng.integers(0, 50, (1, 8)))
    found = check_all(load_model(path), {"ids": ids})
    inner = [c for c in found if ("second_weight", 0) in c.stored]
    assert bool(inner) == free
    assert not inner or ("first_weight", 1) in inner[0].stored
    # Nobody but the first layer reads the table, and nobody looks at the order of what comes out.
    assert any(("words", 1) in c.stored and ("first_weight", 0) in c.stored for c in found)
    assert any(("second_weight", 1) in c.stored and c.outputs for c in found)


@pytest.mark.parametrize("attention", ["eager", "sdpa", "distilbert"])
@pytest.mark.parametrize("fused", [False, True], ids=["matmul", "gemm"])
@pytest.mark.parametrize("head", ["hidden", "pooler", "token-classification"])
def test_encoders(tmp_path: Path, attention: Any, fused: bool, head: Any) -> None:
    model, inputs = encoder(tmp_path, attention, fused, head)
    found = check_all(model, inputs)
    # The residual stream, and the inside of two feed-forward parts, besides those of the end.
    assert sorted(c.count for c in found if len(c.stored) > 2)[-3:] == [32, 48, 48]
    stream = max(found, key=lambda c: len(c.stored))
    assert bool(stream.outputs) == (head != "token-classification")


def encoder(
    folder: Path, attention: Any = "eager", fused: bool = False, head: Any = "hidden"
) -> tuple[Model, dict[str, Any]]:
    config = EncoderConfig(hidden=32, heads=4, intermediate=48, attention=attention, head=head)
    form = Export(opset=20, fused=True, linear="gemm") if fused else Export()
    written = write_random(folder / "model.onnx", config, export=form)
    model = prepared(load_model(written.path))
    names = ("input_ids", "attention_mask", "token_type_ids")
    given = dict(zip(names, written.batch(3, 9, 0, True), strict=True))
    taken = {value.name for value in model.inputs()}
    return model, {n: torch.from_numpy(v) for n, v in given.items() if n in taken}


def batch_of(inputs: dict[str, Any]) -> Batch:
    ids = inputs["input_ids"]
    return Batch(inputs, inputs["attention_mask"].bool(), tuple(range(len(ids))))


# ---- the whole -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [False, True], ids=["matmul", "gemm"])
def test_a_reordered_model_computes_the_same_and_loses_less(tmp_path: Path, fused: bool) -> None:
    model, inputs = encoder(tmp_path, fused=fused)
    dense = TorchModel(model)
    layers = prunable(dense)
    batch = batch_of(inputs)
    orders = reorder.find_orders(model, dense, layers, [batch], 0.5)
    # Stream, two feed-forward parts, two attentions.
    assert [len(one.moves) for one in orders][1:] == [3, 3, 3, 3]
    new = TorchModel(reorder.apply(model, orders))
    with torch.no_grad():
        for name, value in dense(inputs).outputs.items():
            torch.testing.assert_close(new(inputs).outputs[name], value, rtol=1e-4, atol=1e-4)
    before, after = (
        reorder.saliencies(one, prunable(one), [batch]) for one in (dense, new)
    )  # fmt: skip
    gains = [
        grouping.lost(before[layer.name], 0.5) - grouping.lost(after[layer.name], 0.5)
        for layer in layers
    ]
    assert min(gains) > -0.02
    assert sum(gains) / len(gains) > 0.01


def test_blocks_that_are_gone_already_are_not_torn_apart(tmp_path: Path) -> None:
    model, inputs = encoder(tmp_path)
    dense = TorchModel(model)
    graph = dense.opened.graph(dense.opened.probe)
    reader = sites(graph, dense.layers)[1].reader
    for tensor in model.proto.graph.initializer:
        if tensor.name == reader:
            pruned = model.array(tensor).copy()
            pruned[:8] = 0
            tensor.CopyFrom(numpy_helper.from_array(pruned, reader))
    dense = TorchModel(model)
    orders = reorder.find_orders(model, dense, prunable(dense), [batch_of(inputs)], 0.5)
    assert orders
    assert not any((reader, 0) in one.moves for one in orders)


def test_what_would_change_the_results_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = encoder(tmp_path)
    dense = TorchModel(model)
    found = free_channels(model, dense.opened)
    wrong = [replace(c, stored=c.stored[:-1]) for c in found]
    monkeypatch.setattr(reorder, "free_channels", lambda model, opened: wrong)
    orders = reorder.find_orders(model, dense, prunable(dense), [batch_of(inputs)], 0.5)
    assert all(len(one.moves) == 3 for one in orders)
    new = TorchModel(reorder.apply(model, orders))
    with torch.no_grad():
        for name, value in dense(inputs).outputs.items():
            torch.testing.assert_close(new(inputs).outputs[name], value, rtol=1e-4, atol=1e-4)


def test_which_channel_each_input_comes_from(tmp_path: Path) -> None:
    model, _ = encoder(tmp_path)
    dense = TorchModel(model)
    names = [layer.name for layer in dense.layers]
    found = feeds(dense.opened.graph(dense.opened.probe), dense.layers)
    assert found[names[3]] == [(names[2], row) for row in range(32)]
    assert found[names[5]] == [(names[4], row) for row in range(48)]


def test_orders_are_kept(tmp_path: Path) -> None:
    work = Workspace(tmp_path / "out", {}, False)
    assert work.orders() is None
    orders: Sequence[Order] = [
        Order({("a", 0): (1, 0), ("b", 1): (1, 0)}, (("y", 2),), (1, 0)), Order({("c", 0): (0,)}),
    ]  # fmt: skip
    work.keep_orders(orders)
    assert work.orders() == orders
