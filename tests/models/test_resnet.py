"""ResNet-18 and ResNet-50: counts, shapes, values and normalisation modes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from metricjax.errors import InputError
from metricjax.models import cost
from metricjax.models.resnet import BasicBlock, Bottleneck, ResNet


def _shapes(module, size=224):
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    return images, jax.eval_shape(module.init, jax.random.key(0), images)


def _randomized(module, *inputs, seed=0):
    """Variables drawn at random, those of every normalisation included."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        kind = path[-1].key
        if kind == "kernel":
            deviation = np.sqrt(2 / np.prod(leaf.shape[:3]))
            values = rng.normal(0, deviation, leaf.shape)
        elif kind in ("scale", "var"):
            values = rng.uniform(0.5, 1.5, leaf.shape)
        else:
            values = rng.uniform(-0.5, 0.5, leaf.shape)
        return jnp.asarray(values, jnp.float32)

    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))
    return jax.tree.map_with_path(draw, shapes)


# Parameters and multiply-adds without the classifier: torchvision's resnet18 has
# 11,689,512 - 513,000 and resnet50 25,557,032 - 2,049,000 parameters; 6.21 GMAC is
# CGD's ResNet-50 (stage 4 at stride 1).
@pytest.mark.parametrize(
    ("depth", "last_stride", "parameters", "multiply_adds", "side"),
    [
        (18, 2, 11_176_512, 1_813_561_344, 7),
        (50, 2, 23_508_032, 4_087_136_256, 7),
        (50, 1, 23_508_032, 6_206_570_496, 14),
    ],
)
def test_counts(depth, last_stride, parameters, multiply_adds, side):
    module = ResNet(depth, last_stride)
    images, variables = _shapes(module)
    assert cost.count_parameters(variables) == parameters
    assert cost.forward_multiply_adds(module, (224, 224, 3)) == multiply_adds
    features = jax.eval_shape(module.apply, variables, images)
    assert features.shape == (2, side, side, 512 if depth == 18 else 2048)


def test_bfloat16_features_float32_variables():
    module = ResNet(50, dtype=jnp.bfloat16)
    images, variables = _shapes(module, 32)
    assert jax.eval_shape(module.apply, variables, images).dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("depth", "last_stride", "frozen"),
    [
        (18, 2, False),
        (18, 1, True),
        pytest.param(50, 1, False, marks=pytest.mark.slow),
    ],
)
def test_features_equal_reference(depth, last_stride, frozen):
    """With running averages: at inference, or in training when they are frozen."""
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    module = ResNet(depth, last_stride, frozen_bn=frozen)
    variables = _randomized(module, images)
    got, update = jax.jit(
        lambda v, x: module.apply(v, x, train=frozen, mutable=["batch_stats"])
    )(variables, images)
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
    expected = reference.resnet(images, wide, depth, last_stride)
    assert expected.std() > 0
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4 * expected.max())
    chex.assert_trees_all_equal(update["batch_stats"], variables["batch_stats"])


@pytest.mark.parametrize("block", [BasicBlock(4, 2), Bottleneck(4, 2)])
def test_training_updates_all_statistics(block):
    images = jnp.asarray(np.random.default_rng(1).normal(size=(4, 6, 6, 5)), "float32")
    variables = _randomized(block, images, False)
    _, update = jax.jit(
        lambda v: block.apply(v, images, True, mutable=["batch_stats"])
    )(variables)
    changed = jax.tree.map(
        lambda old, new: not np.allclose(old, new),
        variables["batch_stats"],
        update["batch_stats"],
    )
    assert all(jax.tree.leaves(changed))


@pytest.mark.parametrize("options", [{"depth": 34}, {"depth": 50, "last_stride": 3}])
def test_bad_settings(options):
    with pytest.raises(InputError, match="it can be"):
        ResNet(**options)


@pytest.mark.parametrize(
    ("block", "strides"),
    [(BasicBlock(6), 1), (BasicBlock(8, 2), 2), (Bottleneck(4, 2), 2)],
)
def test_block_equals_torch_in_training(block, strides):
    """Values, new statistics and the gradient by the input, of the same weights."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(2)
    images = rng.normal(size=(4, 8, 8, 6)).astype(np.float32)
    variables = _randomized(block, images, False)

    def ours(x):
        features, update = block.apply(variables, x, True, mutable=["batch_stats"])
        return jnp.square(features).sum(), (features, update["batch_stats"])

    gradient, (features, statistics) = jax.grad(ours, has_aux=True)(images)

    def conv_norm(x, conv, norm, stride, relu):
        kernel = np.asarray(variables["params"][conv]["kernel"]).transpose(3, 2, 0, 1)
        values = variables["params"][norm], variables["batch_stats"][norm]
        scale, bias = (
            torch.tensor(np.asarray(values[0][k])) for k in ("scale", "bias")
        )
        mean, var = (torch.tensor(np.asarray(values[1][k])) for k in ("mean", "var"))
        x = torch.nn.functional.conv2d(
            x, torch.tensor(kernel), stride=stride, padding=kernel.shape[-1] // 2
        )
        x = torch.nn.functional.batch_norm(x, mean, var, scale, bias, True, 0.1, 1e-5)
        np.testing.assert_allclose(statistics[norm]["mean"], mean, rtol=1e-4, atol=1e-5)
        return torch.relu(x) if relu else x

    x = torch.tensor(images).permute(0, 3, 1, 2).requires_grad_()
    count = 3 if isinstance(block, Bottleneck) else 2
    branch = x
    for index in range(1, count + 1):
        # v1.5: the bottleneck strides in its 3x3 convolution.
        strided = index == (2 if count == 3 else 1)
        branch = conv_norm(
            branch,
            f"conv{index}",
            f"bn{index}",
            strides if strided else 1,
            index < count,
        )
    shortcut = x
    if "downsample_conv" in variables["params"]:
        shortcut = conv_norm(x, "downsample_conv", "downsample_bn", strides, False)
    rival = torch.relu(branch + shortcut)
    rival.square().sum().backward()
    for mine, other in ((features, rival.detach()), (gradient, x.grad)):
        other = other.permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-3)
