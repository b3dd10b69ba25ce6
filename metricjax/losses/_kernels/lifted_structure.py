"""Lifted structure loss on a CPU, by tiles.

With `L_i = log sum_{k neg of i} exp(margin - d_ik)` a positive pair adds `relu(J_ij)^2`
with `J_ij = log(exp L_i + exp L_j) + d_ij`. The first pass over the tiles computes L.
The second computes the value and its derivative by L,

    dV/dL_i = 2 sum_{j pos of i} 2 relu(J_ij) exp(L_i) / (exp L_i + exp L_j),

twice, as i is in (i, j) and in (j, i). The third computes the gradient by the distances
as that of a surrogate: `relu(J_ij)^2` with L held fixed for a positive pair, and for a
negative one `dV/dL_i exp(margin - d_ik - L_i)` with all but d_ik held fixed, as
`dL_i / dd_ik = -exp(margin - d_ik - L_i)`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from metricjax.losses._kernels import pairs
from metricjax.losses._kernels.tiles import Statistic
from metricjax.losses._kernels.tiling import Tiling


def in_tiles(
    margin: float,
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    *,
    tiling: Tiling,
) -> Float[Array, ""]:
    """`losses.lifted_structure` of a batch."""

    def push(tile):
        return margin - tile.measures, tile.negatives

    pushing = pairs.log_sum_exp(push)
    pushes = pairs.log_of(
        pairs.statistics(pushing, embeddings, labels, tiling=tiling)
    )  # fmt: skip
    squares, slopes, numbers = pairs.statistics(
        _POSITIVES, embeddings, labels, sides=(pushes,), tiling=tiling
    )

    def weighed(tile):
        pushed, slope = tile.sides
        exponent = jnp.where(tile.negatives, margin - tile.measures - pushed, -jnp.inf)
        return slope * jnp.exp(exponent) + jnp.square(_hinge(tile))

    # L_i is in the pair (i, j) and in (j, i), which are alike.
    sides = pushes, 2.0 * slopes
    surrogate = pairs.total(weighed, embeddings, labels, sides=sides, tiling=tiling)
    scale = 0.5 / jnp.maximum(jnp.sum(numbers), 1.0)
    return scale * pairs.with_gradient_of(jnp.sum(squares), surrogate)


def _joined(tile):
    """`log(exp L_i + exp L_j)`, L_i, and which pairs count.

    A pair counts if one of its members has a negative at all.
    """
    some = (tile.sides[0] != -jnp.inf) | (tile.other_sides[0] != -jnp.inf)
    one, other = (
        jnp.where(some, side[0], 0.0) for side in (tile.sides, tile.other_sides)
    )
    return jnp.logaddexp(one, other), one, tile.positives & some


def _hinge(tile):
    both, _, counts = _joined(tile)
    return jnp.where(counts, jax.nn.relu(both + tile.measures), 0.0)


def _of_positives(tile, axis):
    """The sum of squares, its derivative by the anchor's L, the number of pairs."""
    both, own, _ = _joined(tile)
    hinges = _hinge(tile)
    share = jnp.where(hinges > 0, jnp.exp(own - both), 0.0)
    return tuple(
        jnp.sum(term, axis=axis, dtype=jnp.float32)
        for term in (jnp.square(hinges), 2.0 * hinges * share, tile.positives)
    )


_POSITIVES = Statistic(_of_positives, (0.0, 0.0, 0.0), partial(jax.tree.map, jnp.add))
