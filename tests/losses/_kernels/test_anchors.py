"""The pair kernel: rows, blocks, devices, degenerate batches, entry checks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from metricjax.errors import InputError
from metricjax.losses import Tiling
from metricjax.losses._kernels import anchors, measures
from metricjax.losses._kernels.mining import hardest
from metricjax.losses._kernels.numerics import masked_mean
from metricjax.runtime import mesh

LABELS = np.array([4, 4, 4, 7, 7, -2, -2, -2, -2, 9, 7, 5])


def rows(count=12, width=6, seed=0):
    """Unit rows [count, width], float64."""
    return reference.l2_normalize(
        np.random.default_rng(seed).normal(size=(count, width))
    )


def f32(array):
    return jnp.asarray(array, jnp.float32)


def anchor(row, positives, negatives):
    """A smooth function of every entry of the row."""
    repulsion = jnp.sum(jnp.where(negatives, jnp.exp(-row), 0.0))
    return masked_mean(row, positives) ** 2 + repulsion, positives.any()


def slow_anchor(positives, negatives):
    if not len(positives):
        return None
    return np.mean(positives) ** 2 + np.exp(-negatives).sum()


def loss(embeddings, labels=LABELS, **options):
    return anchors.mean(anchor, embeddings, labels, **options)


@partial(jax.jit, static_argnames=("measure", "tiling"))
def value_and_gradient(embeddings, labels=LABELS, **options):
    return jax.value_and_grad(loss)(embeddings, labels, **options)


def slow_loss(embeddings, references=None, others=None):
    compared = embeddings if references is None else references
    values = reference.distances(embeddings, compared)
    return reference.mean_over_anchors(slow_anchor, values, LABELS, others)


def close(got, expected, rtol=1e-5):
    """Equal within `rtol` of the largest entry: single entries may cancel out."""
    expected = np.asarray(expected, np.float64)
    scale = max(np.abs(expected).max(), 1e-30)
    np.testing.assert_allclose(np.asarray(got), expected, rtol=0, atol=rtol * scale)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_measures_equal_reference(dtype):
    x, references = rows(5, 32, seed=1), rows(9, 32, seed=2)
    expected = reference.distances(x, references)
    tolerance = 1e-5 if dtype == jnp.float32 else 5e-3
    args = f32(x), f32(references), dtype
    close(measures.distances(*args), expected, tolerance)
    close(measures.squared_distances(*args), expected**2, tolerance)
    close(measures.dot_products(*args), x @ references.T, tolerance)
    for measure in (measures.distances, measures.dot_products):
        assert measure(*args).dtype == jnp.float32


def test_distances_far_from_unit_length():
    x, references = 100.0 * rows(5, 8, seed=1), 0.01 * rows(7, 8, seed=2)
    got = measures.distances(f32(x), f32(references), jnp.float32)
    close(got, reference.distances(x, references))


def test_distance_of_coinciding_rows_is_zero_with_finite_gradient():
    same = f32([[3.0, 4.0], [3.0, 4.0], [0.0, 0.0]])

    def total(x):
        return measures.distances(x, x, jnp.float32)[0, 1]

    value, slopes = jax.jit(jax.value_and_grad(total))(same)
    assert value == 0
    np.testing.assert_array_equal(slopes, np.zeros((3, 2)))


@pytest.mark.parametrize("counts", [False, True])
def test_references_that_are_not_finite_keep_to_themselves(counts):
    """The mean about which distances are made is of no use with one of them."""
    x, references = f32(rows()), f32(rows(7, seed=3)).at[2].set(jnp.nan)
    got = anchors.values(
        lambda row, positives, negatives: row, x, LABELS, references=references,
        reference_labels=LABELS[:7], reference_mask=(np.arange(7) != 2) | counts,
    )  # fmt: skip
    expected = reference.distances(rows(), np.delete(rows(7, seed=3), 2, axis=0))
    assert np.isnan(got[:, 2]).all()
    close(np.delete(got, 2, axis=1), expected)


@pytest.mark.parametrize("block_size", [None, 1, 5, 6, 50])
def test_value_and_gradient_equal_reference(block_size):
    embeddings = rows()
    tiling = Tiling(block_size)
    value, slopes = value_and_gradient(f32(embeddings), tiling=tiling)
    assert value.shape == () and value.dtype == jnp.float32
    assert value == pytest.approx(slow_loss(embeddings), rel=1e-5)
    close(slopes, reference.gradient(slow_loss, embeddings))


@pytest.mark.parametrize("block_size", [None, 1, 5])
def test_references_are_compared_with_all_and_get_gradients(block_size):
    embeddings, references = rows(), rows(7, seed=3)
    others = np.array([4, 7, -2, 9, 5, 4, 0])

    def ours(embeddings, references):
        return loss(
            embeddings,
            references=references,
            reference_labels=others,
            tiling=Tiling(block_size),
        )

    value, slopes = jax.jit(jax.value_and_grad(ours, argnums=(0, 1)))(
        f32(embeddings), f32(references)
    )
    assert value == pytest.approx(slow_loss(embeddings, references, others), rel=1e-5)
    of_anchors = reference.gradient(
        lambda x: slow_loss(x, references, others), embeddings
    )
    of_references = reference.gradient(
        lambda x: slow_loss(embeddings, x, others), references
    )
    close(slopes[0], of_anchors)
    close(slopes[1], of_references)


def test_batch_as_its_own_references_includes_the_anchor():
    # Products of these are exact in float32, and their mean is 0: else the distance of
    # an anchor to itself would be the root of a rounding error, which depends on the
    # processor.
    embeddings = np.round(64 * rows(6)) / 64
    embeddings = np.concatenate([embeddings, -embeddings])
    got, _ = value_and_gradient(
        f32(embeddings), references=f32(embeddings), reference_labels=LABELS
    )
    assert got == pytest.approx(slow_loss(embeddings, embeddings, LABELS), rel=1e-5)
    assert got != pytest.approx(slow_loss(embeddings), rel=1e-3)


@pytest.mark.parametrize("block_size", [None, 5])
def test_gradient_scales_with_what_is_done_to_the_loss(block_size):
    """Blocks keep their gradient from the forward pass: it must be scaled by all."""
    embeddings, tiling = f32(rows()), Tiling(block_size)

    def scaled(e):
        return jnp.exp(3.0 * loss(e, tiling=tiling)) + jnp.sum(e**2)

    value, slopes = value_and_gradient(embeddings, tiling=tiling)
    factor = 3.0 * np.exp(3.0 * float(value))
    expected = factor * np.asarray(slopes) + 2.0 * np.asarray(embeddings)
    close(jax.jit(jax.grad(scaled))(embeddings), expected)


@pytest.mark.parametrize("measure", [measures.squared_distances, measures.dot_products])
@pytest.mark.parametrize("block_size", [1, 5])
def test_blocks_equal_dense_with_other_measures(measure, block_size):
    embeddings = f32(rows())
    value, slopes = value_and_gradient(
        embeddings, measure=measure, tiling=Tiling(block_size)
    )
    dense, dense_slopes = value_and_gradient(embeddings, measure=measure)
    assert value == pytest.approx(float(dense), rel=1e-6)
    close(slopes, dense_slopes, 2e-6)


@pytest.mark.parametrize("block_size", [None, 5])
@pytest.mark.parametrize(
    "count", [4, 8, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))]
)
def test_devices_equal_one(count, block_size):
    """A batch split over devices gives what one device gives, gradient scale too."""
    labels = np.repeat([3, 1, 8, 5], 4).astype(np.int32)
    embeddings = rows(16)
    devices = mesh.make_mesh(jax.devices()[:count])
    batch = mesh.global_batch(
        devices, {"e": embeddings.astype(np.float32), "y": labels}
    )

    @jax.jit
    def update(embeddings, labels):
        value, slopes = jax.value_and_grad(loss)(
            embeddings, labels, tiling=Tiling(block_size)
        )
        return value, embeddings - 0.1 * slopes

    value, moved = update(batch["e"], batch["y"])
    assert len(moved.sharding.device_set) == count
    one, moved_by_one = value_and_gradient(f32(embeddings), labels)
    assert value == pytest.approx(float(one), rel=1e-6)
    close(moved - batch["e"], -0.1 * np.asarray(moved_by_one), 2e-6)


@pytest.mark.parametrize("block_size", [None, 6])
def test_blocks_bound_the_memory(block_size):
    """Rows of all anchors exist only without blocks; nothing is cubic in either."""
    embeddings = jnp.zeros((48, 4))
    gradient = jax.jit(
        lambda e: jax.grad(loss)(e, np.arange(48) // 4, tiling=Tiling(block_size))
    )
    program = gradient.lower(embeddings).as_text()
    assert ("tensor<48x48xf32>" in program) == (block_size is None)
    assert "48x48x48" not in program


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint32])
@pytest.mark.parametrize("block_size", [None, 5])
def test_labels_are_any_integers(dtype, block_size):
    names = {-2: 0, 4: 120, 5: 3, 7: 77, 9: 1}
    if dtype != np.uint32:
        names |= {-2: -128, 4: 0}
    labels = np.array([names[label] for label in LABELS.tolist()], dtype)
    embeddings, tiling = f32(rows()), Tiling(block_size)
    expected, _ = value_and_gradient(embeddings)
    got = jax.jit(lambda e: loss(e, labels, tiling=tiling))(embeddings)
    assert got == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("block_size", [None, 5])
def test_no_valid_anchor_gives_zero(block_size):
    embeddings, labels = f32(rows()), np.arange(12)
    value, slopes = value_and_gradient(embeddings, labels, tiling=Tiling(block_size))
    assert value == 0
    np.testing.assert_array_equal(slopes, np.zeros((12, 6)))


@pytest.mark.parametrize("block_size", [None, 5])
def test_nan_is_not_hidden(block_size):
    embeddings = f32(rows()).at[3, 2].set(jnp.nan)
    value, slopes = value_and_gradient(embeddings, tiling=Tiling(block_size))
    assert np.isnan(value) and np.isnan(slopes).any()


@pytest.mark.parametrize("block_size", [None, 5])
def test_bfloat16_embeddings(block_size):
    embeddings = f32(rows()).astype(jnp.bfloat16)
    value, slopes = value_and_gradient(embeddings, tiling=Tiling(block_size))
    assert value.dtype == jnp.float32 and slopes.dtype == jnp.bfloat16
    rounded = np.asarray(embeddings, np.float64)
    assert value == pytest.approx(slow_loss(rounded), rel=1e-5)
    close(slopes.astype(jnp.float32), reference.gradient(slow_loss, rounded), 2e-2)


def test_bfloat16_products_stay_near():
    embeddings = rows(width=64)
    exact, _ = value_and_gradient(f32(embeddings))
    near, _ = value_and_gradient(f32(embeddings), tiling=Tiling(dtype=jnp.bfloat16))
    assert near == pytest.approx(float(exact), rel=2e-3)
    assert near != exact


@pytest.mark.parametrize(
    ("sentence", "embeddings", "labels", "options"),
    [
        (
            "embeddings must be floating",
            np.zeros((3, 2), np.int32),
            np.zeros(3, int),
            {},
        ),
        ("shape [3]", np.zeros(3, "f"), np.zeros(3, int), {}),
        ("must be integers", np.zeros((3, 2), "f"), np.zeros(3, "f"), {}),
        ("must be integers", np.zeros((3, 2), "f"), np.zeros(3, bool), {}),
        ("must be integers", np.zeros((3, 2), "f"), np.zeros((3, 1), int), {}),
        ("3 embeddings but 4", np.zeros((3, 2), "f"), np.zeros(4, int), {}),
        (
            "together",
            np.zeros((3, 2), "f"),
            np.zeros(3, int),
            {"references": np.zeros((2, 2), "f")},
        ),
        (
            "together",
            np.zeros((3, 2), "f"),
            np.zeros(3, int),
            {"reference_labels": np.zeros(2, int)},
        ),
        (
            "2 references but 3",
            np.zeros((3, 2), "f"),
            np.zeros(3, int),
            {"references": np.zeros((2, 2), "f"), "reference_labels": np.zeros(3, int)},
        ),
    ],
)
def test_entry_checks(sentence, embeddings, labels, options):
    with pytest.raises(InputError) as error:
        loss(jnp.asarray(embeddings), jnp.asarray(labels), **options)
    assert sentence in str(error.value)


def test_embeddings_and_references_of_different_widths():
    with pytest.raises(InputError, match="6 .* 5"):
        loss(f32(rows()), references=f32(rows(4, 5)), reference_labels=np.arange(4))


@pytest.mark.parametrize("block_size", [0, -3])
def test_block_size_is_at_least_one(block_size):
    with pytest.raises(InputError, match="block_size"):
        Tiling(block_size)


def test_labels_that_do_not_fit_32_bits():
    labels = LABELS.astype(np.int64) * 2**40
    with pytest.raises(InputError, match="cut to 32 bits"):
        loss(f32(rows()), labels)


@pytest.mark.parametrize("block_size", [None, 5])
def test_sides_go_with_their_anchors(block_size):
    """Sides as weights: the sum over anchors of the sides' own multiples."""
    sides = np.arange(12.0) - 3.0

    def weighed(row, positives, negatives, side):
        value, valid = anchor(row, positives, negatives)
        return side * value, valid

    def slow(embeddings):
        values = reference.distances(embeddings, embeddings)
        total = 0.0
        for i in range(12):
            same, other = LABELS == LABELS[i], LABELS != LABELS[i]
            value = slow_anchor(
                values[i][same & (np.arange(12) != i)], values[i][other]
            )
            total += 0.0 if value is None else sides[i] * value
        return total

    def ours(embeddings):
        return anchors.total(
            weighed, embeddings, LABELS, sides=f32(sides),
            tiling=Tiling(block_size),
        )  # fmt: skip

    value, slopes = jax.jit(jax.value_and_grad(ours))(f32(rows()))
    assert value == pytest.approx(slow(rows()), rel=1e-5)
    close(slopes, reference.gradient(slow, rows()))


