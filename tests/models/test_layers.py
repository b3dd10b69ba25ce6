"""Convolution, batch normalisation, pooling and the safe l2 normalisation."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from metricjax.models import layers
from metricjax.models._lowering import windows


def test_l2_normalize_values_and_zero_vector():
    vectors = np.random.default_rng(0).normal(size=(4, 3, 7))
    normalized = layers.l2_normalize(jnp.asarray(vectors, jnp.float32))
    np.testing.assert_allclose(
        normalized, reference.l2_normalize(vectors), rtol=2e-6, atol=1e-7
    )
    zeros = jnp.zeros((2, 5))
    gradient = jax.grad(lambda v: layers.l2_normalize(v).sum())(zeros)
    assert np.all(layers.l2_normalize(zeros) == 0)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize(
    ("kernel_size", "strides", "padding"),
    [(1, 1, None), (1, 2, None), (3, 1, None), (3, 2, None), (7, 2, None), (3, 1, 0)],
)
def test_convolution_equals_reference(kernel_size, strides, padding):
    rng = np.random.default_rng(1)
    images = rng.normal(size=(2, 9, 10, 3))
    conv = layers.Conv(5, kernel_size, strides, padding)
    variables = conv.init(jax.random.key(0), jnp.asarray(images, jnp.float32))
    expected = reference.convolve(
        images,
        np.asarray(variables["params"]["kernel"], np.float64),
        strides,
        (kernel_size - 1) // 2 if padding is None else padding,
    )
    got = conv.apply(variables, jnp.asarray(images, jnp.float32))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_grouped_convolution_is_one_convolution_per_group():
    rng = np.random.default_rng(2)
    images = jnp.asarray(rng.normal(size=(1, 6, 6, 4)), jnp.float32)
    conv = layers.Conv(6, 3, groups=2, use_bias=True)
    variables = conv.init(jax.random.key(0), images)
    kernel = np.asarray(variables["params"]["kernel"])
    assert kernel.shape == (3, 3, 2, 6)
    bias = jnp.arange(6.0)
    got = conv.apply({"params": {"kernel": kernel, "bias": bias}}, images)
    halves = [
        reference.convolve(images[..., :2], kernel[..., :3], 1, 1),
        reference.convolve(images[..., 2:], kernel[..., 3:], 1, 1),
    ]
    expected = np.concatenate(halves, axis=-1) + np.arange(6)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "window", "stride", "padding"),
    [((8, 6), 2, 2, 0), ((9, 7), 2, 2, 0), ((9, 9), 3, 3, 0), ((8, 7), 3, 2, 1)],
)
def test_max_pool_equals_reference(size, window, stride, padding):
    images = np.random.default_rng(3).normal(size=(2, *size, 3)) - 5.0
    images = images.astype(np.float32)
    got = windows.max_pool(jnp.asarray(images), window, stride, padding)
    expected = reference.max_pool(images, window, stride, padding)
    np.testing.assert_array_equal(got, expected.astype(np.float32))


def test_max_pool_gradient_goes_to_the_maximum():
    images = jnp.asarray(np.random.default_rng(4).normal(size=(1, 4, 4, 2)), "float32")
    gradient = jax.grad(lambda x: windows.max_pool(x, 2, 2).sum())(images)
    largest = reference.max_pool(images, 2, 2).repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_array_equal(gradient, (images == largest).astype(np.float32))


@pytest.mark.parametrize(
    ("size", "window", "stride", "padding", "ceil_mode"),
    [
        ((8, 7), 3, 2, 1, False),
        ((8, 9), 3, 2, 0, True),
        ((7, 6), 3, 1, 1, False),
        ((9, 8), 2, 3, 0, False),
        ((9, 9), 5, 2, 2, True),
    ],
)
@pytest.mark.parametrize("ties", [False, True])
def test_gradient_of_overlapping_maxima_is_torchs(
    size, window, stride, padding, ceil_mode, ties
):
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(8).normal(size=(2, *size, 3)).astype(np.float32)
    values = np.rint(values) if ties else values
    images = torch.tensor(values.transpose(0, 3, 1, 2), requires_grad=True)
    expected = torch.nn.functional.max_pool2d(
        images, window, stride, padding, ceil_mode=ceil_mode
    )
    slopes = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
    expected.backward(slopes)

    def forward(images):
        return windows.max_pool(images, window, stride, padding, ceil_mode)

    _, pull = jax.vjp(forward, jnp.asarray(values))
    (got,) = pull(jnp.asarray(slopes.numpy().transpose(0, 2, 3, 1)))
    np.testing.assert_allclose(
        got, images.grad.numpy().transpose(0, 2, 3, 1), rtol=1e-6, atol=1e-6
    )


def test_positions_that_tie_share_a_gradient_where_windows_tile():
    def total(images, stride):
        return windows.max_pool(images, 3, stride).sum()

    ones = jnp.ones((1, 3, 3, 1))
    shared = jax.grad(total)(ones, 3)
    np.testing.assert_allclose(shared, ones / 9)
    first = jax.grad(total)(ones, 1)
    assert first[0, 0, 0, 0] == 1 and first.sum() == 1


def test_a_map_smaller_than_the_window_has_no_maxima_and_no_gradient():
    images = jnp.ones((1, 2, 2, 3))
    pooled, pull = jax.vjp(lambda x: windows.max_pool(x, 3, 1), images)
    assert pooled.shape == (1, 0, 0, 3)
    np.testing.assert_array_equal(pull(pooled)[0], jnp.zeros_like(images))


@pytest.mark.parametrize("pool", ["max", "mean"])
def test_windows_are_native_on_accelerators(pool):
    """A reduction over windows forward; back to maxima none that scatters but TPU's."""
    images = jnp.ones((2, 8, 8, 3))

    def forward(images):
        if pool == "max":
            return windows.max_pool(images, 3, 2, padding=1)
        return windows.average_pool(images, 3, padding=1)

    def gradient(images):
        return jax.vjp(forward, images)[1](forward(images))

    for platform, native in (("tpu", True), ("cuda", True), ("cpu", False)):
        text = {
            name: jax.jit(function)
            .trace(images)
            .lower(lowering_platforms=(platform,))
            .as_text()
            for name, function in (("forward", forward), ("gradient", gradient))
        }
        assert ("reduce_window" in text["forward"]) == native
        assert ("stablehlo.slice" not in text["forward"]) == native
        if pool == "max":
            assert ("select_and_scatter" in text["gradient"]) == (platform == "tpu")
        else:
            assert ("reduce_window" in text["gradient"]) == native


