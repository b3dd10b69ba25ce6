"""Pairs of images and of classes, against the whole matrix of similarities."""

import exploring
import numpy as np
import pytest

from metricjax.explorer import class_similarity
from metricjax.inference.embedder import Embedded


@pytest.fixture(scope="module")
def split():
    return exploring.split()


@pytest.fixture(scope="module")
def embedded(split):
    return exploring.embedded(split)


def test_confusions_are_counted_either_way(split, embedded):
    labels = split.labels
    nearest = exploring.matrix(embedded, exploring.roles(split, "all")).argmax(axis=1)
    found = class_similarity.confusions(labels, np.arange(30), nearest)
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
    found = class_similarity.confusions(labels, np.arange(4), np.array([1, 0, 3, 2]))
    assert found.total == found.queries == 0
    assert found.pairs.shape == (0, 2) and found.examples.shape[0] == 0


@pytest.mark.parametrize("kind", ["all", "apart"])
@pytest.mark.parametrize("crowd", [0, 20])
def test_pairs_by_similarity(split, embedded, kind, crowd):
    rows = embedded.embeddings + np.float32(crowd)  # All nearly alike.
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    embedded, gallery = Embedded(rows, embedded.valid), exploring.roles(split, kind)
    found = class_similarity.pair_histogram(embedded, split.labels, gallery, seed=0)
    products = exploring.matrix(embedded, gallery)
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
    monkeypatch.setattr(class_similarity, "_COUNTED", 7)
    gallery = exploring.roles(split, "all")
    found = class_similarity.pair_histogram(embedded, split.labels, gallery, seed=0)
    assert (found.counted, found.images) == (7, 30)
    assert found.positive.sum() == 7 * 4 and found.negative.sum() == 7 * 25


def test_means_between_classes_are_those_of_all_pairs(split, embedded):
    nearest = exploring.matrix(embedded, exploring.roles(split, "all")).argmax(axis=1)
    found = class_similarity.confusions(split.labels, np.arange(30), nearest)
    heat = class_similarity.heat(embedded, split.labels, found)
    products = exploring.matrix(embedded, exploring.roles(split, "all"))
    assert sorted(heat.classes) == list(range(6))
    for row, one in enumerate(heat.classes):
        for column, other in enumerate(heat.classes):
            block = products[np.ix_(split.labels == one, split.labels == other)]
            expected = block[np.isfinite(block)].mean()
            np.testing.assert_allclose(heat.means[row, column], expected, atol=1e-6)


def test_the_classes_that_are_confused_most_are_compared(monkeypatch):
    monkeypatch.setattr(class_similarity, "_HEATED", 2)
    labels = np.repeat(np.arange(4), 2)
    rows = np.eye(8, dtype=np.float32)
    nearest = np.array([1, 0, 3, 2, 6, 6, 7, 4])  # 2 and 3 are taken for each other.
    found = class_similarity.confusions(labels, np.arange(8), nearest)
    heat = class_similarity.heat(Embedded(rows, np.ones(8, bool)), labels, found)
    assert sorted(heat.classes) == [2, 3]


def test_a_class_of_one_image_has_no_pairs():
    labels = np.array([0, 0, 1])
    embedded = Embedded(np.eye(3, dtype=np.float32), np.ones(3, bool))
    found = class_similarity.confusions(labels, np.arange(3), np.array([1, 0, 0]))
    heat = class_similarity.heat(embedded, labels, found)
    alone = heat.classes.tolist().index(1)
    assert np.isnan(heat.means[alone, alone])
    assert np.isfinite(heat.means).sum() == 3
