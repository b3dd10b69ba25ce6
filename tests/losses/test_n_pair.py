"""N-pair loss: pairs, values, gradients, torch, blocks, devices, degenerate batches."""

import importlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import reference_expansion as slow

from metricjax.errors import InputError
from metricjax.losses import Tiling
from metricjax.losses._kernels import first_pairs
from metricjax.losses.n_pair import n_pair
from metricjax.runtime import mesh

# Unequal classes, two of a single image, any integers, no order.
LABELS = np.array([6, -3, 6, 1, 6, 1, -3, 8, -3, -3, 1, 2, 6])
OTHERS = np.array([1, 6, 9, 8, 1, -3, 6, 6, -3])


def rows(count=13, width=6, seed=0):
    """Rows [count, width] of free length, float64."""
    return np.random.default_rng(seed).normal(size=(count, width))


def f32(array):
    return jnp.asarray(array, jnp.float32)


@partial(jax.jit, static_argnames=("l2_weight", "tiling"))
def value_and_gradient(embeddings, labels=LABELS, **options):
    return jax.value_and_grad(n_pair)(embeddings, labels, **options)


def close(got, expected, rtol=1e-5):
    """Equal within `rtol` of the largest entry: single entries may cancel out."""
    expected = np.asarray(expected, np.float64)
    scale = max(np.abs(expected).max(), 1e-30)
    np.testing.assert_allclose(np.asarray(got), expected, rtol=0, atol=rtol * scale)


@pytest.mark.parametrize(
    ("l2_weight", "block_size"), [(0.0, None), (0.3, None), (0.3, 1), (0.0, 4)]
)
def test_value_and_gradient_equal_reference(l2_weight, block_size):
    x = rows()
    value, slopes = value_and_gradient(
        f32(x), l2_weight=l2_weight, tiling=Tiling(block_size)
    )

    def slowly(x):
        return slow.n_pair(x, LABELS, l2_weight)

    assert value.shape == () and value.dtype == jnp.float32
    assert value == pytest.approx(slowly(x), rel=1e-5)
    close(slopes, reference.gradient(slowly, x))
    # Only the first two images of -3, 1 and 6 take part.
    used = np.abs(slopes).max(axis=1) > 0
    np.testing.assert_array_equal(np.flatnonzero(used), [0, 1, 2, 3, 5, 6])


LABELLINGS = {
    "none": np.arange(13),
    "one": np.array([*range(12), 4]),
    "two": np.array([*range(11), 4, 10]),
    "four": np.array([0, 1, 2, 3, 0, 1, 2, 3, 3, 3, 3, 3, 9]),
    "five": np.array([4, 3, 2, 1, 0, 0, 1, 2, 3, 4, 7, 8, 9]),
    "six": np.array([5, 5, 3, 3, 1, 1, 2, 2, 0, 4, 4, 0, 9]),
}


def test_every_number_of_pairs_fits_its_matrix(monkeypatch):
    """Matrices of 2, 4, 5 and 6 pairs are made; the smallest that fits is used."""
    monkeypatch.setattr(first_pairs, "_SMALL", 4)
    # A function of its own, so that no other compilation is taken.
    ours = jax.jit(jax.value_and_grad(lambda x, y: n_pair(x, y, l2_weight=0.1)))
    x = rows()
    assert str(jax.make_jaxpr(ours)(f32(x), LABELS)).count("branches=") == 1
    for labels in LABELLINGS.values():
        value, slopes = ours(f32(x), labels)
        expected = slow.n_pair(x, labels, 0.1)
        assert value == pytest.approx(expected, rel=1e-5)
        slowly = partial(slow.n_pair, y=labels, l2_weight=0.1)
        close(slopes, reference.gradient(slowly, x))


