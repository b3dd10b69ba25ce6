"""Retrieval metrics against full sorts, all orders of ties and closed forms."""

import itertools
from math import comb

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from metricjax.errors import InputError
from metricjax.evaluation import by_class, nearest, retrieval

METRICS = ("recall@1", "recall@2", "recall@4", "recall@8", "r_precision", "map@r")


def clusters(classes, size, width=16, noise=0.25, seed=0):
    """Unit rows around one centre a class, in random order, and their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(classes), size))
    rows = rng.normal(size=(classes, width))[labels]
    rows = rows + noise * width**0.5 * rng.normal(size=rows.shape)
    return unit(rows), labels


def unit(rows):
    rows = np.asarray(rows, np.float64)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def values(result, names=METRICS):
    return np.array([result[name] for name in names])


def mesh_of(devices, *names):
    shape = (devices,) if len(names) < 2 else (devices // 2, 2)
    auto = (jax.sharding.AxisType.Auto,) * len(shape)
    return jax.make_mesh(
        shape, names or ("data",), axis_types=auto, devices=jax.devices()[:devices]
    )


@pytest.mark.parametrize("noise", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("classes, size", [(12, 9), (50, 3), (2, 60)])
def test_equals_a_full_sort(classes, size, noise):
    embeddings, labels = clusters(classes, size, noise=noise)
    result = retrieval(embeddings, labels)
    own = np.arange(len(labels))
    expected = reference.retrieval_values(
        embeddings, labels, embeddings, labels, own, (1, 2, 4, 8)
    )
    np.testing.assert_allclose(values(result), expected.mean(axis=0), atol=1e-12)
    assert result["queries"] == classes * size
    assert result["lone_queries"] == result["ties"] == 0


def test_types_are_plain_python():
    embeddings, labels = clusters(5, 4)
    result = retrieval(jnp.asarray(embeddings), jnp.asarray(labels), bootstrap=10)
    assert all(type(result[name]) is float for name in METRICS)
    counts = ("queries", "lone_queries", "ties")
    assert all(type(result[name]) is int for name in counts)
    assert set(result) == {*METRICS, *counts, "intervals"}
    assert set(result["intervals"]) == set(METRICS)
    for name, (low, high) in result["intervals"].items():
        assert 0 <= low <= result[name] <= high <= 1
    assert retrieval(embeddings, labels, bootstrap=0)["intervals"] == {}


@pytest.mark.parametrize("seed", range(6))
def test_ties_count_at_their_mean_over_all_orders(seed):
    """Half-integer rows have exact products, -1, -1/2, 0, 1/2 or 1: ties abound."""
    rng = np.random.default_rng(seed)
    corners = np.array(list(itertools.product((-0.5, 0.5), repeat=4)), np.float32)
    gallery = corners[rng.integers(len(corners) // (1 + seed % 3), size=7)]
    gallery_labels = rng.integers(2, size=7)
    queries, labels = gallery[:4], gallery_labels[:4]
    own = np.array([0, 1, -1, -1])
    recall_at = (1, 2, 3, 5)
    means, ties = [], 0
    for query in range(4):
        others = np.delete(np.arange(7), own[query]) if own[query] >= 0 else slice(None)
        relevant = gallery_labels[others] == labels[query]
        if relevant.any():
            mean, tied = reference.retrieval_expected(
                gallery[others] @ queries[query], relevant, recall_at
            )
            means.append(mean)
            ties += tied
    result = retrieval(
        queries,
        labels,
        gallery=gallery,
        gallery_labels=gallery_labels,
        own_index=own,
        recall_at=recall_at,
    )
    names = ("recall@1", "recall@2", "recall@3", "recall@5", "r_precision", "map@r")
    np.testing.assert_allclose(values(result, names), np.mean(means, 0), atol=1e-12)
    assert result["queries"] == len(means)
    assert result["ties"] == ties


@pytest.mark.parametrize("classes, size", [(10, 10), (300, 10), (3, 700)])
def test_equal_embeddings_give_chance(classes, size):
    """One tie group over many tiles: no order of the gallery may leak in."""
    labels = np.repeat(np.arange(classes), size)
    embeddings = unit(np.tile(np.linspace(1, 2, 48), (len(labels), 1)))
    result = retrieval(embeddings, labels)
    n, r = len(labels) - 1, size - 1
    for k in (1, 2, 4, 8):
        expected = 1 - comb(n - r, k) / comb(n, k)
        assert result[f"recall@{k}"] == pytest.approx(expected, abs=1e-12)
    assert result["r_precision"] == pytest.approx(r / n, abs=1e-12)
    place = np.arange(1, r + 1)
    precision = (1 + (place - 1) * (r - 1) / (n - 1)) / place
    assert result["map@r"] == pytest.approx(precision.sum() / n, abs=1e-12)
    assert result["ties"] == len(labels)


def test_a_duplicate_under_another_label_is_a_miss():
    """Each image's exact copy carries a wrong label, and its true partner is farther.

    Dropping the first column instead of the own index would report 0.5.
    """
    images, classes = clusters(30, 2, noise=0.3)
    embeddings = np.concatenate([images, images])
    labels = np.concatenate([classes, classes + 30])
    result = retrieval(embeddings, labels)
    assert result["recall@1"] == 0.0
    assert result["recall@8"] > 0.5


def test_random_embeddings_give_chance():
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(20), 50)
    result = retrieval(unit(rng.normal(size=(1000, 64))), labels)
    for k in (1, 2, 4, 8):
        chance = 1 - comb(950, k) / comb(999, k)
        assert result[f"recall@{k}"] == pytest.approx(chance, abs=0.05)
    assert result["r_precision"] == pytest.approx(49 / 999, abs=0.01)


@pytest.mark.parametrize(
    "width",
    [
        37,
        pytest.param(3, marks=pytest.mark.slow),
        pytest.param(512, marks=pytest.mark.slow),
    ],
)
def test_order_block_size_and_devices_do_not_matter(width):
    """N prime, rows doubled under other labels, on 1, 2 and 8 devices."""
    rng = np.random.default_rng(width)
    base, labels = clusters(9, 41, width=width)
    copies = rng.choice(len(base), size=140)
    embeddings = np.concatenate([base, base[copies]])
    labels = np.concatenate([labels, rng.integers(9, size=140)])
    embeddings, labels = embeddings[:503], labels[:503]
    expected = retrieval(embeddings, labels)
    assert expected["ties"] > 0
    for block_size in (1, 200):
        assert retrieval(embeddings, labels, block_size=block_size) == expected
    for mesh in (mesh_of(2), mesh_of(8), mesh_of(8, "data", "model")):
        result = retrieval(embeddings, labels, block_size=64, mesh=mesh)
        assert result == expected
    order = rng.permutation(503)
    shuffled = retrieval(embeddings[order], labels[order])
    np.testing.assert_allclose(values(shuffled), values(expected), rtol=1e-14)
    assert shuffled["ties"] == expected["ties"]


def test_permuted_gallery_over_several_tiles_changes_nothing():
    rng = np.random.default_rng(5)
    base, labels = clusters(40, 60, width=24)
    gallery = np.concatenate([base, base])
    gallery_labels = np.concatenate([labels, rng.permutation(labels)])
    results = []
    for order in (np.arange(4800), rng.permutation(4800)):
        own = np.argsort(order)[:100]
        results.append(
            retrieval(
                base[:100],
                labels[:100],
                gallery=gallery[order],
                gallery_labels=gallery_labels[order],
                own_index=own,
            )
        )
    assert results[0] == results[1]
    assert results[0]["ties"] > 0


def test_query_against_gallery_excludes_nothing():
    """In-Shop: an equal image of the gallery is a match, not the query itself."""
    embeddings, labels = clusters(15, 4)
    gallery, gallery_labels = clusters(15, 3, seed=1)
    gallery = np.concatenate([gallery, embeddings[:10]])
    gallery_labels = np.concatenate([gallery_labels, labels[:10]])
    result = retrieval(
        embeddings, labels, gallery=gallery, gallery_labels=gallery_labels
    )
    expected = reference.retrieval_values(
        embeddings, labels, gallery, gallery_labels, np.full(60, -1), (1, 2, 4, 8)
    )
    np.testing.assert_allclose(values(result), expected.mean(axis=0), atol=1e-12)


def test_own_index_makes_a_gallery_the_embeddings_themselves():
    embeddings, labels = clusters(15, 4)
    expected = retrieval(embeddings, labels)
    result = retrieval(
        embeddings,
        labels,
        gallery=embeddings,
        gallery_labels=labels,
        own_index=np.arange(60),
    )
    assert result == expected


def test_classes_of_very_different_sizes():
    """One class of hundreds beside pairs: searched to different depths, in one mean."""
    embeddings, labels = clusters(40, 20, noise=0.6)
    labels = np.where(labels < 25, 0, labels)
    labels[np.flatnonzero(labels == 30)[2:]] = 0
    result = retrieval(embeddings, labels, recall_at=(1, 2, 4, 8))
    own = np.arange(len(labels))
    expected = reference.retrieval_values(
        embeddings, labels, embeddings, labels, own, (1, 2, 4, 8)
    )
    np.testing.assert_allclose(values(result), expected.mean(axis=0), atol=1e-12)


def test_depth_beyond_a_tile(monkeypatch):
    """A class larger than a tile keeps more neighbours than a tile has rows."""
    monkeypatch.setattr("metricjax.evaluation.neighbors.TILE", 64)
    jax.clear_caches()
    embeddings, labels = clusters(3, 90, noise=1.0)
    result = retrieval(embeddings, labels, recall_at=(1, 150))
    jax.clear_caches()
    expected = reference.retrieval_values(
        embeddings, labels, embeddings, labels, np.arange(270), (1, 150)
    )
    names = ("recall@1", "recall@150", "r_precision", "map@r")
    np.testing.assert_allclose(values(result, names), expected.mean(axis=0), atol=1e-12)


def test_lone_queries_are_counted_and_left_out():
    embeddings, labels = clusters(10, 6)
    labels[labels == 3] = 1000 + np.arange(6)
    result = retrieval(embeddings, labels)
    assert (result["queries"], result["lone_queries"]) == (54, 6)
    expected = reference.retrieval_values(
        embeddings, labels, embeddings, labels, np.arange(60), (1, 2, 4, 8)
    )
    np.testing.assert_allclose(values(result), np.nanmean(expected, 0), atol=1e-12)


def test_recall_grows_with_k_to_one():
    embeddings, labels = clusters(12, 5, noise=3.0)
    recall_at = tuple(range(1, 60))
    result = retrieval(embeddings, labels, recall_at=recall_at)
    recalls = [result[f"recall@{k}"] for k in recall_at]
    assert recalls == sorted(recalls)
    assert recalls[-1] == 1.0 > recalls[0]


def test_labels_may_be_any_integers():
    embeddings, labels = clusters(8, 5)
    wild = np.array([-7, 2**40, 0, 5, 99, -(2**50), 3, 8])[labels]
    assert (
        retrieval(embeddings, wild)["map@r"] == retrieval(embeddings, labels)["map@r"]
    )


def rejected(message, *args, **kwargs):
    with pytest.raises(InputError, match=message):
        retrieval(*args, **kwargs)


def test_bad_input_is_told_in_a_sentence():
    embeddings, labels = clusters(4, 5)
    broken = embeddings.copy()
    broken[7, 2] = np.nan
    rejected("NaN or Inf .* first is row 7", broken, labels)
    rejected("row 0 has length 2 .* divide each row", embeddings * 2, labels)
    rejected("row 0 has length 0", embeddings * 0, labels)
    rejected("dtype int", embeddings.astype(int), labels)
    rejected("shape", embeddings[0], labels)
    rejected("labels is", embeddings, labels[:-1])
    rejected("labels is float", embeddings, labels.astype(float))
    rejected("recall_at has 20, .* from 1 to 19", embeddings, labels, recall_at=(20,))
    rejected("recall_at has 0", embeddings, labels, recall_at=(0,))
    rejected("recall_at has 1.5", embeddings, labels, recall_at=(1.5,))
    rejected("none of the 20 queries", embeddings, np.arange(20))
    rejected("without gallery_labels", embeddings, labels, gallery=embeddings)
    rejected("without a gallery", embeddings, labels, own_index=np.arange(20))
    rejected("block_size is 0", embeddings, labels, block_size=0)
    rejected("block_size is 64.0", embeddings, labels, block_size=64.0)
    rejected("bootstrap is -1", embeddings, labels, bootstrap=-1)
    both = dict(gallery=embeddings, gallery_labels=labels)
    rejected(
        "own_index of query 1 is 20", embeddings, labels, **both, own_index=[0, 20] * 10
    )
    rejected(
        "16 numbers a row where",
        embeddings[:, :4] / np.linalg.norm(embeddings[:, :4], axis=1, keepdims=True),
        labels,
        **both,
    )


def test_equals_pytorch_metric_learning():
    """The same numbers as AccuracyCalculator, on data without ties.

    Aligned by hand with 2.9.0: its k must be given as "max_bin_count" (the largest R),
    it returns micro averages by default and leaves lone queries out as we do.
    """
    pytest.importorskip("pytorch_metric_learning")
    torch = pytest.importorskip("torch")
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    embeddings, labels = clusters(30, 7, noise=0.7)
    embeddings, labels = embeddings[3:], labels[3:]
    labels[0] = 99
    calculator = AccuracyCalculator(
        include=("precision_at_1", "r_precision", "mean_average_precision_at_r"),
        k="max_bin_count",
        device=torch.device("cpu"),
    )
    theirs = calculator.get_accuracy(
        torch.from_numpy(embeddings), torch.from_numpy(labels)
    )
    ours = retrieval(embeddings, labels)
    assert ours["recall@1"] == pytest.approx(theirs["precision_at_1"], abs=1e-6)
    assert ours["r_precision"] == pytest.approx(theirs["r_precision"], abs=1e-6)
    expected = theirs["mean_average_precision_at_r"]
    assert ours["map@r"] == pytest.approx(expected, abs=1e-6)


def uneven():
    """Classes of one to nine images, labels with gaps, one of them alone."""
    embeddings, labels = clusters(9, 9, noise=0.8)
    rank = np.array([np.sum(labels[:i] == label) for i, label in enumerate(labels)])
    kept = rank <= labels
    return embeddings[kept], labels[kept] * 100


def test_values_of_each_query_are_those_of_a_full_sort():
    embeddings, labels = uneven()
    result = retrieval(embeddings, labels, per_query=True)
    each, own = result["per_query"], np.arange(len(labels))
    expected = reference.retrieval_values(
        embeddings, labels, embeddings, labels, own, (1, 2, 4, 8)
    )
    np.testing.assert_array_equal(each["query"], np.flatnonzero(labels != 0))
    np.testing.assert_array_equal(each["label"], labels[each["query"]])
    for column, name in enumerate(METRICS):
        np.testing.assert_allclose(
            each[name], expected[each["query"], column], atol=1e-12
        )


def test_every_class_counts_the_same_in_macro_averages():
    embeddings, labels = uneven()
    result = retrieval(
        embeddings, labels, per_class=True, per_query=True, bootstrap=200
    )
    each, classes = result["per_query"], result["per_class"]
    np.testing.assert_array_equal(classes["label"], np.arange(1, 9) * 100)
    np.testing.assert_array_equal(classes["queries"], np.arange(2, 10))
    for name in METRICS:
        means = [each[name][each["label"] == c].mean() for c in classes["label"]]
        np.testing.assert_allclose(classes[name], means, atol=1e-12)
        assert result[f"macro_{name}"] == pytest.approx(np.mean(means), abs=1e-12)
        low, high = result["intervals"][f"macro_{name}"]
        assert 0 <= low <= result[f"macro_{name}"] <= high <= 1
    assert result["macro_map@r"] != pytest.approx(result["map@r"], abs=1e-3)
    plain = retrieval(embeddings, labels, bootstrap=200)
    assert {k: result[k] for k in set(plain) - {"intervals"}} == {
        k: plain[k] for k in set(plain) - {"intervals"}
    }
    assert all(result["intervals"][k] == v for k, v in plain["intervals"].items())
    np.testing.assert_equal(by_class(each), classes)


def test_macro_averages_equal_pytorch_metric_learning():
    """Its `avg_of_avgs`, also with queries and gallery apart (In-Shop)."""
    pytest.importorskip("pytorch_metric_learning")
    torch = pytest.importorskip("torch")
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    embeddings, labels = uneven()
    embeddings, labels = embeddings[labels > 0], labels[labels > 0]
    asked = np.arange(len(labels)) % 3 == 0
    calculator = AccuracyCalculator(
        include=("precision_at_1", "r_precision", "mean_average_precision_at_r"),
        avg_of_avgs=True,
        k="max_bin_count",
        device=torch.device("cpu"),
    )

    def tensors(*arrays):
        return [torch.from_numpy(array) for array in arrays]

    sides = embeddings[asked], labels[asked], embeddings[~asked], labels[~asked]
    apart = calculator.get_accuracy(*tensors(*sides))
    together = calculator.get_accuracy(*tensors(embeddings, labels))
    gallery = {"gallery": sides[2], "gallery_labels": sides[3], "recall_at": (1,)}
    for theirs, ours in (
        (together, retrieval(embeddings, labels, per_class=True)),
        (apart, retrieval(*sides[:2], **gallery, per_class=True)),
    ):
        for name, other in (
            ("recall@1", "precision_at_1"),
            ("r_precision", "r_precision"),
            ("map@r", "mean_average_precision_at_r"),
        ):
            assert ours[f"macro_{name}"] == pytest.approx(theirs[other], abs=1e-6)


def test_equals_faiss():
    """Recall@K from the neighbours of IndexFlatIP, the query's own index taken out."""
    faiss = pytest.importorskip("faiss")
    embeddings, labels = clusters(60, 11, width=48, noise=0.9)
    index = faiss.IndexFlatIP(48)
    index.add(embeddings)
    _, found = index.search(embeddings, 17)
    own = np.arange(len(labels))[:, None]
    others = np.stack(
        [row[row != i][:16] for i, row in zip(own[:, 0], found, strict=True)]
    )
    hits = labels[others] == labels[:, None]
    result = retrieval(embeddings, labels, recall_at=(1, 2, 4, 8, 16))
    for k in (1, 2, 4, 8, 16):
        theirs = hits[:, :k].any(axis=1).mean()
        assert result[f"recall@{k}"] == pytest.approx(theirs, abs=1e-12)
    assert result["r_precision"] == pytest.approx(hits[:, :10].mean(), abs=1e-12)
    np.testing.assert_array_equal(
        nearest(embeddings, embeddings, 16, own_index=own[:, 0])[1], others
    )