@pytest.mark.parametrize("block_size", [None, 5])
def test_values_of_anchors_and_their_gradient(block_size):
    """Nothing is added up: every anchor's value gets a cotangent of its own."""
    scales = np.linspace(-1.0, 2.0, 12)

    def farness(row, positives, negatives):
        return jnp.sum(jnp.where(negatives, row**2, 0.0))

    def slow(embeddings):
        squares = reference.distances(embeddings, embeddings) ** 2
        return (squares * (LABELS[:, None] != LABELS[None, :])).sum(axis=1) @ scales

    def ours(embeddings):
        values = anchors.values(farness, embeddings, LABELS, tiling=Tiling(block_size))
        return values @ f32(scales)

    value, slopes = jax.jit(jax.value_and_grad(ours))(f32(rows()))
    assert value == pytest.approx(slow(rows()), rel=1e-5)
    close(slopes, reference.gradient(slow, rows()))


def test_hardest_takes_the_first_of_equals():
    embeddings = f32([[0.0], [1.0], [-1.0], [5.0], [5.0], [9.0]])
    labels = np.array([0, 0, 0, 1, 1, 2])
    far, near, valid = jax.jit(hardest)(embeddings, labels)
    np.testing.assert_array_equal(far[:5], [1, 2, 1, 4, 3])
    np.testing.assert_array_equal(near, [3, 3, 3, 1, 1, 3])
    np.testing.assert_array_equal(valid, [True] * 5 + [False])
