"""Clustering: scores against scikit-learn and by hand; k-means against its own."""

import itertools

import jax
import numpy as np
import pytest

from metricjax.errors import InputError
from metricjax.evaluation import clustering, k_means
from metricjax.evaluation.clustering import agreement


def unit(rows):
    rows = np.asarray(rows, np.float64)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def clusters(classes, size, width=8, noise=0.25, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(classes), size))
    rows = rng.normal(size=(classes, width))[labels]
    return unit(rows + noise * rng.normal(size=rows.shape)), labels


def mesh_of(devices):
    auto = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh(
        (devices,), ("data",), axis_types=auto, devices=jax.devices()[:devices]
    )


@pytest.mark.parametrize("normalization", ["arithmetic", "geometric"])
@pytest.mark.parametrize("groups", [(5, 5), (30, 4), (4, 30), (90, 80), (1, 7)])
def test_scores_are_those_of_scikit_learn(groups, normalization):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(sum(groups))
    labels = rng.integers(groups[0], size=101) ** 2 - 7
    found = np.where(
        rng.random(101) < 0.4, labels % groups[1], rng.integers(groups[1], size=101)
    )
    scores = agreement(labels, found, normalization=normalization)
    options = {"average_method": normalization}
    theirs = metrics.normalized_mutual_info_score(labels, found, **options)
    assert scores["nmi"] == pytest.approx(theirs, abs=1e-9)
    theirs = metrics.adjusted_mutual_info_score(labels, found, **options)
    assert scores["ami"] == pytest.approx(theirs, abs=1e-9)
    (_, false), (missed, true) = metrics.cluster.pair_confusion_matrix(labels, found)
    assert scores["f1"] == pytest.approx(2 * true / (2 * true + false + missed))


def test_f1_counts_every_pair():
    labels, found = np.array([0, 0, 0, 1, 1, 2]), np.array([5, 5, 6, 6, 6, 5])
    pairs = list(itertools.combinations(range(6), 2))
    same = {p for p in pairs if labels[p[0]] == labels[p[1]]}
    together = {p for p in pairs if found[p[0]] == found[p[1]]}
    both = len(same & together)
    precision, recall = both / len(together), both / len(same)
    expected = 2 * precision * recall / (precision + recall)
    assert agreement(labels, found)["f1"] == pytest.approx(expected)


def test_pairs_do_not_overflow():
    """200,000 images of one class are more pairs than 32 bits hold."""
    labels = np.zeros(200_000, np.int32)
    assert agreement(labels, labels) == {"nmi": 1.0, "ami": 1.0, "f1": 1.0}
    halves = np.arange(200_000) % 2
    f1 = agreement(labels, halves)["f1"]
    assert f1 == pytest.approx(2 * 0.5 / 1.5, abs=1e-5)


def test_equal_and_independent_partitions():
    labels = np.repeat(np.arange(10), 20)
    renamed = agreement(labels, 90 - 3 * labels)
    assert renamed == {"nmi": pytest.approx(1), "ami": pytest.approx(1), "f1": 1.0}
    chance = agreement(labels, np.random.default_rng(0).permutation(labels))
    assert abs(chance["ami"]) < 0.05 < chance["nmi"]


def test_separate_clusters_are_found():
    embeddings, labels = clusters(12, 11, noise=0.05)
    result = clustering(embeddings, labels, seed=3, restarts=5)
    assert result["nmi"] == result["f1"] == pytest.approx(1)
    assert (result["clusters"], result["images"]) == (12, 132)
    assert (result["seed"], result["restarts"]) == (3, 5)
    assert result["normalization"] == "arithmetic" and result["converged"]
    assert type(result["inertia"]) is float


def test_as_good_as_scikit_learn():
    """Lloyd from the same centroids ends at the same partition."""
    cluster = pytest.importorskip("sklearn.cluster")
    embeddings, _ = clusters(20, 15, noise=0.5)
    first = embeddings[:20].astype(np.float64)
    theirs = cluster.KMeans(20, init=first, n_init=1, tol=0).fit(embeddings)
    placed = k_means._place(embeddings, 20, None)
    ours = k_means._lloyd(embeddings, placed, first, 300, None)
    assert agreement(theirs.labels_, ours.assigned)["f1"] == 1
    assert ours.inertia == pytest.approx(theirs.inertia_, rel=1e-5)
    # And from first guesses of its own it is about as good as from theirs.
    theirs = [
        cluster.KMeans(20, n_init=1, random_state=seed).fit(embeddings).inertia_
        for seed in range(40)
    ]
    ours = [k_means.k_means(embeddings, 20, seed=seed).inertia for seed in range(40)]
    assert np.mean(ours) < 1.02 * np.mean(theirs)


def test_repeatable_whatever_the_blocks_and_devices(monkeypatch):
    embeddings, _ = clusters(23, 22, noise=0.6)
    embeddings = embeddings[:503]  # A prime number of rows.
    expected = k_means.k_means(embeddings, 23, seed=1, restarts=2)
    for mesh in (mesh_of(2), mesh_of(8)):
        found = k_means.k_means(embeddings, 23, seed=1, restarts=2, mesh=mesh)
        np.testing.assert_array_equal(found.assigned, expected.assigned)
        assert found.inertia == expected.inertia
    monkeypatch.setattr(k_means, "ELEMENTS_PER_BLOCK", 23 * 64)
    found = k_means.k_means(embeddings, 23, seed=1, restarts=2)
    np.testing.assert_array_equal(found.assigned, expected.assigned)
    other = k_means.k_means(embeddings, 23, seed=2)
    assert (other.assigned != expected.assigned).any()


def test_more_restarts_are_no_worse():
    embeddings, _ = clusters(30, 6, noise=0.6)
    one, many = (
        k_means.k_means(embeddings, 30, seed=0, restarts=restarts).inertia
        for restarts in (1, 6)
    )
    assert many <= one


def test_no_cluster_stays_empty_while_rows_differ():
    rows = unit(np.random.default_rng(0).normal(size=(40, 5)))
    same = np.repeat(rows[:1], 8, axis=0)
    placed = k_means._place(rows, 8, None)
    found = k_means._lloyd(rows, placed, same, 100, None)
    assert len(np.unique(found.assigned)) == 8
    # With fewer different rows than clusters some have to.
    twice = np.repeat(rows[:3], 10, axis=0)
    found = k_means.k_means(twice, 5, seed=0)
    assert len(np.unique(found.assigned)) <= 5 and found.inertia < 1e-6


def test_memory_stays_within_blocks():
    count, clusters = 40_000, 9_000
    size = k_means.ELEMENTS_PER_BLOCK // clusters // 64 * 64
    blocks = jax.ShapeDtypeStruct((count // size, size, 4), np.float32)
    centroids = jax.ShapeDtypeStruct((clusters, 4), np.float32)
    compiled = k_means._nearest.lower(blocks, centroids, mesh=None).compile()
    used = compiled.memory_analysis().temp_size_in_bytes
    assert used < 3 * 4 * k_means.ELEMENTS_PER_BLOCK


def test_bad_input_is_told_in_a_sentence():
    embeddings, labels = clusters(4, 5)

    def rejected(message, *args, **kwargs):
        with pytest.raises(InputError, match=message):
            clustering(*args, **kwargs)

    rejected("row 0 has length 2", embeddings * 2, labels)
    rejected("labels is", embeddings, labels[:-1])
    rejected("restarts is 0", embeddings, labels, restarts=0)
    rejected("iterations is 1.5", embeddings, labels, iterations=1.5)
    rejected("did you mean 'geometric'", embeddings, labels, normalization="geometic")
