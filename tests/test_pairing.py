"""Which channels a sparse kernel takes together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsec.compiler.lowering.pairing import FEWEST_SHARED, arrange


@settings(deadline=None, max_examples=100)
@given(
    quads=st.integers(0, 30),
    packs=st.integers(0, 50),
    share=st.sampled_from([0.0, 0.05, 0.3, 0.7, 1.0]),
    slab=st.sampled_from([1, 3, 16]),
    seed=st.integers(0, 99),
)
def test_every_pack_is_computed_once(
    quads: int, packs: int, share: float, slab: int, seed: int
) -> None:
    used = np.random.default_rng(seed).random((4 * quads, packs)) < share
    arranged = arrange(used, slab)
    for first in range(0, 4 * quads, 4 * slab):
        part = arranged.order[first : first + 4 * slab]
        np.testing.assert_array_equal(np.sort(part), np.arange(first, first + len(part)))
    count = np.zeros(used.shape, int)
    for place, channel in enumerate(arranged.order):
        shared = arranged.shared[place // 4]
        assert shared % 2 == 0 and (shared == 0 or shared >= FEWEST_SHARED)
        np.add.at(count[channel], arranged.shared_columns[place // 2, :shared], 1)
        np.add.at(count[channel], arranged.own_columns[place, : arranged.own[place]], 1)
    np.testing.assert_array_equal(count, used)
    longest = used[arranged.order].sum(axis=1).reshape(-1, 4).max(axis=1, initial=0)
    np.testing.assert_array_equal(arranged.steps, longest)


@pytest.mark.parametrize(("share", "padding", "together"), [(0.2, 1.04, 0.2), (0.4, 1.05, 0.4)])
def test_random_patterns_pad_little_and_share_much(
    share: float, padding: float, together: float
) -> None:
    """A pair of channels taken at random has `share` of its packs in common."""
    used = np.random.default_rng(0).random((768, 192)) < share
    arranged = arrange(used, 16)
    assert 4 * arranged.steps.sum() < padding * used.sum()
    assert arranged.shared.sum() > together * arranged.steps.sum()


def test_channels_with_one_pattern_share_it_all() -> None:
    rng = np.random.default_rng(0)
    used = np.repeat(rng.random((32, 100)) < 0.3, 2, axis=0)[rng.permutation(64)]
    # Only what the other pair of a quad lacks is left alone.
    assert arrange(used, 16).shared.sum() > 0.9 * arrange(used, 16).steps.sum()
