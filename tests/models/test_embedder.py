"""From settings to a model."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from metricjax import models
from metricjax.errors import InputError
from metricjax.models import cost
from metricjax.models.cgd import CGD
from metricjax.models.resnet import ResNet


def test_defaults_are_the_papers_model():
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    model = models.build(models.ModelConfig(), num_classes=100)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    assert cost.count_parameters(variables) == 26_862_756
    output = jax.eval_shape(model.apply, variables, images)
    assert output.embedding.shape == (1, 1536)
    assert output.features.shape == (1, 14, 14, 2048)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ["A", "B", "C"])
def test_training_output_shapes_and_types(dtype, architecture):
    config = models.ModelConfig(
        backbone="resnet18",
        last_stride=2,
        descriptors="SG",
        dim=64,
        architecture=architecture,
        dtype=dtype,
    )
    images = jax.ShapeDtypeStruct((4, 64, 64, 3), jnp.float32)
    model = models.build(config, num_classes=10)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}

    def train(variables, images):
        return model.apply(variables, images, train=True, mutable=["batch_stats"])

    output, update = jax.eval_shape(train, variables, images)
    assert output.embedding.shape == (4, 64)
    assert output.embedding.dtype == output.logits.dtype == jnp.float32
    assert output.logits.shape == (4, 10)
    assert output.features.shape == (4, 2, 2, 512)
    assert output.features.dtype == jnp.dtype(dtype)
    assert jax.tree.structure(update["batch_stats"]) == jax.tree.structure(
        variables["batch_stats"]
    )
    if architecture == "A":
        assert output.learners.shape == (4, 2, 32)
        assert output.learners.dtype == jnp.float32
    else:
        assert output.learners is None


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_every_setting_reaches_its_part(backbone):
    config = models.ModelConfig(
        backbone=backbone,
        last_stride=2,
        descriptors="SG",
        dim=10,
        combine="sum",
        gem_p=2.5,
        learnable_p=True,
        dtype="bfloat16",
        frozen_bn=True,
    )
    model = models.build(config, num_classes=7)
    trunk = ResNet(int(backbone[6:]), 2, dtype=jnp.dtype("bfloat16"), frozen_bn=True)
    assert model == CGD("SG", 10, "C", "sum", 7, trunk, 2.5, True)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"backbone": "resnet5"}, "did you mean 'resnet50'"),
        ({"backbone": "?"}, "there are .*resnet18"),
        ({"dtype": "float16"}, "'float32' or 'bfloat16'"),
        ({"last_stride": 4}, "it can be 1 or 2"),
        ({"descriptors": "MGS", "dim": 1537}, "set it to 1536"),
        ({"architecture": "c"}, "must be 'C', 'A' or 'B'"),
    ],
)
def test_bad_settings_are_told_in_a_sentence(options, sentence):
    with pytest.raises(InputError, match=sentence):
        models.build(models.ModelConfig(**options))


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        models.ModelConfig().dim = 3
