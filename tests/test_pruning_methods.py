"""The pruning methods against brute-force answers on small matrices."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # small matrices: threads would only wait for each other

from sparsec.errors import InputError  # noqa: E402
from sparsec.pruning import blocks, channels, gram, masks, removal  # noqa: E402
from sparsec.pruning.allocation import Choice, fastest, least_error  # noqa: E402
from sparsec.pruning.gram import Moments  # noqa: E402
from sparsec.pruning.least_squares import (  # noqa: E402
    Problem,
    choose_damping,
    make_problem,
    solve_rows,
)
from sparsec.pruning.ranges import Histogram, Rounding, search  # noqa: E402
from sparsec.pruning.rounding import round_weights, search_scale  # noqa: E402
from sparsec.pruning.smoothing import Extremes  # noqa: E402
from sparsec.pruning.smoothing import choose as choose_factors  # noqa: E402

SEEDS = st.integers(0, 2**31)


def random_rows(seed: int, outputs: int, width: int, samples: int = 200):
    """Correlated inputs, so that compensation matters: x, y, w."""
    rng = np.random.default_rng(seed)
    hidden = max(1, width // 3)
    x = rng.standard_normal((samples, hidden)) @ rng.standard_normal((hidden, width))
    x += rng.standard_normal((samples, width)) + rng.standard_normal(width)
    w = rng.standard_normal((outputs, width))
    y = x @ w.T + rng.standard_normal(outputs) + 0.1 * rng.standard_normal((samples, outputs))
    return tuple(torch.from_numpy(v) for v in (x, y, w))


def random_problem(seed: int, outputs: int, width: int, damping: float = 0.01) -> Problem:
    x, y, w = random_rows(seed, outputs, width)
    moments = Moments(width, outputs)
    moments.add(x[:100], y[:100])
    moments.add(x[100:], y[100:])
    return make_problem(moments.centered(), w, damping)


def brute_force(problem: Problem, keep: np.ndarray, row: int) -> tuple[np.ndarray, float]:
    """Least squares over kept columns through a root of the Hessian: (weights, loss)."""
    values, vectors = np.linalg.eigh(problem.hessian.numpy())
    root = (vectors * np.sqrt(values)).T
    wanted = root @ problem.weights[row].numpy()
    solution, *_ = np.linalg.lstsq(root[:, keep], wanted, rcond=None)
    weights = np.zeros(len(keep))
    weights[keep] = solution
    return weights, float(np.square(root @ weights - wanted).sum())


def columns(kept: tuple[int, ...], block: int, width: int) -> np.ndarray:
    mask = np.zeros(width, bool)
    for b in kept:
        mask[b * block : (b + 1) * block] = True
    return mask


# Moments and least squares


@settings(max_examples=10, deadline=None)
@given(SEEDS, st.integers(1, 3), st.booleans())
def test_moments_are_those_of_the_weighted_rows(seed: int, calls: int, weighted: bool) -> None:
    x, y, w = random_rows(seed, 3, 5, 60)
    x = x + 100  # far from zero: float32 products would lose the variance
    count = torch.from_numpy(np.random.default_rng(seed).integers(0, 3, 60)).double()
    count[0] = 1
    moments = Moments(5, 3)
    for part in np.array_split(np.arange(60), calls):
        bad = x.float()[part]
        if weighted:
            bad[count[part] == 0] = torch.nan
        moments.add(bad, y.float()[part], count[part] if weighted else None)
    got = moments.centered()
    rows = np.repeat(np.arange(60), count.long().numpy() if weighted else 1)
    cov = np.cov(np.concatenate([x[rows], y[rows]], axis=1).T, bias=True)
    assert np.allclose(got.xx, cov[:5, :5], rtol=1e-3, atol=1e-3)
    assert np.allclose(got.yx, cov[5:, :5], rtol=1e-3, atol=1e-3)
    assert np.allclose(got.variance, cov.diagonal()[5:], rtol=1e-3, atol=1e-3)
    assert np.allclose(got.x_mean, x[rows].mean(0), rtol=1e-5)
    residual = y[rows] - x[rows] @ w.T
    assert np.allclose(got.error(w), residual.var(0, unbiased=False), rtol=1e-2, atol=5e-3)
    assert np.allclose(got.bias(w), residual.mean(0), atol=1e-2)


def test_targets_through_a_layer_are_its_outputs() -> None:
    x, _, w = random_rows(3, 4, 6)
    bias = torch.arange(4.0)
    shared, same, direct = Moments(6), Moments(6, 6), Moments(6, 4)
    for part in (slice(0, 120), slice(120, 200)):
        shared.add(x[part])
        same.add(x[part], x[part])
        direct.add(x[part], x[part] @ w.T + bias)
    pairs = [(shared.through(w, bias), direct), (shared, same)]
    for got, wanted in [(one.centered(), two.centered()) for one, two in pairs]:
        for name in ("count", "x_mean", "y_mean", "xx", "yx", "variance"):
            assert np.allclose(getattr(got, name), getattr(wanted, name)), name
    with pytest.raises(ValueError, match="of their own"):
        direct.through(w)
    with pytest.raises(ValueError, match="inputs alone"):
        direct.add(x)
    with pytest.raises(ValueError, match="inputs alone"):
        shared.add(x, x)
    with pytest.raises(ValueError, match="no row"):
        Moments(3, 3).centered()


def test_moments_are_the_same_in_batches_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows wait until they are many, in the fold that they belong to."""
    x, y, _ = random_rows(5, 3, 6, 400)
    found = []
    for fewest, rows in ((1, 4096), (64, 48), (10_000, 150)):
        monkeypatch.setattr(gram, "FEWEST", fewest)
        monkeypatch.setattr(gram, "ROWS", rows)
        moments = Moments(6, 3)
        for part in np.array_split(np.arange(400), 11):
            moments.add(x[part], y[part])
        found.append([moments.centered(folds) for folds in ([0], [1], None)])
    for made in found[1:]:
        for got, wanted in zip(made, found[0], strict=True):
            for name in ("count", "x_mean", "y_mean", "xx", "yx", "variance"):
                assert np.allclose(getattr(got, name), getattr(wanted, name)), name


