"""Random graphs over tokens: in a longer bucket they give what they give at the length itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import sparsec
from sparsec.compiler import frontend, optimize, settle_buckets
from sparsec.compiler.interpreter import interpret
from tests.frontend_support import FLOAT, INT64, model_proto, node
from tests.ort_reference import session

C, VOCAB, BUCKET = 4, 20, 10


class Grower:
    """A graph in the making: names of values by what they are.

    ``t`` [b, s, C], ``m`` [b, s] numbers for tokens, ``p`` [b, C], ``s`` [b, s, s] scores.
    """

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Any] = {"table": self.numbers(VOCAB, C)}
        self.values: dict[str, list[str]] = {"t": [], "m": [], "p": [], "s": []}
        self.masks = bool(self.rng.integers(2))
        self.add("t", "Gather", "table", "input_ids")
        if self.masks:
            self.values["m"].append(self.made("Cast", "mask", to=FLOAT))

    def numbers(self, *shape: int) -> np.ndarray:
        return self.rng.uniform(-1, 1, shape).astype(np.float32)

    def constant(self, array: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(array)
        return name

    def made(self, op: str, *inputs: str, **attrs: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(node(op, " ".join(inputs), name, **attrs))
        return name

    def add(self, kind: str, op: str, *inputs: str, **attrs: Any) -> None:
        self.values[kind].append(self.made(op, *inputs, **attrs))

    def pick(self, kind: str) -> str:
        return str(self.rng.choice(self.values[kind][-3:]))

    def grow(self) -> None:
        """One step; KeyError-free: steps whose operands are missing do nothing."""
        step = STEPS[int(self.rng.integers(len(STEPS)))]
        needs, function = step
        if all(self.values[kind] for kind in needs):
            function(self, *(self.pick(kind) for kind in needs))


def _project(g: Grower, t: str) -> None:
    g.add("t", "Tanh", g.made("MatMul", t, g.constant(g.numbers(C, C))))


def _scores(g: Grower, a: str, b: str) -> None:
    g.add("s", "MatMul", a, g.made("Transpose", b, perm=[0, 2, 1]))


def _mask_scores(g: Grower, s: str, m: str) -> None:
    far = g.constant(np.float32(g.rng.choice([-1e4, -3e38, -5.0])))
    drop = g.made("Mul", g.made("Sub", g.constant(np.float32(1)), m), far)
    axis = int(g.rng.choice([1, 1, 2]))
    g.add("s", "Add", s, g.made("Unsqueeze", drop, g.constant([axis])))


def _attend(g: Grower, s: str, t: str) -> None:
    g.add("t", "MatMul", g.made("Softmax", s, axis=-1), t)


def _pool(g: Grower, t: str) -> None:
    op = str(g.rng.choice(["ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2"]))
    g.add("p", op, t, g.constant([1]), keepdims=0)


def _mean(g: Grower, t: str, m: str) -> None:
    weighted = g.made("Mul", t, g.made("Unsqueeze", m, g.constant([2])))
    g.add("p", "ReduceSum", weighted, g.constant([1]), keepdims=0)


def _take(g: Grower, t: str) -> None:
    g.add("p", "Gather", t, g.constant(int(g.rng.choice([0, -1]))), axis=1)


def _spread(g: Grower, t: str, p: str) -> None:
    g.add("t", "Tanh", g.made("Add", t, g.made("Unsqueeze", p, g.constant([1]))))


def _weigh(g: Grower, t: str, m: str) -> None:
    g.add("t", "Mul", t, g.made("Unsqueeze", m, g.constant([2])))


def _measure(g: Grower, t: str) -> None:
    g.add("m", "Sigmoid", g.made("ReduceSum", t, g.constant([2]), keepdims=0))


def _running(g: Grower, t: str) -> None:
    running = g.made("CumSum", t, g.constant(1), reverse=int(g.rng.integers(2)))
    g.add("t", "Tanh", running)


def _normalize(g: Grower, m: str) -> None:
    g.add("m", "Softmax", m, axis=1)


def _convolve(g: Grower, t: str) -> None:
    turned = g.made("Transpose", t, perm=[0, 2, 1])
    found = g.made("Conv", turned, g.constant(g.numbers(C, C, 3)), pads=[1, 1])
    g.add("t", "Tanh", g.made("Transpose", found, perm=[0, 2, 1]))


def _shift(g: Grower, t: str) -> None:
    start = g.made("Slice", t, *map(g.constant, ([1], [2**31 - 1], [1])))
    g.add("t", "Pad", start, g.constant([0, 0, 0, 0, 1, 0]))


def _first(g: Grower, t: str) -> None:
    turned = g.made("Transpose", t, perm=[1, 0, 2])
    g.add("t", "Transpose", g.made("Relu", turned), perm=[1, 0, 2])


def _rows(g: Grower, t: str) -> None:
    flat = g.made("Reshape", t, g.constant([-1, C]))
    top = g.made("ReduceMax", flat, g.constant([0]))
    g.add("t", "Tanh", g.made("Sub", t, top))


STEPS: list[tuple[str, Callable[..., None]]] = [
    ("t", _project),
    ("tt", _scores),
    ("sm", _mask_scores),
    ("st", _attend),
    ("t", _pool),
    ("tm", _mean),
    ("t", _take),
    ("tp", _spread),
    ("tm", _weigh),
    ("t", _measure),
    ("t", _running),
    ("m", _normalize),
    ("t", _convolve),
    ("t", _shift),
    ("t", _first),
    ("t", _rows),
]


def grown(seed: int, steps: int) -> tuple[onnx.ModelProto, bool]:
    """A model of random steps, and whether it has a mask."""
    g = Grower(seed)
    for _ in range(steps):
        g.grow()
    kind = "p" if g.values["p"] and g.rng.integers(2) else "t"
    output = (g.values[kind][-1], FLOAT, [0, 0] if kind == "p" else [0, 0, 0])
    tokens = [("input_ids", INT64, ["batch", "sequence"])]
    tokens += [("mask", INT64, ["batch", "sequence"])] if g.masks else []
    return model_proto(g.nodes, tokens, [output], g.constants, opset=18), g.masks


def feed(seed: int, batch: int, length: int, masks: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    given = {"input_ids": rng.integers(0, VOCAB, (batch, length))}
    if masks:
        given["mask"] = rng.integers(0, 2, (batch, length))
        given["mask"][:, int(rng.integers(length))] = 1  # no sequence is dropped whole
    return given


def _run(path: Path, seed: int, masks: bool, run: Any) -> None:
    reference = session(path)
    for length in (1, 3, 7, BUCKET):
        given = feed(seed + length, 2, length, masks)
        (want,) = reference.run(None, given)
        got = run(list(given.values()), length)[tuple(map(slice, want.shape))]
        scale = max(1.0, float(np.abs(want).max()))
        error = f"seed {seed} at {length}"
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-4 * scale, err_msg=error)


def test_interpreted(tmp_path: Path) -> None:
    kinds = {"masked": 0, "lengths": 0, "exact": 0}
    path = tmp_path / "model.onnx"
    for seed in range(150):
        model, masks = grown(seed, 8)
        onnx.save(model, path)
        loaded = frontend.load_model(path)
        settled = settle_buckets(loaded, frontend.signature(loaded), [BUCKET])
        kinds[settled.kind] += 1
        if settled.kind == "exact":
            continue
        (graph,) = optimize(settled)

        def run(arrays: list[np.ndarray], length: int, graph: Any = graph) -> np.ndarray:
            whole = [np.pad(a, ((0, 0), (0, BUCKET - length))) for a in arrays]
            return interpret(graph, whole, [length] * 2)[0]

        _run(path, seed, masks, run)
    assert kinds["masked"] > 10 and kinds["lengths"] > 60, kinds
    assert kinds["exact"] < 15, kinds


@pytest.mark.slow
def test_compiled(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for seed in range(1000, 1025):
        model, masks = grown(seed, 8)
        onnx.save(model, path)
        artifact = sparsec.compile(path, buckets=[BUCKET], output=tmp_path / "m", force=True)
        if artifact.manifest.padding.kind == "exact":
            continue
        with sparsec.Engine(artifact) as engine:
            _run(path, seed, masks, lambda arrays, _, engine=engine: engine.run(arrays)[0])
