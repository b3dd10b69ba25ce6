"""What the explorer shows, against the whole matrix of similarities."""

import exploring
import numpy as np
import pytest

from metricjax import exploration, layouts
from metricjax.embedding import Embedded

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def split():
    return exploring.split()


@pytest.fixture(scope="module")
def embedded(split):
    return exploring.embedded(split)


def matrix(embedded, gallery):
    """Similarities to gallery images other than the own one; -inf to the rest."""
    rows = embedded.embeddings.astype(np.float64)
    products = rows @ rows.T
    products[:, ~gallery] = -np.inf
    np.fill_diagonal(products, -np.inf)
    return products


def roles(split, kind):
    """Which images may be found: all; all but some; none of the queries."""
    gallery = np.ones(len(split), bool)
    if kind == "some":
        gallery[::4] = False
    if kind == "apart":
        gallery[: len(split) // 2] = False
    return gallery


@pytest.mark.parametrize("kind", ["all", "some", "apart"])
def test_neighbours_of_every_image(split, embedded, kind):
    gallery = roles(split, kind)
    products = matrix(embedded, gallery)
    similarities, indices = exploration.walks(embedded, gallery, 4)
    expected = np.argsort(-products, axis=1, kind="stable")[:, :4]
    np.testing.assert_array_equal(indices, expected)
    values = np.take_along_axis(products, expected, axis=1)
    np.testing.assert_allclose(similarities, values, atol=1e-6)


def test_images_without_embedding_neither_ask_nor_are_found(split):
    embedded = exploring.embedded(split, unreadable=(0, 7))
    embedded.embeddings[[0, 7]] = 0
    similarities, indices = exploration.walks(embedded, embedded.valid, 29)
    assert (indices[[0, 7]] == -1).all() and (similarities[[0, 7]] == 0).all()
    assert not np.isin(np.delete(indices, [0, 7], axis=0), [0, 7]).any()
    assert indices.shape == (30, 27)  # As many as there are besides oneself.


@pytest.mark.parametrize("kind", ["all", "some", "apart"])
@pytest.mark.parametrize("kept", [1, 3])
def test_the_rank_of_the_first_right_one(split, embedded, kind, kept):
    labels, gallery = split.labels, roles(split, kind)
    products = matrix(embedded, gallery)
    _, nearest = exploration.walks(embedded, gallery, kept)
    rank, right, similarity = exploration.first_right(
        embedded, labels, gallery, nearest
    )
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
    _, nearest = exploration.walks(embedded, gallery, 1)
    rank, right, _ = exploration.first_right(embedded, labels, gallery, nearest)
    assert rank[4] == 0 and right[4] == -1
    assert (rank[:4] >= 1).all() and (labels[right[:4]] == labels[:4]).all()


def test_confusions_are_counted_either_way(split, embedded):
    labels = split.labels
    nearest = matrix(embedded, roles(split, "all")).argmax(axis=1)
    found = exploration.confusions(labels, np.arange(30), nearest)
    table = np.zeros((6, 6), int)
    np.add.at(table, (labels, labels[nearest]), 1)
    assert found.queries == table.sum() - np.trace(table) > 3
    assert found.total == len(found.pairs)
    totals = found.counts.sum(axis=1)
    assert (np.diff(totals) <= 0).all() and totals.sum() == found.queries
    for (one, other), (there, back), examples in zip(
        found.pairs, found.counts, found.examples, strict=True
    ):
        assert one < other and (there, back) == (table[one, other], table[other, one])
        some = examples[examples >= 0]
        assert len(some) == min(there + back, 4) == len(set(some.tolist()))
        for query in some:
            assert {labels[query], labels[nearest[query]]} == {one, other}


def test_nothing_is_confused():
    labels = np.array([0, 0, 1, 1])
    found = exploration.confusions(labels, np.arange(4), np.array([1, 0, 3, 2]))
    assert found.total == found.queries == 0
    assert found.pairs.shape == (0, 2) and found.examples.shape[0] == 0


@pytest.mark.parametrize("kind", ["all", "apart"])
@pytest.mark.parametrize("crowd", [0, 20])
def test_pairs_by_similarity(split, embedded, kind, crowd):
    rows = embedded.embeddings + np.float32(crowd)  # All nearly alike.
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    embedded, gallery = Embedded(rows, embedded.valid), roles(split, kind)
    found = exploration.pair_histogram(embedded, split.labels, gallery, seed=0)
    products = matrix(embedded, gallery)
    same = split.labels[:, None] == split.labels
    values = [products[side & np.isfinite(products)] for side in (same, ~same)]
    assert len(found.positive) == len(found.edges) - 1 > 40
    for counts, side, mean in zip(
        (found.positive, found.negative), values, found.means, strict=True
    ):
        expected = np.histogram(side, bins=found.edges)[0]
        assert counts.sum() == len(side) > 0
        assert np.abs(np.cumsum(counts) - np.cumsum(expected)).max() <= 2
        np.testing.assert_allclose(mean, side.mean(), atol=1e-5)
    larger = (values[0][:, None] > values[1]).mean()
    np.testing.assert_allclose(found.separation, larger, atol=5e-3)
    assert found.counted == found.images == 30


def test_many_images_are_sampled_for_it(split, embedded, monkeypatch):
    monkeypatch.setattr(exploration, "_COUNTED", 7)
    gallery = roles(split, "all")
    found = exploration.pair_histogram(embedded, split.labels, gallery, seed=0)
    assert (found.counted, found.images) == (7, 30)
    assert found.positive.sum() == 7 * 4 and found.negative.sum() == 7 * 25


def test_means_between_classes_are_those_of_all_pairs(split, embedded):
    nearest = matrix(embedded, roles(split, "all")).argmax(axis=1)
    found = exploration.confusions(split.labels, np.arange(30), nearest)
    heat = exploration.heat(embedded, split.labels, found)
    products = matrix(embedded, roles(split, "all"))
    assert sorted(heat.classes) == list(range(6))
    for row, one in enumerate(heat.classes):
        for column, other in enumerate(heat.classes):
            block = products[np.ix_(split.labels == one, split.labels == other)]
            expected = block[np.isfinite(block)].mean()
            np.testing.assert_allclose(heat.means[row, column], expected, atol=1e-6)


def test_the_classes_that_are_confused_most_are_compared(monkeypatch):
    monkeypatch.setattr(exploration, "_HEATED", 2)
    labels = np.repeat(np.arange(4), 2)
    rows = np.eye(8, dtype=np.float32)
    nearest = np.array([1, 0, 3, 2, 6, 6, 7, 4])  # 2 and 3 are taken for each other.
    found = exploration.confusions(labels, np.arange(8), nearest)
    heat = exploration.heat(Embedded(rows, np.ones(8, bool)), labels, found)
    assert sorted(heat.classes) == [2, 3]


def test_a_class_of_one_image_has_no_pairs():
    labels = np.array([0, 0, 1])
    embedded = Embedded(np.eye(3, dtype=np.float32), np.ones(3, bool))
    found = exploration.confusions(labels, np.arange(3), np.array([1, 0, 0]))
    heat = exploration.heat(embedded, labels, found)
    alone = heat.classes.tolist().index(1)
    assert np.isnan(heat.means[alone, alone])
    assert np.isfinite(heat.means).sum() == 3


def test_all_of_it(split):
    unreadable = (3,)
    embedded = exploring.embedded(split, unreadable=unreadable)
    values = exploring.per_query(split, embedded)
    found = exploration.explore(embedded, split, values)
    assert found.neighbors.shape == (30, 10) and not found.valid[3]
    np.testing.assert_array_equal(found.numbers, np.arange(30))
    np.testing.assert_array_equal(found.metrics["map@r"], values["map@r"])
    assert [one.title for one in found.maps] == ["Neighbours", "PCA"]
    for one in found.maps:
        assert np.flatnonzero(np.isnan(one.points).any(axis=1)).tolist() == [3]


def test_a_further_map_if_it_is_wanted(split, embedded, monkeypatch):
    monkeypatch.setattr(layouts, "tsne", lambda rows, seed: rows[:, :2])
    values = exploring.per_query(split, embedded)
    found = exploration.explore(embedded, split, values, tsne=True)
    assert [one.title for one in found.maps] == ["Neighbours", "PCA", "t-SNE"]
    np.testing.assert_allclose(found.maps[2].points, embedded.embeddings[:, :2])


def test_of_too_many_images_whole_classes_are_kept(split, embedded, monkeypatch):
    monkeypatch.setattr(exploration, "MOST_IMAGES", 16)
    values = exploring.per_query(split, embedded)
    found = exploration.explore(embedded, split, values)
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
    found = exploration.explore(embedded, split, values)
    expected = found.rank[found.queries] == 1
    np.testing.assert_array_equal(found.metrics["recall@1"], expected)
    assert 0 < expected.mean() < 1
