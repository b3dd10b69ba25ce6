"""Safe roots and masked reductions: values, gradients, empty sets, NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metricjax.losses._kernels.numerics import (
    masked_max,
    masked_mean,
    masked_min,
    safe_sqrt,
)

VALUES = jnp.asarray([3.0, -2.0, 5.0, -7.0])
REDUCTIONS = {
    "max": (masked_max, np.max),
    "min": (masked_min, np.min),
    "mean": (masked_mean, np.mean),
}


def test_safe_sqrt_values_and_gradients():
    squares = jnp.asarray([0.0, -1e-7, 4.0, 1e-12])
    np.testing.assert_allclose(safe_sqrt(squares), [0, 0, 2, 1e-6], rtol=1e-6)
    slopes = jax.vmap(jax.grad(safe_sqrt))(squares)
    np.testing.assert_allclose(slopes, [0, 0, 0.25, 5e5], rtol=1e-6)


def test_safe_sqrt_keeps_nan():
    assert np.isnan(safe_sqrt(jnp.nan))
    assert np.isnan(jax.grad(safe_sqrt)(jnp.nan))
    assert np.isinf(safe_sqrt(jnp.inf))


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize(
    "mask", [(1, 1, 1, 1), (1, 0, 1, 0), (0, 1, 0, 1), (0, 1, 0, 0)]
)
def test_masked_reductions_equal_numpy(name, mask):
    ours, numpys = REDUCTIONS[name]
    mask = np.asarray(mask, bool)
    assert ours(VALUES, mask) == pytest.approx(numpys(np.asarray(VALUES)[mask]))
    slopes = jax.grad(ours)(VALUES, mask)
    assert np.sum(slopes) == pytest.approx(1.0)
    assert np.all(slopes[~mask] == 0)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_empty_mask_gives_zero_without_gradient(name):
    empty = jnp.zeros(4, bool)
    value, slopes = jax.value_and_grad(REDUCTIONS[name][0])(VALUES, empty)
    assert value == 0
    np.testing.assert_array_equal(slopes, np.zeros(4))


@pytest.mark.parametrize("name", REDUCTIONS)
def test_nan_counts_under_the_mask_only(name):
    reduce = REDUCTIONS[name][0]
    values = VALUES.at[2].set(jnp.nan)
    assert np.isnan(reduce(values, jnp.asarray([True, False, True, False])))
    without = jnp.asarray([True, True, False, True])
    value, slopes = jax.value_and_grad(reduce)(values, without)
    assert np.isfinite(value) and np.all(np.isfinite(slopes))


def test_ties_share_the_gradient():
    values, everything = jnp.asarray([1.0, 4.0, 4.0]), jnp.ones(3, bool)
    np.testing.assert_allclose(jax.grad(masked_max)(values, everything), [0, 0.5, 0.5])