@pytest.mark.parametrize("rows", [(6, 3, 3), (37,), (5, 40), (3,)])
def test_gradients_of_batch_norm_are_torchs(rows):
    """Above and below the rows that are added up in turns, and what is left over."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(9)
    values, slopes = rng.normal(2.0, 3.0, size=(2, *rows, 4)).astype(np.float32)
    scale, bias = rng.normal(size=(2, 4)).astype(np.float32)
    inputs = [torch.tensor(x, requires_grad=True) for x in (values, scale, bias)]
    flat = inputs[0].reshape(-1, 4)
    expected = torch.nn.functional.batch_norm(
        flat, None, None, inputs[1], inputs[2], training=True, eps=1e-5
    )
    expected.backward(torch.tensor(slopes).reshape(-1, 4))
    norm = layers.BatchNorm()

    def apply(features, scale, bias):
        variables = {
            "params": {"scale": scale, "bias": bias},
            "batch_stats": {"mean": jnp.zeros(4), "var": jnp.ones(4)},
        }
        return norm.apply(variables, features, True, mutable=["batch_stats"])[0]

    got, pull = jax.vjp(apply, *map(jnp.asarray, (values, scale, bias)))
    np.testing.assert_allclose(
        got.reshape(-1, 4), expected.detach().numpy(), rtol=1e-4, atol=1e-5
    )
    for mine, theirs in zip(pull(jnp.asarray(slopes)), inputs, strict=True):
        np.testing.assert_allclose(mine, theirs.grad.numpy(), rtol=1e-3, atol=1e-4)


def _normalize(features, train, **options):
    norm = layers.BatchNorm(**options)
    variables = {
        "params": {"scale": jnp.asarray([1.5, 0.5]), "bias": jnp.asarray([0.1, -0.2])},
        "batch_stats": {"mean": jnp.asarray([0.3, 1]), "var": jnp.asarray([2.0, 0.7])},
    }
    return variables, *norm.apply(variables, features, train, mutable=["batch_stats"])


def test_batch_norm_counts_beyond_32_bits():
    """A pod's batch of 262,144 images has 3.3e9 pixels in its largest maps."""
    norm, maps = layers.BatchNorm(), jax.ShapeDtypeStruct((2**18, 112, 112, 4), "f4")
    few = jnp.zeros((1, 2, 2, 4))
    variables = norm.init(jax.random.key(0), few, train=False)

    def total(variables, maps):
        return norm.apply(variables, maps, train=True, mutable=["batch_stats"])[0].sum()

    found = jax.eval_shape(jax.grad(total, argnums=1), variables, maps)
    assert found.shape == maps.shape