def test_the_dense_problem_is_solved_exactly() -> None:
    x, _, w = random_rows(0, 5, 8)
    moments = Moments(8, 5)
    moments.add(x, x @ w.T + 3)
    problem = make_problem(moments.centered(), torch.zeros_like(w), 1e-9)
    assert np.allclose(problem.weights, w, atol=1e-6)
    assert np.allclose(problem.data.bias(problem.weights), 3)
    assert problem.data.relative_error(w) < 1e-9
    held = make_problem(moments.centered(), 2 * w, 1e9)
    assert np.allclose(held.weights, 2 * w, atol=1e-6)


def test_what_float32_leaves_indefinite_is_damped_until_it_is_not() -> None:
    x, y, w = random_rows(0, 3, 12)
    moments = Moments(12, 3)
    moments.add(x, y)
    data = moments.centered()
    least = torch.linalg.eigvalsh(data.xx)[0]
    data.xx.diagonal().sub_(1.5 * least)
    problem = make_problem(data, w, 1e-6)
    assert float(torch.linalg.eigvalsh(problem.hessian)[0]) > 0
    assert float(0.5 * least) < problem.damping < float(5 * least)
    strength = problem.hessian - data.xx
    assert torch.allclose(strength, problem.damping * torch.eye(12, dtype=strength.dtype))


def test_weights_of_dead_inputs_are_zero() -> None:
    x, _, w = random_rows(0, 5, 8)
    x[:, 3] = 2.5
    moments = Moments(8, 5)
    moments.add(x, x @ w.T)
    problem = make_problem(moments.centered(), w, 0.01)
    assert float(problem.weights[:, 3].abs().max()) < 1e-9
    assert np.allclose(problem.data.bias(problem.weights), 2.5 * w[:, 3], atol=0.3)


