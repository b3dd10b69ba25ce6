"""Gradients of whole batches of which a part at a time goes through the model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metricjax import losses
from metricjax.runtime import mesh
from metricjax.training import microbatching

ROWS, WIDTH = 48, 6


def network(params, inputs):
    """Rows that know nothing of each other, and the mean of what was seen."""
    hidden = jnp.tanh(inputs @ params["first"])
    outputs = {"unit": unit(hidden @ params["second"]), "hidden": hidden}
    return outputs, {"mean": inputs.mean(axis=0)}


def unit(rows):
    return rows / jnp.linalg.norm(rows, axis=1, keepdims=True)


def loss_fn(params, outputs):
    """A loss of pairs, and a parameter that the network does not have."""
    labels = jnp.arange(ROWS) % 7
    value = losses.triplet(outputs["unit"], labels, margin=0.5, mining="all")
    value += params["own"] * jnp.square(outputs["hidden"]).mean()
    return value, {"value": value}


@pytest.fixture(scope="module")
def given():
    rng = np.random.default_rng(0)
    params = {
        "first": rng.normal(size=(5, WIDTH)).astype(np.float32),
        "second": rng.normal(size=(WIDTH, 4)).astype(np.float32),
        "own": np.float32(0.7),
    }
    return params, rng.normal(size=(ROWS, 5)).astype(np.float32)


@pytest.fixture(scope="module")
def whole(given):
    return jax.jit(lambda p, x: microbatching.gradients(network, loss_fn, p, x))(*given)


@pytest.mark.parametrize("parts", [2, 3, 6, 48])
@pytest.mark.parametrize("count", [1, 2, 8])
def test_parts_and_devices_change_nothing(parts, count, given, whole):
    if ROWS // parts % count:
        pytest.skip("the devices cannot share such parts")
    params, inputs = given
    devices = mesh.make_mesh(jax.devices()[:count])
    found = jax.jit(
        lambda p, x: microbatching.gradients(network, loss_fn, p, x, parts, devices),
        in_shardings=(mesh.replicated(devices), mesh.split(devices)),
        out_shardings=mesh.replicated(devices),
    )(params, inputs)
    for got, expected in zip(
        jax.tree.leaves(found), jax.tree.leaves(whole), strict=True
    ):
        scale = float(np.abs(expected).max())
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * scale)


def test_it_is_not_the_mean_of_the_gradients_of_parts(given, whole):
    """Which is what adding up gradients over small batches would give."""
    params, inputs = given
    labels = jnp.arange(ROWS) % 7

    def of_part(params, start):
        rows = network(params, inputs[start::4])[0]["unit"]
        return losses.triplet(rows, labels[start::4], margin=0.5, mining="all")

    each = [jax.grad(of_part)(params, start) for start in range(4)]
    mean = np.mean([gradients["second"] for gradients in each], axis=0)
    expected = whole[0]["second"]
    assert np.abs(mean - expected).max() > 0.05 * np.abs(expected).max()


def test_rows_stay_on_their_devices(given):
    """No gather but those of the loss: the inputs are divided where they are."""
    params, inputs = given
    devices = mesh.make_mesh()
    wide = np.tile(inputs, (1, 40))
    params = params | {"first": np.tile(params["first"], (40, 1))}

    def mean_of_squares(params, outputs):
        return jnp.square(outputs["unit"][:, 0]).mean(), ()

    text = (
        jax.jit(
            lambda p, x: microbatching.gradients(
                network, mean_of_squares, p, x, 3, devices
            ),
            in_shardings=(mesh.replicated(devices), mesh.split(devices)),
            out_shardings=mesh.replicated(devices),
        )
        .lower(params, wide)
        .compile()
        .as_text()
    )
    assert "all-reduce" in text  # of the gradients
    assert "all-gather" not in text and "all-to-all" not in text
    assert "collective-permute" not in text


def test_batch_statistics_are_those_of_each_part():
    """And the running ones move by their mean."""
    rows = np.random.default_rng(1).normal(size=(12, 3)).astype(np.float32)

    def normalized(params, inputs):
        mean = inputs.mean(axis=0)
        return (inputs - mean) * params, {"mean": mean, "var": inputs.var(axis=0)}

    def total(params, outputs):
        return jnp.sum(jnp.sin(outputs)), outputs

    found, statistics, outputs = microbatching.gradients(
        normalized, total, jnp.float32(2.0), rows, parts=3
    )
    parts = [rows[start::3] for start in range(3)]
    centred = np.empty_like(rows)
    for start, part in enumerate(parts):
        centred[start::3] = part - part.mean(axis=0)
    np.testing.assert_allclose(outputs, 2 * centred, rtol=1e-5, atol=1e-6)
    slope = (np.cos(2 * centred.astype(np.float64)) * centred).sum()
    assert float(found) == pytest.approx(slope, rel=1e-5)
    np.testing.assert_allclose(statistics["mean"], rows.mean(axis=0), rtol=1e-5)
    inside = np.mean([part.var(axis=0) for part in parts], axis=0)
    np.testing.assert_allclose(statistics["var"], inside, rtol=1e-5)
