"""Chains of ONNX nodes over tokens: optimized graphs and compiled code give what ONNX Runtime does.

A seed gives the same chain again.  The tolerance is that of single nodes.
"""

from __future__ import annotations

import contextlib
import importlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import sparsec
from sparsec.compiler import frontend, optimize, settle_buckets
from sparsec.compiler.interpreter import interpret
from sparsec.compiler.ir import Graph
from tests.conformance.cases import Case, feeds, merged
from tests.conformance.runner import judge
from tests.fuzz.chains import BATCH, LENGTH, MOTIFS, SINGLE, Chain, Motif, chain
from tests.fuzz.graphs import Misfit
from tests.fuzz.test_random_graphs import RUNNABLE
from tests.ort_reference import session

FEW, MANY = range(60), range(60, 2000)
COMPILED, MORE_COMPILED = range(10), range(10, 250)
GROUP = 40
"""Chains that are compiled as one model."""

TOLERANCE = 2e-5
LONGER = 16
"""A bucket in which sequences are filled up."""


@dataclass(frozen=True)
class Known:
    """A chain, and what ONNX Runtime makes of it."""

    case: Case
    fixed: bool

    @staticmethod
    def of(seed: int, folder: Path) -> Known:
        drawn = chain(seed)
        model, path = drawn.model(), folder / "chain.onnx"
        onnx.save(model, path)
        inputs = tuple(v.array for v in drawn.inputs)
        given = {v.name: v.array for v in drawn.inputs}
        outputs = tuple(np.asarray(array) for array in session(path).run(None, given))
        # Where an output's numbers are large, so are those that they are sums of.
        largest = max(1.0, *(float(np.abs(a[np.isfinite(a)]).max(initial=0)) for a in outputs))
        name = f"seed {seed} ({', '.join(node.op_type for node in model.graph.node)})"
        case = Case(name, "chain", model, inputs, outputs, TOLERANCE, TOLERANCE * largest)
        return Known(case, drawn.fixed)


def known(seeds: Sequence[int]) -> Iterator[Known]:
    with tempfile.TemporaryDirectory() as folder, np.errstate(all="ignore"):
        for seed in seeds:
            yield Known.of(seed, Path(folder))


def optimized(one: Known, folder: Path, length: int) -> tuple[str, Graph]:
    """What becomes of padding, and the graph for a length; of a chain of a fixed one, for that."""
    path = folder / "chain.onnx"
    onnx.save(one.case.proto, path)
    model = frontend.load_model(path)
    signature = frontend.signature(model)
    settled = settle_buckets(model, signature, [length] if signature.has_sequence else [])
    (graph,) = optimize(settled)
    return settled.kind, graph


def check_interpreted(seeds: Sequence[int], folder: Path) -> Counter[str]:
    """Compare at the sequences' own length and in a longer bucket; returns what was met."""
    faults, met = [], Counter[str]()
    for one in known(seeds):
        case = one.case
        _, graph = optimized(one, folder, LENGTH)
        met.update({node.op for node in graph.nodes})
        lengths = [[LENGTH] * BATCH] if graph.length else []
        if fault := judge(case, interpret(graph, case.inputs, *lengths)).fault:
            faults.append(f"{case.name}: {fault}")
        if one.fixed or not graph.length:
            continue
        kind, graph = optimized(one, folder, LONGER)
        met[kind] += 1
        if kind != "exact":
            wide = [np.pad(a, _behind(a.ndim)) for a in case.inputs]
            found = interpret(graph, wide, *lengths)
            cut = [a[tuple(map(slice, b.shape))] for a, b in zip(found, case.outputs, strict=True)]
            if fault := judge(case, cut).fault:
                faults.append(f"{case.name}, padded ({kind}): {fault}")
    assert not faults, "\n".join(faults)
    return met


def _behind(rank: int) -> list[tuple[int, int]]:
    return [(0, 0), (0, LONGER - LENGTH), *[(0, 0)] * (rank - 2)]


def check_compiled(seeds: Sequence[int], target: str, folder: Path) -> set[str]:
    """Compare compiled code; returns the kinds of kernels that ran."""
    faults, kinds = [], set()
    for fixed in (False, True):
        cases = [one.case for one in known(seeds) if one.fixed == fixed]
        for start in range(0, len(cases), GROUP):
            some = cases[start : start + GROUP]
            onnx.save(merged(some), folder / "chains.onnx")
            buckets = {} if fixed else {"buckets": [LENGTH]}
            artifact = sparsec.compile(
                folder / "chains.onnx", output=folder / "c.sparsec", force=True, target=target,
                **buckets,
            )  # fmt: skip
            kinds |= {k.kernel.split("_")[0] for b in artifact.manifest.buckets for k in b.kernels}
            with sparsec.Engine(artifact.path, num_cores=2) as engine:
                outputs = iter(engine.run(feeds(some, engine.input_names)))
            for case in some:
                if fault := judge(case, [next(outputs) for _ in case.outputs]).fault:
                    faults.append(f"{case.name}: {fault}")
    assert not faults, "\n".join(faults)
    return kinds


def test_optimized_graphs_are_what_onnx_runtime_gives(tmp_path: Path) -> None:
    met = check_interpreted(FEW, tmp_path)
    wanted = {"layernorm", "gelu", "attention", "linear", "qlinear", "extremes", "matmul"}
    assert wanted <= set(met), met
    assert met["masked"] > 10 and met["lengths"] > 10, met


@pytest.mark.slow
def test_many_optimized_graphs(tmp_path: Path) -> None:
    check_interpreted(MANY, tmp_path)


@pytest.mark.parametrize("target", ["generic", "auto"])
def test_compiled_chains(tmp_path: Path, target: str) -> None:
    kinds = check_compiled(COMPILED, target, tmp_path)
    assert {"general", "linear", "map"} <= kinds


@pytest.mark.slow
@pytest.mark.optimized
@pytest.mark.parametrize("target", RUNNABLE)
def test_many_compiled_chains(tmp_path: Path, target: str) -> None:
    kinds = check_compiled(MORE_COMPILED, target, tmp_path)
    assert {"general", "linear", "map", "attention"} <= kinds


@pytest.mark.parametrize("motif", sorted({*MOTIFS, *SINGLE}, key=lambda motif: motif.__name__))
def test_every_motif_is_drawn(motif: Motif) -> None:
    """And what it is made of is known to ONNX's reference: else it would be left out, silently."""
    made = 0
    for seed in range(20):
        g = Chain(np.random.default_rng(seed))
        g.values.append(g.input(g.numbers("float32", (BATCH, LENGTH, 8))))
        with contextlib.suppress(Misfit):
            motif(g)
            made += 1
    assert made > 10


def test_a_wrong_pass_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that leaves out channels that somebody reads."""
    removal = importlib.import_module("sparsec.compiler.passes.remove_dead")._Removal

    def first_four(self: Any, site: Any) -> np.ndarray:
        return np.arange(self._weights(site.readers[0]).shape[1]) < 4

    monkeypatch.setattr(removal, "_unread", first_four)
    with pytest.raises(AssertionError, match="is off by"):
        check_interpreted(FEW[:20], tmp_path)