@settings(max_examples=10, deadline=None)
@given(SEEDS, st.integers(1, 6), st.integers(1, 20))
def test_rows_are_solved_exactly_on_any_mask(seed: int, outputs: int, width: int) -> None:
    problem = random_problem(seed, outputs, width)
    keep = np.random.default_rng(seed).random((outputs, width)) < 0.5
    mask = torch.from_numpy(keep)
    got = solve_rows(problem.hessian, problem.weights, mask, close=1e-9)
    about = solve_rows(problem.hessian, problem.weights, mask)
    for row in range(outputs):
        weights, loss = brute_force(problem, keep[row], row)
        assert np.allclose(got[row], weights, atol=1e-7)
        for found in (got, about):
            assert np.isclose(problem.loss(found)[row], loss, rtol=1e-6, atol=1e-9)
            assert not found[row][~mask[row]].any()


def test_little_data_wants_more_damping() -> None:
    def chosen(samples: int) -> float:
        rng = np.random.default_rng(1)
        w = torch.from_numpy(rng.standard_normal((20, 60)))
        moments = Moments(60, 20)
        for _ in range(2):
            x = torch.from_numpy(rng.standard_normal((samples, 60)))
            moments.add(x, x @ w.T + 5 * torch.from_numpy(rng.standard_normal((samples, 20))))
        return choose_damping(moments, torch.zeros_like(w), dampings=(1e-4, 1e-2, 1.0))

    assert chosen(70) > chosen(20_000)


def test_a_pruned_layer_wants_more_damping_than_a_dense_one() -> None:
    rng = np.random.default_rng(0)
    w = torch.from_numpy(rng.standard_normal((20, 40)))
    mixed = rng.standard_normal((10, 40))
    moments = Moments(40, 20)
    for _ in range(2):
        x = torch.from_numpy(rng.standard_normal((60, 10)) @ mixed + rng.standard_normal((60, 40)))
        moments.add(x, x @ w.T)  # nothing is lost before this layer: dense, any damping is good
    keep = blocks.likely_mask(moments.centered(), w, 0.5)
    assert int(keep.sum()) == 400 and keep.view(20, 10, 4).all(2).equal(keep.view(20, 10, 4).any(2))
    assert choose_damping(moments, w, keep) > 1e-3


# Blocks


@settings(max_examples=10, deadline=None)
@given(SEEDS, st.sampled_from([1, 2, 4]), st.integers(2, 5))
def test_saliency_is_the_loss_of_the_best_weights_without_a_block(
    seed: int, block: int, count: int
) -> None:
    problem = random_problem(seed, 2, block * count)
    inverse = torch.linalg.inv(problem.hessian)
    got = removal.saliency(problem.weights, inverse.expand(2, -1, -1), block)
    for row, b in itertools.product(range(2), range(count)):
        kept = columns(tuple(i for i in range(count) if i != b), block, block * count)
        assert np.isclose(got[row, b], brute_force(problem, kept, row)[1], rtol=1e-6)


@settings(max_examples=10, deadline=None)
@given(SEEDS, st.sampled_from([1, 2, 4]), st.integers(3, 6), st.sampled_from([0.0, 0.4]))
def test_costs_add_up_to_the_loss_and_each_step_is_the_cheapest(
    seed: int, block: int, count: int, rate: float
) -> None:
    width = block * count
    problem = random_problem(seed, 3, width)
    found = removal.removal_order(problem, block, count, rate)
    assert (found.order.sort(1).values == torch.arange(count)).all()
    for row in range(3):
        gone: list[int] = []
        for step in range(count):
            left = [b for b in range(count) if b not in gone]
            losses = {
                b: brute_force(problem, columns(tuple(set(left) - {b}), block, width), row)[1]
                for b in left
            }
            if rate == 0:
                assert losses[int(found.order[row, step])] <= min(losses.values()) * (1 + 1e-3)
            gone.append(int(found.order[row, step]))
            if rate == 0 or step == count - 1:
                total = float(found.cost[row, : step + 1].sum())
                assert np.isclose(total, losses[gone[-1]], rtol=1e-3)


