"""Layouts in a plane: axes of variance, neighbours side by side."""

import numpy as np
import pytest

from metricjax.explorer import projections


def groups(count=20, each=9, dim=16, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(count), each)
    rows = 3 * rng.normal(size=(count, dim))[labels] + rng.normal(
        size=(len(labels), dim)
    )
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), labels


def nearest(rows, k=6):
    products = rows @ rows.T
    np.fill_diagonal(products, -2)
    indices = np.argsort(-products, axis=1)[:, :k]
    return indices, np.take_along_axis(products, indices, axis=1)


def test_pca_is_the_plane_of_largest_variance():
    rows, _ = groups()
    places, shares = projections.pca(rows)
    centred = rows - rows.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    expected = left[:, :2] * values[:2]
    np.testing.assert_allclose(np.abs(places), np.abs(expected), atol=1e-9)
    np.testing.assert_allclose(shares, values[:2] ** 2 / (values**2).sum())


@pytest.mark.parametrize("rows", [np.ones((4, 1)), np.ones((3, 5)), np.eye(1)])
def test_what_does_not_vary_lies_on_one_spot(rows):
    places, shares = projections.pca(rows)
    assert places.shape == (len(rows), 2) and (places == 0).all()
    assert (shares == 0).all()


def test_neighbours_come_to_lie_side_by_side():
    rows, labels = groups()
    indices, similarities = nearest(rows)
    start, _ = projections.pca(rows)
    places = projections.neighbor_graph(indices, similarities, start, seed=0)
    assert np.isfinite(places).all()
    apart = ((places[:, None] - places) ** 2).sum(axis=2)
    np.fill_diagonal(apart, np.inf)
    before = ((start[:, None] - start) ** 2).sum(axis=2)
    np.fill_diagonal(before, np.inf)
    kept = (labels[apart.argmin(axis=1)] == labels).mean()
    assert kept > 0.9 > 0.8 > (labels[before.argmin(axis=1)] == labels).mean()


def test_the_same_seed_gives_the_same_places():
    rows, _ = groups()
    indices, similarities = nearest(rows)
    start, _ = projections.pca(rows)
    once, again, other = (
        projections.neighbor_graph(indices, similarities, start, seed, epochs=5)
        for seed in (0, 0, 1)
    )
    assert (once == again).all() and (once != other).any()


def test_points_without_neighbours_and_points_alike():
    indices = np.array([[1, 2], [0, 2], [0, 1], [-1, -1]])
    similarities = np.array([[1, 1], [1, 1], [1, 1], [0, 0]], np.float32)
    places = projections.neighbor_graph(indices, similarities, np.zeros((4, 2)), seed=0)
    assert np.isfinite(places).all()


def test_weights_of_an_edge_are_joined_from_both_ends():
    indices = np.array([[1, 2], [2, 0], [1, 0]])
    similarities = np.array([[0.9, 0.5], [0.95, 0.9], [0.95, 0.5]], np.float32)
    one, other, weights = projections._edges(indices, similarities)
    assert list(zip(one, other, strict=True)) == [(0, 1), (0, 2), (1, 2)]
    # The nearest of a point counts 1, and so does an edge that is so for one end.
    assert weights[0] == weights[2] == 1 and 0 < weights[1] < 1


@pytest.mark.slow
def test_tsne_brings_neighbours_together_too():
    pytest.importorskip("sklearn")
    rows, labels = groups()
    places = projections.tsne(rows.astype(np.float32), seed=0)
    apart = ((places[:, None] - places) ** 2).sum(axis=2)
    np.fill_diagonal(apart, np.inf)
    assert (labels[apart.argmin(axis=1)] == labels).mean() > 0.9
