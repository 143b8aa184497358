"""Sums over the rows of many arrays, against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparsec.runtime._rows import sum_each


def _view(rng: np.random.Generator, rows: int, n: int, form: str, kind: str) -> NDArray[Any]:
    """Rows, or columns, that lie apart in memory as those of a view do; or the reverse."""
    if form == "transposed":
        return rng.standard_normal((n, rows)).astype(kind).T
    wide = rng.standard_normal((2 * rows + 1, 2 * n + 3)).astype(kind)
    found = {
        "rows": wide[:rows, :n],
        "steps": wide[1 : 2 * rows + 1 : 2, 2 : n + 2],
        "columns": wide[:rows, : 2 * n : 2],
        "reversed": wide[:rows, :n][::-1],
    }[form]
    assert found.shape == (rows, n)
    return found


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 70),
    arrays=st.lists(
        st.tuples(
            st.sampled_from([0, 1, 2, 17, 63, 64, 65, 128, 129, 300]),
            st.sampled_from(["rows", "steps", "columns", "reversed", "transposed"]),
            st.sampled_from(["f4", "f4", "f4", "f8", "f2", ">f4"]),
        ),
        max_size=5,
    ),
)
def test_sums(seed: int, n: int, arrays: list[tuple[int, str, str]]) -> None:
    rng = np.random.default_rng(seed)
    given = [_view(rng, rows, n, form, kind) for rows, form, kind in arrays]
    out = np.full((len(given), n), np.nan, np.float32)
    sum_each(given, out)
    for x, row in zip(given, out, strict=True):
        want = x.astype(np.float64).sum(axis=0)
        # Of 64 numbers in single precision, then exact.
        bound = 64 * 2**-24 * np.abs(x.astype(np.float64)).sum(axis=0)
        assert (np.abs(row - want) <= bound + 1e-30).all()


def test_few_rows_are_summed_as_numpy_does() -> None:
    x = np.random.default_rng(0).standard_normal((64, 384)).astype(np.float32)
    out = np.empty((1, 384), np.float32)
    sum_each([x], out)
    np.testing.assert_array_equal(out[0], np.add.reduce(x, 0, np.float32))


def test_many_rows_are_summed_in_double_precision() -> None:
    """100,000 times a tenth, where sums in single precision are one in a thousand off."""
    x = np.full((100_000, 3), 0.1, np.float32)
    out = np.empty((1, 3), np.float32)
    sum_each([x], out)
    np.testing.assert_allclose(out[0], 100_000 * np.float64(np.float32(0.1)), rtol=1e-6)


@pytest.mark.parametrize(
    "given", [[np.zeros((2, 4), np.float32)], [np.zeros(3, np.float32)] * 2, [], [None, None]]
)
def test_what_does_not_fit(given: list[Any]) -> None:
    """Another number of columns, of axes, of arrays; no array at all."""
    with pytest.raises((ValueError, TypeError, BufferError)):
        sum_each(given, np.zeros((2, 3), np.float32))
    good = np.ones((5, 3), np.float32)
    with pytest.raises((ValueError, TypeError, BufferError)):
        sum_each([good, *given[1:], np.ones((1, 2), np.float32)], np.zeros((2, 3), np.float32))
