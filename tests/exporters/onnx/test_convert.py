"""From JAX to ONNX: each operation, whole networks, what is refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from metricjax import models
from metricjax.data import transforms
from metricjax.errors import InputError
from metricjax.exporters.onnx import convert
from metricjax.inference import embedder
from metricjax.models import layers, pooling
from metricjax.models._lowering import windows
from metricjax.models._lowering.convolution import convolve
from metricjax.training import step

onnxruntime = pytest.importorskip("onnxruntime")

SHAPE = (9, 8, 6)


def run(function, images):
    model = convert.convert(function, images.shape[1:])
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(["embeddings"], {"images": images})[0]


def pictures(count=3, shape=SHAPE):
    return np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)


def kernel(*shape, seed=1):
    numbers = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(numbers, jnp.float32)


def grouped(x):
    """Each learner convolves what its own kernel made: a grouped convolution."""
    kernels, more = kernel(3, 3, 3, 6, 4), kernel(3, 3, 3, 4, 2, seed=2)

    def learner(one, two):
        return lax.conv_general_dilated(
            lax.conv_general_dilated(
                x, one, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            ),
            two, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    return jax.vmap(learner, out_axes=1)(kernels, more)


def attention(x):
    tokens = x.reshape(x.shape[0], -1, 2, 3)
    scores = nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", tokens, tokens))
    return jnp.einsum("bhqk,bkhd->bqhd", scores, tokens)


OPERATIONS = {
    "convolution": lambda x: convolve(x, kernel(3, 3, 6, 5), strides=2, padding=1),
    "groups": lambda x: convolve(
        x, kernel(3, 3, 1, 6), strides=1, padding=1, groups=6
    ),
    "grouped": grouped,
    "dilated": lambda x: lax.conv_general_dilated(
        x, kernel(2, 3, 6, 4), (1, 2), ((0, 1), (2, 0)), rhs_dilation=(2, 1),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    ),
    "max_pool": lambda x: windows.max_pool(x, 3, 2, padding=1, ceil_mode=True),
    "max_pool_tiles": lambda x: windows.max_pool(x, 2, 2),
    "max_pool_of_each": lambda x: jax.vmap(
        lambda one: windows.max_pool(one, 3, 2, padding=1)
    )(jnp.stack([x, -x])).swapaxes(0, 1),
    "average_pool": lambda x: windows.average_pool(x, 3, padding=1),
    "response": layers.local_response_normalize,
    "response_of_any_power": lambda x: layers.local_response_normalize(x, beta=0.5),
    "gem": lambda x: pooling.gem(jnp.abs(x), kernel(6) ** 2 + 1),
    "rmac": pooling.rmac,
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "gelu_by_tanh": nn.gelu,
    "sigmoid": nn.sigmoid,
    "layer_norm": lambda x: nn.standardize(x, axis=-1),
    "attention": attention,
    "any_product": lambda x: jnp.einsum("bhwc,hwcd->bd", x, kernel(9, 8, 6, 4)),
    "blue_first": lambda x: x[..., ::-1],
    "parts": lambda x: jnp.concatenate(
        [x[:, 2:7:2, 1:], jnp.split(x, 3, axis=1)[0][:, :, 1:]], axis=1
    ),
    "squeezed": lambda x: lax.squeeze(lax.slice_in_dim(x, 2, 3, axis=2), (2,)),
    "one_row": lambda x: x[:, 3],
    "padded": lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 0), (0, 3))),
    "stacked": lambda x: jnp.stack([x, 2 * x], axis=-1),
    "mirrored_with_token": lambda x: jnp.concatenate(
        [jnp.broadcast_to(kernel(1, 1, 6), (x.shape[0], 1, 6)), x[:, 0]], axis=1
    ),
    "chosen": lambda x: jnp.where(x > 0.1, x, -jnp.ones_like(x)) ** 3,
    "signs": lambda x: jnp.sign(x) * jnp.isfinite(x) * (jnp.abs(x) != 0.5),
    "least": lambda x: jnp.minimum(x.min(axis=(1, 2)), jnp.floor(3 * x).max((1, 2))),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation(name):
    """With any number of images, also one."""

    def function(images):
        x = images.astype(jnp.float32) / 128 - 1
        found = OPERATIONS[name](x)
        return found.reshape(found.shape[0], -1).astype(jnp.float32)

    expected = np.asarray(jax.jit(function)(pictures()))
    scale = np.abs(expected).max()
    for count in (1, 3):
        found = run(function, pictures()[:count])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[:count], atol=1e-5 * scale)


NETWORKS = [
    ("convnet", "cgd"),
    ("convnet", "m_heads"),
    *(
        pytest.param(*both, marks=pytest.mark.slow)
        for both in (
            ("convnet", "abe"),
            ("bn_inception", "cgd"),
            ("googlenet", "abe"),
            ("googlenet_bn", "m_heads"),
            ("resnet18", "m_heads"),
            ("se_resnet50", "cgd"),
            ("shufflenet", "abe"),
            ("vit_small", "cgd"),
            ("vit_small", "m_heads"),
        )
    ),
]


def weights(shapes, seed=0):
    """Any numbers, of a size that keeps the features alive."""
    rng = np.random.default_rng(seed)

    def make(path, leaf):
        name = jax.tree_util.keystr(path)
        if "var" in name or "scale" in name:
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), jnp.float32)
        inputs = max(1, int(np.prod(leaf.shape[:-1])))
        numbers = rng.normal(size=leaf.shape) * np.sqrt(1.5 / inputs)
        return jnp.asarray(numbers, jnp.float32)

    return jax.tree_util.tree_map_with_path(make, shapes)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("backbone, head", NETWORKS)
def test_networks(backbone, head):
    small = backbone == "convnet"
    shape = (28, 28, 1) if small else (64, 64, 3)
    network = models.build(
        models.ModelConfig(
            backbone=backbone, head=head, dim=28, learners=2, last_stride=2,
            descriptors="MGSAWVR" if head == "cgd" else "G", widths=(8, 16, 24),
        )
    )  # fmt: skip
    recipe = "pad_crop" if backbone == "googlenet" else "resize_crop"
    config = transforms.TransformConfig(recipe, shape[0], shape[2])
    embed = embedder.make_embed_step(network, config)
    variables = weights(
        jax.eval_shape(
            lambda key: step.init_variables(network, shape, key), jax.random.key(0)
        )
    )
    images = pictures(shape=shape)
    expected = np.asarray(jax.jit(embed)(variables, images))
    found = run(lambda images: embed(variables, images), images)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    "function, said",
    [
        (lambda x: jnp.sort(x), "operation sort"),
        (lambda x: jnp.take(kernel(9, 4), x[:, 0].astype(int), axis=0), "by index"),
        (lambda x: x * x.shape[0], "operation dim_as_value"),
        (lambda x: lax.pad(x, 0.0, ((0, 0, 0), (0, -2, 0))), "pads between"),
        (lambda x: lax.reduce_window(
            x[:, :, None, None], 0.0, lax.add, (2, 2, 2, 1), (1, 1, 1, 1), "SAME"
        ), "reduces windows"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_refused_in_a_sentence(function, said):
    def flat(images):
        return function(images.reshape(images.shape[0], -1).astype(jnp.float32))

    with pytest.raises(InputError, match=f"{said}.*--format stablehlo"):
        convert.convert(flat, SHAPE)


def test_too_large_for_a_file(monkeypatch):
    monkeypatch.setattr(convert, "_MOST_BYTES", 1000)
    large = kernel(int(np.prod(SHAPE)), 64)
    with pytest.raises(InputError, match="GiB of parameters.*stablehlo"):
        convert.convert(
            lambda x: x.reshape(x.shape[0], -1).astype(jnp.float32) @ large, SHAPE
        )
