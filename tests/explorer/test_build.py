"""What the explorer shows, against the whole matrix of similarities."""

import exploring
import numpy as np
import pytest

from metricjax.explorer import build, projections
from metricjax.inference.embedder import Embedded

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def split():
    return exploring.split()


@pytest.fixture(scope="module")
def embedded(split):
    return exploring.embedded(split)


@pytest.mark.parametrize("kind", ["all", "some", "apart"])
def test_neighbours_of_every_image(split, embedded, kind):
    gallery = exploring.roles(split, kind)
    products = exploring.matrix(embedded, gallery)
    similarities, indices = build.walks(embedded, gallery, 4)
    expected = np.argsort(-products, axis=1, kind="stable")[:, :4]
    np.testing.assert_array_equal(indices, expected)
    values = np.take_along_axis(products, expected, axis=1)
    np.testing.assert_allclose(similarities, values, atol=1e-6)


def test_images_without_embedding_neither_ask_nor_are_found(split):
    embedded = exploring.embedded(split, unreadable=(0, 7))
    embedded.embeddings[[0, 7]] = 0
    similarities, indices = build.walks(embedded, embedded.valid, 29)
    assert (indices[[0, 7]] == -1).all() and (similarities[[0, 7]] == 0).all()
    assert not np.isin(np.delete(indices, [0, 7], axis=0), [0, 7]).any()
    assert indices.shape == (30, 27)  # As many as there are besides oneself.


@pytest.mark.parametrize("kind", ["all", "some", "apart"])
@pytest.mark.parametrize("kept", [1, 3])
def test_the_rank_of_the_first_right_one(split, embedded, kind, kept):
    labels, gallery = split.labels, exploring.roles(split, kind)
    products = exploring.matrix(embedded, gallery)
    _, nearest = build.walks(embedded, gallery, kept)
    rank, right, similarity = build.first_right(embedded, labels, gallery, nearest)
    assert (rank > kept).any() and (rank == 1).any()
    for image in range(len(labels)):
        order = np.argsort(-products[image], kind="stable")
        order = order[np.isfinite(products[image][order])]
        places = np.flatnonzero(labels[order] == labels[image])
        if not len(places):
            assert (rank[image], right[image]) == (0, -1)
            continue
        assert rank[image] == places[0] + 1
        assert right[image] == order[places[0]]
        value = products[image, right[image]]
        np.testing.assert_allclose(similarity[image], value, atol=1e-6)


def test_duplicates_of_other_classes_are_no_crash():
    labels = np.array([0, 1, 0, 1, 2])
    rows = np.zeros((5, 2), np.float32)
    rows[:, 0] = 1  # All alike: the order of the gallery decides.
    embedded, gallery = Embedded(rows, np.ones(5, bool)), np.ones(5, bool)
    _, nearest = build.walks(embedded, gallery, 1)
    rank, right, _ = build.first_right(embedded, labels, gallery, nearest)
    assert rank[4] == 0 and right[4] == -1
    assert (rank[:4] >= 1).all() and (labels[right[:4]] == labels[:4]).all()


def test_all_of_it(split):
    unreadable = (3,)
    embedded = exploring.embedded(split, unreadable=unreadable)
    values = exploring.per_query(split, embedded)
    found = build.explore(embedded, split, values)
    assert found.neighbors.shape == (30, 10) and not found.valid[3]
    np.testing.assert_array_equal(found.numbers, np.arange(30))
    np.testing.assert_array_equal(found.metrics["map@r"], values["map@r"])
    assert [one.title for one in found.maps] == ["Neighbours", "PCA"]
    for one in found.maps:
        assert np.flatnonzero(np.isnan(one.points).any(axis=1)).tolist() == [3]


def test_a_further_map_if_it_is_wanted(split, embedded, monkeypatch):
    monkeypatch.setattr(projections, "tsne", lambda rows, seed: rows[:, :2])
    values = exploring.per_query(split, embedded)
    found = build.explore(embedded, split, values, tsne=True)
    assert [one.title for one in found.maps] == ["Neighbours", "PCA", "t-SNE"]
    np.testing.assert_allclose(found.maps[2].points, embedded.embeddings[:, :2])


def test_of_too_many_images_whole_classes_are_kept(split, embedded, monkeypatch):
    monkeypatch.setattr(build, "MOST_IMAGES", 16)
    values = exploring.per_query(split, embedded)
    found = build.explore(embedded, split, values)
    assert len(found.numbers) == 15 and (np.bincount(found.labels) == 5).all()
    for image, number in enumerate(found.numbers):
        assert found.class_names[found.labels[image]] == split.class_names[number // 5]
        assert found.names[image] == split.names[number]
    numbers = found.numbers[found.queries]
    np.testing.assert_allclose(found.metrics["r_precision"], numbers / 30)
    assert found.neighbors.max() < 15


def test_without_recall_the_order_of_neighbours_decides(split, embedded):
    values = exploring.per_query(split, embedded)
    del values["recall@1"]
    found = build.explore(embedded, split, values)
    expected = found.rank[found.queries] == 1
    np.testing.assert_array_equal(found.metrics["recall@1"], expected)
    assert 0 < expected.mean() < 1
