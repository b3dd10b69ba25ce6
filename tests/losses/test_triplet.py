"""Batch-hard triplet: values, gradients, torch, devices, degenerate batches."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from metricjax.errors import InputError
from metricjax.losses import Tiling, triplet
from metricjax.runtime import mesh

LABELS = np.array([6, 6, 6, 1, 1, -3, -3, -3, -3, 8, 1, 2])
VARIANTS = {
    "paper": {},
    "wide": {"margin": 0.7},
    "no margin": {"margin": 0.0},
    "squared": {"margin": 0.5, "squared": True},
    "soft": {"soft": True},
    "soft squared": {"soft": True, "squared": True},
}


def rows(count=12, width=6, seed=0):
    """Unit rows [count, width], float64."""
    drawn = np.random.default_rng(seed).normal(size=(count, width))
    return reference.l2_normalize(drawn)


def f32(array):
    return jnp.asarray(array, jnp.float32)


@partial(jax.jit, static_argnames=("margin", "squared", "soft", "tiling"))
def value_and_gradient(embeddings, labels=LABELS, **options):
    return jax.value_and_grad(triplet)(embeddings, labels, **options)


def close(got, expected, rtol=1e-5):
    """Equal within `rtol` of the largest entry: single entries may cancel out."""
    expected = np.asarray(expected, np.float64)
    scale = max(np.abs(expected).max(), 1e-30)
    np.testing.assert_allclose(np.asarray(got), expected, rtol=0, atol=rtol * scale)


@pytest.mark.parametrize(
    ("variant", "block_size"),
    [*((name, None) for name in VARIANTS), ("paper", 5), ("soft squared", 5)],
)
def test_value_and_gradient_equal_reference(variant, block_size):
    embeddings, options = rows(), VARIANTS[variant]
    value, slopes = value_and_gradient(
        f32(embeddings), tiling=Tiling(block_size), **options
    )

    def slow(x):
        return reference.triplet(x, LABELS, **options)

    assert value.dtype == jnp.float32
    assert value == pytest.approx(slow(embeddings), rel=1e-5)
    close(slopes, reference.gradient(slow, embeddings))


@pytest.mark.parametrize("block_size", [None, 5])
def test_references(block_size):
    embeddings, references = rows(), rows(9, seed=4)
    others = np.array([6, 1, 8, 8, -3, 6, 0, 1, 5])
    tiling = Tiling(block_size)

    def ours(x, z):
        return triplet(x, LABELS, references=z, reference_labels=others, tiling=tiling)

    def slow(x, z):
        return reference.triplet(x, LABELS, references=z, reference_labels=others)

    value, slopes = jax.jit(jax.value_and_grad(ours, argnums=(0, 1)))(
        f32(embeddings), f32(references)
    )
    assert value == pytest.approx(slow(embeddings, references), rel=1e-5)
    close(slopes[0], reference.gradient(lambda x: slow(x, references), embeddings))
    close(slopes[1], reference.gradient(lambda z: slow(embeddings, z), references))


@pytest.mark.parametrize("block_size", [None, 5])
@pytest.mark.parametrize(
    "count", [4, 8, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))]
)
def test_devices_equal_one_under_sgd(count, block_size):
    """The gradient's scale too: an average over devices would be n times smaller."""
    embeddings, labels = rows(16, seed=5), np.repeat([3, 1, 8, 5], 4)
    devices = mesh.make_mesh(jax.devices()[:count])
    batch = mesh.global_batch(
        devices, {"e": embeddings.astype(np.float32), "y": labels}
    )
    value, slopes = value_and_gradient(
        batch["e"], batch["y"], tiling=Tiling(block_size)
    )

    def slow(x):
        return reference.triplet(x, labels)

    assert value == pytest.approx(slow(embeddings), rel=1e-5)
    close(slopes, reference.gradient(slow, embeddings))


def test_gradient_moves_the_hardest_pair_along_their_difference():
    embeddings = f32([[0, 0], [1, 0], [0, 3], [0, 2], [40, 40]])
    labels = np.array([0, 0, 0, 1, 1])
    value, slopes = value_and_gradient(embeddings[:4], labels[:4], margin=0.5)
    root = np.sqrt(10.0)
    expected = (3 - 2 + 0.5) + (root - np.sqrt(5.0) + 0.5) + (root - 1 + 0.5)
    assert value == pytest.approx(expected / 3, rel=1e-6)
    # Hardest pairs: 0: +2 -3, 1: +2 -3, 2: +1 -3; row 3 has no positive.
    to = np.array([1.0, -3.0]) / root  # from row 2 to row 1
    five = np.array([1.0, -2.0]) / np.sqrt(5.0)  # from row 3 to row 1
    up = np.array([0.0, 1.0])
    by_hand = [-up + up, 2 * to - five, up - 2 * to - up, -up + five + up]
    close(slopes, np.array(by_hand) / 3)


def test_anchors_beyond_the_margin_count_in_the_mean():
    embeddings = f32([[0.0], [1.0], [10.0], [11.5]])
    labels = np.array([0, 0, 1, 1])
    # Only the anchor 2 violates the margin: 1.5 - 9 + 8 = 0.5; others are 0.
    value, _ = value_and_gradient(embeddings, labels, margin=8.0)
    assert value == pytest.approx(0.5 / 4, rel=1e-6)


