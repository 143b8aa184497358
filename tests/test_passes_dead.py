"""Channels and heads that no result depends on: what goes, what stays, and the same results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.encoders import EncoderConfig, Export, write_random
from sparsec.compiler import frontend, passes, settle_buckets
from sparsec.compiler.interpreter import interpret
from sparsec.compiler.ir import BATCH, Graph
from sparsec.compiler.passes.remove_dead import remove_dead
from tests.passes_support import Builder, arrays_for, check
from tests.test_passes_permute import KINDS, Layers, S


def shapes(graph: Graph) -> list[tuple[int, ...]]:
    """Of the weights of layers, in order."""
    return [graph.constants[n.inputs[1]].shape for n in graph.nodes if n.op.endswith("linear")]


def cleared(graph: Graph, layer: int, rows: Any = (), columns: Any = ()) -> Graph:
    """The graph with weights of a layer set to zero."""
    node = [n for n in graph.nodes if n.op.endswith("linear")][layer]
    w = graph.constants[node.inputs[1]]
    w[list(rows)] = 0
    w[:, list(columns)] = 0
    return graph


class Network(Layers):
    """Two layers, of bytes or floats."""

    def dense(self, x: str, channels: int) -> str:
        w = self.rng.normal(size=(channels, self.values[x].shape[-1])).astype(np.float32)
        y = self.op("linear", x, w)
        return self.op("add", y, self.rng.normal(size=channels).astype(np.float32))

    def attention(self, q: str, k: str, v: str, heads: int) -> str:
        length = self.values[q].shape[1]
        score, prob = Builder(), Builder()
        for nested in (score, prob):
            nested.outputs = [nested.input("s", np.float32, (BATCH, heads, length, length))]
        points = dict.fromkeys(("q_zp", "k_zp", "v_zp", "p_zp"), 0)
        scales = {"qk_scale": 0.5, "pv_scale": 1.0}
        nested = {"score": score.finish(), "prob": prob.finish()}
        return self.op("attention", q, k, v, heads=heads, **points, **scales, **nested)

    def pair(self, kind: str, floats: bool) -> Graph:
        if floats:
            x = self.input("x", np.float32, (BATCH, S, 8))
            return self.graph(self.dense(self.between(self.dense(x, 32), kind), 12))
        y = self.between(self.layer(self.bytes(8), 32, share=0.9), kind)
        return self.graph(self.layer(self.quantize(y), 12, share=0.9))


@pytest.mark.parametrize("floats", [False, True], ids=["bytes", "floats"])
@pytest.mark.parametrize("kind", KINDS)
def test_channels_without_weights_go(kind: str, floats: bool) -> None:
    """Those that nobody reads, and those that are one number, which is in a bias then."""
    tolerance = 1e-5 if floats else None
    unread = check(
        cleared(Network().pair(kind, floats), 1, columns=range(3, 12)), remove_dead, rtol=tolerance
    )
    assert shapes(unread) == [(24, 8), (12, 24)]
    unmade = check(
        cleared(Network().pair(kind, floats), 0, rows=range(5, 30)), remove_dead, rtol=tolerance
    )
    # What differs from position to position is no number.
    width = 32 if kind == "positions" else 8
    assert shapes(unmade) == [(width, 8), (12, width)]


def test_fewer_than_four_stay() -> None:
    graph = cleared(Network().pair("relu", False), 1, columns=range(3))
    assert remove_dead(graph) is graph


def test_something_stays() -> None:
    graph = cleared(Network().pair("relu", False), 1, columns=range(32))
    assert shapes(check(graph, remove_dead)) == [(4, 8), (12, 4)]


@pytest.mark.parametrize("chained", [False, True])
def test_what_scores_read_stays(chained: bool) -> None:
    """Queries that a layer reads too; of one attention, and the results of another as queries."""
    net = Network()
    x = net.input("x", np.float32, (BATCH, S, 8))
    q, k, v = (net.dense(x, 8) for _ in range(3))
    if chained:
        q = net.attention(q, k, v, heads=2)
        k, v = net.dense(x, 8), net.dense(x, 8)
    graph = net.graph(net.attention(q, k, v, heads=2), net.dense(q, 12))
    last = sum(node.op == "linear" for node in graph.nodes) - 1
    check(cleared(graph, last, columns=range(4)), remove_dead, rtol=1e-5)


def test_what_others_see_stays() -> None:
    b = Network()
    y = b.between(b.layer(b.bytes(8), 32), "gelu")
    graph = b.graph(b.layer(b.quantize(y), 12), y)
    assert remove_dead(cleared(graph, 1, columns=range(16))) is graph


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 999),
    floats=st.booleans(),
    kind=st.sampled_from(KINDS),
    unread=st.sampled_from([0.0, 0.3, 0.9]),
    unmade=st.sampled_from([0.0, 0.3, 0.9]),
)
def test_any_zeros(seed: int, floats: bool, kind: str, unread: float, unmade: float) -> None:
    b = Network(seed)
    graph = b.pair(kind, floats)
    cleared(graph, 0, rows=np.flatnonzero(b.rng.random(32) < unmade))
    cleared(graph, 1, columns=np.flatnonzero(b.rng.random(32) < unread))
    check(graph, remove_dead, rtol=1e-5 if floats else None)


CONFIG = EncoderConfig(layers=1, hidden=32, heads=4, intermediate=64, vocab=50, max_position=16)


@pytest.mark.parametrize("form", ["fp32", "qdq", "sparseml"])
@pytest.mark.parametrize("dead", [(1,), (0, 2, 3), (0, 1, 2, 3)], ids=str)
def test_heads_that_nobody_reads_go(tmp_path: Path, form: Any, dead: tuple[int, ...]) -> None:
    """Of a whole encoder, with its mask; results are those of all heads."""
    model = write_random(tmp_path / "m.onnx", CONFIG, form, Export(), seed=3)
    graph = before(model.path, lambda g: _without_heads(g, dead))
    after = remove_dead(graph)
    (attention,) = (n for n in after.nodes if n.op == "attention")
    assert attention.attrs["heads"] == max(4 - len(dead), 1)
    width = 8 * attention.attrs["heads"]
    assert shapes(after)[:4] == [(width, 32)] * 3 + [(32, width)]
    inputs = arrays_for(graph)
    pairs = zip(interpret(graph, inputs), interpret(after, inputs), strict=True)
    for want, have in pairs:
        np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-5)


def before(path: Path, change: Callable[[Graph], None]) -> Graph:
    """The graph of a model as the pass meets it, with other weights."""
    model = frontend.load_model(path)
    signature = frontend.signature(model)
    (graph,) = settle_buckets(model, signature, [8]).graphs
    for name, transform in passes.PIPELINE:
        if name == "remove_dead":
            break
        graph = transform(graph)
    change(graph)
    return graph


def _without_heads(graph: Graph, dead: tuple[int, ...]) -> None:
    """Clear what reads the output of these heads."""
    layers = [n for n in graph.nodes if n.op in ("linear", "qlinear")]
    w = graph.constants[layers[3].inputs[1]].copy()
    for head in dead:
        w[:, 8 * head : 8 * head + 8] = 0
    graph.constants[layers[3].inputs[1]] = w  # type: ignore[index]
