"""Hierarchical proxies in a run: settings, levels, when and how classes are grouped."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import reference_proxies

from metricjax.errors import InputError
from metricjax.losses import Tiling
from metricjax.objectives import hierarchical_proxies
from metricjax.objectives.hierarchical_proxies import Classes, HierarchicalProxy

CLASSES, WIDTH = 9, 5
CATEGORIES = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2])
LABELS = np.array([0, 0, 3, 3, 8, 8, 5], np.int32)
EMBEDDINGS = reference.l2_normalize(np.random.default_rng(0).normal(size=(7, WIDTH)))
WHOLE = Classes(CLASSES, CATEGORIES)


def drawn(config, seed=1):
    """Proxies and state before the first step, as numpy."""
    counts = config.counts(WHOLE)
    fine = jnp.float32(np.random.default_rng(seed).normal(size=(CLASSES, WIDTH)))
    made = (
        hierarchical_proxies.init_proxies(config, fine, counts),
        hierarchical_proxies.init_state(CLASSES, counts),
    )
    return jax.tree.map(np.asarray, made)


def grouped(config, proxies, state, step=0, seed=0):
    coarse, state = hierarchical_proxies.regroup(
        config, proxies, state, CATEGORIES, seed, step
    )
    return proxies | coarse, state


@partial(jax.jit, static_argnums=0)
def value(config, proxies, state):
    return hierarchical_proxies.value(
        config, jnp.float32(EMBEDDINGS), LABELS, proxies, state, Tiling()
    )


def clouds(seed=0, noise=0.05):
    """Proxies of three groups of three classes, which are far apart."""
    rng = np.random.default_rng(seed)
    middles = 3.0 * np.eye(3, WIDTH)
    return np.float32(middles[CATEGORIES] + noise * rng.normal(size=(CLASSES, WIDTH)))


BASES = {
    "proxy_anchor": ({"margin": 0.2, "scale": 8.0}, reference_proxies.proxy_anchor),
    "proxy_nca": ({"temperature": 0.5}, reference_proxies.proxy_nca),
}


@pytest.mark.parametrize("coarse", ["learnt", "centroid"])
@pytest.mark.parametrize("base", BASES)
def test_value_before_and_after_the_groups(base, coarse):
    options, slow = BASES[base]
    config = HierarchicalProxy(
        base, (1.0, 0.3, 0.2), clusters=(4, 2), coarse=coarse, **options
    )
    proxies, state = drawn(config)
    assert set(proxies) == {"fine", *(("coarse1", "coarse2") * (coarse == "learnt"))}
    own = slow(EMBEDDINGS, LABELS, proxies["fine"], **options)
    assert value(config, proxies, state) == pytest.approx(own, rel=1e-5)
    proxies, state = grouped(config, proxies, state)
    assert [len(state[f"size{n}"]) for n in (1, 2)] == [4, 2]
    expected = own
    for level, weight in ((1, 0.3), (2, 0.2)):
        parent = state[f"parent{level}"]
        sizes = np.bincount(parent, minlength=len(state[f"size{level}"]))
        np.testing.assert_array_equal(state[f"size{level}"], sizes)
        above = proxies.get(f"coarse{level}")
        if above is None:
            above = reference_proxies.group_means(proxies["fine"], parent)
        expected += weight * slow(EMBEDDINGS, parent[LABELS], above, **options)
    assert value(config, proxies, state) == pytest.approx(expected, rel=1e-5)


def test_who_gets_the_gradient():
    """Coarse proxies none before the groups; fine ones that of a centroid if asked."""

    def slopes(**options):
        config = HierarchicalProxy(level_weights=(1.0, 5.0), clusters=(3,), **options)
        before = drawn(config)
        after = grouped(config, *before)
        gradient = jax.jit(jax.grad(value, argnums=1), static_argnums=0)
        return gradient(config, *before), gradient(config, *after)

    before, after = slopes()
    assert not np.any(before["coarse1"]) and np.all(np.any(after["coarse1"], axis=1))
    np.testing.assert_allclose(before["fine"], after["fine"], rtol=1e-5, atol=1e-7)
    before, after = slopes(coarse="centroid")
    np.testing.assert_allclose(before["fine"], after["fine"], rtol=1e-5, atol=1e-7)
    before, after = slopes(coarse="centroid", centroid_gradient=True)
    assert np.abs(before["fine"] - after["fine"]).max() > 1e-2


def test_groups_are_those_of_the_proxies_and_coarse_proxies_begin_there():
    config = HierarchicalProxy(clusters=(3,))
    proxies, state = drawn(config)
    proxies["fine"] = clouds()
    after, state = grouped(config, proxies, state)
    assert bool(state["active"])
    parent = state["parent1"]
    same = parent[:, None] == parent[None, :]
    np.testing.assert_array_equal(same, CATEGORIES[:, None] == CATEGORIES[None, :])
    means = reference_proxies.group_means(proxies["fine"], parent)
    np.testing.assert_allclose(after["coarse1"], means, rtol=1e-5)


def test_later_groups_keep_their_numbers_and_proxies():
    """The fine proxies moved and another seed: the old proxies know their groups."""
    config = HierarchicalProxy(clusters=(3,))
    proxies, state = drawn(config)
    proxies["fine"] = clouds()
    proxies, state = grouped(config, proxies, state)
    learnt = proxies["coarse1"] + 0.1
    for step in range(1, 6):
        moved = {"fine": clouds(seed=step), "coarse1": learnt}
        again, regrouped = grouped(config, moved, state, step=step)
        np.testing.assert_array_equal(regrouped["parent1"], state["parent1"])
        np.testing.assert_array_equal(again["coarse1"], learnt)


def test_a_function_of_proxies_seed_and_step():
    config = HierarchicalProxy(clusters=(4,))
    proxies, state = drawn(config)

    def parents(**when):
        return grouped(config, proxies, state, **when)[1]["parent1"].tolist()

    assert parents(step=3, seed=1) == parents(step=3, seed=1)
    drawn_otherwise = [
        parents(step=step, seed=seed) for step in (3, 4) for seed in (1, 2)
    ]
    assert any(found != parents(step=3, seed=1) for found in drawn_otherwise)


def test_categories_as_the_hierarchy():
    config = HierarchicalProxy(hierarchy="category", warmup=7)
    proxies, state = drawn(config)
    after, state = grouped(config, proxies, state)
    np.testing.assert_array_equal(state["parent1"], CATEGORIES)
    means = reference_proxies.group_means(proxies["fine"], CATEGORIES)
    np.testing.assert_allclose(after["coarse1"], means, rtol=1e-5)
    assert [step for step in range(30) if config.due(step)] == [7]


@pytest.mark.parametrize(
    ("warmup", "every", "expected"),
    [(5, 0, [5]), (0, 0, [0]), (4, 10, [4, 14, 24]), (0, 12, [0, 12, 24])],
)
def test_when_the_groups_are_made(warmup, every, expected):
    config = HierarchicalProxy(warmup=warmup, every=every)
    assert [step for step in range(30) if config.due(step)] == expected


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"warmup": -1}, "warmup is -1: it must be 0 or more"),
        ({"every": -1}, "every is -1: it must be 0 or more"),
        ({"level_weights": (1.0, 0.0)}, "level_weights is .*: each must be above 0"),
        ({"level_weights": (0.0, 1.0)}, "level_weights is .*: each must be above 0"),
        ({"level_weights": ()}, "level_weights is .*: each must be above 0"),
        ({"level_weights": (1.0,)}, r"with clusters=\(10,\) it must name 2 weights"),
        ({"clusters": (9, 3)}, r"with clusters=\(9, 3\) it must name 3 weights"),
        ({"clusters": (1,)}, "clusters is .*: each level needs 2 or more"),
        ({"clusters": ()}, "clusters is .*: each level needs 2 or more"),
        ({"hierarchy": "category", "every": 5}, "every is 5: categories stay"),
        (
            {"hierarchy": "category", "level_weights": (1.0, 0.1, 0.1)},
            "level_weights is .*: categories make two levels",
        ),
    ],
)
def test_settings_are_checked(settings, words):
    with pytest.raises(InputError, match=f"^hierarchical_proxy.*{words}"):
        HierarchicalProxy(**settings)


@pytest.mark.parametrize(
    ("settings", "classes", "words"),
    [
        ({"clusters": (9,)}, WHOLE, "clusters is .*: 9 cannot make 9 groups"),
        (
            {"clusters": (4, 5), "level_weights": (1.0, 0.1, 0.1)},
            WHOLE,
            "clusters is .*: 4 cannot make 5 groups",
        ),
        (
            {"hierarchy": "category"},
            Classes(9),
            "hierarchy is 'category': the data set has no categories",
        ),
        (
            {"hierarchy": "category"},
            Classes(9, np.arange(9)),
            "hierarchy is 'category': the 9 classes are of 9 categories",
        ),
        (
            {"hierarchy": "category"},
            Classes(9, np.zeros(9, int)),
            "hierarchy is 'category': the 9 classes are of 1 categories",
        ),
    ],
)
def test_classes_that_cannot_be_grouped_so(settings, classes, words):
    with pytest.raises(InputError, match=words):
        HierarchicalProxy(**settings).counts(classes)


def test_proxies_that_are_not_finite_are_told():
    fine = clouds()
    hierarchical_proxies.check_finite(fine, 7)
    fine[3, 1] = np.nan
    with pytest.raises(InputError, match="not finite after step 7"):
        hierarchical_proxies.check_finite(fine, 7)