def test_batch_norm_uses_and_updates_statistics():
    features = np.random.default_rng(5).normal(2.0, 3.0, size=(6, 3, 3, 2))
    variables, got, update = _normalize(jnp.asarray(features, jnp.float32), True)
    mean, variance = features.mean(axis=(0, 1, 2)), features.var(axis=(0, 1, 2))
    scale, bias = variables["params"]["scale"], variables["params"]["bias"]
    expected = reference.batch_norm(features, scale, bias, mean, variance)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    before = variables["batch_stats"]
    moved = {
        "mean": 0.9 * before["mean"] + 0.1 * mean,
        "var": 0.9 * before["var"] + 0.1 * variance,
    }
    chex.assert_trees_all_close(update["batch_stats"], moved, rtol=1e-5)


@pytest.mark.parametrize(("train", "frozen"), [(False, False), (True, True)])
def test_batch_norm_keeps_running_averages(train, frozen):
    features = np.random.default_rng(6).normal(2.0, 3.0, size=(6, 2))
    variables, got, update = _normalize(
        jnp.asarray(features, jnp.float32), train, frozen=frozen
    )
    settings = {**variables["params"], **variables["batch_stats"]}
    expected = reference.batch_norm(
        features, *(settings[name] for name in ("scale", "bias", "mean", "var"))
    )
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_equal(update["batch_stats"], variables["batch_stats"])


def test_frozen_batch_norm_still_trains_scale_and_bias():
    norm = layers.BatchNorm(frozen=True)
    features = jnp.asarray([[1.0, 2.0], [3.0, -1.0], [0.5, 0.2]])
    variables = norm.init(jax.random.key(0), features, True)

    def total(parameters):
        return jnp.square(
            norm.apply({**variables, "params": parameters}, features, True)
        ).sum()

    gradient = jax.grad(total)(variables["params"])
    assert all(np.all(leaf != 0) for leaf in jax.tree.leaves(gradient))


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_variables():
    images = jnp.ones((2, 4, 4, 3))
    conv = layers.Conv(4, dtype=jnp.bfloat16)
    norm = layers.BatchNorm(dtype=jnp.bfloat16)
    convolved, conv_variables = conv.init_with_output(jax.random.key(0), images)
    normalized, norm_variables = norm.init_with_output(
        jax.random.key(0), convolved, True
    )
    assert convolved.dtype == normalized.dtype == jnp.bfloat16
    for leaf in jax.tree.leaves((conv_variables, norm_variables)):
        assert leaf.dtype == jnp.float32


@pytest.mark.parametrize("size", [2, 3, 5, 6, 7, 8, 9, 112])
@pytest.mark.parametrize(
    ("window", "stride", "padding"), [(3, 2, 0), (2, 2, 0), (3, 2, 1), (3, 1, 1)]
)
def test_poolings_that_round_up_equal_torchs(size, window, stride, padding):
    torch = pytest.importorskip("torch", reason="needs the extra `torch`")
    values = np.random.default_rng(size).normal(size=(2, size, size + 1, 3))
    values = values.astype(np.float32)
    if size + 1 < window:
        pytest.skip("the window is larger than the image")
    expected = torch.nn.functional.max_pool2d(
        torch.tensor(values.transpose(0, 3, 1, 2)), window, stride, padding,
        ceil_mode=True,
    ).numpy()  # fmt: skip
    got = windows.max_pool(jnp.asarray(values), window, stride, padding, ceil_mode=True)
    np.testing.assert_array_equal(got, expected.transpose(0, 2, 3, 1))


def test_average_pool_and_response_normalisation_equal_torchs():
    torch = pytest.importorskip("torch", reason="needs the extra `torch`")
    values = np.random.default_rng(0).normal(size=(2, 5, 6, 9)).astype(np.float32) * 9
    images = torch.tensor(values.transpose(0, 3, 1, 2))
    for got, expected in (
        (
            windows.average_pool(jnp.asarray(values), 3, padding=1),
            torch.nn.functional.avg_pool2d(images, 3, 1, 1),
        ),
        (
            layers.local_response_normalize(jnp.asarray(values)),
            torch.nn.functional.local_response_norm(images, 5, 1e-4, 0.75, 1.0),
        ),
    ):
        np.testing.assert_allclose(
            got, expected.numpy().transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-6
        )