def best_supports(problem: Problem, block: int, kept: int) -> float:
    """The least loss of any supports with so many blocks a row."""
    rows, width = problem.weights.shape
    sets = itertools.combinations(range(width // block), kept)
    masks_ = [columns(s, block, width) for s in sets]
    return sum(min(brute_force(problem, m, row)[1] for m in masks_) for row in range(rows))


def _pruned(problem: Problem, sparsity: float, **options: Any) -> blocks.Pruned:
    return blocks.solve(problem, blocks.support(problem, sparsity, **options))


@settings(max_examples=6, deadline=None)
@given(SEEDS, st.sampled_from(["layer", "row"]))
def test_pruned_between_the_best_support_and_magnitude(seed: int, scope: blocks.Scope) -> None:
    problem = random_problem(seed, 4, 24)
    greedy = blocks.ladder(problem, [0.5], scope=scope, rate=0.0)[0]
    assert greedy.sparsity == 0.5
    got = _pruned(problem, 0.5, scope=scope, sweeps=2)
    assert got.loss.sum() <= _pruned(problem, 0.5, scope=scope).loss.sum() * (1 + 1e-6)
    assert got.sparsity == 0.5
    assert (got.weights.view(4, 6, 4).abs().sum(2) > 0).equal(got.keep)
    size = problem.weights.view(4, 6, 4).square().sum(2)
    magnitude = masks.keep_best(size, 0.5)
    by_size = problem.weights * blocks.expand(magnitude, 4, 24)
    assert got.loss.sum() <= problem.loss(by_size).sum() * (1 + 1e-6)
    if scope == "row":
        assert (got.keep.sum(1) == 3).all()
        best = best_supports(problem, 4, 3)
        assert best * (1 - 1e-6) <= got.loss.sum()
        assert best * (1 - 1e-6) <= greedy.loss.sum()


def test_few_supports_are_far_from_the_best() -> None:
    ratios = []
    for seed in range(12):
        problem = random_problem(seed, 4, 24)
        best = best_supports(problem, 4, 3)
        ratios.append(float(_pruned(problem, 0.5, scope="row", sweeps=3).loss.sum()) / best)
    assert np.median(ratios) < 1.05, ratios


def test_a_ladder_is_nested_and_its_errors_rise() -> None:
    problem = random_problem(5, 8, 40)
    steps = blocks.ladder(problem, [0.0, 0.25, 0.5, 0.75, 0.9])
    losses = [float(s.loss.sum()) for s in steps]
    assert losses == sorted(losses) and losses[0] < 1e-9
    for more, less in itertools.pairwise(steps):
        assert not (less.keep & ~more.keep).any()


def test_outputs_that_count_more_keep_more() -> None:
    problem = random_problem(3, 8, 40)
    counts = torch.tensor([16.0, 1.0]).repeat_interleave(4)
    plain, weighted = (_pruned(problem, 0.5, importance=i) for i in (None, counts))
    assert weighted.sparsity == 0.5
    assert weighted.keep[:4].sum() > plain.keep[:4].sum()
    assert (weighted.loss * counts).sum() < (plain.loss * counts).sum()
    same = _pruned(problem, 0.5, importance=torch.full((8,), 7.0))
    assert same.keep.equal(plain.keep)


@pytest.mark.parametrize("width", [5, 7])
def test_the_last_block_may_be_shorter(width: int) -> None:
    problem = random_problem(1, 3, width)
    found = removal.removal_order(problem, 4, 2, 0.0)
    got = blocks.solve(problem, removal.choose(found, 0.5, "row"))
    for row in range(3):
        losses = [
            brute_force(problem, np.arange(width) < 4, row)[1],
            brute_force(problem, np.arange(width) >= 4, row)[1],
        ]
        assert np.isclose(float(got.loss[row]), min(losses), rtol=1e-3)


# Heads and channels


@settings(max_examples=6, deadline=None)
@given(SEEDS, st.sampled_from([1, 2, 3]))
def test_channels_go_one_by_one_at_least_loss(seed: int, size: int) -> None:
    groups = 5
    problem = random_problem(seed, 4, groups * size)
    removal = channels.removal_order(problem, size)

    def loss(kept: tuple[int, ...]) -> float:
        mask = columns(kept, size, groups * size)
        return sum(brute_force(problem, mask, row)[1] for row in range(4))

    gone: list[int] = []
    for step, group in enumerate(removal.order.tolist()):
        left = [g for g in range(groups) if g not in gone]
        gone.append(group)
        found = loss(tuple(g for g in range(groups) if g not in gone))
        assert np.isclose(float(removal.loss[step + 1]), found, rtol=1e-6)
        assert found <= min(loss(tuple(set(left) - {g})) for g in left) * (1 + 1e-6)
    for step in channels.ladder(problem, [4, 2, 0], size=size):
        kept = tuple(step.keep.nonzero()[:, 0].tolist())
        assert np.isclose(step.loss, loss(kept), rtol=1e-6)
        best = min(loss(s) for s in itertools.combinations(range(groups), len(kept)))
        assert best * (1 - 1e-6) <= step.loss


# Ranges


def quantized(x: np.ndarray, scale: float, zero: int, low: int, high: int) -> np.ndarray:
    return (np.clip(np.rint(x / scale) + zero, low, high) - zero) * scale


@pytest.mark.parametrize(("low", "high", "zero"), [(0, 255, None), (-128, 127, 0), (0, 255, 128)])
def test_a_range_is_the_best_of_a_fine_grid(low: int, high: int, zero: int | None) -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(-0.5, 1, (4000, 1))
    x[0] = 3  # so rare that clipping it is worth a finer step
    count = np.full(4000, 1000)
    count[0] = 1
    histogram = Histogram()
    for part in np.array_split(np.arange(4000), 3):
        histogram.add(torch.from_numpy(x[part]), rows=torch.from_numpy(count[part]))
    got = search(histogram, low, high, zero)

    def error(scale: float, point: int) -> float:
        wrong = quantized(x[:, 0], scale, point, low, high) - x[:, 0]
        return float(np.average(np.square(wrong), weights=count))

    assert np.isclose(error(got.scale, got.zero_point), got.error, rtol=0.05)
    points = [zero] if zero is not None else range(60, 110)
    best = min(error(top / 127, p) for top in np.linspace(0.5, 3, 200) for p in points)
    assert error(got.scale, got.zero_point) <= 1.1 * best
    plain = (3.5 / 255, 36) if zero is None else (3 / 127, zero)
    assert got.error < 0.8 * error(*plain)


def test_a_histogram_counts_rows_and_channels() -> None:
    whole, grown = Histogram(), Histogram()
    x = torch.tensor([[0.5, 30.0], [1.0, 2.0], [torch.nan, torch.inf]])
    whole.add(x, rows=torch.tensor([2.0, 1.0, 0.0]), channels=torch.tensor([1.0, 0.0]))
    assert float(whole.counts.sum()) == 3
    grown.add(torch.tensor([[0.5], [0.5]]))
    grown.add(torch.tensor([[-40.0]]))
    assert float(grown.counts.sum()) == 3
    assert grown.low == -40 and grown.high == 0.5
    near = (grown.centers[grown.counts > 0]).tolist()
    assert np.allclose(sorted(near), [-40, 0.5], atol=0.05)
    assert search(Histogram()).scale == 1.0


# Channels of one size


def far_out(seed: int, rows: int = 400, channels: int = 16) -> torch.Tensor:
    """Inputs some of whose channels are far larger than the others."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, channels)) + rng.normal(size=channels)
    x[:, :2] *= 40
    return torch.from_numpy(x).float()


def rounded_error(x: torch.Tensor, weights: torch.Tensor, factors: torch.Tensor | None) -> float:
    """Mean squared error of a layer whose inputs and weights are rounded to bytes."""
    histogram = Histogram()
    histogram.add(x if factors is None else x * factors)
    rounding = Rounding(search(histogram), factors)
    even = weights if factors is None else weights / factors
    step = even.abs().amax(1, keepdim=True) / 127
    made = rounding.scaled(x) @ ((even / step).round() * step).T
    return float((made - x @ weights.T).square().mean())


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_channels_of_one_size_are_rounded_better(seed: int) -> None:
    x = far_out(seed)
    weights = torch.from_numpy(np.random.default_rng(seed + 1).normal(size=(8, 16))).float()
    seen = Extremes(16)
    count = torch.ones(len(x))
    count[-1] = 0
    x[-1] = torch.nan
    for part in torch.arange(len(x)).split(100):
        seen.add(x[part], count[part])
    x = x[:-1]
    assert torch.equal(seen.low, x.amin(0).clamp(max=0))
    assert torch.equal(seen.high, x.amax(0).clamp(min=0))
    assert torch.allclose(seen.variance(), x.double().var(0, unbiased=False), rtol=1e-3)
    factors = choose_factors(seen, [weights[:5], weights[5:]])
    assert factors is not None and bool((factors > 0).all())
    # The largest channel keeps its size.
    assert factors[seen.size.argmax()] == pytest.approx(1, rel=1e-5)
    assert rounded_error(x, weights, factors) < 0.5 * rounded_error(x, weights, None)


def test_channels_that_are_of_one_size_stay_as_they_are() -> None:
    x = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (500, 8))).float()
    seen = Extremes(8)
    seen.add(x)
    assert choose_factors(seen, [torch.ones(4, 8)]) is None
    empty = Extremes(8)
    empty.add(torch.zeros(3, 8))
    assert choose_factors(empty, [torch.ones(4, 8)]) is None
    # One that never moves is multiplied with a number.
    x[:, 3] = 0
    x[:, 0] *= 100
    seen = Extremes(8)
    seen.add(x)
    factors = choose_factors(seen, [torch.ones(4, 8)])
    assert factors is not None and bool(factors.isfinite().all())


# Rounding


@settings(max_examples=10, deadline=None)
@given(SEEDS, st.booleans())
def test_rounding_beats_plain_rounding_and_keeps_zeros(seed: int, masked: bool) -> None:
    problem = random_problem(seed, 6, 24)
    keep = torch.ones(6, 24, dtype=torch.bool)
    if masked:
        keep = torch.from_numpy(np.random.default_rng(seed).random((6, 24)) < 0.6)
    weights = solve_rows(problem.hessian, problem.weights, keep)
    scale = search_scale(problem, weights, per_channel=True) * 8  # coarse, so that errors matter
    q = round_weights(problem, weights, scale, keep)
    assert q.dtype == torch.int8 and not q[~keep].any()
    plain = (weights / scale[:, None]).round().clamp(-127, 127) * scale[:, None]
    got = problem.loss(q.double() * scale[:, None]).sum()
    assert got <= problem.loss(plain).sum() * 1.02


def test_two_weights_are_rounded_in_the_best_order() -> None:
    wins = 0
    for seed in range(40):
        problem = random_problem(seed, 1, 2)
        weights, scale = problem.weights, torch.tensor([0.5])
        q = round_weights(problem, weights, scale)
        got = float(problem.loss(q.double() * 0.5).sum())
        near = [[int(np.floor(v / 0.5)) + d for d in (-1, 0, 1, 2)] for v in weights[0].tolist()]
        losses = [
            float(problem.loss(torch.tensor([pair], dtype=torch.float64) * 0.5).sum())
            for pair in itertools.product(*near)
        ]
        assert min(losses) <= got * (1 + 1e-6) + 1e-9
        wins += got <= min(losses) * (1 + 1e-6) + 1e-9
    assert wins > 25


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_scale_is_no_worse_than_the_one_that_clips_nothing(per_channel: bool) -> None:
    problem = random_problem(2, 8, 16)
    scale = search_scale(problem, problem.weights, per_channel)
    assert scale.shape == ((8,) if per_channel else ())
    peak = problem.weights.abs().amax(1) if per_channel else problem.weights.abs().max()

    def loss(step: torch.Tensor) -> float:
        step = step.double()[..., None]
        rounded = (problem.weights / step).round().clamp(-127, 127) * step
        return float(problem.loss(rounded).sum())

    assert loss(scale) <= loss(peak / 127) * (1 + 1e-6)


# Allocation


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.lists(
            st.tuples(st.floats(0.1, 5), st.floats(0, 1)).map(lambda t: Choice(*t)),
            min_size=1,
            max_size=4,
        ),
        min_size=1,
        max_size=4,
    ),
    st.floats(0, 1),
)
def test_an_allocation_is_the_best_of_all(layers: list[list[Choice]], share: float) -> None:
    least = sum(min(c.milliseconds for c in choices) for choices in layers)
    most = sum(max(c.milliseconds for c in choices) for choices in layers)
    budget = least + share * (most - least) + 1e-6
    got = least_error(layers, budget)
    picked = [choices[i] for choices, i in zip(layers, got, strict=True)]
    assert sum(c.milliseconds for c in picked) <= budget * (1 + 1e-9)
    slack = (budget - least) * len(layers) / 20_000
    best = min(
        sum(c.error for c in every)
        for every in itertools.product(*layers)
        if sum(c.milliseconds for c in every) <= budget - slack
        or all(
            c.milliseconds == min(d.milliseconds for d in ds)
            for c, ds in zip(every, layers, strict=True)
        )
    )
    assert sum(c.error for c in picked) <= best + 1e-9
    bound = sum(c.error for c in picked)
    quick = fastest(layers, bound + 1e-6)
    assert sum(choices[i].error for choices, i in zip(layers, quick, strict=True)) <= bound + 2e-6


def test_what_cannot_be_had_is_refused() -> None:
    layers = [[Choice(1.0, 0.5), Choice(2.0, 0.1)]]
    with pytest.raises(InputError, match="1 ms"):
        least_error(layers, 0.5)
    with pytest.raises(InputError, match="error"):
        fastest(layers, 0.05)
    assert least_error(layers, 1.0) == [0] and fastest(layers, 0.1) == [1]


# Masks of gradual training


def test_fisher_scores_are_quadratic_forms_of_gradients() -> None:
    rng = np.random.default_rng(0)
    w = torch.from_numpy(rng.standard_normal((3, 8)).astype(np.float32))
    fisher = masks.Fisher((3, 8), decay=0.5)
    gradients = [torch.from_numpy(rng.standard_normal((3, 8)).astype(np.float32)) for _ in range(3)]
    for g in gradients:
        fisher.add(g)
    weights = np.array([0.125, 0.25, 0.5]) / 0.875
    got = masks.block_scores(w, fisher, damping=0.0)
    for row, b in itertools.product(range(3), range(2)):
        part = slice(4 * b, 4 * b + 4)
        wanted = sum(
            0.5 * c * float(g[row, part] @ w[row, part]) ** 2
            for c, g in zip(weights, gradients, strict=True)
        )
        assert np.isclose(float(got[row, b]), wanted, rtol=1e-4)
    kept = masks.keep_best(got, 0.5)
    assert int(kept.sum()) == 3 and got[kept].min() >= got[~kept].max()


def test_input_scores_are_the_loss_of_a_removal() -> None:
    problem = random_problem(0, 3, 12, damping=1e-9)
    got = masks.input_scores(problem.weights, problem.hessian, torch.tensor([1.0, 2.0, 3.0]))
    damped = problem.hessian + 0.01 * problem.hessian.diagonal().mean() * torch.eye(12)
    inverse = torch.linalg.inv(damped)
    for row, b in itertools.product(range(3), range(3)):
        part = slice(4 * b, 4 * b + 4)
        wb = problem.weights[row, part]
        wanted = 0.5 * (row + 1) * float(wb @ torch.linalg.inv(inverse[part, part]) @ wb)
        assert np.isclose(float(got[row, b]), wanted, rtol=1e-4)