DEGENERATE = {
    "one class": np.zeros(12, int),
    "no positives": np.arange(12),
}


@pytest.mark.parametrize(("soft", "block_size"), [(False, None), (True, 5)])
@pytest.mark.parametrize("case", DEGENERATE)
def test_nothing_valid_gives_zero(case, soft, block_size):
    value, slopes = value_and_gradient(
        f32(rows()), DEGENERATE[case], soft=soft, tiling=Tiling(block_size)
    )
    assert value == 0
    np.testing.assert_array_equal(slopes, np.zeros((12, 6)))


def test_a_batch_of_one():
    value, slopes = value_and_gradient(f32(rows(1)), np.array([3]))
    assert value == 0 and np.all(slopes == 0)


@pytest.mark.parametrize("block_size", [None, 5])
def test_zero_vectors(block_size):
    value, slopes = value_and_gradient(jnp.zeros((12, 6)), tiling=Tiling(block_size))
    assert value == pytest.approx(0.1)
    np.testing.assert_array_equal(slopes, np.zeros((12, 6)))


@pytest.mark.parametrize("block_size", [None, 5])
@pytest.mark.parametrize("width", [6, 512])
def test_all_images_the_same(width, block_size):
    """Distances of duplicates are 0 up to rounding: about 1e-3 of unit length."""
    same = np.repeat(rows(1, width), 12, axis=0)
    value, slopes = value_and_gradient(f32(same), tiling=Tiling(block_size))
    assert value == pytest.approx(0.1, abs=2e-3)
    assert np.abs(slopes).max() < 1e-4


def test_duplicates_within_classes_pull_on_nothing():
    """Positives at distance 0 have no direction; the negatives' remains."""
    labels = np.repeat(np.arange(4), 3)
    embeddings = np.repeat(rows(4, 256, seed=6), 3, axis=0)
    value, slopes = value_and_gradient(f32(embeddings), labels, margin=2.0)
    distances = reference.distances(embeddings[::3], embeddings[::3])
    nearest = np.where(np.eye(4, dtype=bool), np.inf, distances).min(axis=1)
    assert value == pytest.approx(np.mean(2.0 - nearest), rel=2e-3)
    # Of one anchor per class against one row per class; rows of a class share it.
    expected = reference.gradient(
        lambda x: reference.triplet(
            x,
            np.arange(4),
            2.0,
            references=np.repeat(x, 2, axis=0),
            reference_labels=np.repeat(np.arange(4), 2),
        ),
        embeddings[::3],
    )
    summed = np.asarray(slopes).reshape(4, 3, -1).sum(axis=1)
    assert np.abs(summed - expected).max() < 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("block_size", [None, 5])
def test_nan_is_not_hidden(block_size):
    embeddings = f32(rows()).at[0, 0].set(jnp.nan)
    value, slopes = value_and_gradient(embeddings, tiling=Tiling(block_size))
    assert np.isnan(value) and np.isnan(slopes).any()


@pytest.mark.parametrize("block_size", [None, 5])
def test_bfloat16_embeddings(block_size):
    embeddings = f32(rows()).astype(jnp.bfloat16)
    rounded = np.asarray(embeddings, np.float64)
    value, slopes = value_and_gradient(embeddings, tiling=Tiling(block_size))
    assert value.dtype == jnp.float32 and slopes.dtype == jnp.bfloat16
    expected = reference.gradient(lambda x: reference.triplet(x, LABELS), rounded)
    assert value == pytest.approx(reference.triplet(rounded, LABELS), rel=1e-5)
    # The gradient is rounded once, to bfloat16's 8 bits.
    close(slopes.astype(jnp.float32), expected, 2**-8)


@pytest.mark.parametrize(
    ("sentence", "options"),
    [
        ("margin must be 0 or more, but it is -0.1", {"margin": -0.1}),
        ("together", {"references": np.zeros((3, 6), np.float32)}),
    ],
)
def test_entry_checks(sentence, options):
    with pytest.raises(InputError, match=sentence):
        triplet(f32(rows()), LABELS, **options)
    with pytest.raises(InputError, match="12 embeddings but 5 labels"):
        triplet(f32(rows()), LABELS[:5])


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_torch(variant):
    """Against batch-hard mining written with torch's cdist and autograd."""
    torch = pytest.importorskip("torch")
    options = {"margin": 0.1, "squared": False, "soft": False, **VARIANTS[variant]}
    labels = np.repeat(np.arange(6), 4)
    embeddings = rows(24, 32, seed=7).astype(np.float32)
    x = torch.tensor(embeddings, dtype=torch.float64, requires_grad=True)
    same = torch.tensor(labels[:, None] == labels[None, :])
    distances = (x[:, None] - x[None]).pow(2).sum(-1)
    if not options["squared"]:
        distances = torch.where(torch.eye(24) > 0, 1.0, distances).sqrt()
    positives = same & ~torch.eye(24, dtype=torch.bool)
    gap = distances.masked_fill(~positives, -torch.inf).amax(1)
    gap = gap - distances.masked_fill(same, torch.inf).amin(1)
    theirs = torch.nn.functional.softplus(gap)
    if not options["soft"]:
        theirs = torch.relu(gap + options["margin"])
    theirs.mean().backward()
    value, slopes = value_and_gradient(embeddings, labels, **options)
    assert value == pytest.approx(theirs.mean().item(), rel=1e-5)
    close(slopes, x.grad.numpy())
