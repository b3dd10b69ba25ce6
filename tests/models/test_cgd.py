"""CGD's architectures against the reference, its invariants, counts and errors."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from metricjax.errors import InputError
from metricjax.models import cost, layers, pooling
from metricjax.models.cgd import CGD, drop_classifier


class Pixels(nn.Module):
    """A backbone without parameters: the images are the features."""

    dtype: jnp.dtype = jnp.float32

    def __call__(self, images, train=False):
        return images.astype(self.dtype)


class Small(nn.Module):
    """A backbone of one convolution and batch normalisation."""

    @nn.compact
    def __call__(self, images, train=False):
        features = layers.Conv(16, name="conv1")(images)
        return nn.relu(layers.BatchNorm(name="bn1")(features, train))


def _images(seed=0, shape=(4, 3, 5, 10)):
    values = np.random.default_rng(seed).normal(size=shape)
    return np.maximum(values, 0.0).astype(np.float32)


def _made(images, **options):
    """A module and its variables as at the start of training, kernels by numpy."""
    module = CGD(**{"backbone": Pixels(), "dim": 12, **options})
    rng = np.random.default_rng(0)
    start = {"scale": 1.0, "var": 1.0, "raw_p": np.log(np.expm1(module.gem_p - 1))}

    def draw(path, leaf):
        kind = path[-1].key
        if kind == "kernel":
            return jnp.asarray(rng.normal(size=leaf.shape) / 4, jnp.float32)
        return jnp.full(leaf.shape, start.get(kind, 0.0))

    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    return module, jax.tree.map_with_path(draw, shapes)


def _weights(module, variables):
    names = [f"fc_{letter}" for letter in module.descriptors]
    names = ["fc"] if module.architecture == "B" else names
    return [np.asarray(variables["params"][n]["kernel"], np.float64) for n in names]


VARIANTS = [
    ("C", "concat"),
    ("C", "sum"),
    ("A", "concat"),
    ("B", "concat"),
]


@pytest.mark.parametrize("descriptors", ["S", "MG", "GS", "SMG"])
@pytest.mark.parametrize(("architecture", "combine"), VARIANTS)
def test_embedding_equals_reference(descriptors, architecture, combine):
    images = _images()
    module, variables = _made(
        images, descriptors=descriptors, architecture=architecture, combine=combine
    )
    output = module.apply(variables, images)
    expected, branches = reference.cgd(
        images, descriptors, _weights(module, variables), architecture, combine
    )
    assert output.embedding.shape == (4, 12)
    np.testing.assert_allclose(output.embedding, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        jnp.linalg.norm(output.embedding, axis=1), np.ones(4), rtol=1e-6
    )
    if architecture == "A":
        learners = np.stack(branches, axis=1)
        np.testing.assert_allclose(output.learners, learners, rtol=1e-4, atol=1e-5)
    else:
        assert output.learners is None
    np.testing.assert_array_equal(output.features, images)


def test_similarity_is_the_mean_of_the_branches():
    images = _images(1)
    module, variables = _made(images, descriptors="SMG", architecture="A")
    output = module.apply(variables, images)
    per_branch = jnp.einsum("imd,jmd->ijm", output.learners, output.learners)
    got = output.embedding @ output.embedding.T
    np.testing.assert_allclose(got, per_branch.mean(axis=-1), rtol=1e-4, atol=1e-5)


def test_one_descriptor_is_pooling_linear_map_and_normalisation():
    images = _images(2)
    for architecture, name in (("C", "fc_G"), ("A", "fc_G"), ("B", "fc")):
        module, variables = _made(images, descriptors="G", architecture=architecture)
        kernel = variables["params"][name]["kernel"]
        plain = layers.l2_normalize(pooling.gem(images) @ kernel)
        got = module.apply(variables, images).embedding
        np.testing.assert_allclose(got, plain, rtol=1e-4, atol=1e-5)


def test_swapping_branches_keeps_distances_and_moves_the_classifier():
    images = _images(3)
    module, variables = _made(images, descriptors="MG", num_classes=7)
    swapped = CGD("GM", 12, num_classes=7, backbone=Pixels())

    def run(module):
        output, _ = module.apply(variables, images, train=True, mutable=["batch_stats"])
        return output.embedding @ output.embedding.T, output.logits

    (similarity, logits), (similarity_swapped, logits_swapped) = map(
        run, (module, swapped)
    )
    np.testing.assert_allclose(similarity, similarity_swapped, rtol=1e-5, atol=1e-6)
    assert not np.allclose(logits, logits_swapped, atol=1e-2)


@pytest.mark.parametrize("architecture", ["A", "B", "C"])
def test_logits_come_from_the_first_raw_descriptor(architecture):
    images = _images(4, (8, 3, 3, 10))
    module, variables = _made(
        images, descriptors="MG", num_classes=5, architecture=architecture
    )
    bias = jnp.arange(5.0)
    variables["params"]["classifier"]["bias"] = bias
    output, update = module.apply(
        variables, images, train=True, mutable=["batch_stats"]
    )
    raw = reference.generalized_mean(images, np.inf)
    normalized = reference.batch_norm(raw, 1.0, 0.0, raw.mean(axis=0), raw.var(axis=0))
    kernel = np.asarray(variables["params"]["classifier"]["kernel"], np.float64)
    expected = normalized @ kernel + np.arange(5)
    np.testing.assert_allclose(output.logits, expected, rtol=1e-3, atol=1e-4)
    moved = update["batch_stats"]["classifier_bn"]["mean"]
    np.testing.assert_allclose(moved, 0.1 * raw.mean(axis=0), rtol=1e-5)


def test_inference_needs_no_classifier():
    images = _images(5)
    module, variables = _made(images, num_classes=5)
    dropped = drop_classifier(variables)
    assert "classifier" in variables["params"]
    assert set(dropped["params"]) == {"fc_M", "fc_G"}
    whole, bare = module.apply(variables, images), module.apply(dropped, images)
    assert whole.logits is None and bare.logits is None
    np.testing.assert_array_equal(whole.embedding, bare.embedding)


def test_learnable_exponent_starts_at_gem_p_and_learns():
    images = _images(6)
    module = CGD("SG", 12, backbone=Pixels(), gem_p=4.0, learnable_p=True)
    variables = module.init(jax.random.key(0), images)
    fixed = CGD("SG", 12, backbone=Pixels(), gem_p=4.0)
    np.testing.assert_allclose(
        module.apply(variables, images).embedding,
        fixed.apply(variables, images).embedding,
        rtol=1e-4,
        atol=1e-6,
    )
    gradient = jax.grad(lambda v: module.apply(v, images).embedding[:, 0].sum())(
        variables
    )
    assert gradient["params"]["gem"]["raw_p"] != 0


@pytest.mark.parametrize(("architecture", "combine"), VARIANTS)
def test_gradients_are_finite_where_features_are_zero(architecture, combine):
    images = jnp.asarray(_images(7)).at[0].set(0.0).at[..., 3].set(0.0)
    module, variables = _made(
        images,
        descriptors="SMG",
        architecture=architecture,
        combine=combine,
        num_classes=3,
        learnable_p=True,
    )

    def total(variables, images):
        output, _ = module.apply(variables, images, train=True, mutable=["batch_stats"])
        learners = 0.0 if output.learners is None else output.learners.sum()
        return output.embedding.sum() + learners + jnp.square(output.logits).sum()

    gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(variables, images)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))


def test_bfloat16_backbone_gives_float32_outputs():
    images = _images(8)
    module, variables = _made(
        images, backbone=Pixels(jnp.bfloat16), architecture="A", num_classes=3
    )
    output, _ = module.apply(variables, images, train=True, mutable=["batch_stats"])
    assert output.features.dtype == jnp.bfloat16
    for value in (output.embedding, output.learners, output.logits):
        assert value.dtype == jnp.float32


@pytest.mark.parametrize(
    "devices", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (4, 8))]
)
def test_many_devices_equal_one(devices):
    """Batch statistics are those of the global batch, in values and gradients."""
    images = _images(9, (16, 4, 4, 3))
    module, variables = _made(images, backbone=Small(), num_classes=5)

    def step(variables, images):
        def total(parameters):
            output, update = module.apply(
                {**variables, "params": parameters},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            loss = jnp.square(output.logits).mean() + output.embedding[::2].mean()
            return loss, (output.embedding, update)

        return jax.grad(total, has_aux=True)(variables["params"])

    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    sharded = jax.device_put(images, NamedSharding(mesh, PartitionSpec("data")))
    replicated = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
    one, many = jax.jit(step)(variables, images), jax.jit(step)(replicated, sharded)
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-6)


# papers.md's arithmetic for ResNet-50, 1536-d: 23.508 M + 2048 x 1536 + 4096 + FC(0).
@pytest.mark.parametrize(
    ("classes", "millions"), [(100, 26.86), (11318, 49.85), (3997, 34.85)]
)
def test_parameters_of_the_papers_model(classes, millions):
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(CGD(num_classes=classes).init, jax.random.key(0), images)
    assert round(cost.count_parameters(variables) / 1e6, 2) == millions
    assert round(cost.count_parameters(drop_classifier(variables)) / 1e6, 2) == 26.65


def test_cost_of_the_papers_model():
    multiply_adds = cost.forward_multiply_adds(CGD(num_classes=100), (224, 224, 3))
    assert round(multiply_adds / 1e9, 2) == 6.21
    assert multiply_adds == 6_206_570_496 + 2048 * 1536


@pytest.mark.parametrize("descriptors", ["S", "MG", "SMG"])
@pytest.mark.parametrize("architecture", ["A", "C"])
def test_descriptors_share_the_same_number_of_parameters(descriptors, architecture):
    """2048 x 1536 weights whatever n is, for k = dim / n."""
    images = jax.ShapeDtypeStruct((1, 4, 4, 2048), jnp.float32)
    module = CGD(descriptors, 1536, architecture, backbone=Pixels())
    variables = jax.eval_shape(module.init, jax.random.key(0), images)
    assert cost.count_parameters(variables) == 2048 * 1536


@pytest.mark.parametrize("architecture", ["B", "C"])
def test_dim_zero_takes_the_descriptors_as_they_are(architecture):
    images = _images()
    module, variables = _made(
        images, descriptors="SM", dim=0, architecture=architecture
    )
    assert not any(name.startswith("fc") for name in variables.get("params", {}))
    output = module.apply(variables, images)
    raw = [
        reference.generalized_mean(output.features, p=power) for power in (1.0, np.inf)
    ]
    if architecture == "C":
        raw = [reference.l2_normalize(descriptor) for descriptor in raw]
    expected = reference.l2_normalize(np.concatenate(raw, axis=1))
    np.testing.assert_allclose(output.embedding, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"descriptors": "MX"}, "'MX'; it must be letters out of S"),
        ({"descriptors": "mg"}, "it must be letters out of"),
        ({"descriptors": ""}, "it must be letters out of"),
        ({"descriptors": "MM"}, "only once"),
        ({"descriptors": "SMG", "dim": 1000}, "set it to 999"),
        ({"dim": -1}, "set it to 2"),
        ({"dim": -1, "architecture": "B"}, "dim is -1"),
        ({"architecture": "D"}, "must be 'C', 'A' or 'B'"),
        ({"combine": "mean"}, "must be 'concat' or 'sum'"),
        ({"combine": "sum", "architecture": "A"}, "belongs to architecture 'C'"),
        ({"num_classes": 0}, "at least 1"),
        ({"gem_p": 0.5}, "gem_p is 0.5; it must be at least 1"),
        ({"gem_p": 1.0, "learnable_p": True}, "must be above 1"),
    ],
)
def test_bad_settings_are_told_in_a_sentence(options, sentence):
    with pytest.raises(InputError, match=sentence):
        CGD(backbone=Pixels(), **options)


@pytest.mark.parametrize(
    "images", [np.zeros((2, 4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.float32)]
)
def test_bad_images_are_told_in_a_sentence(images):
    with pytest.raises(InputError, match="normalised float images"):
        CGD(backbone=Pixels(), dim=12).init(jax.random.key(0), images)
