"""Convolution against XLA's own, and which operations it becomes on each platform."""

import importlib.util
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from metricjax.models._lowering import convolution
from metricjax.models._lowering.convolution import convolve
from metricjax.planning.hardware import topology

# side, strides, padding, channels in, channels out
CASES = {
    "1x1": (1, 1, 0, 8, 6),
    "1x1 strided": (1, 2, 0, 8, 6),
    "1x1 padded": (1, 1, 1, 8, 6),
    "3x3": (3, 1, 1, 8, 6),
    "3x3 strided": (3, 2, 1, 8, 6),
    "3x3 unpadded": (3, 1, 0, 8, 6),
    "3x3 thin": (3, 1, 1, 3, 6),
    "3x3 grey": (3, 1, 1, 1, 6),
    "5x5 strided": (5, 2, 2, 4, 6),
    "7x7 strided": (7, 2, 3, 3, 4),
    "3x3 small": (3, 1, 1, 8, 6),
    "3x3 strided small": (3, 2, 1, 8, 6),
    "3x3 one pixel": (3, 1, 0, 8, 6),
}
# Heights and widths; the small ones give maps of 4, 2 and 1 pixels.
SIDES = {"3x3 small": (2, 2), "3x3 strided small": (4, 2), "3x3 one pixel": (3, 3)}


def native(images, kernel, strides, padding, groups=1):
    return lax.conv_general_dilated(
        images,
        kernel,
        (strides, strides),
        ((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def ours(images, kernel, strides, padding, groups=1):
    return convolve(images, kernel, strides=strides, padding=padding, groups=groups)


def with_gradients(function, images, kernel, cotangent):
    value, pull = jax.vjp(function, images, kernel)
    return value, *pull(cotangent)


def drawn(case, groups=1, dtype=jnp.float32):
    """(strides, padding), and images, kernel and cotangent; odd and even sides."""
    side, strides, padding, channels, features = CASES[case]
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, *SIDES.get(case, (9, 12)), channels))
    kernel = rng.normal(size=(side, side, channels // groups, features)) / side
    images, kernel = jnp.asarray(images, dtype), jnp.asarray(kernel, dtype)
    forward = partial(native, strides=strides, padding=padding, groups=groups)
    shape = jax.eval_shape(forward, images, kernel).shape
    cotangent = jnp.asarray(rng.normal(size=shape), dtype)
    return (strides, padding), (images, kernel, cotangent)


def assert_equal(settings, arrays, groups=1, rtol=1e-5):
    """Value and both gradients, within `rtol` of the largest entry of each."""
    strides, padding = settings
    options = {"strides": strides, "padding": padding, "groups": groups}
    got = jax.jit(partial(with_gradients, partial(ours, **options)))(*arrays)
    # The truth from the same numbers in float32: bfloat16's products are exact in it.
    wide = [array.astype(jnp.float32) for array in arrays]
    expected = jax.jit(partial(with_gradients, partial(native, **options)))(*wide)
    for mine, theirs, like in zip(got, expected, (arrays[2], *arrays[:2]), strict=True):
        assert mine.dtype == like.dtype and mine.shape == like.shape
        scale = float(jnp.abs(theirs).max())
        np.testing.assert_allclose(
            mine.astype(jnp.float32), theirs, rtol=0, atol=rtol * scale
        )


@pytest.mark.parametrize("case", CASES)
def test_equals_native_in_value_and_gradients(case):
    assert_equal(*drawn(case))


@pytest.mark.parametrize("case", ["1x1", "3x3", "3x3 thin", "3x3 strided"])
def test_bfloat16(case):
    """Rounded once to 8 bits; the native one may round its partial sums as well."""
    assert_equal(*drawn(case, dtype=jnp.bfloat16), rtol=2**-7)


@pytest.mark.parametrize("case", ["1x1", "3x3", "3x3 strided"])
def test_groups(case):
    assert_equal(*drawn(case, groups=2), groups=2)


@pytest.mark.parametrize("padding", [0, 1, 3])
@pytest.mark.parametrize("side", [3, 4, 7])
def test_blocks_of_pixels_as_channels_are_the_same(side, padding):
    """What NVIDIA's GPUs get, run here."""
    rng = np.random.default_rng(3)
    images, kernel = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((2, 9, 12, 3), (side, side, 3, 5))
    )
    expected = native(images, kernel, 2, padding)
    cotangent = jnp.asarray(rng.normal(size=expected.shape), jnp.float32)
    functions = (
        partial(convolution._of_blocks, padding=padding),
        partial(native, strides=2, padding=padding),
    )
    got, expected = (
        jax.jit(partial(with_gradients, function))(images, kernel, cotangent)
        for function in functions
    )
    for mine, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-4)


def test_only_cuda_gets_blocks_and_only_where_channels_are_few():
    def shapes(case, platform):
        (strides, padding), arrays = drawn(case)
        forward = partial(ours, strides=strides, padding=padding)
        program = jax.jit(forward).trace(*arrays[:2])
        return program.lower(lowering_platforms=(platform,)).as_text()

    kernel_of_blocks = "4x4x16x4"  # 7x7 of 3 channels: 4x4 blocks, 12 filled up
    assert kernel_of_blocks in shapes("7x7 strided", "cuda")
    for platform in ("cpu", "tpu", "rocm"):
        assert kernel_of_blocks not in shapes("7x7 strided", platform)
    assert "stablehlo.pad" not in shapes("3x3 strided", "cuda")


def test_gradient_of_the_kernel_alone():
    (strides, padding), (images, kernel, cotangent) = drawn("3x3")

    def total(function, kernel):
        return jnp.sum(function(images, kernel, strides, padding) * cotangent)

    got = jax.jit(jax.grad(partial(total, ours)))(kernel)
    expected = jax.jit(jax.grad(partial(total, native)))(kernel)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def lowered(function, arrays, platform):
    """How many convolutions and matrix products the program of a platform has."""
    program = jax.jit(function).trace(*arrays).lower(lowering_platforms=(platform,))
    text = program.as_text()
    return text.count("stablehlo.convolution"), text.count("stablehlo.dot_general")


@pytest.mark.parametrize("platform", ["tpu", "cuda", "rocm"])
@pytest.mark.parametrize("case", CASES)
def test_accelerators_get_native_convolutions_only(case, platform):
    """One forward, one for each of the two gradients."""
    (strides, padding), arrays = drawn(case)
    forward = partial(ours, strides=strides, padding=padding)
    assert lowered(partial(with_gradients, forward), arrays, platform) == (3, 0)
    assert lowered(forward, arrays[:2], platform) == (1, 0)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)
def test_compiled_for_a_tpu_they_are_convolutions_still():
    chip = jax.sharding.SingleDeviceSharding(topology("v5e:2x2").mesh.devices.flat[0])
    for case in ("1x1", "3x3", "7x7 strided", "3x3 small"):
        (strides, padding), arrays = drawn(case)
        forward = partial(ours, strides=strides, padding=padding)
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=chip) for a in arrays]
        program = jax.jit(partial(with_gradients, forward)).lower(*shapes).compile()
        found = re.findall(r"= \S+ (convolution|dot|custom-call)\(", program.as_text())
        assert found == ["convolution"] * 3, case


@pytest.mark.parametrize("case", CASES)
def test_cpu_has_products_for_pointwise_kernels_and_small_maps(case):
    (strides, padding), arrays = drawn(case)
    forward = partial(ours, strides=strides, padding=padding)
    products = case.startswith("1x1") or case in SIDES
    expected = (0, 3) if products else (3, 0)
    assert lowered(partial(with_gradients, forward), arrays, "cpu") == expected
