"""SPoC, MAC and GeM against the reference, their limits and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from metricjax.errors import InputError
from metricjax.models import pooling


def _features(seed=0, shape=(3, 4, 5, 6)):
    """A feature map as after a ReLU, about half zeros."""
    values = np.random.default_rng(seed).normal(size=shape)
    return np.maximum(values, 0.0).astype(np.float32)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    ("pool", "p"),
    [
        (pooling.spoc, 1.0),
        (pooling.mac, np.inf),
        (pooling.gem, 3.0),
        (lambda x: pooling.gem(x, 1.0), 1.0),
        (lambda x: pooling.gem(x, 2.5), 2.5),
        (lambda x: pooling.gem(x, jnp.asarray(6.0)), 6.0),
    ],
)
def test_values_equal_reference(pool, p, jit):
    features = _features()
    pooled = (jax.jit(pool) if jit else pool)(jnp.asarray(features))
    assert pooled.dtype == jnp.float32
    expected = reference.generalized_mean(features, p)
    np.testing.assert_allclose(pooled, expected, rtol=1e-5, atol=2e-6)


def test_gem_runs_from_spoc_to_mac_without_overflow():
    features = jnp.asarray(_features(1)) * 1e4
    np.testing.assert_allclose(
        pooling.gem(features, 1.0), pooling.spoc(features), rtol=1e-5
    )
    np.testing.assert_allclose(
        pooling.gem(features, 3000.0), pooling.mac(features), rtol=2e-3
    )


def test_gem_takes_an_exponent_per_channel():
    features = jnp.asarray(_features(2, (2, 3, 3, 3)))
    exponents = (1.0, 2.0, 5.0)
    together = pooling.gem(features, jnp.asarray(exponents))
    apart = [pooling.gem(features, p)[:, c] for c, p in enumerate(exponents)]
    np.testing.assert_allclose(together, np.stack(apart, axis=1), rtol=1e-5)


@pytest.mark.parametrize("p", [1.0, 3.0, 30.0])
def test_gem_gradients_are_finite_at_zero_channels(p):
    features = jnp.asarray(_features(3)).at[..., 0].set(0.0).at[1].set(0.0)

    def total(features, p):
        return pooling.gem(features, p).sum()

    value = pooling.gem(features, jnp.asarray(p))
    gradient = jax.jit(jax.grad(total, argnums=(0, 1)))
    by_features, by_p = gradient(features, jnp.asarray(p))
    for result in (value, by_features, by_p):
        assert np.all(np.isfinite(result))
    assert np.all(by_features[..., 0] == 0)


def test_gem_gradients_equal_differences_of_the_reference():
    features = _features(4, (1, 3, 3, 2)) + 0.1
    by_features, by_p = jax.grad(lambda x, p: pooling.gem(x, p).sum(), argnums=(0, 1))(
        jnp.asarray(features), jnp.asarray(3.0)
    )
    step, wide = 1e-6, features.astype(np.float64)
    for index in [(0, 0, 0, 0), (0, 1, 2, 1), (0, 2, 1, 0)]:
        moved = wide.copy()
        moved[index] += step
        rise = reference.generalized_mean(moved, 3) - reference.generalized_mean(
            wide, 3
        )
        np.testing.assert_allclose(by_features[index], rise.sum() / step, rtol=1e-3)
    rise = reference.generalized_mean(wide, 3 + step)
    rise = (rise - reference.generalized_mean(wide, 3)).sum() / step
    np.testing.assert_allclose(by_p, rise, rtol=1e-3)


def test_mac_shares_the_gradient_between_ties():
    features = jnp.zeros((1, 2, 2, 1)).at[0, 0, 0, 0].set(2.0).at[0, 1, 1, 0].set(2.0)
    gradient = jax.grad(lambda x: pooling.mac(x).sum())(features)
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[0.5, 0.0], [0.0, 0.5]])


def test_bfloat16_features_are_pooled_in_float32():
    features = jnp.full((1, 16, 16, 1), 1.0, jnp.bfloat16).at[0, 0, 0, 0].set(2.0)
    for pool in (pooling.spoc, pooling.mac, pooling.gem):
        assert pool(features).dtype == jnp.float32
    # 1 + 1/256 is not a bfloat16.
    np.testing.assert_allclose(pooling.spoc(features), [[1 + 1 / 256]], rtol=1e-6)


@pytest.mark.parametrize("initial_p", [1.5, 3.0, 8.0])
def test_learnable_exponent_starts_where_told_and_stays_above_one(initial_p):
    features = jnp.asarray(_features(5))
    module = pooling.GeM(initial_p)
    pooled, variables = module.init_with_output(jax.random.key(0), features)
    np.testing.assert_allclose(pooled, pooling.gem(features, initial_p), rtol=1e-5)
    assert variables["params"]["raw_p"].dtype == jnp.float32
    low = module.apply({"params": {"raw_p": jnp.asarray(-100.0)}}, features)
    np.testing.assert_allclose(low, pooling.spoc(features), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: pooling.spoc(jnp.ones((2, 3))), "feature map"),
        (lambda: pooling.mac(jnp.ones((2, 3, 4))), "feature map"),
        (lambda: pooling.gem(jnp.ones((2, 3, 4))), "feature map"),
        (lambda: pooling.gem(jnp.ones((1, 2, 2, 3)), 0.5), "at least 1"),
        (lambda: pooling.gem(jnp.ones((1, 2, 2, 3)), float("nan")), "at least 1"),
        (lambda: pooling.GeM(1.0), "above 1"),
    ],
)
def test_bad_input_is_told_in_a_sentence(call, sentence):
    with pytest.raises(InputError, match=sentence):
        call()


def test_pooling_equals_torch():
    torch = pytest.importorskip("torch")
    features = _features(6)
    images = torch.tensor(features).permute(0, 3, 1, 2)
    rivals = {
        pooling.spoc: torch.nn.functional.adaptive_avg_pool2d(images, 1),
        pooling.mac: torch.nn.functional.adaptive_max_pool2d(images, 1),
        pooling.gem: images.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3),
    }
    for pool, rival in rivals.items():
        expected = rival.flatten(1).numpy()
        np.testing.assert_allclose(pool(jnp.asarray(features)), expected, rtol=1e-5)


def test_weights_say_how_much_a_position_counts():
    features = _features(7)
    height, width = features.shape[1:3]
    same = jnp.full((height, width), 0.3)
    for pool in (pooling.spoc, pooling.gem):
        np.testing.assert_allclose(
            pool(features, weights=same), pool(features), rtol=1e-5
        )
        one = jnp.zeros((height, width)).at[2, 1].set(5.0)
        np.testing.assert_allclose(
            pool(features, weights=one), features[:, 2, 1], rtol=1e-5, atol=2e-6
        )
    weights = np.random.default_rng(1).uniform(0, 2, (height, width))
    share = weights / weights.sum()
    np.testing.assert_allclose(
        pooling.spoc(features, jnp.asarray(weights)),
        np.einsum("bhwc,hw->bc", features, share),
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        pooling.gem(features, 3.0, weights=jnp.asarray(weights)),
        np.einsum("bhwc,hw->bc", features.astype(float) ** 3, share) ** (1 / 3),
        rtol=1e-4,
        atol=2e-6,
    )


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 7), (6, 9), (2, 5)])
def test_weights_of_the_centre(height, width):
    weights = pooling.center_weights(height, width)
    assert weights.shape == (height, width) and weights.max() == 1
    np.testing.assert_array_equal(weights, weights[::-1, ::-1])
    row, column = height // 2, width // 2
    assert weights[row, column] == 1
    if (height, width) == (7, 7):
        # A third of the way to the border, 3.5 / 3 positions, is one deviation.
        np.testing.assert_allclose(weights[3, 4], np.exp(-0.5 * (3 / 3.5) ** 2))


def test_rmac_adds_up_unit_maxima_of_regions():
    features = _features(8, (2, 4, 4, 5))
    # Levels 1 and 2 of a 4x4 map: all of it, and four squares of 2.
    squares = [(0, 0, 4), (0, 0, 2), (0, 2, 2), (2, 0, 2), (2, 2, 2)]
    assert sorted(pooling.regions_of(4, 4, 2)) == sorted(squares)
    expected = 0
    for top, left, side in [(0, 0, 4), *squares]:
        part = features[:, top : top + side, left : left + side].max(axis=(1, 2))
        expected += part / np.linalg.norm(part, axis=1, keepdims=True)
    np.testing.assert_allclose(pooling.rmac(features, 2), expected, rtol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(7, 7), (7, 10), (14, 9), (1, 1)])
def test_regions_lie_in_the_map_and_cover_it(height, width):
    regions = pooling.regions_of(height, width, 3)
    if height == width > 1:
        assert len(regions) == 1 + 4 + 9
    covered = np.zeros((height, width))
    for top, left, side in regions:
        assert 0 <= top <= height - side and 0 <= left <= width - side
        covered[top : top + side, left : left + side] += 1
    assert covered.min() >= 1


def test_rmac_needs_a_level_and_weights_their_map():
    with pytest.raises(InputError, match="0 levels"):
        pooling.rmac(_features(), 0)
    with pytest.raises(InputError, match=r"shape \(2, 2\)"):
        pooling.spoc(_features(), jnp.ones((2, 2)))
