"""The objective: weighted sum, learners apart, defaults, statistics, checks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from metricjax import losses
from metricjax.errors import InputError
from metricjax.models import Output
from metricjax.models.cost import multiply_adds
from metricjax.objectives.hierarchical_proxies import Classes
from metricjax.objectives.objective import (
    LOSSES,
    Losses,
    ObjectiveConfig,
    Term,
    check_gradients,
    objective,
    pair_statistics,
)
from metricjax.runtime import mesh

RNG = np.random.default_rng(0)
LABELS = np.array([3, 3, 3, 0, 0, 4, 4, 4, 1, 0])
EMBEDDING = reference.l2_normalize(RNG.normal(size=(10, 6)))
LEARNERS = reference.l2_normalize(RNG.normal(size=(10, 3, 2)))
LOGITS = RNG.normal(size=(10, 5))
FEATURES = np.zeros((10, 1, 1, 1))
RAW = RNG.normal(size=(10, 6))


def output(learners=None, logits=LOGITS):
    arrays = (EMBEDDING, learners, logits, FEATURES, RAW)
    return Output(*(None if x is None else jnp.float32(x) for x in arrays))


def config(block_size=None, matmul_dtype="float32", **terms):
    return ObjectiveConfig(terms, block_size, matmul_dtype)


def value_of(pair):
    total, count = pair
    return float(total) / float(count)


TWO = {
    "triplet": Term(2.0, {"margin": 0.3}),
    "softmax": Term(0.5, {"temperature": 0.5, "label_smoothing": 0.1}),
}


@pytest.mark.parametrize("block_size", [None, 4])
def test_weighted_sum_and_metrics(block_size):
    total, metrics = objective(config(block_size, **TWO), output(), LABELS)
    triplet = reference.triplet(EMBEDDING, LABELS, 0.3)
    softmax = reference.softmax_cross_entropy(LOGITS, LABELS, 0.5, 0.1)
    assert total.shape == () and total.dtype == jnp.float32
    assert total == pytest.approx(2.0 * triplet + 0.5 * softmax, rel=1e-5)
    expected = reference.pair_statistics(EMBEDDING, LABELS, 0.3)
    expected |= {"loss": float(total), "triplet": triplet, "softmax": softmax}
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert value_of(metrics[name]) == pytest.approx(value, rel=1e-5), name


def test_gradients_of_the_sum():
    def total(embedding, logits):
        made = output()._replace(embedding=embedding, logits=logits)
        return objective(config(**TWO), made, LABELS)[0]

    to_embedding, to_logits = jax.jit(jax.grad(total, argnums=(0, 1)))(
        jnp.float32(EMBEDDING), jnp.float32(LOGITS)
    )
    slow = reference.gradient(lambda x: reference.triplet(x, LABELS, 0.3), EMBEDDING)
    np.testing.assert_allclose(to_embedding, 2.0 * slow, rtol=1e-4, atol=1e-6)
    slow = reference.gradient(
        lambda x: reference.softmax_cross_entropy(x, LABELS, 0.5, 0.1), LOGITS
    )
    np.testing.assert_allclose(to_logits, 0.5 * slow, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("block_size", [None, 4])
def test_learners_have_a_loss_each(block_size):
    """Architecture A: the sum over the learners; statistics of the embedding."""
    settings = config(block_size, triplet=Term(0.5, {"margin": 0.2}))
    total, metrics = objective(settings, output(LEARNERS), LABELS)
    each = [reference.triplet(LEARNERS[:, m], LABELS, 0.2) for m in range(3)]
    assert total == pytest.approx(0.5 * sum(each), rel=1e-5)
    assert value_of(metrics["triplet"]) == pytest.approx(sum(each), rel=1e-5)
    expected = reference.pair_statistics(EMBEDDING, LABELS, 0.2)
    for name, value in expected.items():
        assert value_of(metrics[name]) == pytest.approx(value, rel=1e-5)


def test_unnamed_settings_take_the_losses_defaults():
    total, _ = objective(config(triplet=Term()), output(), LABELS)
    assert total == pytest.approx(reference.triplet(EMBEDDING, LABELS, 0.1), rel=1e-5)
    total, _ = objective(config(softmax=Term()), output(), LABELS)
    slow = reference.softmax_cross_entropy(LOGITS, LABELS)
    assert total == pytest.approx(slow, rel=1e-5)
    settings = config(triplet=Term(options={"squared": True, "soft": True}))
    total, _ = objective(settings, output(), LABELS)
    slow = reference.triplet(EMBEDDING, LABELS, squared=True, soft=True)
    assert total == pytest.approx(slow, rel=1e-5)
    assert {"triplet", "softmax"} <= LOSSES.keys()


def test_weight_zero_leaves_a_loss_out():
    """The model then has no classifier to give logits."""
    settings = config(triplet=Term(), softmax=Term(0.0))
    assert not settings.classifies
    total, metrics = objective(settings, output(logits=None), LABELS)
    assert total == pytest.approx(reference.triplet(EMBEDDING, LABELS), rel=1e-5)
    assert "softmax" not in metrics


@pytest.mark.parametrize(
    ("terms", "classifies"),
    [
        ({"triplet": Term()}, False),
        ({"softmax": Term()}, True),
        ({"triplet": Term(0.0), "softmax": Term(0.1)}, True),
    ],
)
def test_classifies(terms, classifies):
    assert config(**terms).classifies == classifies


def test_softmax_without_logits_is_told():
    with pytest.raises(InputError, match="needs logits"):
        objective(config(softmax=Term()), output(logits=None), LABELS)


@pytest.mark.parametrize("margin", [0.0, 0.1, 0.8])
def test_pair_statistics_equal_numpy(margin):
    got = pair_statistics(jnp.float32(EMBEDDING), LABELS, margin)
    expected = reference.pair_statistics(EMBEDDING, LABELS, margin)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=1e-5), name


def test_pair_statistics_of_clusters_and_of_nothing():
    apart = jnp.float32([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    got = pair_statistics(apart, np.array([0, 0, 1, 1]), 0.1)
    expected = {
        "positive_distance": 0.0,
        "negative_distance": pytest.approx(np.sqrt(2), rel=1e-6),
        "active": 0.0,
    }
    assert {name: float(value) for name, value in got.items()} == expected
    lone = pair_statistics(apart, np.arange(4), 0.1)
    assert lone["positive_distance"] == 0 and lone["active"] == 0


def test_pair_statistics_give_no_gradient():
    def total(embedding):
        return sum(pair_statistics(embedding, LABELS, 0.1).values())

    slopes = jax.grad(total)(jnp.float32(EMBEDDING))
    np.testing.assert_array_equal(slopes, np.zeros(EMBEDDING.shape))


def test_pair_statistics_cost_one_product():
    """Forward alone, one Gram matrix, also where a gradient is taken beside them."""
    embedding = jnp.float32(EMBEDDING)
    gram = 10 * 10 * 6

    def statistics(embedding):
        return sum(pair_statistics(embedding, LABELS, 0.1).values())

    assert multiply_adds(statistics, embedding) == gram
    assert multiply_adds(jax.grad(statistics), embedding) <= gram


# Every loss in a batch of pairs of rows, each class twice.
PAIRED = np.repeat(np.arange(5), 2)
SMALL = {"hierarchical_proxy": {"clusters": (3,)}}


def made(name, learners=None, **options):
    """The loss's own parameters and state, and the objective as a function of both."""
    settings = config(**{name: Term(1.0, {**SMALL.get(name, {}), **options})})
    kept = Losses(settings, Classes(5), output(learners))

    @jax.jit
    def total(output, proxies):
        return objective(
            settings, output, PAIRED, proxies=proxies, state=kept.init_state()
        )

    return kept, total


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_takes_its_part_of_the_output(name):
    """A gradient to it, to the loss's own proxies, and to nothing else."""
    parts = {"softmax": "logits", "divergence": "learners"}
    part = parts.get(name, "unnormalized" if "n_pair" in name else "embedding")
    # Learners that are near each other, so that divergence has something to do.
    near = reference.l2_normalize(1.0 + 0.3 * RNG.normal(size=(10, 3, 2)))
    near = near if name == "divergence" else None
    kept, total = made(name, near)
    kept.check()
    proxies = kept.init_proxies(jax.random.key(0))
    assert (name in proxies) == ("proxy" in name)
    slopes = jax.grad(lambda *inputs: total(*inputs)[0], argnums=(0, 1))(
        output(near), proxies
    )
    for leaf in jax.tree.leaves(slopes):
        assert np.all(np.isfinite(leaf))
    for field, slope in slopes[0]._asdict().items():
        assert slope is None or np.any(slope) == (field == part), field
    for leaf, slope in slopes[1].get(name, {}).items():
        assert np.any(slope) == (leaf != "coarse1")


