"""Reordering channels: the heuristic, where it applies, and that results stay what they were."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sparsec
from examples.encoders import EncoderConfig, Export, write_random
from sparsec.compiler import frontend, passes
from sparsec.compiler.interpreter import interpret
from sparsec.compiler.ir import BATCH, Graph, Node
from sparsec.compiler.lowering.linear import Plans, estimated_work, packs_of
from sparsec.compiler.passes.grouping import group_in_fours, packs_left
from sparsec.compiler.passes.permute_channels import permute_channels
from sparsec.targets import TARGETS
from tests.lane_harness import compile_graph, target_params
from tests.passes_support import Builder, arrays_for, check, ops
from tests.test_passes_encoders import VARIANTS, name_of

S = 5
U8_ZERO = np.uint8(128)


# the heuristic


def uneven(rng: np.random.Generator, rows: int, channels: int, share: float = 0.1) -> Any:
    """A 0/1 pattern in which some rows and some channels have many weights, others few."""
    scale = np.exp(0.5 * rng.standard_normal((rows, 1)) + 0.5 * rng.standard_normal(channels))
    size = np.abs(rng.standard_normal((rows, channels))) * scale
    return size > np.quantile(size, 1 - share)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(0, 40),
    fours=st.integers(1, 40),
    segments=st.integers(1, 3),
    share=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    seed=st.integers(0, 99),
)
def test_the_order_is_a_permutation_and_never_worse(
    rows: int, fours: int, segments: int, share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    width = 4 * fours
    used = rng.random((rows, width * segments)) < share
    order = group_in_fours(used, width)
    parts = order.reshape(segments, width)
    for i, part in enumerate(parts):
        np.testing.assert_array_equal(np.sort(part), np.arange(i * width, (i + 1) * width))
    assert packs_left(used, order) <= packs_left(used, np.arange(len(order)))
    np.testing.assert_array_equal(order, group_in_fours(used, width))


def test_shuffled_blocks_are_found_again() -> None:
    rng = np.random.default_rng(0)
    used = np.repeat(rng.random((256, 64)) < 0.2, 4, axis=1)[:, rng.permutation(256)]
    order = group_in_fours(used, 256)
    assert packs_left(used, order) == used.sum() / 4


@pytest.mark.parametrize(("rows", "channels"), [(768, 3072), (2304, 768)])
def test_uneven_patterns_gain_in_bounded_time(rows: int, channels: int) -> None:
    used = uneven(np.random.default_rng(0), rows, channels)
    start = time.perf_counter()
    order = group_in_fours(used, channels)
    assert time.perf_counter() - start < 10
    before = packs_left(used, np.arange(channels))
    assert packs_left(used, order) < 0.85 * before


# where it applies


class Layers(Builder):
    """Builds graphs of sparse int8 layers."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.length = S
        self.rng = np.random.default_rng(seed)

    def bytes(self, channels: int) -> str:
        return self.input(f"x{len(self.inputs)}", np.uint8, (BATCH, S, channels))

    def layer(self, x: str, channels: int, *, per_channel: bool = True, share: float = 0.1) -> str:
        """A layer with uneven weights, a bias, and a scale for each channel."""
        taken = self.values[x].shape[-1]
        assert isinstance(taken, int)
        used = uneven(self.rng, channels, taken, share)
        w = used * self.rng.integers(1, 127, used.shape) * self.rng.choice([-1, 1], used.shape)
        scale = self.rng.uniform(1e-3, 2e-3, channels if per_channel else ())
        bias = self.rng.integers(-999, 999, channels).astype(np.int32)
        operands = (x, w.astype(np.int8), scale, bias)
        return self.op("qlinear", *operands, x_zp=128 if self.values[x].dtype == np.uint8 else 0)

    def quantize(self, x: str, zp: Any = U8_ZERO) -> str:
        return self.op("quantize", x, np.float32(0.05), zp, axis=2)

    def norm(self, x: str) -> str:
        channels = self.values[x].shape[-1]
        gamma, beta = self.rng.normal(1, 0.1, channels), self.rng.normal(0, 0.1, channels)
        return self.op("layernorm", x, gamma, beta, eps=1e-5)

    def between(self, x: str, kind: str) -> str:
        """Elementwise work, some of it different for each channel."""
        channels = self.values[x].shape[-1]
        if kind == "gelu":
            return self.op("gelu", x)
        if kind == "spelled":
            half = self.op("mul", x, np.float32(0.5))
            return self.op("mul", half, self.op("add", self.op("erf", x), np.float32(1)))
        if kind == "channels":
            return self.op("mul", self.op("add", x, self.rng.normal(size=channels)), np.float32(3))
        if kind == "positions":
            return self.op("add", x, self.rng.normal(size=(1, S, channels)))
        return self.op("relu", x)


def layers_of(graph: Graph) -> list[Node]:
    return [n for n in graph.nodes if n.op == "qlinear"]


def work(graph: Graph) -> float:
    return sum(estimated_work(graph.constants[n.inputs[1]]) for n in layers_of(graph))


