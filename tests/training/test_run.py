"""What a run is made of, before it trains."""

import jax
import numpy as np
import pytest

from metricjax import models
from metricjax.cli import config_flags
from metricjax.models import pretrained
from metricjax.training.run import Run


@pytest.mark.parametrize("head", ["cgd", "abe"])
def test_a_run_starts_from_pretrained_weights(tiny, tmp_path, head):
    settings = {
        "data.root": tiny.shapes,
        "model.head": head,
        "model.learners": 4,
        "objective.terms.softmax.weight": 0.0,
        "model.pretrained": tmp_path / "weights.safetensors",
    }
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    config = config_flags.parse(["--config", str(tiny.config), *flags]).config
    backbone = models.BACKBONES["convnet"](config.model)
    images = np.zeros((1, *config.data.transform.shape), np.float32)
    weights = jax.jit(backbone.init)(jax.random.key(7), images)
    pretrained.save(config.model.pretrained, backbone, weights)

    run, said = Run.open(config, tmp_path / "run"), []
    run.print_summary(said.append)
    assert any("weights.safetensors" in sentence for sentence in said)
    state = run.init_state()
    kernel = np.asarray(weights["params"]["stage0_0"]["kernel"])
    parts = state.params["backbone"]
    if head == "cgd":
        np.testing.assert_array_equal(parts["stage0_0"]["kernel"], kernel)
        np.testing.assert_array_equal(
            state.batch_stats["backbone"]["stem_bn"]["var"],
            weights["batch_stats"]["stem_bn"]["var"],
        )
    else:
        stem = np.asarray(weights["params"]["stem"]["kernel"])
        np.testing.assert_array_equal(parts["shared"]["stem"]["kernel"], stem)
        for part in (parts["attention"], parts["branch"]["network"]):
            np.testing.assert_array_equal(part["stage0_0"]["kernel"], kernel)
    again = run.init_state()
    jax.tree.map(np.testing.assert_array_equal, state.params, again.params)