@pytest.mark.parametrize("name", ["triplet", "n_pair", "ee_hphn_triplet", "ee_n_pair"])
def test_pair_losses_add_up_over_learners(name):
    kept, total = made(name, LEARNERS)
    got = total(output(LEARNERS), {})[1][name][0]
    raw = "n_pair" in name
    each = RAW.reshape(10, 3, 2) if raw else LEARNERS
    expected = sum(
        float(
            made(name)[1](
                output()._replace(
                    embedding=jnp.float32(each[:, m]),
                    unnormalized=jnp.float32(each[:, m]),
                ),
                {},
            )[1][name][0]
        )
        for m in range(3)
    )
    assert got == pytest.approx(expected, rel=1e-5)


def test_expanded_n_pair_is_of_embeddings_without_unit_length():
    total = made("ee_n_pair")[1](output(), {})[1]["ee_n_pair"][0]
    expected = jax.jit(losses.embedding_expansion.n_pair)(jnp.float32(RAW), PAIRED)
    assert total == pytest.approx(float(expected), rel=1e-6)


def test_proxies_are_drawn_as_the_sources_draw_them():
    """Their deviations; the same numbers whatever else is drawn; a function of key."""
    terms = {name: Term() for name in ("proxy_nca", "proxy_anchor")}
    terms["hierarchical_proxy"] = Term(1.0, {"base": "proxy_nca", "clusters": (7,)})
    wide = output()._replace(embedding=jnp.zeros((10, 300)))

    def drawn(key=0, **terms):
        kept = Losses(config(**terms), Classes(200), wide)
        return kept.init_proxies(jax.random.key(key))

    proxies = drawn(**terms)
    scales = {"proxy_nca": 1 / 8, "proxy_anchor": np.sqrt(2 / 200)}
    for name, scale in scales.items():
        array = np.asarray(proxies[name]["proxies"])
        assert array.shape == (200, 300) and array.dtype == np.float32
        assert array.std() == pytest.approx(scale, rel=0.02)
        alone = drawn(**{name: Term()})[name]["proxies"]
        np.testing.assert_array_equal(alone, array)
        assert not np.array_equal(drawn(1, **{name: Term()})[name]["proxies"], array)
    fine, coarse = (proxies["hierarchical_proxy"][n] for n in ("fine", "coarse1"))
    assert fine.std() == pytest.approx(1 / 8, rel=0.02) and coarse.shape == (7, 300)
    assert not np.array_equal(fine, proxies["proxy_nca"]["proxies"])
    assert drawn(triplet=Term(), proxy_nca=Term(0.0)) == {}


