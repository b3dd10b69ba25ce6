"""The objective: weighted sum, learners apart, defaults, statistics, checks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from metricjax.errors import InputError
from metricjax.models import Output
from metricjax.objectives import (
    LOSSES,
    ObjectiveConfig,
    Term,
    objective,
    pair_statistics,
)

RNG = np.random.default_rng(0)
LABELS = np.array([3, 3, 3, 0, 0, 4, 4, 4, 1, 0])
EMBEDDING = reference.l2_normalize(RNG.normal(size=(10, 6)))
LEARNERS = reference.l2_normalize(RNG.normal(size=(10, 3, 2)))
LOGITS = RNG.normal(size=(10, 5))
FEATURES = np.zeros((10, 1, 1, 1))


def output(learners=None, logits=LOGITS):
    arrays = (EMBEDDING, learners, logits, FEATURES)
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
