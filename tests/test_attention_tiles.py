"""Attention on bytes by tiles: to the last bit what the kernels on vectors give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sparsec import targets
from sparsec.compiler.ir import BATCH, BatchDim
from sparsec.compiler.lowering.attention import Shape, on_tiles
from sparsec.runtime import cpu
from tests.lane_harness import Library, compile_graph
from tests.test_lane_kernels import S, U, attention_graph

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


def test_few_tokens_stay_on_vectors() -> None:
    amx = targets.get("amx")
    times = [on_tiles(Shape(n, 12, 64, "i8", "i8"), amx) for n in (8, 16, 64, 128, 384)]
    assert times == [False, False, True, True, True]
    assert not on_tiles(Shape(128, 12, 64, "i8", "f32"), amx)
    assert not on_tiles(Shape(128, 12, 64, "i8", "i8"), targets.get("avx512_vnni"))
    assert on_tiles(Shape(128, 12, 64, "bf16", "bf16"), targets.at(amx, "bf16"))