KINDS = ["gelu", "spelled", "channels", "positions", "relu"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("zp", [np.uint8(128), np.int8(0), np.uint8(3)])
def test_the_width_between_two_layers(kind: str, zp: Any) -> None:
    b = Layers()
    y = b.quantize(b.between(b.layer(b.bytes(64), 256), kind), zp)
    graph = b.graph(b.layer(y, 64))
    after = check(graph, permute_channels)
    assert ops(after) == ops(graph)
    assert work(after) < 0.9 * work(graph)


def test_two_readers_and_two_makers_share_an_order() -> None:
    b = Layers()
    x = b.bytes(64)
    y = b.op("mul", b.layer(x, 256), b.op("sigmoid", b.layer(x, 256, per_channel=False)))
    y = b.quantize(y)
    graph = b.graph(b.layer(y, 64), b.layer(y, 128))
    after = check(graph, permute_channels)
    assert ops(after) == ops(graph) and work(after) < work(graph)


def test_a_chain_of_layers() -> None:
    b = Layers()
    y = b.bytes(64)
    for _ in range(3):
        y = b.quantize(b.op("relu", b.layer(y, 128)))
    graph = b.graph(b.layer(y, 8))
    after = check(graph, permute_channels)
    moved = sum(
        not np.array_equal(graph.constants[m.inputs[1]], after.constants[n.inputs[1]])
        for m, n in zip(layers_of(graph), layers_of(after), strict=True)
    )
    assert moved == 4


def test_a_quantized_norm_is_gathered_for_its_layers() -> None:
    b = Layers()
    x = b.input("x", np.float32, (BATCH, S, 64))
    y = b.norm(x)
    q = b.quantize(y)
    graph = b.graph(b.layer(q, 96), b.layer(q, 64), b.op("add", x, y))
    after = check(graph, permute_channels)
    assert ops(after) == ops(graph) + ops(after) - ops(graph) and ops(after)["gather"] == 1
    assert work(after) < 0.97 * work(graph)


@pytest.mark.parametrize(
    "spoil",
    ["output", "float output", "residual", "slice", "softmax", "three channels", "float layer"],
)
def test_channels_that_others_see_keep_their_order(spoil: str) -> None:
    b = Layers()
    x = b.bytes(64)
    h = b.layer(x, 63 if spoil == "three channels" else 64)
    if spoil == "residual":
        h = b.op("add", h, b.input("r", np.float32, (BATCH, S, 64)))
    if spoil == "softmax":
        h = b.op("softmax", h, axis=2)
    q = b.quantize(h)
    outputs = [b.layer(q, 64)]
    if spoil == "output":
        outputs.append(q)
    if spoil == "float output":
        outputs.append(h)
    if spoil == "slice":
        outputs.append(b.op("slice", h, starts=(0,), ends=(4,), axes=(2,), steps=(1,)))
    if spoil == "float layer":
        outputs.append(b.op("linear", h, b.rng.normal(size=(8, 64))))
    graph = b.graph(*outputs)
    assert check(graph, permute_channels) is graph


@pytest.mark.parametrize("pattern", ["blocks", "dense"])
def test_full_packs_are_left_alone(pattern: str) -> None:
    b = Layers()
    q = b.quantize(b.norm(b.input("x", np.float32, (BATCH, S, 64))))
    used = np.repeat(b.rng.random((64, 16)) < (0.2 if pattern == "blocks" else 1), 4, axis=1)
    w = (used * b.rng.integers(1, 127, used.shape)).astype(np.int8)
    graph = b.graph(b.op("qlinear", q, w, np.float32(1e-3), x_zp=128))
    assert permute_channels(graph) is graph


@settings(deadline=None, max_examples=25)
@given(
    widths=st.lists(st.sampled_from([16, 32, 64, 100]), min_size=1, max_size=4),
    kinds=st.lists(st.sampled_from([*KINDS, "norm", "residual"]), min_size=4, max_size=4),
    shown=st.integers(0, 15),
    seed=st.integers(0, 9),
)
def test_random_networks(widths: list[int], kinds: list[str], shown: int, seed: int) -> None:
    b = Layers(seed)
    y, outputs = b.bytes(32), []
    for i, (width, kind) in enumerate(zip(widths, kinds, strict=False)):
        h = b.layer(y, width, per_channel=bool(seed % 2), share=0.2)
        if kind == "residual":
            h = b.op("add", h, b.input(f"r{i}", np.float32, (BATCH, S, width)))
        elif kind == "norm":
            h = b.norm(h)
        else:
            h = b.between(h, kind)
        if shown >> i & 1:
            outputs.append(h)
        y = b.quantize(h)
    graph = b.graph(b.layer(y, 16, share=0.2), *outputs)
    check(graph, permute_channels)


# whole encoders

SMALL = EncoderConfig(layers=2, hidden=32, heads=4, intermediate=64, vocab=100, max_position=160)


@pytest.mark.parametrize("variant", VARIANTS, ids=name_of)
@pytest.mark.parametrize("spread", [0.0, 0.7])
def test_encoders_compute_the_same(tmp_path: Path, variant: Any, spread: float) -> None:
    form, shape, export, quantization = variant
    model = write_random(
        tmp_path / "m.onnx",
        EncoderConfig(**{**vars(SMALL), **shape}),
        form,
        Export(**export),
        sparsity=0.85,
        block=1,
        spread=spread,
        **quantization,
    )
    stages: list[Graph] = []
    raw = frontend.import_graph(frontend.load_model(model.path), 12)
    passes.run(raw, lambda index, name, graph: stages.append(graph))
    before, after = stages[-2:]
    inputs = model.batch(3, 12, seed=4)
    for want, got in zip(interpret(before, inputs), interpret(after, inputs), strict=True):
        np.testing.assert_array_equal(got, want)
    assert (after is before) == (form == "fp32")


@pytest.mark.parametrize("attention", ["eager", "sdpa", "distilbert"])
def test_work_of_an_encoder_falls(tmp_path: Path, attention: Any) -> None:
    config = EncoderConfig(
        layers=1, hidden=128, heads=4, intermediate=256, vocab=50, attention=attention
    )
    model = write_random(tmp_path / "m.onnx", config, "sparseml", sparsity=0.9, block=1, spread=0.4)
    stages: list[Graph] = []
    raw = frontend.import_graph(frontend.load_model(model.path), 16)
    passes.run(raw, lambda index, name, graph: stages.append(graph))
    before, after = ({n.source: n for n in layers_of(g)} for g in stages[-2:])
    assert ops(stages[-1])["gather"] - ops(stages[-2])["gather"] == 2
    target = next(t for t in TARGETS if t.name == "avx512_vnni")
    for source, node in before.items():
        if "encoder" in source:
            plans = [
                Plans(target, [g.length]).get(n, g)
                for n, g in ((node, stages[-2]), (after[source], stages[-1]))
            ]
            assert plans[1].work < plans[0].work, source
            w = stages[-2].constants[node.inputs[1]]
            assert estimated_work(w) == 1.2 * plans[0].work
            assert plans[0].nonzero == (packs_of(w) != 0).sum()


def test_orders_do_not_depend_on_the_bucket(tmp_path: Path) -> None:
    model = write_random(tmp_path / "m.onnx", SMALL, "sparseml", sparsity=0.85, block=1)
    loaded = frontend.load_model(model.path)
    graphs = [passes.run(frontend.import_graph(loaded, length)) for length in (8, 24)]
    weights = [[g.constants[n.inputs[1]] for n in layers_of(g)] for g in graphs]
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)


