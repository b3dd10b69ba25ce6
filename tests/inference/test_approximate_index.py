"""Approximate search: scores that are exact, recall that is measured, a kept graph."""

import sys

import numpy as np
import pytest

from metricjax.errors import InputError
from metricjax.inference import approximate_index
from metricjax.inference.approximate_index import ApproximateIndex
from metricjax.inference.gallery_index import Index
from metricjax.inference.vectors import Vectors

usearch = pytest.importorskip(
    "usearch", reason="the extra `approximate` is not installed"
)


def make(count, directory=None, width=24, seed=0):
    """Embeddings in 20 bunches, a tenth of which are not valid."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((20, width))
    rows = centres[rng.integers(0, 20, count)] + rng.standard_normal((count, width)) / 2
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    valid = rng.random(count) > 0.1
    rows[~valid] = 0
    names = tuple(map(str, range(count)))
    split = Vectors(rows, valid, names, np.zeros(count, int), ("",), "model").split
    return Index(split, rows, valid, directory)


def test_scores_are_exact_and_most_are_found():
    index = make(3000)
    queries = make(50, seed=0).embeddings
    queries = queries[np.linalg.norm(queries, axis=1) > 0]
    graph = ApproximateIndex.open(index)
    similarities, rows = graph.nearest(queries, 10)
    right = np.einsum("qkd,qd->qk", index.embeddings[rows], queries)
    np.testing.assert_allclose(similarities, right, atol=1e-6)
    assert (np.diff(similarities, axis=1) <= 0).all() and index.valid[rows].all()
    exact = index.nearest(queries, 10)[1]
    shares = [len(set(a) & set(b)) / 10 for a, b in zip(exact, rows, strict=True)]
    assert np.mean(shares) > 0.9
    assert 0.9 < graph.recall(10) <= 1


def test_recall_is_that_of_the_others_found(monkeypatch):
    """Of each query's nearest, its own image apart, half are given."""
    index = make(400)
    graph = ApproximateIndex.open(index)

    def half(queries, top):
        similarities, rows = index.nearest(queries, len(index))
        return similarities, np.concatenate([rows[:, :6], rows[:, 200:205]], axis=1)

    monkeypatch.setattr(ApproximateIndex, "nearest", lambda _, *given: half(*given))
    assert graph.recall(10, sample=30) == 0.5


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_images(count):
    index = make(count)
    index = Index(index.split, make(count, seed=3).embeddings, np.ones(count, bool))
    index.embeddings[:] = np.eye(24, dtype=np.float32)[:count]
    graph = ApproximateIndex.open(index)
    similarities, rows = graph.nearest(index.embeddings[:1], 10)
    assert rows.shape == (1, count) and rows[0, 0] == 0
    assert sorted(rows[0].tolist()) == list(range(count))
    assert graph.recall(10) == 1.0


def test_the_graph_is_kept(tmp_path):
    made = []

    def graph_of(index):
        return ApproximateIndex.open(index, say=made.append)

    first = graph_of(make(500, tmp_path))
    again = graph_of(make(500, tmp_path))
    assert len(made) == 1 and "images for approximate search" in made[0]
    queries = first.index.embeddings[first.index.valid][:5]
    np.testing.assert_array_equal(
        first.nearest(queries, 3)[1], again.nearest(queries, 3)[1]
    )
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:99])
    graph_of(make(500, tmp_path))
    graph_of(make(501, tmp_path, seed=1))
    assert len(made) == 3 and len(list(tmp_path.iterdir())) == 1


def test_what_is_refused(monkeypatch):
    graph = ApproximateIndex.open(make(50))
    with pytest.raises(InputError, match="top is 0"):
        graph.nearest(np.eye(24)[:1], 0)
    with pytest.raises(InputError, match="has length 2"):
        graph.nearest(2 * np.eye(24)[:1], 1)
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    with pytest.raises(InputError, match=r"pip install 'metricjax\[approximate\]'"):
        approximate_index._empty(4)
