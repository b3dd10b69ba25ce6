"""Every pair loss: reference, blocks, devices, references, torch, degenerate input."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import reference_pairs as slow

from metricjax import losses
from metricjax.errors import InputError
from metricjax.losses import Tiling
from metricjax.losses._kernels.platform import forced
from metricjax.runtime import mesh

# Unequal classes, one of a single image, any integers.
LABELS = np.array([6, -3, 6, 1, 6, 1, -3, 8, -3, -3, 1, 2, 6])
OTHERS = np.array([1, 6, 8, 1, 9, -3, 6, 2, 6])

CASES = {
    "contrastive": (losses.contrastive, slow.contrastive, {}),
    "contrastive nonzero": (
        losses.contrastive,
        slow.contrastive,
        {"margin": 1.3, "squared": False, "reduction": "nonzero"},
    ),
    "triplet hard": (losses.triplet, slow.batch_hard, {"margin": 0.4}),
    "triplet soft": (
        losses.triplet,
        slow.batch_hard,
        {"soft": True, "squared": True},
    ),
    "triplet all": (losses.triplet, slow.triplet, {"margin": 0.2, "mining": "all"}),
    "triplet semihard": (
        losses.triplet,
        slow.triplet,
        {"margin": 0.3, "mining": "semihard"},
    ),
    "triplet all squared": (
        losses.triplet,
        slow.triplet,
        {"margin": 0.5, "mining": "all", "squared": True},
    ),
    "lifted structure": (losses.lifted_structure, slow.lifted_structure, {}),
    "multi-similarity": (losses.multi_similarity, slow.multi_similarity, {}),
    "multi-similarity wide": (
        losses.multi_similarity,
        slow.multi_similarity,
        {"alpha": 4.0, "beta": 10.0, "base": 0.2, "epsilon": 2.5},
    ),
}
every_case = pytest.mark.parametrize("case", CASES)
device_counts = pytest.mark.parametrize(
    "count", [4, 8, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))]
)


def rows(count=13, width=6, seed=0):
    """Unit rows [count, width], float64."""
    drawn = np.random.default_rng(seed).normal(size=(count, width))
    return reference.l2_normalize(drawn)


def f32(array):
    return jnp.asarray(array, jnp.float32)


def slow_value(case, x, y=LABELS):
    _, function, options = CASES[case]
    return function(x, y, x, y, lambda i, j: i == j, **options)


@partial(jax.jit, static_argnames=("case", "tiling", "form"))
def value_and_gradient(
    embeddings, labels=LABELS, *, case, tiling=None, mask=None, form=None
):
    """form: "rows", what TPUs and GPUs run; None, what this platform runs."""
    function, _, options = CASES[case]
    with forced(form):
        return jax.value_and_grad(function)(
            embeddings, labels, tiling=tiling or Tiling(), reference_mask=mask,
            **options,
        )  # fmt: skip


def close(got, expected, rtol=1e-5):
    """Equal within `rtol` of the largest entry: single entries may cancel out."""
    expected = np.asarray(expected, np.float64)
    scale = max(np.abs(expected).max(), 1e-30)
    np.testing.assert_allclose(np.asarray(got), expected, rtol=0, atol=rtol * scale)


every_form = pytest.mark.parametrize(
    ("form", "block_size"), [("rows", None), ("rows", 5), (None, None), (None, 5)]
)


@every_form
@every_case
def test_value_and_gradient_equal_reference(case, form, block_size):
    x = rows()
    value, slopes = value_and_gradient(
        f32(x), case=case, form=form, tiling=Tiling(block_size)
    )
    expected = slow_value(case, x)
    assert expected > 0.01
    assert value.shape == () and value.dtype == jnp.float32
    assert value == pytest.approx(expected, rel=1e-5)
    close(slopes, reference.gradient(partial(slow_value, case), x), 2e-5)


@every_form
@every_case
def test_embeddings_close_together(case, form, block_size):
    """Where a training has collapsed, products alone no longer tell rows apart."""
    spread = 0.003
    x = f32(reference.l2_normalize(rows(1, 16) + spread * rows(13, 16, seed=1)))
    exact = np.asarray(x, np.float64)
    value, slopes = value_and_gradient(
        x, case=case, form=form, tiling=Tiling(block_size)
    )
    assert value == pytest.approx(slow_value(case, exact), rel=1e-5)
    expected = reference.gradient(partial(slow_value, case), exact, spread * 1e-5)
    close(slopes, expected, 2e-5)


@pytest.mark.parametrize("case", ["triplet all", "triplet semihard"])
def test_triplets_of_large_classes_equal_reference(case):
    """More positives than a tile has room for, which go through rows in blocks."""
    x = rows(40, seed=3)
    y = np.random.default_rng(3).permutation(np.repeat([0, 1, 2], [22, 15, 3]))
    value, slopes = value_and_gradient(f32(x), y, case=case, tiling=Tiling(16))
    assert value == pytest.approx(slow_value(case, x, y), rel=1e-5)
    # Central differences of every coordinate would take minutes: of some.
    for index in ((0, 0), (7, 3), (31, 5)):
        step = np.zeros_like(x)
        step[index] = 1e-6
        ahead, behind = (slow_value(case, x + s * step, y) for s in (1, -1))
        assert slopes[index] == pytest.approx((ahead - behind) / 2e-6, abs=1e-6)


@device_counts
@every_case
def test_devices_equal_one_under_sgd(case, count):
    """13 anchors on up to 8 devices, in blocks of two, gradient scale included."""
    devices = mesh.make_mesh(jax.devices()[:count])
    x = rows()
    value, slopes = value_and_gradient(
        f32(x), case=case, tiling=Tiling(2 if count == 4 else None, devices)
    )
    one, one_slopes = value_and_gradient(f32(x), case=case)
    assert value == pytest.approx(float(one), rel=1e-5)
    close(slopes, one_slopes, 1e-5)


@every_case
def test_split_batches_stay_split(case):
    devices = mesh.make_mesh(jax.devices()[:4])
    x, y = rows(16), np.repeat([3, 1, 8, 5], 4).astype(np.int32)
    batch = mesh.global_batch(devices, {"e": x.astype(np.float32), "y": y})
    value, slopes = value_and_gradient(
        batch["e"], batch["y"], case=case, tiling=Tiling(3, devices)
    )
    assert len(slopes.sharding.device_set) == 4
    assert value == pytest.approx(slow_value(case, x, y), rel=1e-5)
    close(slopes, reference.gradient(lambda e: slow_value(case, e, y), x), 2e-5)


@pytest.mark.parametrize("tiling", ["dense", "blocks", "devices"])
@every_case
def test_references_and_their_mask(case, tiling):
    function, expected, options = CASES[case]
    x, z, mask = rows(), rows(9, seed=4), np.arange(9) != 1
    tiling = {
        "dense": Tiling(),
        "blocks": Tiling(5),
        "devices": Tiling(2, mesh.make_mesh(jax.devices()[:4])),
    }[tiling]

    @partial(jax.jit, static_argnames="tiling")
    def ours(x, z, tiling):
        def value(x, z):
            return function(
                x, LABELS, references=z, reference_labels=OTHERS,
                reference_mask=jnp.asarray(mask), tiling=tiling, **options,
            )  # fmt: skip

        return jax.value_and_grad(value, argnums=(0, 1))(x, z)

    def theirs(x, z):
        return expected(x, LABELS, z[mask], OTHERS[mask], lambda i, j: False, **options)

    value, slopes = ours(f32(x), f32(z), tiling)
    assert value == pytest.approx(theirs(x, z), rel=1e-5)
    close(slopes[0], reference.gradient(lambda x: theirs(x, z), x), 2e-5)
    close(slopes[1], reference.gradient(lambda z: theirs(x, z), z), 2e-5)


DEGENERATE = {
    "one class": (rows(), np.zeros(13, int)),
    "no positives": (rows(), np.arange(13)),
    "all duplicates": (np.repeat(rows(1), 13, axis=0), LABELS),
    "zero vectors": (np.zeros((13, 6)), LABELS),
}
NOTHING = ("one class", "no positives")  # no triplet, no anchor with both kinds


@every_form
@every_case
def test_degenerate_batches_stay_finite(case, form, block_size):
    """One program for all batches of 13."""
    for batch, (x, y) in DEGENERATE.items():
        value, slopes = value_and_gradient(
            f32(x), y, case=case, form=form, tiling=Tiling(block_size)
        )
        assert np.isfinite(value) and np.isfinite(slopes).all(), batch
        # Contrastive pairs need no partner of the other kind.
        if batch in NOTHING and not case.startswith("contrastive"):
            assert value == 0 and not np.any(slopes), batch


@every_case
def test_one_image_costs_nothing(case):
    value, slopes = value_and_gradient(f32(rows(1)), LABELS[:1], case=case)
    assert value == 0 and not np.any(slopes)


@every_case
def test_a_mask_of_nothing_gives_zero(case):
    value, slopes = value_and_gradient(
        f32(rows()), case=case, mask=jnp.zeros(13, bool), tiling=Tiling(5)
    )
    assert value == 0 and not np.any(slopes)


@every_form
@every_case
def test_nan_is_not_hidden(case, form, block_size):
    x = f32(rows()).at[3, 2].set(jnp.nan)
    value, _ = value_and_gradient(x, case=case, form=form, tiling=Tiling(block_size))
    assert np.isnan(value)


@every_case
def test_bfloat16_embeddings(case):
    x = f32(rows()).astype(jnp.bfloat16)
    rounded = np.asarray(x, np.float64)
    value, slopes = value_and_gradient(x, case=case, tiling=Tiling(5))
    assert value.dtype == jnp.float32 and slopes.dtype == jnp.bfloat16
    assert value == pytest.approx(slow_value(case, rounded), rel=1e-5)
    expected = reference.gradient(partial(slow_value, case), rounded)
    close(slopes.astype(jnp.float32), expected, 2**-7)


@pytest.mark.parametrize(
    "case", ["multi-similarity", "triplet all", "lifted structure"]
)
def test_bfloat16_products_stay_near(case):
    x = rows(width=64)
    exact, _ = value_and_gradient(f32(x), case=case)
    near, _ = value_and_gradient(f32(x), case=case, tiling=Tiling(dtype=jnp.bfloat16))
    assert near == pytest.approx(float(exact), rel=1e-2) and near != exact


@pytest.mark.parametrize("case", ["triplet all", "lifted structure", "contrastive"])
def test_blocks_bound_the_memory(case):
    """Rows of all anchors exist only without blocks; nothing is cubic in either."""
    function, _, options = CASES[case]

    labels = np.arange(48) // 4

    def program(tiling):
        gradient = jax.grad(lambda e: function(e, labels, tiling=tiling, **options))
        return jax.jit(gradient).lower(jnp.zeros((48, 4))).as_text()

    dense, blocked = program(Tiling()), program(Tiling(6))
    assert "tensor<48x48xf32>" in dense and "tensor<48x48xf32>" not in blocked
    assert "48x48x48" not in dense + blocked


@pytest.mark.parametrize(
    ("function", "options", "sentence"),
    [
        (losses.contrastive, {"margin": -1.0}, "margin must be 0 or more"),
        (losses.contrastive, {"reduction": "sum"}, "reduction is 'sum'"),
        (losses.lifted_structure, {"margin": -1.0}, "margin must be 0 or more"),
        (losses.multi_similarity, {"alpha": 0.0}, "alpha must be above 0"),
        (losses.multi_similarity, {"beta": -1.0}, "beta must be above 0"),
        (losses.triplet, {"mining": "easy"}, "mining is 'easy'"),
        (losses.triplet, {"mining": "all", "soft": True}, "'hard' only"),
        (losses.triplet, {"reference_mask": np.ones(4, bool)}, "13 references"),
    ],
)
def test_entry_checks(function, options, sentence):
    with pytest.raises(InputError, match=sentence) as error:
        function(f32(rows()), LABELS, **options)
    assert str(error.value).count(".") >= 1 and "\n" not in str(error.value)


def torch_version(case, x, y):
    """The loss of pytorch-metric-learning 2.9.0 where it is the same one.

    Conventions aligned: distances of the vectors as they are (no normalising inside),
    their default reducers (mean over non-zero ones) for contrastive "nonzero" and
    all triplets, a plain mean over the mined ones for semi-hard, mined pairs and
    cosines of vectors taken as unit ones for multi-similarity. Theirs keeps the
    positive term of an anchor whose negatives are all mined away, so that no such
    anchor is in the batch.
    """
    pytest.importorskip("torch")
    pml = pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning import distances, miners, reducers
    from pytorch_metric_learning import losses as theirs

    assert pml.__version__.startswith("2.9")
    plain = distances.LpDistance(normalize_embeddings=False)
    dots = distances.DotProductSimilarity(normalize_embeddings=False)
    if case == "contrastive nonzero":
        return theirs.ContrastiveLoss(0.0, 1.3, distance=plain)(x, y)
    if case == "triplet all":
        return theirs.TripletMarginLoss(0.2, distance=plain)(x, y)
    if case == "triplet semihard":
        mined = miners.TripletMarginMiner(0.3, "semihard", distance=plain)(x, y)
        mean = reducers.MeanReducer()
        return theirs.TripletMarginLoss(0.3, distance=plain, reducer=mean)(x, y, mined)
    if case == "triplet hard":
        mined = miners.BatchHardMiner(distance=plain)(x, y)
        mean = reducers.MeanReducer()
        return theirs.TripletMarginLoss(0.4, distance=plain, reducer=mean)(x, y, mined)
    if case == "lifted structure":
        return theirs.LiftedStructureLoss(1.0, 0.0, distance=plain)(x, y)
    assert case == "multi-similarity"
    mined = miners.MultiSimilarityMiner(0.1, distance=dots)(x, y)
    return theirs.MultiSimilarityLoss(2.0, 50.0, 0.5, distance=dots)(x, y, mined)


@pytest.mark.parametrize(
    "case",
    [
        "contrastive nonzero",
        "triplet hard",
        "triplet all",
        "triplet semihard",
        "lifted structure",
        "multi-similarity",
    ],
)
def test_equals_pytorch_metric_learning(case):
    torch = pytest.importorskip("torch")
    labels = np.repeat(np.arange(6), 4)[np.random.default_rng(1).permutation(24)]
    embeddings = rows(24, 8, seed=7)
    x = torch.tensor(embeddings, requires_grad=True)
    theirs = torch_version(case, x, torch.tensor(labels))
    theirs.backward()
    value, slopes = value_and_gradient(f32(embeddings), labels, case=case)
    assert value == pytest.approx(theirs.item(), rel=1e-5)
    close(slopes, x.grad.numpy(), 2e-5)