# compiled


@pytest.mark.slow
@pytest.mark.parametrize("target", target_params())
def test_kernels_pack_bytes_in_any_order(tmp_path: Path, target: str) -> None:
    """Behind a norm, behind a layer, two orders of one value, and the same value in its own."""
    b = Layers()
    x = b.input("x", np.float32, (BATCH, S, 40))
    y = b.norm(x)
    q = b.quantize(y)
    orders = [b.const(b.rng.permutation(40)) for _ in range(2)]
    parts = [b.op("gather", q, order, axis=2) for order in orders]
    outputs = [b.layer(part, 24, share=0.3) for part in (parts[0], parts[1], q, parts[0])]
    inner = b.quantize(b.op("relu", b.layer(q, 40, share=0.3)))
    outputs.append(b.layer(b.op("gather", inner, orders[0], axis=2), 8, share=0.3))
    outputs.append(b.op("gather", q, orders[1], axis=2))
    graph = b.graph(*outputs, b.op("add", x, y))
    inputs = [a * 3 for a in arrays_for(graph)]
    library = compile_graph(tmp_path, graph, target)
    got, want = library.run(inputs), interpret(graph, inputs)
    for g, w in zip(got[:-2], want[:-2], strict=True):
        # A value next to a rounding boundary may fall on its other side.
        assert np.mean(np.abs(g - w) > 1e-5 * np.abs(w).max()) < 0.02
    assert np.mean(got[-2] != want[-2]) < 0.02
    np.testing.assert_allclose(got[-1], want[-1], atol=1e-5)


def test_compiled_results_do_not_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_random(tmp_path / "m.onnx", SMALL, "sparseml", sparsity=0.85, block=1, spread=0.5)
    with_pass = sparsec.compile(model.path, buckets=[24], output=tmp_path / "with")
    fewer = tuple(p for p in passes.PIPELINE if p[0] != "permute_channels")
    assert len(fewer) == len(passes.PIPELINE) - 1
    monkeypatch.setattr(passes, "PIPELINE", fewer)
    without = sparsec.compile(model.path, buckets=[24], output=tmp_path / "without")
    with sparsec.Engine(with_pass.path) as a, sparsec.Engine(without.path) as b:
        for batch, length in ((1, 24), (5, 17), (3, 1)):
            inputs = model.batch(batch, length, seed=length)
            for x, y in zip(a.run(inputs), b.run(inputs), strict=True):
                np.testing.assert_array_equal(x, y)
