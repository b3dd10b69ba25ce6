"""All backbones: counts, shapes, parts, and what they refuse."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metricjax import models
from metricjax.errors import InputError
from metricjax.models import cost
from metricjax.models.bn_inception import BNInception
from metricjax.models.convnet import ConvNet
from metricjax.models.embedder import BACKBONES, ModelConfig
from metricjax.models.googlenet import GoogLeNet
from metricjax.models.resnet import ResNet
from metricjax.models.shufflenet import ShuffleNetV2
from metricjax.models.vit import ViT

ALL = [
    BNInception(),
    ConvNet(widths=(8, 16)),
    ConvNet(widths=(8, 16), whole=4),
    GoogLeNet(),
    GoogLeNet(layout="bn"),
    ResNet(18),
    ResNet(18, squeeze_excitation=True),
    ShuffleNetV2(0.5),
    ViT(dim=24, depth=2, heads=2),
]
# Values do not depend on how hard LLVM tries; the time to compile does.
quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
NAMES = [f"{type(module).__name__}-{i}" for i, module in enumerate(ALL)]


# Parameters without the classifier: what torchvision's and timm's documentation gives
# for the whole minus 1,000 x (channels + 1); Caffe's GoogLeNet and the multiply-adds of
# 224x224 are sums over the layers of the papers' tables.
@pytest.mark.parametrize(
    ("module", "parameters", "giga", "channels"),
    [
        (GoogLeNet(), 5_973_552, 1.58, 1024),
        (GoogLeNet(layout="bn"), 6_624_904 - 1_025_000, 1.50, 1024),
        (BNInception(), 11_295_240 - 1_025_000, 2.03, 1024),
        (ShuffleNetV2(0.5), 1_366_792 - 1_025_000, 0.04, 1024),
        (ShuffleNetV2(1.0), 2_278_604 - 1_025_000, 0.145, 1024),
        (ShuffleNetV2(1.5), 3_503_624 - 1_025_000, 0.298, 1024),
        (ShuffleNetV2(2.0), 7_393_996 - 2_049_000, 0.581, 2048),
        (ResNet(50, 2, True), 28_088_024 - 2_049_000, 4.09, 2048),
        (ViT(), 22_050_664 - 385_000, 4.61, 384),
    ],
)
def test_counts(module, parameters, giga, channels):
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    assert cost.count_parameters(variables) == parameters
    counted = cost.multiply_adds(module.apply, variables, images) / 1e9
    assert counted == pytest.approx(giga, rel=0.02)
    side = 1 if isinstance(module, ViT) else 7
    features = jax.eval_shape(module.apply, variables, images)
    assert features.shape == (1, side, side, channels)


@pytest.mark.parametrize("kind", [GoogLeNet, BNInception, ShuffleNetV2, ResNet])
def test_last_downsampling_can_be_removed(kind):
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    shapes = {}
    for stride in (1, 2):
        module = kind(last_stride=stride)
        variables = jax.eval_shape(module.init, jax.random.key(0), images)
        shapes[stride] = jax.eval_shape(module.apply, variables, images).shape
    assert shapes[1][1:3] == (14, 14)
    assert shapes[2][1:3] == (7, 7)
    with pytest.raises(InputError, match="last_stride is 3"):
        kind(last_stride=3)


# Those that differ in how they are put together; the others take long to compile.
FEW = [0, 2, 3, 5, 7, 8]


@pytest.mark.parametrize("module", [ALL[i] for i in FEW], ids=[NAMES[i] for i in FEW])
def test_parts_one_after_the_other_are_the_whole(module):
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 64, 64, 3)))
    images = images.astype(jnp.float32)
    variables = quick_jit(module.init)(jax.random.key(0), images)
    whole = quick_jit(module.apply)(variables, images)
    cut = module.blocks.index(module.branch_after) + 1
    features, seen = images, {}
    for blocks in (module.blocks[:cut], module.blocks[cut:]):
        part = module.clone(only=blocks)
        shapes = jax.eval_shape(part.init, jax.random.key(0), features)
        own = {
            name: {block: tree[block] for block in shapes[name]}
            for name, tree in variables.items()
            if name in shapes
        }
        chex.assert_trees_all_equal_shapes(own, shapes)
        seen |= own["params"]
        features = quick_jit(part.apply)(own, features)
    np.testing.assert_allclose(features, whole, rtol=1e-5, atol=1e-5)
    assert seen.keys() == variables["params"].keys()


@pytest.mark.parametrize("module", ALL[:8], ids=NAMES[:8])
def test_keep_size(module):
    """What lies behind the branching point, without strides and pooling."""
    blocks = module.blocks[module.blocks.index(module.branch_after) + 1 :]
    if "whole" in blocks:
        pytest.skip("a convolution over the whole map has no size to keep")
    part = module.clone(only=blocks, keep_size=True)
    before = module.clone(only=module.blocks[: -len(blocks)])
    images = jax.ShapeDtypeStruct((1, 96, 96, 3), jnp.float32)

    def apply(module, features):
        variables = jax.eval_shape(module.init, jax.random.key(0), features)
        return jax.eval_shape(module.apply, variables, features)

    features = apply(before, images)
    assert apply(part, features).shape[:3] == features.shape[:3]


@pytest.mark.parametrize("name", sorted(BACKBONES))
@pytest.mark.parametrize("head", ["cgd", "abe", "m_heads"])
def test_every_backbone_under_every_head(name, head):
    """In bfloat16, which only the backbone computes in."""
    config = ModelConfig(
        backbone=name, head=head, descriptors="S", dim=16, learners=4, dtype="bfloat16"
    )
    module = models.build(config)
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    made = partial(module.init_with_output, train=True)
    output, variables = jax.eval_shape(made, jax.random.key(0), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    if name in ("convnet", "resnet18"):  # The others would say the same, for longer.
        train = partial(module.apply, train=True, mutable=["batch_stats"])
        _, update = jax.eval_shape(train, variables, images)
        statistics = variables["batch_stats"]
        chex.assert_trees_all_equal_shapes(update["batch_stats"], statistics)
    assert output.embedding.shape == (2, 16)
    assert output.embedding.dtype == jnp.float32
    assert output.features.dtype == jnp.bfloat16
    if head == "cgd":
        assert output.learners is None
    else:
        assert output.learners.shape == (2, 4, 4)
        assert output.features.shape[:2] == (2, 4)


@pytest.mark.parametrize(
    ("module", "side", "words"),
    [
        (GoogLeNet(), 2, "2x2 are too small"),
        (ViT(), 40, "40x40 cannot be cut"),
        (BNInception(), 71, "becomes 9x9: choose sides that 32 divides"),
    ],
)
def test_images_that_do_not_fit(module, side, words):
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    with pytest.raises(InputError, match=words):
        jax.eval_shape(module.init, jax.random.key(0), images)


def _shape(module, variables, images):
    return jax.eval_shape(module.apply, variables, images).shape


def test_a_vit_is_for_one_size():
    module = ViT(dim=24, depth=1, heads=2)
    _, variables = _made(module, 32, 32)
    with pytest.raises(InputError, match="made for images of 32x32"):
        _shape(module, variables, jax.ShapeDtypeStruct((1, 48, 48, 3), jnp.float32))


def _made(module, height, width):
    images = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
    return images, jax.eval_shape(module.init, jax.random.key(0), images)


def test_a_vit_gives_the_class_token_or_the_patches():
    token = ViT(dim=24, depth=1, heads=2)
    images, variables = _made(token, 32, 32)
    assert _shape(token, variables, images) == (2, 1, 1, 24)
    patches = token.clone(output="patches")
    assert _shape(patches, variables, images) == (2, 2, 2, 24)
    oblong, variables = _made(token, 32, 64)
    assert _shape(token, variables, oblong) == (2, 1, 1, 24)
    with pytest.raises(InputError, match="square"):
        _shape(patches, variables, oblong)


@pytest.mark.parametrize(
    ("construct", "words"),
    [
        (lambda: GoogLeNet(layout="tensorflow"), "layout is 'tensorflow'"),
        (lambda: ShuffleNetV2(width=0.7), "width is 0.7"),
        (lambda: ViT(output="all"), "output is 'all'"),
        (lambda: ViT(dim=100), "6 heads cannot share"),
        (lambda: ResNet(18, only=("conv1", "layer9_0")), "no block 'layer9_0'"),
    ],
)
def test_settings_that_are_refused(construct, words):
    with pytest.raises(InputError, match=words):
        construct()


@pytest.mark.parametrize(
    "module",
    [
        ResNet(18, only=("conv1", "pool1", "layer1_0", "layer2_0")),
        ConvNet(widths=(8, 16)),
        ViT(dim=24, depth=1, heads=2),
    ],
)
def test_rematerialised_blocks_give_the_same(module):
    """Value, statistics and gradients; and each block is one rematerialised part."""
    images = jnp.asarray(
        np.random.default_rng(0).normal(size=(2, 32, 32, 3)), "float32"
    )
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    rng = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0.1, 0.2, leaf.shape) ** 2, leaf.dtype),
        variables,
    )

    def loss(module, params):
        features, updated = module.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(jnp.sin(features)), updated

    found = []
    for remat in (False, True):
        of_params = partial(loss, module.clone(remat=remat))
        gradient = jax.value_and_grad(of_params, has_aux=True)
        found.append(quick_jit(gradient)(variables["params"]))
        equations = jax.make_jaxpr(of_params)(variables["params"]).eqns
        # jax 0.10 calls the primitive remat2.
        names = [equation.primitive.name for equation in equations]
        parts = names.count("remat2") + names.count("checkpoint")
        assert parts == (len(module.only or module.blocks) if remat else 0)
    chex.assert_trees_all_close(*found, rtol=1e-4, atol=1e-5)
