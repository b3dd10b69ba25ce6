"""Embedding expansion: points, five losses, torch, blocks, devices, degenerate input.

Against torch, every point is made and all combinations are compared; this is what the
scan over the Gram matrix must equal.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import reference_expansion as slow
from jax.extend.core import jaxprs_in_params

from metricjax import losses
from metricjax.errors import InputError
from metricjax.losses import Tiling
from metricjax.losses import embedding_expansion as expansion
from metricjax.runtime import mesh

# Seven pairs; a class of three pairs, not next to each other, and two of one.
LABELS = np.repeat([5, -2, 5, 9, -2, 0, 5], 2)

CASES = {
    "triplet": (expansion.triplet, slow.triplet, {"margin": 1.0}),
    "triplet without points": (
        expansion.triplet,
        slow.triplet,
        {"points": 0, "margin": 1.5},
    ),
    "triplet as they are": (
        expansion.triplet,
        slow.triplet,
        {"points": 3, "margin": 2.0, "normalize": False},
    ),
    "hphn": (expansion.hphn_triplet, slow.hphn_triplet, {}),
    "hphn wide": (
        expansion.hphn_triplet,
        slow.hphn_triplet,
        {"points": 3, "margin": 0.7, "normalize": False},
    ),
    "hphn soft": (
        expansion.hphn_triplet,
        slow.hphn_triplet,
        {"points": 1, "soft": True},
    ),
    "n_pair": (expansion.n_pair, slow.n_pair_expanded, {"l2_weight": 0.02}),
    "n_pair of unit length": (
        expansion.n_pair,
        slow.n_pair_expanded,
        {"normalize": True},
    ),
    "lifted structure": (expansion.lifted_structure, slow.lifted_structure, {}),
    "multi-similarity": (
        expansion.multi_similarity,
        slow.multi_similarity,
        {"points": 4, "beta": 10.0, "base": 0.3},
    ),
}
FIVE = [
    "triplet",
    "hphn",
    "n_pair of unit length",
    "lifted structure",
    "multi-similarity",
]
every_case = pytest.mark.parametrize("case", CASES)
each_loss = pytest.mark.parametrize("case", FIVE)


def rows(count=14, width=6, seed=0):
    """Unit rows [count, width], float64, pairs somewhat alike."""
    generator = np.random.default_rng(seed)
    drawn = generator.normal(size=(count, width))
    centers = np.repeat(generator.normal(size=(count // 2, width)), 2, axis=0)
    return reference.l2_normalize(drawn + 0.5 * centers)


def f32(array):
    return jnp.asarray(array, jnp.float32)


@partial(jax.jit, static_argnames=("case", "tiling", "points"))
def value_and_gradient(
    embeddings, labels=LABELS, *, case, tiling=None, points=None
):  # fmt: skip
    function, _, options = CASES[case]
    options = {"tiling": tiling or Tiling(), **options}
    if points is not None:
        options["points"] = points
    return jax.value_and_grad(function)(embeddings, labels, **options)


def slow_value(case, x, y=LABELS, **changed):
    _, function, options = CASES[case]
    return function(x, y, **{**options, **changed})


def close(got, expected, rtol=1e-5):
    """Equal within `rtol` of the largest entry: single entries may cancel out."""
    expected = np.asarray(expected, np.float64)
    scale = max(np.abs(expected).max(), 1e-30)
    np.testing.assert_allclose(np.asarray(got), expected, rtol=0, atol=rtol * scale)


@pytest.mark.parametrize("block_size", [None, 3])
@every_case
def test_images_close_together(case, block_size):
    """Where a training has collapsed, products alone no longer tell points apart."""
    spread = 0.01
    x = f32(reference.l2_normalize(rows(2, 16)[:1] + spread * rows(14, 16, seed=4)))
    exact = np.asarray(x, np.float64)
    value, slopes = value_and_gradient(x, case=case, tiling=Tiling(block_size))
    assert value == pytest.approx(slow_value(case, exact), rel=1e-5)
    expected = reference.gradient(partial(slow_value, case), exact, spread * 1e-5)
    close(slopes, expected, 2e-5)


@pytest.mark.parametrize("length", [0.01, 10.0])
@pytest.mark.parametrize("case", ["triplet", "hphn", "lifted structure"])
def test_images_far_from_unit_length(case, length):
    x = f32(length * rows())
    value, slopes = value_and_gradient(x, case=case)
    x = np.asarray(x, np.float64)
    assert value == pytest.approx(slow_value(case, x), rel=1e-5)
    close(slopes, reference.gradient(partial(slow_value, case), x, length * 1e-6), 2e-5)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("points", [0, 1, 2, 5])
def test_points_equal_reference(points, normalize):
    x, direction = rows(), np.random.default_rng(1).normal(size=(14, points, 6))

    def ours(x):
        made = expansion.synthesize(x, LABELS, points=points, normalize=normalize)
        return jnp.sum(made * direction), made

    def slowly(x):
        return np.sum(slow.synthesize(x, points, normalize) * direction)

    slopes, made = jax.grad(ours, has_aux=True)(f32(x))
    assert made.shape == (14, points, 6) and made.dtype == jnp.float32
    np.testing.assert_allclose(made, slow.synthesize(x, points, normalize), atol=1e-6)
    close(slopes, reference.gradient(slowly, x))


@pytest.mark.parametrize("cosine", [0.9, 0.5, 0.0, -0.5])
def test_lengths_of_the_third_points(cosine):
    """sqrt(1/9 + 4/9 + 4/9 cos), as known of n = 2."""
    x = f32([[1.0, 0.0], [cosine, np.sqrt(1 - cosine**2)]])
    made = expansion.synthesize(x, np.array([1, 1]), normalize=False)
    lengths = np.linalg.norm(made, axis=-1)
    np.testing.assert_allclose(lengths, np.sqrt((5 + 4 * cosine) / 9), rtol=1e-6)


def test_both_images_have_the_same_points_in_opposite_order():
    made = np.asarray(expansion.synthesize(f32(rows()), LABELS, points=3))
    np.testing.assert_allclose(made[0::2], made[1::2, ::-1], atol=1e-6)
    twins = np.repeat(rows()[::2], 2, axis=0)
    made = expansion.synthesize(f32(twins), LABELS, points=3)
    np.testing.assert_allclose(made, np.repeat(twins[:, None], 3, axis=1), atol=1e-6)


@every_case
def test_value_and_gradient_equal_reference(case):
    x = rows()
    value, slopes = value_and_gradient(f32(x), case=case)
    expected = slow_value(case, x)
    assert expected > 0.01
    assert value.shape == () and value.dtype == jnp.float32
    assert value == pytest.approx(expected, rel=1e-5)
    close(slopes, reference.gradient(partial(slow_value, case), x), 2e-5)


@pytest.mark.parametrize(
    ("case", "block_size"), [*((case, 3) for case in FIVE), ("hphn", 1)]
)
def test_blocks_equal_all_at_once(case, block_size):
    x = f32(rows())
    value, slopes = value_and_gradient(x, case=case)
    blocked, blocked_slopes = value_and_gradient(
        x, case=case, tiling=Tiling(block_size)
    )
    assert blocked == pytest.approx(float(value), rel=1e-6)
    close(blocked_slopes, slopes, 2e-6)


@pytest.mark.parametrize(
    ("case", "count"), [("triplet", 1), ("triplet", 2), ("triplet", 4), ("hphn", 8)]
)
def test_devices_equal_one_under_sgd(case, count):
    """7 pairs on up to 8 devices, gradient scale included."""
    devices = mesh.make_mesh(jax.devices()[:count])
    x = f32(rows())
    one, one_slopes = value_and_gradient(x, case=case)
    tiling = Tiling(2 if count == 2 else None, devices)
    value, slopes = value_and_gradient(x, case=case, tiling=tiling)
    assert value == pytest.approx(float(one), rel=1e-6)
    close(slopes, one_slopes, 2e-6)


@pytest.mark.parametrize("case", ["hphn"])
def test_a_batch_that_lies_on_eight_devices(case):
    x, y = rows(16, seed=5), np.repeat([3, 1, 3, 5, 8, 1, 0, 2], 2)
    devices = mesh.make_mesh(jax.devices())
    batch = mesh.global_batch(devices, {"e": x.astype(np.float32), "y": y})
    value, slopes = value_and_gradient(batch["e"], batch["y"], case=case)
    one, one_slopes = value_and_gradient(f32(x), y, case=case)
    assert value == pytest.approx(float(one), rel=1e-6)
    close(slopes, one_slopes, 2e-6)


def test_hphn_without_points_is_batch_hard_triplet():
    x = f32(rows())
    ours, slopes = value_and_gradient(x, case="hphn", points=0)
    batch_hard = jax.jit(jax.value_and_grad(partial(losses.triplet, margin=1e-5)))
    expected, expected_slopes = batch_hard(x, LABELS)
    assert ours == pytest.approx(float(expected), rel=1e-6)
    close(slopes, expected_slopes, 2e-6)


def test_points_do_nothing_for_products_of_points_as_they_are():
    """A product is linear along a segment: its largest value is at an end."""
    x = 3.0 * rows(seed=8)
    without = slow_value("n_pair", x, points=0)
    assert without == pytest.approx(slow_value("n_pair", x, points=3), rel=1e-12)
    value, _ = value_and_gradient(f32(x), case="n_pair")
    assert value == pytest.approx(without, rel=1e-5)


def test_more_points_never_make_negatives_easier():
    """The points of n = 1 are among those of n = 3; with none fewer still."""
    x = f32(rows())
    none, one, three = (
        float(value_and_gradient(x, case="hphn", points=points)[0])
        for points in (0, 1, 3)
    )
    assert none < one < three


@each_loss
def test_order_within_pairs_and_of_pairs_does_not_matter(case):
    x = rows()
    value, slopes = value_and_gradient(f32(x), case=case)
    order = np.arange(14).reshape(7, 2)[[3, 0, 6, 2, 1, 5, 4], ::-1].ravel()
    moved, moved_slopes = value_and_gradient(f32(x[order]), LABELS[order], case=case)
    assert moved == pytest.approx(float(value), rel=1e-6)
    close(moved_slopes, np.asarray(slopes)[order], 2e-6)


@each_loss
def test_points_of_identical_images_change_nothing(case):
    twins = np.repeat(rows()[::2], 2, axis=0)
    value, slopes = value_and_gradient(f32(twins), case=case)
    expected = slow_value(case, twins, points=0)
    assert value == pytest.approx(expected, rel=1e-5)
    assert np.isfinite(slopes).all()


@each_loss
def test_one_class_is_no_loss(case):
    value, slopes = value_and_gradient(f32(rows()), np.full(14, 3), case=case)
    assert value == 0
    np.testing.assert_array_equal(slopes, np.zeros((14, 6)))


@each_loss
def test_all_images_the_same_and_zero_vectors(case):
    """What a model that collapsed gives: finite, and the gradient small or none."""
    for x in (np.repeat(rows(2)[:1], 14, axis=0), np.zeros((14, 6))):
        value, slopes = value_and_gradient(f32(x), case=case)
        assert np.isfinite(value) and np.isfinite(slopes).all()
    assert np.abs(slopes).max() < 1e-6


@pytest.mark.parametrize(
    ("case", "points"), [*((case, None) for case in FIVE), ("hphn", 1), ("triplet", 1)]
)
def test_opposite_images(case, points):
    """The point half way, or next to it, has no direction: finite all the same."""
    x = rows()
    x[1] = -x[0]
    x[3] = -x[2] + 1e-5 * x[4]
    value, slopes = value_and_gradient(f32(x), case=case, points=points)
    assert np.isfinite(value) and np.isfinite(slopes).all()
    assert np.abs(slopes).max() < 100
    if points is None:  # an even number, none of them half way
        assert value == pytest.approx(slow_value(case, x), rel=1e-4)


@each_loss
def test_nan_is_not_hidden(case):
    for row in (0, 3):
        x = f32(rows()).at[row, 2].set(jnp.nan)
        value, slopes = value_and_gradient(x, case=case)
        assert np.isnan(value) and np.isnan(slopes).any()


@pytest.mark.parametrize("case", ["triplet"])
def test_bfloat16_embeddings(case):
    x = f32(rows()).astype(jnp.bfloat16)
    rounded = np.asarray(x, np.float64)
    value, slopes = value_and_gradient(x, case=case)
    assert value.dtype == jnp.float32 and slopes.dtype == jnp.bfloat16
    assert value == pytest.approx(slow_value(case, rounded), rel=1e-5)
    # The gradient is rounded once, to bfloat16's 8 bits.
    expected = reference.gradient(partial(slow_value, case), rounded)
    close(slopes.astype(jnp.float32), expected, 2**-8)
    tiling = Tiling(dtype=jnp.bfloat16)
    value, _ = value_and_gradient(f32(rows()), case=case, tiling=tiling)
    exact = slow_value(case, rows())
    assert value == pytest.approx(exact, rel=2e-2) and value != np.float32(exact)


@pytest.mark.parametrize("name", ["triplet", "hphn_triplet"])
def test_combinations_are_scanned_once_and_never_laid_out(name):
    """The program is one nested scan for any number of points, gradient included."""
    function = getattr(expansion, name)
    x, y = f32(rows(64, 8)), np.repeat(np.arange(32), 2)

    def program(points):
        loss = partial(function, points=points)
        return jax.make_jaxpr(jax.value_and_grad(loss))(x, y)

    programs = [str(program(points)) for points in (2, 30)]
    assert [text.count("scan[") for text in programs] == [2, 2]
    lengths = [len(text.splitlines()) for text in programs]
    assert lengths[0] == lengths[1]
    largest = max(array.size for array in _arrays(program(30).jaxpr))
    assert largest <= 2 * 64 * 64


def _arrays(jaxpr):
    """Shapes of everything a program makes, inner programs included."""
    for equation in jaxpr.eqns:
        yield from (variable.aval for variable in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from _arrays(inner)


@each_loss
def test_equals_torch(case):
    """Torch makes every point and compares all with all, in float64."""
    torch = pytest.importorskip("torch")
    labels = np.repeat(np.arange(20) // 2, 2)[::-1].copy()
    x = rows(40, 32, seed=7).astype(np.float32)
    e = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    theirs = _in_torch(torch, case, e, torch.tensor(labels))
    theirs.backward()
    value, slopes = value_and_gradient(f32(x), labels, case=case)
    assert value == pytest.approx(theirs.item(), rel=1e-5)
    close(slopes, e.grad.numpy())


def _in_torch(torch, case, e, y):
    options = CASES[case][2]
    n, margin = options.get("points", 2), options.get("margin", 1.0)
    pairs = len(e) // 2
    partners = e.reshape(pairs, 2, -1).flip(1).reshape(len(e), -1)
    made = [
        torch.nn.functional.normalize((k * partners + (n + 1 - k) * e) / (n + 1))
        for k in range(1, n + 1)
    ]
    apart = y[::2, None] != y[None, ::2]
    if case == "hphn":
        points = torch.cat([e, *made])
        distances = (points[:, None] - points[None]).pow(2).sum(-1).clamp(1e-12).sqrt()
        same = y[:, None] == y[None]
        far = (distances[: len(e), : len(e)] * same).amax(1)
        every = same.repeat(n + 1, n + 1)
        near = distances.masked_fill(every, torch.inf).amin(1)
        near = near.reshape(n + 1, len(e)).amin(0)
        return torch.relu(far - near + options.get("margin", 1e-5)).mean()
    points = torch.cat([e[::2], e[1::2], *[point[::2] for point in made]])
    first, second = e[::2], e[1::2]
    shape = n + 2, pairs, n + 2, pairs
    if case in ("triplet", "lifted structure"):
        squares = (points[:, None] - points[None]).pow(2).sum(-1)
        near = squares.reshape(shape).amin((0, 2))
        within = (first - second).pow(2).sum(-1)
        if case == "triplet":
            return torch.relu(within[:, None] - near + margin)[apart].mean()
        near = near.masked_fill(~apart, torch.inf).sqrt()
        push = torch.logsumexp(margin - near, 1)
        return torch.relu(push + within.sqrt()).pow(2).mean() / 2
    near = (points @ points.T).reshape(shape).amax((0, 2))
    within = (first * second).sum(-1)
    zero = torch.zeros(pairs, 1, dtype=torch.float64)
    if case == "n_pair of unit length":
        gaps = (near - within[:, None]).masked_fill(~apart, -torch.inf)
        return torch.logsumexp(torch.cat([zero, gaps], 1), 1).mean()
    beta, base = options["beta"], options["base"]
    push = (beta * (near - base)).masked_fill(~apart, -torch.inf)
    pull = torch.nn.functional.softplus(-2.0 * (within - base)) / 2.0
    return (pull + torch.logsumexp(torch.cat([zero, push], 1), 1) / beta).mean()


def test_entry_checks():
    x = f32(rows())
    mixed = LABELS.copy()
    mixed[[5, 6]] = mixed[[6, 5]]
    mixed[5] = 77
    for y in (mixed, jnp.asarray(mixed)):
        with pytest.raises(InputError, match="rows 4 and 5 must be a pair of one"):
            expansion.synthesize(x, y)
    with pytest.raises(InputError, match="pairs, but the batch has 13"):
        expansion.triplet(x[:13], LABELS[:13])
    with pytest.raises(InputError, match="points must be 0 or more, but it is -1"):
        expansion.lifted_structure(x, LABELS, points=-1)
    with pytest.raises(InputError, match=r"shape \[b, d\]"):
        expansion.hphn_triplet(x[0], LABELS)
    with pytest.raises(InputError, match="14 embeddings but 12 labels"):
        expansion.n_pair(x, LABELS[:12])
    for function in (
        expansion.triplet,
        expansion.hphn_triplet,
        expansion.lifted_structure,
    ):
        with pytest.raises(InputError, match="margin must be 0 or more, but it is -1"):
            function(x, LABELS, margin=-1)
    with pytest.raises(InputError, match="l2_weight must be 0 or more, but it is -2"):
        expansion.n_pair(x, LABELS, l2_weight=-2)
    for name in ("alpha", "beta"):
        with pytest.raises(InputError, match=f"{name} must be above 0, but it is 0"):
            expansion.multi_similarity(x, LABELS, **{name: 0})
