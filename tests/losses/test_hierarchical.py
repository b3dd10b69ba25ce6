"""Hierarchical proxies: values, invariants, where gradients go, bad input."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import reference_proxies

from metricjax.errors import InputError
from metricjax.losses import Tiling
from metricjax.losses.hierarchical import Level, hierarchical_proxy
from metricjax.losses.proxies import proxy_anchor, proxy_nca
from metricjax.objectives import class_clustering
from metricjax.runtime import mesh

LABELS = np.array([6, 6, 6, 1, 1, 3, 3, 3, 3, 0, 1, 2])
COARSE = np.array([2, 0, 1, 0, 2, 1, 1, 0])  # class -> one of 3 groups
COARSEST = np.array([0, 1, 0, 1, 0, 0, 0, 1])  # class -> one of 2
IDENTITY = np.arange(8)
SHARP_NCA = partial(proxy_nca, temperature=0.05)
FIRST_NCA = partial(proxy_nca, include_positive=False)
LOSSES = {
    "anchor": (proxy_anchor, reference_proxies.proxy_anchor),
    "nca": (proxy_nca, reference_proxies.proxy_nca),
    "nca, first form": (
        FIRST_NCA,
        partial(reference_proxies.proxy_nca, include_positive=False),
    ),
}


def rows(count=12, width=6, seed=0):
    """Unit rows [count, width], float64."""
    drawn = np.random.default_rng(seed).normal(size=(count, width))
    return reference.l2_normalize(drawn)


def drawn_proxies(count, seed=1, width=6):
    return 0.7 * np.random.default_rng(seed).normal(size=(count, width))


FINE, MIDDLE, TOP = drawn_proxies(8), drawn_proxies(3, 2), drawn_proxies(2, 3)


def f32(array):
    return jnp.asarray(array, jnp.float32)


@partial(jax.jit, static_argnames=("level_weights", "loss", "tiling"))
def value_and_gradient(embeddings, labels, proxies, parents, **options):
    """The value, and the gradients to embeddings and to every level's proxies."""

    def total(embeddings, proxies):
        levels = tuple(map(Level, proxies, parents))
        return hierarchical_proxy(embeddings, labels, levels, **options)

    return jax.value_and_grad(total, argnums=(0, 1))(embeddings, proxies)


def close(got, expected, rtol=1e-5):
    """Equal within `rtol` of the largest entry: single entries may cancel out."""
    expected = np.asarray(expected, np.float64)
    scale = max(np.abs(expected).max(), 1e-30)
    np.testing.assert_allclose(np.asarray(got), expected, rtol=0, atol=rtol * scale)


def base(embeddings, labels, proxies, loss=proxy_anchor, **options):
    """(value, gradients) of one level's loss, jitted."""
    function = partial(loss, **options)
    return jax.jit(jax.value_and_grad(function, argnums=(0, 2)))(
        f32(embeddings), labels, f32(proxies)
    )


@pytest.mark.parametrize("block_size", [None, 2])
@pytest.mark.parametrize("name", LOSSES)
def test_two_levels_equal_reference(name, block_size):
    loss, slow_loss = LOSSES[name]
    embeddings = rows()
    value, (to_embeddings, to_proxies) = value_and_gradient(
        f32(embeddings),
        LABELS,
        (f32(FINE), f32(MIDDLE)),
        (None, COARSE),
        loss=loss,
        tiling=Tiling(block_size),
    )

    def slow(x, fine=FINE, coarse=MIDDLE):
        levels = ((fine, IDENTITY), (coarse, COARSE))
        return reference_proxies.hierarchical_proxy(
            x, LABELS, levels, (1.0, 0.1), slow_loss
        )

    assert value.shape == () and value.dtype == jnp.float32
    assert value == pytest.approx(slow(embeddings), rel=1e-5)
    close(to_embeddings, reference.gradient(slow, embeddings))
    of_fine = reference.gradient(lambda p: slow(embeddings, p), FINE)
    of_coarse = reference.gradient(lambda p: slow(embeddings, FINE, p), MIDDLE)
    close(to_proxies[0], of_fine)
    close(to_proxies[1], of_coarse)