def test_large_batches_choose_their_matrix():
    """As it stands in the code: 400 images of 100, 150 and 2 classes of two or more."""
    x = rows(400, 8, seed=2)
    ours = jax.jit(jax.value_and_grad(n_pair))
    for labels in (
        np.random.default_rng(0).permutation(np.repeat(np.arange(100), 4)),
        np.concatenate([np.arange(150), np.arange(150), np.arange(200, 300)]),
        np.concatenate([np.arange(398), [3, 17]]),
    ):
        value, slopes = ours(f32(x), labels)
        assert value == pytest.approx(slow.n_pair(x, labels), rel=1e-5)
        anchors, positives = _first_two(labels)
        products = x[anchors] @ x[positives].T
        shares = np.exp(products - products.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        shares = (shares - np.eye(len(anchors))) / len(anchors)
        expected = np.zeros_like(x)
        expected[anchors] = shares @ x[positives]
        expected[positives] = shares.T @ x[anchors]
        close(slopes, expected)


def _first_two(labels):
    places = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return np.array([place[:2] for place in places if len(place) > 1]).T


@pytest.mark.parametrize("block_size", [None, 2])
def test_references(block_size):
    x, z = rows(), rows(9, seed=4)
    mask = np.array([0, 0, 1, 1, 1, 1, 1, 1, 1], bool)

    def ours(x, z):
        return n_pair(
            x,
            LABELS,
            l2_weight=0.2,
            references=z,
            reference_labels=OTHERS,
            reference_mask=mask,
            tiling=Tiling(block_size),
        )

    def slowly(x, z):
        return slow.n_pair(x, LABELS, 0.2, z, OTHERS, mask)

    value, slopes = jax.jit(jax.value_and_grad(ours, argnums=(0, 1)))(f32(x), f32(z))
    assert value == pytest.approx(slowly(x, z), rel=1e-5)
    close(slopes[0], reference.gradient(lambda x: slowly(x, z), x))
    close(slopes[1], reference.gradient(lambda z: slowly(x, z), z))
    # The first references of 1 and 6 are masked: the next ones of the class stand in.
    used = np.abs(slopes[1]).max(axis=1) > 0
    np.testing.assert_array_equal(np.flatnonzero(used), [3, 4, 5, 6])


def test_references_of_no_class_in_the_batch():
    z = f32(rows(3, seed=4))
    value, slopes = value_and_gradient(
        f32(rows()), references=z, reference_labels=np.array([77, 78, 79])
    )
    assert value == 0 and np.all(slopes == 0)


def test_mask_over_the_batch_leaves_out_positives_only():
    mask = np.ones(13, bool)
    mask[[0, 2, 5]] = False  # the anchor of 6, its next image, the second image of 1
    value, slopes = value_and_gradient(f32(rows()), reference_mask=mask)
    slowly = partial(slow.n_pair, y=LABELS, mask=mask)
    assert value == pytest.approx(slowly(rows()), rel=1e-5)
    close(slopes, reference.gradient(slowly, rows()))


@pytest.mark.parametrize(
    ("count", "block_size"), [(1, None), (2, 2), (4, None), (8, None), (8, 1)]
)
def test_devices_equal_one_under_sgd(count, block_size):
    devices = mesh.make_mesh(jax.devices()[:count])
    value, slopes = value_and_gradient(f32(rows()), tiling=Tiling(block_size, devices))
    assert value == pytest.approx(slow.n_pair(rows(), LABELS), rel=1e-5)
    close(slopes, reference.gradient(partial(slow.n_pair, y=LABELS), rows()))


def test_a_batch_that_lies_on_eight_devices(monkeypatch):
    """With a choice of matrices, which all devices must make alike."""
    monkeypatch.setattr(first_pairs, "_SMALL", 4)
    x, y = rows(16, seed=5), np.repeat([3, 1, 8, 5], 4)
    devices = mesh.make_mesh(jax.devices())
    batch = mesh.global_batch(devices, {"e": x.astype(np.float32), "y": y})
    for tiling in (Tiling(), Tiling(2, devices)):
        ours = jax.jit(jax.value_and_grad(partial(n_pair, tiling=tiling)))
        value, slopes = ours(batch["e"], batch["y"])
        assert value == pytest.approx(slow.n_pair(x, y), rel=1e-5)
        close(slopes, reference.gradient(partial(slow.n_pair, y=y), x))


def test_gradient_scales_with_what_is_done_to_the_loss():
    """Value and gradient are taken in one pass: the factor must come in after it."""
    x = f32(rows())
    value, slopes = value_and_gradient(x)

    @jax.jit
    @jax.grad
    def scaled(x):
        return jnp.exp(0.3 * n_pair(x, LABELS)) + jnp.sum(x**2)

    factor = 0.3 * np.exp(0.3 * float(value))
    close(scaled(x), factor * np.asarray(slopes) + 2.0 * np.asarray(x))


@pytest.mark.parametrize("labels", [np.zeros(13, int), np.arange(13)])
def test_nothing_valid_gives_zero(labels):
    """One class has a pair, but nothing to tell it from."""
    value, slopes = value_and_gradient(f32(rows()), labels)
    assert value == 0
    np.testing.assert_array_equal(slopes, np.zeros((13, 6)))
    value, slopes = value_and_gradient(f32(rows(1)), np.array([3]))
    assert value == 0 and np.all(slopes == 0)


@pytest.mark.parametrize("block_size", [None, 4])
def test_same_images_zero_vectors_and_large_products(block_size):
    tiling = Tiling(block_size)
    for x in (np.repeat(rows(1), 13, axis=0), np.zeros((13, 6))):
        value, slopes = value_and_gradient(f32(x), tiling=tiling)
        assert value == pytest.approx(np.log(3), rel=1e-5)
        assert np.abs(slopes).max() < 1e-5
    value, slopes = value_and_gradient(f32(100 * rows()), tiling=tiling)
    assert value == pytest.approx(slow.n_pair(100 * rows(), LABELS), rel=1e-5)
    assert value > 1000 and np.isfinite(slopes).all()


@pytest.mark.parametrize("block_size", [None, 4])
def test_nan_is_not_hidden(block_size):
    tiling = Tiling(block_size)
    for row in (0, 6):  # an anchor, a positive
        x = f32(rows()).at[row, 2].set(jnp.nan)
        value, slopes = value_and_gradient(x, tiling=tiling)
        assert np.isnan(value) and np.isnan(slopes).any()


def test_bfloat16_embeddings():
    x = f32(rows()).astype(jnp.bfloat16)
    rounded = np.asarray(x, np.float64)
    value, slopes = value_and_gradient(x)
    assert value.dtype == jnp.float32 and slopes.dtype == jnp.bfloat16
    assert value == pytest.approx(slow.n_pair(rounded, LABELS), rel=1e-5)
    expected = reference.gradient(partial(slow.n_pair, y=LABELS), rounded)
    # The gradient is rounded once, to bfloat16's 8 bits.
    close(slopes.astype(jnp.float32), expected, 2**-8)
    value, _ = value_and_gradient(f32(rows()), tiling=Tiling(dtype=jnp.bfloat16))
    assert value == pytest.approx(slow.n_pair(rows(), LABELS), rel=3e-2)


def test_entry_checks():
    x = f32(rows())
    with pytest.raises(InputError, match="l2_weight must be 0 or more, but it is -0.1"):
        n_pair(x, LABELS, l2_weight=-0.1)
    with pytest.raises(InputError, match="13 embeddings but 5 labels"):
        n_pair(x, LABELS[:5])
    with pytest.raises(InputError, match=r"shape \[b, d\]"):
        n_pair(x[0], LABELS)
    with pytest.raises(InputError, match="together"):
        n_pair(x, LABELS, references=x)


@pytest.mark.parametrize("order", ["classes", "mixed"])
def test_equals_pytorch_metric_learning(order):
    """Its distance set to plain dot products, as both take embeddings as they are.

    It, too, takes the first two images of a class; its l2 term is not used.
    """
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("pytorch_metric_learning.losses")
    distances = importlib.import_module("pytorch_metric_learning.distances")
    similarity = distances.DotProductSimilarity(normalize_embeddings=False)
    labels = np.repeat(np.arange(6), 4)
    if order == "mixed":
        labels = np.random.default_rng(1).permutation(labels)
    x = rows(24, 32, seed=7).astype(np.float32) / 3
    e = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    expected = theirs.NPairsLoss(distance=similarity)(e, torch.tensor(labels))
    expected.backward()
    value, slopes = value_and_gradient(f32(x), labels)
    assert value == pytest.approx(expected.item(), rel=1e-5)
    close(slopes, e.grad.numpy())
