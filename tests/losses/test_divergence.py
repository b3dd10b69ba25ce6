"""Divergence: values, gradients, torch, devices, degenerate ensembles, entry checks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import reference_proxies

from metricjax.errors import InputError
from metricjax.losses.divergence import divergence
from metricjax.runtime import mesh


def ensemble(count=5, learners=4, width=6, seed=0):
    """Unit learners [count, learners, width], float64, some pairs within the margin."""
    drawn = np.random.default_rng(seed)
    shared = drawn.normal(size=(count, 1, width))
    return reference.l2_normalize(
        shared + 0.8 * drawn.normal(size=(count, learners, width))
    )


def f32(array):
    return jnp.asarray(array, jnp.float32)


@partial(jax.jit, static_argnames=("margin", "reduction"))
def value_and_gradient(learners, **options):
    return jax.value_and_grad(divergence)(learners, **options)


def close(got, expected, rtol=1e-5):
    """Equal within `rtol` of the largest entry: single entries may cancel out."""
    expected = np.asarray(expected, np.float64)
    scale = max(np.abs(expected).max(), 1e-30)
    np.testing.assert_allclose(np.asarray(got), expected, rtol=0, atol=rtol * scale)


VARIANTS = {
    "paper": {},
    "mean of pairs": {"reduction": "mean_pairs"},
    "narrow": {"margin": 0.4},
    "wide": {"margin": 4.0, "reduction": "mean_pairs"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_value_and_gradient_equal_reference(variant):
    learners, options = ensemble(), VARIANTS[variant]

    def slow(x):
        return reference_proxies.divergence(x, **options)

    value, slopes = value_and_gradient(f32(learners), **options)
    assert value.shape == () and value.dtype == jnp.float32
    assert value == pytest.approx(slow(learners), rel=1e-5)
    close(slopes, reference.gradient(slow, learners))


def test_learners_need_not_be_unit():
    learners = 0.3 * np.random.default_rng(1).normal(size=(3, 3, 4))
    value, slopes = value_and_gradient(f32(learners), margin=1.5)

    def slow(x):
        return reference_proxies.divergence(x, 1.5)

    assert value == pytest.approx(slow(learners), rel=1e-5)
    close(slopes, reference.gradient(slow, learners))


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_torch(variant):
    """Against torch's differences of all pairs p < q and autograd, in float64."""
    torch = pytest.importorskip("torch")
    options = {"margin": 1.0, "reduction": "sum_pairs", **VARIANTS[variant]}
    learners = ensemble(9, 8, 16, seed=2).astype(np.float32)
    x = torch.tensor(learners, dtype=torch.float64, requires_grad=True)
    p, q = torch.triu_indices(8, 8, 1)
    hinge = torch.relu(options["margin"] - (x[:, p] - x[:, q]).pow(2).sum(-1))
    pairs = hinge.sum(1) if options["reduction"] == "sum_pairs" else hinge.mean(1)
    pairs.mean().backward()
    value, slopes = value_and_gradient(learners, **options)
    assert value == pytest.approx(pairs.mean().item(), rel=1e-5)
    close(slopes, x.grad.numpy())


def test_a_pair_costs_where_its_cosine_is_above_a_half():
    angles = np.deg2rad([0.0, 59.0, 120.0])  # 59, 61 and 120 degrees apart
    learners = np.stack([np.cos(angles), np.sin(angles)], axis=-1)[None]
    value, slopes = value_and_gradient(f32(learners))
    assert value == pytest.approx(1 - (2 - 2 * np.cos(angles[1])), rel=1e-4)
    assert np.all(slopes[0, 2] == 0) and np.all(np.asarray(slopes[0, :2]) != 0)


@pytest.mark.parametrize(
    ("reduction", "expected"), [("sum_pairs", 10.0), ("mean_pairs", 1.0)]
)
def test_equal_learners_cost_the_margin_for_each_pair(reduction, expected):
    learners = f32(np.repeat(ensemble(7, 1, 64), 5, axis=1))
    value, slopes = value_and_gradient(learners, reduction=reduction)
    assert value == pytest.approx(expected, rel=1e-6)
    assert np.abs(slopes).max() < 1e-6


def test_order_of_the_learners_does_not_matter():
    learners = f32(ensemble())
    value, slopes = value_and_gradient(learners)
    order = np.array([2, 0, 3, 1])
    permuted, permuted_slopes = value_and_gradient(learners[:, order])
    assert value == pytest.approx(float(permuted), rel=1e-6)
    close(permuted_slopes, slopes[:, order], 1e-6)


@pytest.mark.parametrize("reduction", ["sum_pairs", "mean_pairs"])
def test_one_learner_has_nothing_to_diverge_from(reduction):
    value, slopes = value_and_gradient(f32(ensemble(4, 1)), reduction=reduction)
    assert value == 0
    np.testing.assert_array_equal(slopes, np.zeros((4, 1, 6)))


def test_zero_vectors():
    value, slopes = value_and_gradient(jnp.zeros((3, 4, 6)))
    assert value == pytest.approx(6.0)
    np.testing.assert_array_equal(slopes, np.zeros((3, 4, 6)))


def test_nan_is_not_hidden():
    learners = f32(ensemble()).at[1, 2, 3].set(jnp.nan)
    value, slopes = value_and_gradient(learners)
    assert np.isnan(value) and np.isnan(slopes).any()


def test_bfloat16_learners():
    learners = f32(ensemble()).astype(jnp.bfloat16)
    rounded = np.asarray(learners, np.float64)
    value, slopes = value_and_gradient(learners)
    assert value.dtype == jnp.float32 and slopes.dtype == jnp.bfloat16
    assert value == pytest.approx(reference_proxies.divergence(rounded), rel=1e-5)
    expected = reference.gradient(reference_proxies.divergence, rounded)
    close(slopes.astype(jnp.float32), expected, 2**-8)


@pytest.mark.parametrize(
    "count", [4, 8, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))]
)
def test_devices_equal_one_under_sgd(count):
    learners = ensemble(16, 3, seed=3).astype(np.float32)
    devices = mesh.make_mesh(jax.devices()[:count])
    batch = mesh.global_batch(devices, {"x": learners})
    value, slopes = value_and_gradient(batch["x"])
    one, slopes_of_one = value_and_gradient(f32(learners))
    assert len(slopes.sharding.device_set) == count
    assert value == pytest.approx(float(one), rel=1e-6)
    close(slopes, slopes_of_one, 1e-6)


def test_pairs_come_from_one_product_for_each_image():
    """Neither differences [b, m, m, d] nor products between images exist."""
    program = value_and_gradient.lower(jnp.zeros((5, 3, 7))).as_text()
    assert "tensor<5x3x3xf32>" in program
    assert "3x3x7" not in program and "5x5" not in program


@pytest.mark.parametrize(
    ("sentence", "shape", "dtype", "options"),
    [
        ("margin must be 0 or more, but it is -0.1", (2, 3, 4), "f", {"margin": -0.1}),
        ("reduction is 'sum'", (2, 3, 4), "f", {"reduction": "sum"}),
        (r"int32 of shape \[2, 3, 4\]", (2, 3, 4), np.int32, {}),
        (r"of shape \[6, 4\]", (6, 4), "f", {}),
    ],
)
def test_entry_checks(sentence, shape, dtype, options):
    with pytest.raises(InputError, match=sentence):
        divergence(jnp.zeros(shape, dtype), **options)