def test_three_levels_with_any_weights():
    embeddings, weights = rows(), (0.5, 0.25, 2.0)
    parents = (IDENTITY, COARSE, COARSEST)
    value, (to_embeddings, _) = value_and_gradient(
        f32(embeddings),
        LABELS,
        (f32(FINE), f32(MIDDLE), f32(TOP)),
        parents,
        level_weights=weights,
    )

    def slow(x):
        levels = zip((FINE, MIDDLE, TOP), parents, strict=True)
        return reference_proxies.hierarchical_proxy(
            x, LABELS, levels, weights, reference_proxies.proxy_anchor
        )

    assert value == pytest.approx(slow(embeddings), rel=1e-5)
    close(to_embeddings, reference.gradient(slow, embeddings))


def test_one_level_is_the_loss_itself():
    value, _ = value_and_gradient(
        f32(rows()), LABELS, (f32(FINE),), (None,), level_weights=(1.0,)
    )
    assert value == base(rows(), LABELS, FINE)[0]


@pytest.mark.parametrize("loss", [proxy_anchor, proxy_nca, SHARP_NCA])
def test_weight_zero_leaves_the_level_out(loss):
    """w = (1, 0) is the base loss, exactly; settings given by `partial` are used."""
    value, (to_embeddings, to_proxies) = value_and_gradient(
        f32(rows()),
        LABELS,
        (f32(FINE), f32(MIDDLE)),
        (None, COARSE),
        level_weights=(1.0, 0.0),
        loss=loss,
    )
    expected, slopes = base(rows(), LABELS, FINE, loss)
    assert value == expected
    np.testing.assert_array_equal(to_embeddings, slopes[0])
    np.testing.assert_array_equal(to_proxies[0], slopes[1])
    np.testing.assert_array_equal(to_proxies[1], np.zeros((3, 6)))


def test_a_level_of_weight_zero_costs_nothing():
    """Before the first clusters there may be one group, too few for its loss."""
    seen = []

    def counting(embeddings, labels, proxies, *, tiling):
        seen.append(len(proxies))
        return FIRST_NCA(embeddings, labels, proxies, tiling=tiling)

    levels = Level(f32(FINE)), Level(f32(TOP[:1]), 0 * COARSE)
    weights = 1.0, 0
    hierarchical_proxy(
        f32(rows()), LABELS, levels, level_weights=weights, loss=counting
    )
    assert seen == [8]


def test_a_traced_weight_of_zero_adds_nothing():
    """A weight that a schedule changes without a new compilation."""

    @jax.jit
    def total(weight, proxies):
        levels = Level(f32(FINE)), Level(proxies, COARSE)
        return hierarchical_proxy(
            f32(rows()), LABELS, levels, level_weights=(1.0, weight)
        )

    value, slopes = jax.value_and_grad(total, argnums=1)(0.0, f32(MIDDLE))
    assert value == pytest.approx(float(base(rows(), LABELS, FINE)[0]), rel=1e-6)
    np.testing.assert_array_equal(slopes, np.zeros((3, 6)))
    assert total(0.1, f32(MIDDLE)) > value


@pytest.mark.parametrize("name", LOSSES)
def test_a_group_for_each_class_is_the_loss_again(name):
    """K = C, the identity and the same proxies: (w_0 + w_1) times the base."""
    loss = LOSSES[name][0]
    value, (to_embeddings, _) = value_and_gradient(
        f32(rows()), LABELS, (f32(FINE), f32(FINE)), (None, IDENTITY), loss=loss
    )
    expected, slopes = base(rows(), LABELS, FINE, loss)
    assert value == pytest.approx(1.1 * float(expected), rel=1e-6)
    close(to_embeddings, 1.1 * slopes[0], 1e-6)


