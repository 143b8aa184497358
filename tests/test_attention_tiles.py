"""Attention by tiles: of bytes to the last bit what the kernels on vectors give, of floats as near
to the exact results."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from sparsec import targets
from sparsec.compiler.ir import BATCH, BatchDim, Graph
from sparsec.compiler.lowering.attention import Shape, on_tiles
from sparsec.runtime import cpu
from tests.lane_harness import Library, compile_graph, target_params
from tests.test_lane_kernels import F, S, U, attention_graph

LENGTH = 75

#: Byte scores with every zero point, and any scores with a mask for each query and head.
FORMS = {
    "bytes": (3, 32, (U, U, U, U), (113, 131, 128, 0), (BATCH, 1, 1, LENGTH), np.uint8(120)),
    "bytes, wide heads": (1, 132, (U, S, S, U), (0, 0, 3, 0), (BATCH, 1, 1, LENGTH), np.uint8(0)),
    "any": (2, 20, (S, U, S, S), (-7, 5, 9, -128), (BATCH, 2, LENGTH, LENGTH), None),
}

needs_avx2 = pytest.mark.skipif(
    bool(targets.get("avx2").missing(cpu.detect().features)), reason="this CPU lacks AVX2"
)


def masks(rng: np.random.Generator, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """What is added to the scores: whole blocks of keys dropped, single ones, all, and a bias."""
    keys = np.arange(LENGTH)
    low = np.finfo(np.float32).min
    found = {
        "none": np.zeros(LENGTH),
        "tail": np.where(keys < 37, 0, -1e4),
        "blocks": np.where((keys // 16) % 2 == 1, 0, low),
        "scattered": np.where(rng.random(LENGTH) < 0.2, 0, low),
        "one": np.where(keys == 66, 0, -np.inf),
        "all": np.full(LENGTH, low),
        "bias": rng.standard_normal(LENGTH),
    }
    return {k: np.broadcast_to(v, shape).astype(np.float32).copy() for k, v in found.items()}


@needs_avx2
@pytest.mark.parametrize("name", FORMS)
def test_results_are_those_of_vectors(tmp_path: Path, name: str) -> None:
    """Sequences of any length, which begin and end within blocks, side by side."""
    heads, dim, types, zps, extra, zero = FORMS[name]
    score_zero = None if zero is None else np.asarray(zero)
    graph = attention_graph(LENGTH, heads, dim, types, zps, extra, score_zero)
    made: dict[str, Library] = {
        target: compile_graph(tmp_path / target, graph, target) for target in ("amx", "avx512_vnni")
    }
    text = (tmp_path / "amx" / f"bucket_{LENGTH}" / "bucket.c").read_text()
    assert f"attention_i8_i8_{heads}x{dim}_tiles" in text and "TILE_DOT(" in text
    rng = np.random.default_rng(dim)
    lengths = [75, 1, 0, 33, 64, 7, 50]
    shape = tuple(len(lengths) if isinstance(d, BatchDim) else d for d in extra)
    for which, mask in masks(rng, shape).items():
        inputs = [
            rng.integers(
                np.iinfo(t).min, np.iinfo(t).max + 1, (len(lengths), LENGTH, heads * dim)
            ).astype(t)
            for t in types[:3]
        ]
        mask[1] = 0  # one sequence of another kind among the others
        for given in (None, lengths):
            have, want = (
                made[target].run([*inputs, mask], given)[0] for target in ("amx", "avx512_vnni")
            )
            np.testing.assert_array_equal(have, want, err_msg=which)


#: Heads, channels of each, and the shape of what is added to scores.
FLOATS = {
    "one step, a mask": (3, 20, (BATCH, 1, 1, LENGTH)),
    "whole tiles": (1, 64, (BATCH, 1, 1, LENGTH)),
    "an odd tile of channels, a bias": (2, 35, (1, 2, LENGTH, LENGTH)),
}

TILES = [p for p in target_params() if p.values[0] == "amx"]


def floats_graph(name: str) -> Graph:
    """Attention of floats, and what is added to its scores."""
    heads, dim, extra = FLOATS[name]
    return attention_graph(LENGTH, heads, dim, (F, F, F, F), (0, 0, 0, 0), extra)


def compile_floats(folder: Path, name: str, target: str) -> Library:
    """The library, on tiles where the target has them."""
    heads, dim, _ = FLOATS[name]
    library = compile_graph(folder, floats_graph(name), target)
    text = (folder / f"bucket_{LENGTH}" / "bucket.c").read_text()
    assert (f"attention_f32_f32_{heads}x{dim}_tiles" in text) == (target == "amx")
    return library


def exactly(heads: int, qkv: list[np.ndarray], added: np.ndarray) -> np.ndarray:
    """Attention in float64 with scores of a quarter of the products."""
    batch, length, channels = qkv[0].shape
    q, k, v = (x.astype(np.float64).reshape(batch, length, heads, -1) for x in qkv)
    scores = 0.25 * np.einsum("bqhc,bkhc->bhqk", q, k) + added
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    return np.einsum("bhqk,bkhc->bqhc", shares, v).reshape(batch, length, channels)


@pytest.mark.parametrize("target", TILES)
@pytest.mark.parametrize("name", FLOATS)
def test_floats_are_as_near_as_those_of_vectors(tmp_path: Path, target: str, name: str) -> None:
    """Whatever the mask and the lengths, with values of several orders of magnitude; and a sequence
    alone has the same results as beside others."""
    heads, dim, extra = FLOATS[name]
    tiles = compile_floats(tmp_path / "tiles", name, target)
    vectors = compile_floats(tmp_path / "vectors", name, "avx2")
    rng = np.random.default_rng(dim)
    lengths = [75, 1, 0, 33, 64, 7, 50]
    shape = tuple(len(lengths) if isinstance(d, BatchDim) else d for d in extra)
    for which, mask in masks(rng, shape).items():
        mask[0] = 0  # one sequence of another kind among the others
        qkv = [rng.standard_normal((len(lengths), LENGTH, heads * dim)) for _ in "qkv"]
        qkv[2] *= np.exp2(rng.integers(-9, 9, qkv[2].shape))
        qkv = [x.astype(np.float32) for x in qkv]
        for given in (None, lengths):
            (have,) = tiles.run([*qkv, mask], given)
            (other,) = vectors.run([*qkv, mask], given)
            for i, n in enumerate(given or [LENGTH] * len(lengths)):
                if n == 0:
                    continue
                row = mask[i if extra[0] != 1 else 0, :, : n if extra[2] != 1 else 1, :n]
                with np.errstate(invalid="ignore"):
                    want = exactly(heads, [x[i : i + 1, :n] for x in qkv], row)[0]
                mine, theirs = have[i, :n], other[i, :n]
                np.testing.assert_array_equal(np.isnan(mine), np.isnan(want), err_msg=which)
                size = np.nanmax(np.abs(want), initial=1e-9)
                off, allowed = (np.nanmax(np.abs(x - want), initial=0) for x in (mine, theirs))
                assert off <= 1.5 * allowed + 3e-7 * size, (which, n)
                if given:
                    alone = [np.ascontiguousarray(x[i : i + 1]) for x in (*qkv, mask)]
                    alone[3] = alone[3] if extra[0] != 1 else mask
                    np.testing.assert_array_equal(tiles.run(alone, [n])[0][0, :n], mine)


@pytest.mark.parametrize("target", TILES)
def test_floats_without_parts(tmp_path: Path, target: str) -> None:
    """Infinity, NaN and numbers whose sums of products might leave a float, in queries, keys or
    values: what vectors make of them; other heads and sequences do not notice."""
    name = "one step, a mask"
    heads, dim, _ = FLOATS[name]
    tiles = compile_floats(tmp_path / "tiles", name, target)
    vectors = compile_floats(tmp_path / "vectors", name, "avx2")
    rng = np.random.default_rng(0)
    mask = np.zeros((3, 1, 1, LENGTH), np.float32)
    mask[2, ..., 40:] = -np.inf
    specials = (np.inf, -np.inf, np.nan, 3e38, 2.0**57, 2.0**-120, 1e-40)
    for special, where in itertools.product(specials, range(3)):
        qkv = [rng.standard_normal((3, LENGTH, heads * dim)).astype(np.float32) for _ in "qkv"]
        (before,) = tiles.run([*qkv, mask])
        # Of the second head of two sequences; in one of them where the mask leaves keys out.
        qkv[where][1:, 60, dim + 3] = special
        for lengths in (None, [75, 61, 75]):
            (have,) = tiles.run([*qkv, mask], lengths)
            (want,) = vectors.run([*qkv, mask], lengths)
            for i, n in enumerate(lengths or [LENGTH] * 3):
                np.testing.assert_allclose(have[i, :n], want[i, :n], rtol=2e-5, atol=2e-6)
            np.testing.assert_array_equal(have[0], before[0])
            others = [c for c in range(heads * dim) if not dim <= c < 2 * dim]
            np.testing.assert_array_equal(have[2][:, others], before[2][:, others])


@pytest.mark.parametrize("target", TILES)
def test_masked_floats_have_no_share(tmp_path: Path, target: str) -> None:
    """Large values of masked keys change no bit; keys whose products make up for the mask have
    their share."""
    name = "whole tiles"
    heads, dim, _ = FLOATS[name]
    tiles = compile_floats(tmp_path / "tiles", name, target)
    rng = np.random.default_rng(1)
    qkv = [rng.standard_normal((2, LENGTH, heads * dim)).astype(np.float32) for _ in "qkv"]
    mask = np.zeros((2, 1, 1, LENGTH), np.float32)
    mask[..., 21:70] = -1000
    (before,) = tiles.run([*qkv, mask])
    qkv[2][:, 21:70] *= 1e15
    (have,) = tiles.run([*qkv, mask])
    np.testing.assert_array_equal(have, before)
    qkv[0][1] *= 1000
    (have,) = tiles.run([*qkv, mask])
    np.testing.assert_array_equal(have[0], before[0])
    want = exactly(heads, [x[1:] for x in qkv], mask[1:])
    np.testing.assert_allclose(have[1:], want, rtol=1e-3, atol=1e-6 * np.abs(want).max())
    assert np.abs(want).max() > 1e14


def test_few_tokens_stay_on_vectors() -> None:
    amx = targets.get("amx")
    times = [on_tiles(Shape(n, 12, 64, "i8", "i8"), amx) for n in (8, 16, 64, 128, 384)]
    assert times == [False, False, True, True, True]
    assert not on_tiles(Shape(128, 12, 64, "i8", "f32"), amx)
    assert not on_tiles(Shape(128, 12, 64, "i8", "i8"), targets.get("avx512_vnni"))
    assert on_tiles(Shape(128, 12, 64, "bf16", "bf16"), targets.at(amx, "bf16"))
    times = [on_tiles(Shape(n, 12, 64, "f32", "f32"), amx) for n in (16, 32, 48, 128, 384)]
    assert times == [False, False, False, True, True]
    assert not on_tiles(Shape(384, 12, 64, "f32", "f32", plain=False), amx)
