"""Softmax cross-entropy: values, gradients, torch, devices, extremes, entry checks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from metricjax.errors import InputError
from metricjax.losses import softmax_cross_entropy
from metricjax.runtime import mesh

RNG = np.random.default_rng(0)
LOGITS = 3.0 * RNG.normal(size=(16, 7))
LABELS = RNG.integers(0, 7, 16)
VARIANTS = [(1.0, 0.0), (0.5, 0.0), (1.0, 0.1), (0.5, 0.1), (4.0, 0.9)]


@partial(jax.jit, static_argnums=(2, 3))
def value_and_gradient(logits, labels, temperature=1.0, label_smoothing=0.0):
    return jax.value_and_grad(softmax_cross_entropy)(
        logits, labels, temperature=temperature, label_smoothing=label_smoothing
    )


@pytest.mark.parametrize(("temperature", "smoothing"), VARIANTS)
def test_value_and_gradient_equal_reference(temperature, smoothing):
    settings = temperature, smoothing
    value, slopes = value_and_gradient(jnp.float32(LOGITS), LABELS, *settings)
    assert value.shape == () and value.dtype == jnp.float32

    def slow(logits):
        return reference.softmax_cross_entropy(logits, LABELS, *settings)

    assert value == pytest.approx(slow(LOGITS), rel=1e-5)
    expected = reference.gradient(slow, LOGITS)
    tolerance = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(slopes, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("temperature", "smoothing"), VARIANTS)
def test_equals_torch(temperature, smoothing):
    torch = pytest.importorskip("torch")
    logits = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    loss = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)
    theirs = loss(logits / temperature, torch.tensor(LABELS))
    theirs.backward()
    value, slopes = value_and_gradient(
        jnp.float32(LOGITS), LABELS, temperature, smoothing
    )
    assert value == pytest.approx(theirs.item(), rel=1e-5)
    np.testing.assert_allclose(slopes, logits.grad.numpy(), atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize(
    "count", [4, 8, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))]
)
def test_devices_equal_one(count):
    devices = mesh.make_mesh(jax.devices()[:count])
    local = {"x": LOGITS.astype(np.float32), "y": LABELS}
    batch = mesh.global_batch(devices, local)
    value, slopes = value_and_gradient(batch["x"], batch["y"], 0.5, 0.1)
    one, slopes_of_one = value_and_gradient(jnp.float32(LOGITS), LABELS, 0.5, 0.1)
    assert value == pytest.approx(float(one), rel=1e-6)
    np.testing.assert_allclose(slopes, slopes_of_one, rtol=1e-6, atol=1e-9)


def test_equal_logits_give_the_logarithm_of_the_number_of_classes():
    for smoothing in (0.0, 0.3):
        value, slopes = value_and_gradient(
            jnp.full((4, 10), 2.5), jnp.arange(4), 0.5, smoothing
        )
        assert value == pytest.approx(np.log(10), rel=1e-6)
        assert np.sum(slopes) == pytest.approx(0.0, abs=1e-6)


def test_one_class_costs_nothing():
    value, slopes = value_and_gradient(jnp.ones((4, 1)), jnp.zeros(4, int), 0.5, 0.1)
    assert value == 0 and np.all(slopes == 0)


def test_large_logits_stay_finite():
    logits = jnp.float32([[1e5, -1e5, 0.0], [-1e5, 1e5, 0.0]])
    value, slopes = value_and_gradient(logits, jnp.array([1, 1]), 0.5)
    assert value == pytest.approx(2e5)
    assert np.all(np.isfinite(slopes))


def test_classes_ruled_out_by_minus_infinity():
    """What torch gives too: the class has no probability and no gradient."""
    logits = jnp.float32([[1.0, -jnp.inf, 2.0], [0.5, -jnp.inf, 0.5]])
    labels = np.array([2, 0])
    value, slopes = value_and_gradient(logits, labels)
    expected, slopes_without = value_and_gradient(logits[:, ::2], labels // 2)
    assert value == pytest.approx(float(expected), rel=1e-6)
    np.testing.assert_allclose(slopes[:, ::2], slopes_without, rtol=1e-6)
    np.testing.assert_array_equal(slopes[:, 1], np.zeros(2))


def test_bfloat16_logits():
    logits = jnp.asarray(LOGITS, jnp.bfloat16)
    value, slopes = value_and_gradient(logits, LABELS, 0.5, 0.1)
    rounded = np.asarray(logits, np.float64)
    expected = reference.softmax_cross_entropy(rounded, LABELS, 0.5, 0.1)
    assert value.dtype == jnp.float32 and slopes.dtype == jnp.bfloat16
    assert value == pytest.approx(expected, rel=1e-5)


def test_nan_is_not_hidden():
    logits = jnp.float32(LOGITS).at[3, 3].set(jnp.nan)
    for smoothing in (0.0, 0.1):
        value, slopes = value_and_gradient(logits, LABELS, 0.5, smoothing)
        assert np.isnan(value) and np.isnan(slopes[3]).all()


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64])
def test_labels_of_any_integer_type(dtype):
    logits = jnp.float32(LOGITS)
    expected = softmax_cross_entropy(logits, LABELS)
    assert softmax_cross_entropy(logits, LABELS.astype(dtype)) == expected


@pytest.mark.parametrize(
    ("sentence", "logits", "labels", "options"),
    [
        ("temperature must be above 0", LOGITS, LABELS, {"temperature": 0.0}),
        ("temperature .* it is -1", LOGITS, LABELS, {"temperature": -1.0}),
        ("label_smoothing must", LOGITS, LABELS, {"label_smoothing": 1.0}),
        ("label_smoothing .* -0.1", LOGITS, LABELS, {"label_smoothing": -0.1}),
        (r"shapes are \[16, 7\] and \[15\]", LOGITS, LABELS[1:], {}),
        (r"shapes are \[7\] and \[16\]", LOGITS[0], LABELS, {}),
        (r"shapes are \[16, 7\] and \[16, 1\]", LOGITS, LABELS[:, None], {}),
        ("labels must be integers", LOGITS, LABELS.astype(np.float32), {}),
    ],
)
def test_entry_checks(sentence, logits, labels, options):
    with pytest.raises(InputError, match=sentence):
        softmax_cross_entropy(jnp.asarray(logits), jnp.asarray(labels), **options)