@pytest.mark.parametrize("loss", [proxy_anchor, proxy_nca])
def test_numbers_of_the_groups_do_not_matter(loss):
    order = np.array([2, 0, 1])  # old number -> new number
    renamed = np.empty_like(MIDDLE)
    renamed[order] = MIDDLE
    args = f32(rows()), LABELS
    value, slopes = value_and_gradient(
        *args, (f32(FINE), f32(MIDDLE)), (None, COARSE), loss=loss
    )
    other, other_slopes = value_and_gradient(
        *args, (f32(FINE), f32(renamed)), (None, order[COARSE]), loss=loss
    )
    assert value == pytest.approx(float(other), rel=1e-6)
    close(other_slopes[0], slopes[0], 2e-6)
    close(np.asarray(other_slopes[1][1])[order], slopes[1][1], 2e-6)


def test_free_coarse_proxies_keep_their_level_from_the_fine_ones():
    args = f32(rows()), LABELS, (f32(FINE), f32(MIDDLE)), (None, COARSE)
    for weights in ((0.0, 1.0), (1.0, 5.0)):
        _, (_, to_proxies) = value_and_gradient(*args, level_weights=weights)
        _, slopes = base(rows(), LABELS, FINE)
        np.testing.assert_array_equal(to_proxies[0], weights[0] * slopes[1])
        assert np.abs(to_proxies[1]).max() > 0


@pytest.mark.parametrize("through", [True, False])
def test_centroids_hand_their_level_to_the_fine_proxies_or_not(through):
    embeddings = rows()

    @jax.jit
    def total(fine):
        coarse = class_clustering.centroids(fine, COARSE)
        coarse = coarse if through else jax.lax.stop_gradient(coarse)
        levels = Level(fine), Level(coarse, COARSE)
        return hierarchical_proxy(f32(embeddings), LABELS, levels)

    def slow(fine, grouped):
        coarse = reference_proxies.group_means(grouped, COARSE)
        return reference_proxies.hierarchical_proxy(
            embeddings,
            LABELS,
            ((fine, IDENTITY), (coarse, COARSE)),
            (1.0, 0.1),
            reference_proxies.proxy_anchor,
        )

    value, slopes = jax.value_and_grad(total)(f32(FINE))
    assert value == pytest.approx(slow(FINE, FINE), rel=1e-5)
    if through:
        expected = reference.gradient(lambda p: slow(p, p), FINE)
    else:
        expected = reference.gradient(lambda p: slow(p, FINE), FINE)
    close(slopes, expected)


def test_parents_may_be_traced():
    """New clusters between steps need no new compilation."""
    args = f32(rows()), LABELS, (f32(FINE), f32(MIDDLE))
    compiled = value_and_gradient.lower(*args, (None, COARSE)).compile()
    for parent in (COARSE, np.array([0, 1, 2, 2, 1, 0, 0, 0])):
        value, _ = compiled(*args, (None, parent))
        levels = (FINE, IDENTITY), (MIDDLE, parent)
        expected = reference_proxies.hierarchical_proxy(
            rows(), LABELS, levels, (1.0, 0.1), reference_proxies.proxy_anchor
        )
        assert value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", [proxy_anchor, proxy_nca])
def test_one_group_of_all_classes(loss):
    """Proxy-Anchor has no negatives there; the softmax over one proxy costs nothing."""
    args = f32(rows()), LABELS, (f32(FINE), f32(TOP[:1])), (None, np.zeros(8, int))
    value, (to_embeddings, to_proxies) = value_and_gradient(*args, loss=loss)
    slow = (
        reference_proxies.proxy_anchor
        if loss is proxy_anchor
        else reference_proxies.proxy_nca
    )
    levels = (FINE, IDENTITY), (TOP[:1], np.zeros(8, int))
    expected = reference_proxies.hierarchical_proxy(
        rows(), LABELS, levels, (1.0, 0.1), slow
    )
    assert value == pytest.approx(expected, rel=1e-5)
    assert np.isfinite(to_embeddings).all() and np.isfinite(to_proxies[1]).all()


