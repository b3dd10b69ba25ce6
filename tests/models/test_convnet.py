"""ConvNet: shapes, counts, residual form, gradients, types, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from metricjax.errors import InputError
from metricjax.models.convnet import ConvNet


def drawn(module, shape, seed=0):
    """Images and variables, kernels by numpy and running averages of no one layer."""
    rng = np.random.default_rng(seed)
    images = jnp.asarray(rng.normal(size=shape), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)

    def draw(path, leaf):
        kind = path[-1].key
        if kind == "kernel":
            return jnp.asarray(rng.normal(size=leaf.shape) / 10, jnp.float32)
        low, high = (0.5, 1.5) if kind in ("scale", "var") else (-0.2, 0.2)
        return jnp.asarray(rng.uniform(low, high, leaf.shape), jnp.float32)

    return images, jax.tree.map_with_path(draw, shapes)


def features_by_hand(images, variables, stages, depth, whole):
    """The docstring's network in float64 numpy, with running averages."""
    to64 = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
    params, averages = to64["params"], to64["batch_stats"]

    def normalized(x, conv, norm, strides):
        kernel = params[conv]["kernel"]
        x = reference.convolve(x, kernel, strides, kernel.shape[0] // 2)
        settings = params[norm] | averages[norm]
        order = ("scale", "bias", "mean", "var")
        return reference.batch_norm(x, *(settings[name] for name in order))

    def block(*args):
        return np.maximum(normalized(*args), 0.0)

    x = block(images, "stem", "stem_bn", 2)
    for stage in range(stages):
        x = block(x, f"down{stage}", f"down{stage}_bn", 2)
        for index in range(depth):
            name = f"stage{stage}_{index}"
            x = x + block(x, name, f"{name}_bn", 1)
    if whole:
        # A kernel as large as the map, which it meets once.
        x = normalized(x.reshape(len(x), 1, 1, -1), "whole", "whole_bn", 1)
    return x


@pytest.mark.parametrize(
    ("widths", "depth", "whole", "shape"),
    [
        ((4, 6, 8), 2, 0, (2, 13, 16, 1)),
        ((5, 7), 1, 9, (3, 8, 8, 3)),
        ((6,), 2, 0, (2, 9, 9, 3)),
    ],
)
def test_features_equal_the_network_by_hand(widths, depth, whole, shape):
    module = ConvNet(widths, depth, whole)
    images, variables = drawn(module, shape)
    got = jax.jit(module.apply)(variables, images)
    images = np.asarray(images, np.float64)
    expected = features_by_hand(images, variables, len(widths) - 1, depth, whole)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_whole_tells_where_in_the_image_something_is():
    module = ConvNet((4,), whole=5)
    _, variables = drawn(module, (1, 8, 8, 1))
    left = jnp.zeros((1, 8, 8, 1)).at[0, 2:4, 0:2].set(1.0)
    both = jnp.concatenate([left, jnp.roll(left, 4, axis=2)])
    features = module.apply(variables, both)
    assert features.shape == (2, 1, 1, 5)
    assert not np.allclose(features[0], features[1], atol=1e-3)


@pytest.mark.parametrize(
    ("side", "channels", "widths"),
    [(32, 1, (32, 64, 128)), (28, 1, (8, 8)), (33, 3, (8, 16, 24, 32)), (1, 3, (4, 4))],
)
def test_shapes(side, channels, widths):
    images = jax.ShapeDtypeStruct((2, side, side, channels), jnp.float32)
    features, _ = jax.eval_shape(
        ConvNet(widths).init_with_output, jax.random.key(0), images
    )
    small = -(-side // 2 ** len(widths))
    assert features.shape == (2, small, small, widths[-1])


@pytest.mark.parametrize("channels", [1, 3])
def test_count_of_parameters(channels):
    shapes = jax.eval_shape(
        ConvNet((32, 64, 128), 2).init,
        jax.random.key(0),
        jnp.zeros((1, 8, 8, channels)),
    )
    kernels = 25 * channels * 32
    kernels += 9 * (32 * 64 + 2 * 64 * 64) + 9 * (64 * 128 + 2 * 128 * 128)
    normalised = 32 + 3 * 64 + 3 * 128
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert count == kernels + 2 * normalised
    whole = jax.eval_shape(
        ConvNet((32, 64, 128), 2, 256).init,
        jax.random.key(0),
        jnp.zeros((1, 28, 28, channels)),
    )
    more = sum(leaf.size for leaf in jax.tree.leaves(whole["params"])) - count
    assert more == 4 * 4 * 128 * 256 + 2 * 256
    averages = sum(leaf.size for leaf in jax.tree.leaves(shapes["batch_stats"]))
    assert averages == 2 * normalised


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_are_finite_and_reach_every_parameter(dtype):
    module = ConvNet((4, 6), 1, 5, dtype=dtype)
    images, variables = drawn(module, (4, 8, 8, 3))

    def loss(params):
        features, _ = module.apply(
            variables | {"params": params}, images, train=True, mutable=["batch_stats"]
        )
        assert features.dtype == dtype
        weights = jnp.arange(features.size).reshape(features.shape) % 7
        return jnp.sum(features.astype(jnp.float32) * weights)

    slopes = jax.jit(jax.grad(loss))(variables["params"])
    for leaf in jax.tree.leaves(slopes):
        assert leaf.dtype == jnp.float32
        assert np.all(np.isfinite(leaf)) and np.any(leaf != 0)


@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_bn_reaches_every_normalisation(frozen):
    module = ConvNet((4, 6), 1, 5, frozen_bn=frozen)
    images, variables = drawn(module, (4, 8, 8, 3))

    @jax.jit
    def train(variables):
        return module.apply(variables, images, train=True, mutable=["batch_stats"])

    _, updated = train(variables)
    before = jax.tree.leaves(variables["batch_stats"])
    after = jax.tree.leaves(updated["batch_stats"])
    for one, other in zip(before, after, strict=True):
        assert np.array_equal(one, other) == frozen


@pytest.mark.parametrize("widths", [(), (0,), (8, -1)])
def test_widths_are_checked(widths):
    with pytest.raises(InputError, match="widths is"):
        ConvNet(widths)


def test_whole_is_checked():
    with pytest.raises(InputError, match="whole is -1"):
        ConvNet(whole=-1)
