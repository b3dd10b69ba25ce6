"""The choice between rows and CPU kernels can be differentiated either way."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metricjax import losses

LOSSES = {
    "contrastive": losses.contrastive,
    "hard": losses.triplet,
    "all": partial(losses.triplet, mining="all"),
    "lifted structure": losses.lifted_structure,
    "multi-similarity": losses.multi_similarity,
}


@pytest.mark.parametrize("loss", LOSSES)
def test_forward_and_reverse_derivatives_agree(loss, quick):
    rng = np.random.default_rng(0)
    rows = jnp.float32(rng.normal(size=(24, 6)))
    rows /= jnp.linalg.norm(rows, axis=1, keepdims=True)
    tangent = jnp.float32(rng.normal(size=rows.shape))

    def value(rows):
        tiling = losses.Tiling(block_size=8)
        return LOSSES[loss](rows, jnp.arange(24) // 4, tiling=tiling)

    whole, slopes = jax.jit(jax.value_and_grad(value))(rows)
    again, slope = jax.jit(lambda x, t: jax.jvp(value, (x,), (t,)))(rows, tangent)
    assert whole == again and float(jnp.abs(slopes).max()) > 0
    np.testing.assert_allclose(slope, jnp.sum(slopes * tangent), rtol=1e-5)
