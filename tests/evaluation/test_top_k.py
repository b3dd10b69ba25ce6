"""Top-k on the host: the order and ties of the compiled search."""

import numpy as np
import pytest

from metricjax.evaluation import nearest, top_k


def tied_rows(count, seed):
    """Unit rows of which many are equal, with similarities that are exact in float32.

    Each has four coordinates of +-1/2, so products are multiples of 1/4.
    """
    rng = np.random.default_rng(seed)
    rows = np.zeros((count, 6), np.float32)
    for row in rows:
        row[rng.permutation(6)[:4]] = rng.choice([-0.5, 0.5], 4)
    return rows


@pytest.mark.parametrize("k", [1, 7, 500, 2500])
@pytest.mark.parametrize("block", [1, 2**26])
def test_order_and_ties_equal_those_of_the_compiled_search(k, block, monkeypatch):
    monkeypatch.setattr(top_k, "SIMILARITIES_PER_BLOCK", block)
    gallery, queries = tied_rows(2500, seed=0), tied_rows(9, seed=1)
    similarities, rows = top_k.search(
        queries, gallery, k, allowed=np.ones(len(gallery), bool)
    )
    expected, expected_rows = nearest(queries, gallery, k)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(similarities, expected)
    assert similarities.dtype == np.float32 and rows.dtype == np.int64


def test_order_and_ties_equal_those_of_the_screened_search():
    """So many queries that `nearest` screens the gallery on CPU."""
    gallery, queries = tied_rows(2500, seed=2), tied_rows(300, seed=3)
    gallery[:300] = queries
    similarities, rows = top_k.search(
        queries, gallery, 5, allowed=np.ones(len(gallery), bool)
    )
    expected, expected_rows = nearest(queries, gallery, 5)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(similarities, expected)


def test_only_allowed_rows_are_returned():
    gallery, queries = tied_rows(400, seed=4), tied_rows(3, seed=5)
    allowed = np.arange(400) % 3 > 0
    subset = np.flatnonzero(allowed)
    _, rows = top_k.search(queries, gallery, 50, allowed=allowed)
    np.testing.assert_array_equal(
        rows, subset[nearest(queries, gallery[subset], 50)[1]]
    )


def test_no_neighbours():
    similarities, rows = top_k.search(
        np.eye(2, dtype=np.float32),
        np.eye(2, dtype=np.float32),
        0,
        allowed=np.zeros(2, bool),
    )
    assert similarities.shape == rows.shape == (2, 0)


def test_zeros_of_both_signs_tie():
    values = np.array([-0.0, 1.0, 0.0, -0.0], np.float32)
    assert top_k.largest(values, 3).tolist() == [1, 0, 2]