def test_parameters_without_a_gradient_are_told():
    metrics = {
        "gradient_norm": (0.0, 1.0),
        "gradient_norm_proxy_anchor_proxies": (0.5, 1.0),
        "gradient_norm_hierarchical_proxy_coarse1": (0.0, 0.0),
    }
    check_gradients(metrics)
    metrics["gradient_norm_proxy_nca_proxies"] = (0.0, 1.0)
    with pytest.raises(InputError, match="^proxy_nca_proxies gets no gradient"):
        check_gradients(metrics)


@pytest.mark.parametrize("block_size", [None, 4])
def test_blocks_are_divided_among_the_devices(block_size):
    settings = config(block_size, triplet=Term())
    devices = mesh.make_mesh()
    assert settings.tiling() == losses.Tiling(block_size)
    expected = None if block_size is None else devices
    assert settings.tiling(devices) == losses.Tiling(block_size, expected)
    one = mesh.make_mesh(jax.devices()[:1])
    assert settings.tiling(one) == losses.Tiling(block_size)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("divergence", {}, "this model has none"),
        ("triplet", {"margin": -1.0}, "margin must be 0 or more"),
        ("hierarchical_proxy", {"clusters": (5,)}, "5 cannot make 5 groups"),
        ("hierarchical_proxy", {"temperature": 0.0, "base": "proxy_nca"}, "above 0"),
    ],
)
def test_what_a_loss_refuses_is_refused_before_the_training(name, options, words):
    with pytest.raises(InputError, match=words):
        made(name, **options)[0].check()


def test_a_model_without_unnormalized_embeddings():
    kept = made("n_pair")[0]
    bare = kept.output._replace(unnormalized=None)
    with pytest.raises(InputError, match="un-normalised embeddings needs a model"):
        Losses(kept.config, kept.classes, bare).check()


def test_matmul_dtype_reaches_the_products():
    exact, _ = objective(config(contrastive=Term()), output(), LABELS)
    near, _ = objective(config(None, "bfloat16", contrastive=Term()), output(), LABELS)
    assert near != exact and near == pytest.approx(float(exact), rel=1e-2)


@pytest.mark.parametrize(
    ("sentence", "terms", "settings"),
    [
        ("names 'tripelt', but the losses are", {"tripelt": Term()}, {}),
        ("nothing to minimise", {}, {}),
        ("nothing to minimise", {"triplet": Term(0.0)}, {}),
        ("matmul_dtype is 'float16'", {"triplet": Term()}, {"matmul_dtype": "float16"}),
        ("block_size is 0", {"triplet": Term()}, {"block_size": 0}),
    ],
)
def test_settings_are_checked(sentence, terms, settings):
    with pytest.raises(InputError, match=sentence):
        ObjectiveConfig(terms, **settings)
