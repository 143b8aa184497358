"""Heads, channels and 4-blocks that go together: plans, solving, training, files."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch", reason="the extra sparsec[sparsify] is not installed")

import torch

import sparsec
from sparsec.compiler.frontend import load_model
from sparsec.pruning import blocks, job, oneshot
from sparsec.pruning.evaluation.parts import Latency
from sparsec.pruning.gram import Moments
from sparsec.pruning.oneshot import Form, block_sparsity
from sparsec.pruning.planner import (
    Blocks,
    Channels,
    Mixed,
    Option,
    Plan,
    Planner,
    frontier,
)
from sparsec.pruning.planning import Planning
from sparsec.pruning.structure import Site, Unit
from sparsec.pruning.survey import Surveyed
from sparsec.pruning.training import masks
from sparsec.pruning.units import SurveyedSite
from tests.pipelines_support import make
from tests.test_evaluate import sentences

LADDER = (0.5, 0.8)


def milliseconds(outputs: int, inputs: int, density: float) -> float:
    return outputs * inputs * (0.1 + density) * 1e-3


def surveyed(seed: int) -> tuple[list[Surveyed], list[SurveyedSite]]:
    """A layer of its own, and a site of a reader and a maker."""
    rng = np.random.default_rng(seed)

    def errors(keys: Any) -> dict[Any, float]:
        return dict(zip(keys, np.cumsum(rng.random(len(keys))).tolist(), strict=True))

    layers = [
        Surveyed(name, n, k, {0.0: 0.0, **errors(LADDER)})
        for name, n, k in (("alone", 32, 64), ("maker", 48, 32), ("reader", 32, 48))
    ]
    units = tuple(Unit({"maker": (i,)}, (i,)) for i in range(48))
    site = SurveyedSite(
        Site("reader", ("maker",), units), tuple(rng.permutation(48).tolist()),
        {48: 0.0, **errors((32, 16))}, {"reader": (32, 48), "maker": (48, 32)},
    )  # fmt: skip
    return layers, [site]


def every_plan(layers: list[Surveyed], found: list[SurveyedSite]) -> list[tuple[float, float]]:
    """Milliseconds and error of all plans."""
    (site,) = found
    made = []
    for kept, lost in site.errors.items():
        shapes = {"alone": (32, 64), **site.shapes_with(kept)}
        for shares in itertools.product((0.0, *LADDER), repeat=3):
            chosen = dict(zip((one.name for one in layers), shares, strict=True))
            time = sum(milliseconds(*shapes[name], 1 - s) for name, s in chosen.items())
            made.append((time, lost + sum(one.errors[chosen[one.name]] for one in layers)))
    return made


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.05, 1.1))
def test_a_mixture_is_the_best_of_all_plans(seed: int, share: float) -> None:
    layers, found = surveyed(seed)
    planner = Mixed(layers, found, milliseconds)
    plans = every_plan(layers, found)
    fastest = min(time for time, _ in plans)
    assert planner.dense == pytest.approx(max(time for time, _ in plans))
    assert planner.fastest().milliseconds == pytest.approx(fastest)
    budget = share * planner.dense
    made = planner.within(budget)
    fitting = [error for time, error in plans if time <= budget]
    if not fitting:
        assert made.milliseconds == pytest.approx(fastest)
        return
    assert made.milliseconds <= budget * 1.001
    # Times are rounded up to small steps.
    near = [error for time, error in plans if time <= budget - (budget - fastest) * 3e-3]
    assert made.error <= min(near, default=float("inf")) + 1e-9
    assert made.error >= min(fitting) - 1e-9
    rest = milliseconds(32, 64, 1.0)
    others: list[Planner] = [Blocks(layers, milliseconds), Channels(found, milliseconds, rest)]
    for other in others:
        one = other.within(budget - (budget - fastest) * 3e-3)
        if one.milliseconds <= budget:
            assert made.error <= one.error + 1e-9


@given(
    st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9)), min_size=1, max_size=600),
)
def test_a_frontier_holds_what_nothing_else_beats(pairs: list[tuple[float, float]]) -> None:
    options = [Option(time, error, {}) for time, error in pairs]
    found = frontier(options)
    assert found == sorted(found, key=lambda one: -one.milliseconds)
    assert [one.error for one in found] == sorted(one.error for one in found)
    assert found[-1].milliseconds == min(time for time, _ in pairs)
    assert found[0].error == min(error for _, error in pairs)
    for one in found:
        assert not any(a.milliseconds <= one.milliseconds and a.error < one.error for a in options)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(2, 9), columns=st.integers(3, 24), sparsity=st.sampled_from([0.0, 0.3, 0.7]),
    quantize=st.booleans(), data=st.data(),
)  # fmt: skip
def test_what_is_left_is_at_its_best(
    rows: int, columns: int, sparsity: float, quantize: bool, data: st.DataObject
) -> None:
    def some(count: int) -> tuple[int, ...] | None:
        chosen = data.draw(st.none() | st.sets(st.integers(0, count - 1), min_size=1))
        return None if chosen is None else tuple(sorted(chosen))

    form = Form(sparsity, some(columns), some(rows), quantize)
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.standard_normal((200, columns)), dtype=torch.float32)
    dense = torch.tensor(rng.standard_normal((rows, columns)), dtype=torch.float32)
    moments = Moments(columns, rows)
    moments.add(x, x @ dense.T, torch.ones(len(x), dtype=torch.bool))
    made = oneshot.solve(moments, dense, form, oneshot.Settings(damping=1e-6))
    stay, read = form.places(dense.shape)
    real = made.weights.float()
    if made.scale is not None:
        real = real * made.scale.reshape(-1, 1)
    gone = torch.ones_like(dense, dtype=torch.bool)
    gone[stay[:, None], read] = False
    assert not real[gone].any()
    inner = real[stay][:, read]
    size = len(stay) * -(-len(read) // blocks.BLOCK)
    assert blocks_used(inner) <= size - round(sparsity * size)
    if quantize:
        return
    # Nothing that is left could be moved to do better.
    centered = x - x.mean(0)
    left = ((real - dense) @ centered.T @ centered / len(x))[real != 0].abs()
    assert not left.numel() or float(left.max()) < 2e-3


def blocks_used(weights: torch.Tensor) -> int:
    filled = torch.nn.functional.pad(weights, (0, -weights.shape[1] % blocks.BLOCK))
    return int((filled.reshape(len(weights), -1, blocks.BLOCK) != 0).any(-1).sum())


def test_blocks_are_counted_as_they_lie_in_the_file() -> None:
    weights = torch.zeros(2, 12)
    weights[:, [1, 4, 6, 11]] = 1  # the channels that are left: one block of each row
    assert block_sparsity(weights) == 1 - 2 / 6
    assert block_sparsity(torch.ones(2, 12)) == 0
    assert block_sparsity(torch.zeros(2, 12)) == 1


@pytest.mark.parametrize("target", [0.3, 0.6])
def test_training_prunes_blocks_as_they_lie_in_the_file(target: float) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(6, 16, generator=generator)
    order = torch.randperm(16, generator=generator)
    moments = torch.eye(16)
    mask = torch.ones(6, 16, dtype=torch.bool)
    found = masks.choose(weight, moments, mask, target, None, order)
    assert torch.equal(found[:, order], masks.choose(weight[:, order], moments, mask, target))
    assert float(found.float().mean()) == pytest.approx(1 - round(24 * target) / 24)


@pytest.mark.parametrize("steps", [None, pytest.param(4, marks=pytest.mark.slow)])
def test_a_file_of_both(steps: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = tmp_path / "dense"
    make(dense, "sequence-classification", labels=["bad", "good", "neither"])
    plans: list[Plan] = []

    def chosen(self: Planning, planner: Planner, speedup: float) -> Plan:
        assert isinstance(planner, Mixed)
        # Something of each, whatever the survey says.
        readers = [site.site for site in planner.sites]
        kept = {one.reader: tuple(range(0, len(one.units), 2)) for one in readers}
        plans.append(Plan({layer.name: 0.5 for layer in self.pruned}, kept))
        with self.sketches() as sketches:
            folder = sketches._write(plans[0])
            # The pooler is whole.
            assert blocks_of(folder) == pytest.approx(0.5 * 8 / 9, abs=0.02)
        return plans[0]

    took = Latency(1.0, 1.0, 1, (8,), (1.0,))
    monkeypatch.setattr(job.Sketches, "against", lambda *args: (took, took))
    monkeypatch.setattr(Planning, "_for_speedup", chosen)
    made = sparsec.sparsify(
        dense, texts=sentences(80), output=tmp_path / "out", speedup=2, form="auto", steps=steps,
        minutes=0, engine="onnxruntime", seconds=0,
    )  # fmt: skip
    assert made.path is not None and not any("zeros" in line for line in made.warnings)
    sizes = [weights(folder) for folder in (dense, made.path)]
    assert 0.4 < sizes[1] / sizes[0] < 0.65
    assert blocks_of(made.path) == pytest.approx(0.5 * 8 / 9, abs=0.05)
    assert made.sparsity > 0.7


def matrices(folder: Path) -> list[np.ndarray]:
    model = load_model(folder)
    return [
        model.array(t)
        for t in model.proto.graph.initializer
        if len(t.dims) == 2 and "embeddings" not in t.name and min(t.dims) >= 16
    ]


def weights(folder: Path) -> int:
    return sum(one.size for one in matrices(folder))


def blocks_of(folder: Path) -> float:
    """Share of 4-blocks of a file's int8 matrices that are zero."""
    zero = count = 0
    for one in matrices(folder):
        if one.dtype != np.int8:
            continue
        stored = torch.tensor(one.T)  # [inputs, outputs] in the file
        count += len(stored) * -(-stored.shape[1] // blocks.BLOCK)
        zero += len(stored) * -(-stored.shape[1] // blocks.BLOCK) - blocks_used(stored)
    return zero / count
