"""Kernels for CPUs against rows: any labels, any tile, the same value and gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metricjax import losses
from metricjax.losses import Tiling
from metricjax.losses._kernels.platform import forced

pytestmark = pytest.mark.usefixtures("quick")

LOSSES = {
    "contrastive": (losses.contrastive, {"margin": 1.5}),
    "contrastive_nonzero": (
        losses.contrastive,
        {"margin": 1.2, "squared": False, "reduction": "nonzero"},
    ),
    "hard": (losses.triplet, {"margin": 0.4}),
    "all": (losses.triplet, {"margin": 0.4, "mining": "all"}),
    "all_squared": (losses.triplet, {"margin": 0.4, "mining": "all", "squared": True}),
    "semihard": (losses.triplet, {"margin": 0.4, "mining": "semihard"}),
    "lifted_structure": (losses.lifted_structure, {}),
    "multi_similarity": (losses.multi_similarity, {"epsilon": 0.3}),
}


def _batch(sizes, seed=0, width=8):
    """Classes of the given sizes, any integers as labels, in no order."""
    rng = np.random.default_rng(seed)
    names = rng.choice(np.arange(-500, 500), len(sizes), replace=False)
    labels = rng.permutation(np.repeat(names, sizes)).astype(np.int32)
    centres = {name: rng.normal(size=width) for name in names}
    rows = np.stack([centres[label] for label in labels])
    rows += 0.7 * rng.normal(size=rows.shape)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return jnp.asarray(rows, jnp.float32), jnp.asarray(labels)


# The most positives of an anchor decide how triplets are summed: 3, 10 and 24.
@pytest.mark.parametrize(
    ("name", "block_size", "largest"),
    [(name, 5, 4) for name in LOSSES]
    + [(name, 16, 11) for name in ("all", "semihard")]
    + [(name, 16, 25) for name in ("all", "semihard")],
)
def test_rows_and_kernels_are_equal(name, block_size, largest):
    """Whole rows, rows in blocks, as on TPUs and GPUs, and the kernels of a CPU."""
    loss, options = LOSSES[name]
    embeddings, labels = _batch([largest, 1, 2, 4, 3, 1, 4, 4])

    def value(embeddings, tiling):
        return loss(embeddings, labels, tiling=tiling, **options)

    def evaluated(form, tiling):
        with forced(form):
            return jax.jit(partial(jax.value_and_grad(value), tiling=tiling))(
                embeddings
            )

    expected = evaluated("rows", Tiling())
    assert expected[0] > 0.01
    for form, tiling in (
        ("rows", Tiling(block_size)),
        ("kernel", Tiling(block_size)),
        *([(None, Tiling())] if name == "hard" else []),  # the only kernel for both
    ):
        got = evaluated(form, tiling)
        np.testing.assert_allclose(got[0], expected[0], rtol=1e-5)
        np.testing.assert_allclose(got[1], expected[1], rtol=1e-4, atol=1e-6)
    # Not under jit.
    alone = value(embeddings, Tiling(block_size))
    np.testing.assert_allclose(alone, expected[0], rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_a_program_for_another_platform_has_the_rows(name):
    """Decided by where the program is lowered to, not by where it is traced."""
    loss, options = LOSSES[name]

    def value(embeddings):
        labels = np.arange(48) // 4
        return loss(embeddings, labels, tiling=Tiling(16), **options)

    shape = jax.ShapeDtypeStruct((48, 8), jnp.float32)
    traced = jax.jit(jax.value_and_grad(value)).trace(shape)
    for platform in ("cpu", "tpu", "cuda"):
        program = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("16x16xf32" in program) == (platform == "cpu")


@pytest.mark.parametrize("name", ["all", "contrastive_nonzero", "multi_similarity"])
def test_order_of_the_batch_does_not_matter(name):
    loss, options = LOSSES[name]
    embeddings, labels = _batch([3, 4, 2, 5, 1])
    order = jnp.asarray(np.random.default_rng(1).permutation(len(labels)))

    def gradient(embeddings, labels):
        def value(e):
            return loss(e, labels, tiling=Tiling(4), **options)

        return jax.jit(jax.value_and_grad(value))(embeddings)

    value, slopes = gradient(embeddings, labels)
    other, moved = gradient(embeddings[order], labels[order])
    np.testing.assert_allclose(other, value, rtol=1e-5)
    np.testing.assert_allclose(moved, slopes[order], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["hard", "all", "lifted_structure"])
def test_memory_is_that_of_tiles(name):
    """Value and gradient of 1,024 images: no array of all pairs."""
    loss, options = LOSSES[name]
    embeddings = jax.ShapeDtypeStruct((1024, 16), jnp.float32)
    labels = jax.ShapeDtypeStruct((1024,), jnp.int32)

    def value(embeddings, labels, tiling):
        return loss(embeddings, labels, tiling=tiling, **options)

    def needed(tiling):
        program = jax.jit(jax.value_and_grad(value), static_argnums=2)
        compiled = program.lower(embeddings, labels, tiling).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    all_pairs = 4 * 1024**2
    assert needed(Tiling()) > all_pairs
    assert needed(Tiling(32)) < all_pairs / 2


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_nan_shows(name):
    loss, options = LOSSES[name]
    embeddings, labels = _batch([3, 4, 2, 5])
    embeddings = embeddings.at[7, 0].set(jnp.nan)
    assert jnp.isnan(loss(embeddings, labels, tiling=Tiling(4), **options))