@pytest.mark.parametrize("bad", [-1, 8, 2**31 - 1])
def test_a_label_out_of_range_joins_no_group(bad):
    """Where only the running program knows it: never the last class's group."""
    labels = np.append(LABELS, bad)
    args = (f32(FINE), f32(MIDDLE)), (None, COARSE)
    value, _ = value_and_gradient(f32(rows(13)), labels, *args, loss=proxy_nca)
    without, _ = value_and_gradient(f32(rows(13)[:-1]), LABELS, *args, loss=proxy_nca)
    assert value == pytest.approx(float(without), rel=1e-6)


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_devices_equal_one_under_sgd(count):
    embeddings = rows(16, seed=5).astype(np.float32)
    labels, proxies = np.repeat([3, 1, 0, 5], 4), (f32(FINE), f32(MIDDLE))
    parents = None, jnp.asarray(COARSE)
    devices = mesh.make_mesh(jax.devices()[:count])
    batch = mesh.global_batch(devices, {"e": embeddings, "y": labels})
    everywhere = jax.device_put((proxies, parents), mesh.replicated(devices))
    value, slopes = value_and_gradient(
        batch["e"], batch["y"], *everywhere, tiling=Tiling(2, devices)
    )
    one, slopes_of_one = value_and_gradient(f32(embeddings), labels, proxies, parents)
    assert value == pytest.approx(float(one), rel=1e-6)
    jax.tree.map(lambda got, wanted: close(got, wanted, 2e-6), slopes, slopes_of_one)


def test_bfloat16_embeddings():
    embeddings = f32(rows()).astype(jnp.bfloat16)
    value, (to_embeddings, _) = value_and_gradient(
        embeddings, LABELS, (f32(FINE), f32(MIDDLE)), (None, COARSE)
    )
    levels = (FINE, IDENTITY), (MIDDLE, COARSE)
    expected = reference_proxies.hierarchical_proxy(
        np.asarray(embeddings, np.float64),
        LABELS,
        levels,
        (1.0, 0.1),
        reference_proxies.proxy_anchor,
    )
    assert value.dtype == jnp.float32 and to_embeddings.dtype == jnp.bfloat16
    assert value == pytest.approx(expected, rel=1e-5)


def test_nan_of_either_level_is_not_hidden():
    for spoilt in (0, 1):
        proxies = [f32(FINE), f32(MIDDLE)]
        proxies[spoilt] = proxies[spoilt].at[0, 0].set(jnp.nan)
        value, _ = value_and_gradient(
            f32(rows()), LABELS, tuple(proxies), (None, COARSE)
        )
        assert np.isnan(value)


@pytest.mark.parametrize(
    ("sentence", "second", "options"),
    [
        ("2 levels but 3", Level(MIDDLE, COARSE), {"level_weights": (1.0, 0.1, 0.1)}),
        ("one of them is -0.1", Level(MIDDLE, COARSE), {"level_weights": (1.0, -0.1)}),
        ("same classes, but they are over 7 and 8", Level(MIDDLE, COARSE[:7]), {}),
        ("same classes, but they are over 3 and 8", Level(MIDDLE), {}),
        ("3 proxies at their level, but there is a 3", Level(MIDDLE, COARSE + 1), {}),
        ("parents of a level must be integers", Level(MIDDLE, COARSE / 1.0), {}),
        ("at least 2 proxies", Level(TOP[:1], 0 * COARSE), {"loss": FIRST_NCA}),
    ],
)  # fmt: skip
def test_entry_checks(sentence, second, options):
    second = second._replace(proxies=f32(second.proxies))
    with pytest.raises(InputError, match=sentence):
        hierarchical_proxy(f32(rows()), LABELS, (Level(f32(FINE)), second), **options)


def test_labels_out_of_range_are_told():
    levels = Level(f32(FINE)), Level(f32(MIDDLE), COARSE)
    with pytest.raises(InputError, match=r"0\.\.7, as there are 8 classes, .* a 8"):
        hierarchical_proxy(f32(rows()), LABELS + 2, levels)
    with pytest.raises(InputError, match="12 embeddings but 11 labels"):
        hierarchical_proxy(f32(rows()), LABELS[1:], levels)
