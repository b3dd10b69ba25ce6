"""Building the hierarchy: clusters, their numbers over time, categories, centroids."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import reference_proxies

from metricjax.errors import InputError
from metricjax.evaluation.k_means import Clusters
from metricjax.objectives import class_clustering


def planted(groups=5, members=6, width=16, noise=0.15, seed=0):
    """Proxies around a few directions, shuffled: [c, d] and the group of each."""
    drawn = np.random.default_rng(seed)
    directions = reference.l2_normalize(drawn.normal(size=(groups, width)))
    group = drawn.permutation(np.repeat(np.arange(groups), members))
    rows = directions[group] + noise * drawn.normal(size=(len(group), width)) / 4
    return rows * drawn.uniform(0.2, 5.0, size=(len(group), 1)), group


def same_partition(first, second):
    """Whether two numberings put the same classes together."""
    pairs = set(zip(first.tolist(), second.tolist(), strict=True))
    return len(pairs) == len(set(first.tolist())) == len(set(second.tolist()))


def test_planted_groups_are_found():
    proxies, group = planted()
    (level,) = class_clustering.cluster(proxies, [5], seed=3)
    assert level.parent.dtype == np.int32 and level.parent.shape == (30,)
    assert same_partition(level.parent, group)
    expected = reference_proxies.group_means(proxies, level.parent)
    assert level.centroids.dtype == np.float32
    np.testing.assert_allclose(level.centroids, expected, atol=1e-6)


def test_lengths_matter_only_to_raw_clusters():
    """Directions against lengths: each option sees its own two groups."""
    directions = np.array([[1.0, 0.0], [0.0, 1.0]] * 4)
    lengths = np.array([1.0, 1.0, 9.0, 9.0] * 2)
    proxies = lengths[:, None] * directions + 0.01 * np.arange(8)[:, None]
    (unit,) = class_clustering.cluster(proxies, [2], seed=0)
    assert same_partition(unit.parent, np.array([0, 1] * 4))
    (raw,) = class_clustering.cluster(proxies, [3], seed=0, normalize=False, restarts=5)
    assert same_partition(raw.parent, np.array([0, 0, 1, 2] * 2))
    for cluster in range(3):
        np.testing.assert_allclose(
            raw.centroids[cluster], proxies[raw.parent == cluster].mean(axis=0), 1e-6
        )


def test_same_seed_same_clusters():
    proxies = np.random.default_rng(1).normal(size=(80, 8))
    first, again = (class_clustering.cluster(proxies, [9, 3], seed=5) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.parent, b.parent)
        np.testing.assert_array_equal(a.centroids, b.centroids)
    other = class_clustering.cluster(proxies, [9, 3], seed=6)
    assert not np.array_equal(first[0].parent, other[0].parent)


def test_more_first_guesses_are_not_worse():
    proxies = reference.l2_normalize(np.random.default_rng(2).normal(size=(60, 8)))

    def spread(restarts):
        (level,) = class_clustering.cluster(proxies, [6], seed=0, restarts=restarts)
        return sum(
            ((rows - rows.mean(axis=0)) ** 2).sum()
            for rows in (proxies[level.parent == k] for k in range(6))
        )

    assert spread(20) <= spread(1) + 1e-9


@pytest.mark.parametrize("normalize", [True, False])
def test_as_good_as_scikit_learn(normalize):
    """The sum of squares of the best of ten first guesses, raw and unit rows."""
    theirs = pytest.importorskip("sklearn.cluster")
    proxies = np.random.default_rng(3).normal(size=(120, 6)) * [1, 2, 3, 4, 5, 6]
    (level,) = class_clustering.cluster(
        proxies, [8], seed=0, normalize=normalize, restarts=10
    )
    rows = reference.l2_normalize(proxies) if normalize else proxies
    means = [rows[level.parent == k].mean(axis=0) for k in range(8)]
    ours = np.square(rows - np.array(means)[level.parent]).sum()
    best = theirs.KMeans(8, n_init=10, random_state=0).fit(rows).inertia_
    assert ours <= 1.03 * best


def test_levels_are_nested_and_of_the_classes():
    """Groups of groups: 12 directions around 3, each level [c]."""
    drawn = np.random.default_rng(4)
    top = 3.0 * reference.l2_normalize(drawn.normal(size=(3, 16)))
    middle = np.repeat(top, 4, axis=0) + 0.2 * drawn.normal(size=(12, 16))
    proxies = np.repeat(middle, 5, axis=0) + 0.01 * drawn.normal(size=(60, 16))
    levels = class_clustering.cluster(proxies, [12, 3, 1], seed=0, restarts=10)
    assert [level.centroids.shape for level in levels] == [(12, 16), (3, 16), (1, 16)]
    assert same_partition(levels[0].parent, np.repeat(np.arange(12), 5))
    assert same_partition(levels[1].parent, np.repeat(np.arange(3), 20))
    assert np.all(levels[2].parent == 0)
    expected = reference_proxies.group_means(
        levels[0].centroids, levels[1].parent[np.unique(levels[0].parent, True)[1]]
    )
    np.testing.assert_allclose(levels[1].centroids, expected, atol=1e-6)


@pytest.mark.parametrize("counts", [[8], [8, 8], [1], [1, 1]])
def test_no_cluster_is_empty_whatever_the_proxies(counts):
    """Fewer distinct proxies than clusters, down to a single one; and no warning."""
    distinct = np.random.default_rng(0).normal(size=(3, 4))
    for proxies in (
        np.repeat(distinct, [5, 2, 1], axis=0),
        np.repeat(distinct[:1], 8, axis=0),
        np.zeros((8, 4)),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            levels = class_clustering.cluster(proxies, counts, seed=0)
        for level, count in zip(levels, counts, strict=True):
            assert sorted(set(level.parent.tolist())) == list(range(count))
            assert np.isfinite(level.centroids).all()


def test_an_empty_cluster_takes_the_farthest_member(monkeypatch):
    """What k-means left empty is filled from a cluster that has several members."""

    def lazy(rows, count, **options):
        return Clusters(np.array([0, 0, 0, 2]), 0.0, 1, True)

    monkeypatch.setattr(class_clustering, "k_means", lazy)
    proxies = np.array([[0.0], [1.0], [5.0], [90.0]])
    (level,) = class_clustering.cluster(proxies, [3], seed=0, normalize=False)
    np.testing.assert_array_equal(level.parent, [0, 0, 1, 2])
    np.testing.assert_allclose(level.centroids, [[0.5], [5.0], [90.0]])


def test_clusters_keep_their_numbers():
    """Proxies moved a little and another seed: the same groups, the same numbers."""
    proxies, _ = planted(groups=7)
    before = class_clustering.cluster(proxies, [7, 2], seed=0, restarts=20)
    moved = proxies + 0.01 * np.random.default_rng(5).normal(size=proxies.shape)
    previous = [level.centroids for level in before]
    changed = False
    for seed in range(1, 6):
        afresh = class_clustering.cluster(moved, [7, 2], seed=seed, restarts=20)
        changed |= not np.array_equal(afresh[0].parent, before[0].parent)
        after = class_clustering.cluster(
            moved, [7, 2], seed=seed, restarts=20, previous=previous
        )
        for old, new in zip(before, after, strict=True):
            np.testing.assert_array_equal(new.parent, old.parent)
            np.testing.assert_allclose(new.centroids, old.centroids, atol=0.1)
    assert changed  # without the previous ones the numbers are arbitrary


def test_previous_may_be_learnt_proxies_of_any_length():
    proxies, _ = planted()
    (before,) = class_clustering.cluster(proxies, [5], seed=0)
    drawn = np.random.default_rng(6)
    learnt = before.centroids + 0.05 * drawn.normal(size=before.centroids.shape)
    learnt *= np.array([[0.01], [30.0], [1.0], [5.0], [0.2]])
    (after,) = class_clustering.cluster(
        proxies, [5], seed=9, previous=[jnp.asarray(learnt)]
    )
    np.testing.assert_array_equal(after.parent, before.parent)


def test_match_is_the_best_of_all_assignments():
    import itertools

    drawn = np.random.default_rng(7)
    new, old = drawn.normal(size=(5, 3)), drawn.normal(size=(5, 3))
    for normalize in (True, False):
        a, b = (new, old)
        if normalize:
            a, b = reference.l2_normalize(new), reference.l2_normalize(old)
        order = class_clustering.match(new, old, normalize=normalize)
        assert sorted(order) == list(range(5))
        best = min(
            ((a - b[list(orders)]) ** 2).sum()
            for orders in itertools.permutations(range(5))
        )
        assert ((a - b[order]) ** 2).sum() == pytest.approx(best)


def test_categories_become_parents():
    labels = np.array([2, 0, 1, 3, 0, 2, 2])
    categories = np.array([40, -7, 40, 12, -7, 40, 40])
    parent = class_clustering.from_categories(labels, categories)
    assert parent.dtype == np.int32
    np.testing.assert_array_equal(parent, [0, 2, 2, 1])


@pytest.mark.parametrize(
    ("sentence", "labels", "categories"),
    [
        ("class 1 has images of 5 and 6", [0, 1, 1], [5, 5, 6]),
        ("class 1 has no image", [0, 2, 2], [5, 5, 5]),
        ("class 0 has no image", [1, 2], [5, 5]),
        ("there is a -1", [0, -1], [5, 5]),
        (r"shapes are \[2\] and \[3\]", [0, 1], [5, 5, 5]),
        (r"shapes are \[0\] and \[0\]", [], []),
        ("categories must be integers", [0, 1], [0.5, 1.0]),
        ("labels must be integers", [0.0, 1.0], [0, 1]),
    ],
)
def test_categories_that_are_no_hierarchy(sentence, labels, categories):
    with pytest.raises(InputError, match=sentence):
        class_clustering.from_categories(labels, categories)


def test_centroids_equal_reference():
    proxies, group = planted()
    got = class_clustering.centroids(jnp.asarray(proxies, jnp.float32), group)
    expected = reference_proxies.group_means(proxies, group)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, atol=1e-6)
    plain = class_clustering.centroids(jnp.float32(proxies), group, normalize=False)
    for number, mean in enumerate(plain):
        np.testing.assert_allclose(mean, proxies[group == number].mean(0), atol=1e-5)


def test_gradient_of_centroids_equals_reference():
    proxies, group = planted(3, 4, 5)
    weights = np.random.default_rng(8).normal(size=(3, 5))

    def ours(x):
        return jnp.sum(class_clustering.centroids(x, group) * weights)

    def slow(x):
        return (reference_proxies.group_means(x, group) * weights).sum()

    slopes = jax.jit(jax.grad(ours))(jnp.float32(proxies))
    expected = reference.gradient(slow, proxies)
    np.testing.assert_allclose(slopes, expected, atol=1e-5 * np.abs(expected).max())


def test_traced_parents_need_the_number_of_groups():
    proxies, group = planted()
    proxies = jnp.float32(proxies)
    means = jax.jit(lambda parent: class_clustering.centroids(proxies, parent, 7))(
        group
    )
    np.testing.assert_allclose(
        means[:5], class_clustering.centroids(proxies, group), 1e-5
    )
    np.testing.assert_array_equal(means[5:], np.zeros((2, 16)))
    with pytest.raises(InputError, match="count is needed"):
        jax.jit(lambda parent: class_clustering.centroids(proxies, parent))(group)
    with pytest.raises(InputError, match=r"\[30, 16\] and \[29\]"):
        class_clustering.centroids(proxies, group[1:])


@pytest.mark.parametrize(
    ("sentence", "proxies", "counts", "options"),
    [
        ("level 1 cannot have 0 clusters", np.ones((4, 2)), [0], {}),
        ("level 1 cannot have 5 clusters: it groups 4", np.ones((4, 2)), [5], {}),
        ("level 2 cannot have 3 clusters: it groups 2", np.ones((4, 2)), [2, 3], {}),
        ("not finite", np.full((4, 2), np.nan), [2], {}),
        (r"shape is \[4\]", np.ones(4), [2], {}),
        ("restarts must be 1 or more", np.ones((4, 2)), [2], {"restarts": 0}),
        ("previous has 2 levels", np.ones((4, 2)), [2], {"previous": [0, 0]}),
        (
            r"\[2, 2\] and \[3, 2\]",
            np.ones((4, 2)),
            [2],
            {"previous": [np.ones((3, 2))]},
        ),
    ],
)
def test_entry_checks(sentence, proxies, counts, options):
    with pytest.raises(InputError, match=sentence):
        class_clustering.cluster(proxies, counts, seed=0, **options)
