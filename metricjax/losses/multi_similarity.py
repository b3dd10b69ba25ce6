"""Multi-similarity loss with its mining of informative pairs."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from metricjax.errors import InputError
from metricjax.losses._kernels import anchors as pairwise
from metricjax.losses._kernels import pairs
from metricjax.losses._kernels.tiles import Statistic


def multi_similarity(
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    *,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    epsilon: float = 0.1,
    references: Float[Array, "n d"] | None = None,
    reference_labels: Int[Array, " n"] | None = None,
    reference_mask: Bool[Array, " n"] | None = None,
    tiling: pairwise.Tiling = pairwise.Tiling(),
) -> Float[Array, ""]:
    """Multi-similarity loss over the similarities `s_ij = x_i . x_j`.

    Of each anchor i the positives with `s_ij < max_{k neg} s_ik + epsilon` and the
    negatives with `s_ik > min_{j pos} s_ij - epsilon` are kept, P_i and N_i, and

    `mean_i [log(1 + sum_{j in P_i} exp(-alpha (s_ij - base))) / alpha
    + log(1 + sum_{k in N_i} exp(beta (s_ik - base))) / beta]`.

    The mean is over all anchors; one with an empty P_i or N_i contributes 0.

    Args:
      embeddings: anchors [b, d] of unit length, so that s is the cosine, -1 to 1.
      labels: their classes [b].
      alpha: sharpness over positives, above 0.
      beta: sharpness over negatives, above 0.
      base: similarity about which pairs are weighed.
      epsilon: slack of the mining in units of s; 2 or more keeps every pair of an
        anchor that has both kinds.
      references: the j and k [n, d] instead of the batch; none is then left out as the
        anchor itself.
      reference_labels: classes of the references [n].
      reference_mask: False where a reference does not count [n].
      tiling: memory, devices and precision, see `pairwise.Tiling`.

    Returns:
      A float32 scalar.

    Raises:
      InputError: alpha or beta not above 0, or shapes and types that do not fit.

    Source: Wang et al., "Multi-Similarity Loss with General Pair Weighting for Deep
    Metric Learning" (arXiv 1904.06627), mining and loss; base 0.5 and the anchors that
    contribute 0 follow the authors' code.
    """
    for name, value in (("alpha", alpha), ("beta", beta)):
        if value <= 0:
            raise InputError(f"{name} must be above 0, but it is {value}.")

    def kept(tile):
        farthest, nearest = tile.sides[0]
        # Written so that NaN is kept, and shows.
        together = tile.positives & ~(tile.measures >= nearest + epsilon)
        return together, tile.negatives & ~(tile.measures <= farthest - epsilon)

    def pull(tile):
        return -alpha * (tile.measures - base), kept(tile)[0]

    def push(tile):
        return beta * (tile.measures - base), kept(tile)[1]

    def finish(sums):
        """log(1 + sum) of both kinds, and whether there are both."""
        pulled, pushed = (pairs.finish(parts) for parts in sums)
        both = ~((pulled == -jnp.inf) | (pushed == -jnp.inf))
        return jnp.logaddexp(pulled, 0.0), jnp.logaddexp(pushed, 0.0), both

    def value(stages):
        pulled, pushed, both = stages[1]
        return jnp.where(both, pulled / alpha + pushed / beta, 0.0)

    def slope(tile):
        """Of the slope that log(1 + sum) has by this pair."""
        pulled, pushed, both = tile.sides[1]
        together, apart = kept(tile)
        exponent = jnp.where(
            together,
            -alpha * (tile.measures - base) - pulled,
            beta * (tile.measures - base) - pushed,
        )
        exponent = jnp.where((together | apart) & both, exponent, -jnp.inf)
        return jnp.exp(exponent) * jnp.where(together, 1.0 / alpha, 1.0 / beta)

    sums = pairs.both(pairs.log_sum_exp(pull), pairs.log_sum_exp(push))
    total = pairs.sum_over_anchors(
        (pairs.Stage(_EXTREMES), pairs.Stage(sums, finish)),
        value,
        slope,
        embeddings,
        labels,
        references=references,
        reference_labels=reference_labels,
        reference_mask=reference_mask,
        measure=pairwise.dot_products,
        tiling=tiling,
    )
    return total / max(len(labels), 1)


def _extremes(tile, axis):
    positives = jnp.where(tile.positives, tile.measures, jnp.inf)
    negatives = jnp.where(tile.negatives, tile.measures, -jnp.inf)
    return jnp.min(positives, axis=axis), jnp.max(negatives, axis=axis)


# Similarity of the farthest positive and of the nearest negative.
_EXTREMES = Statistic(
    _extremes,
    (jnp.inf, -jnp.inf),
    lambda a, b: (jnp.minimum(a[0], b[0]), jnp.maximum(a[1], b[1])),
)
