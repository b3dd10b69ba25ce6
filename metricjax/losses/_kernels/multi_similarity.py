"""Multi-similarity loss on a CPU, by tiles: mining, log-sum-exp, gradient.

Three passes over the tiles. With P and N the mined pairs of an anchor and

    A = log(1 + sum_P exp(-alpha (s - base))),  B = log(1 + sum_N exp(beta (s - base)))

its loss is `A / alpha + B / beta`, and its derivative by one similarity is
`-exp(-alpha (s - base) - A)` for a pair in P and `exp(beta (s - base) - B)` in N: the
softmax weights of the pair, which the third pass computes from A and B. The mining
itself has no gradient.
"""

from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from metricjax.losses._kernels import pairs
from metricjax.losses._kernels.measures import dot_products
from metricjax.losses._kernels.tiles import Statistic
from metricjax.losses._kernels.tiling import Tiling


def in_tiles(
    mined,
    exponents,
    alpha: float,
    beta: float,
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    *,
    tiling: Tiling,
) -> Float[Array, ""]:
    """`losses.multi_similarity` of a batch.

    Args:
      mined: `(similarities, positives, negatives, farthest, nearest) -> (positives,
        negatives)`, the masks of the mined pairs, elementwise.
      exponents: `(similarities) -> (of positives, of negatives)`.
    """
    options = {"measure": dot_products, "tiling": tiling}
    extremes = pairs.statistics(_EXTREMES, embeddings, labels, **options)

    def kept(tile):
        return mined(
            tile.measures, tile.positives, tile.negatives, *tile.sides["extremes"]
        )

    def terms(kind, tile):
        return exponents(tile.measures)[kind], kept(tile)[kind]

    sums = pairs.both(*(pairs.log_sum_exp(partial(terms, kind)) for kind in (0, 1)))
    sides = {"extremes": extremes}
    found = pairs.statistics(sums, embeddings, labels, sides=sides, **options)
    pulled, pushed = (pairs.log_of(parts) for parts in found)
    # An anchor that lost all pairs of either kind to the mining contributes nothing.
    some = ~((pulled == -jnp.inf) | (pushed == -jnp.inf))
    pulled, pushed = jnp.logaddexp(pulled, 0.0), jnp.logaddexp(pushed, 0.0)
    values = jnp.where(some, pulled / alpha + pushed / beta, 0.0)

    def weighed(tile):
        positives, negatives = kept(tile)
        pulled, pushed, some = tile.sides["sums"]
        pull, push = exponents(tile.measures)
        # A pair is positive or negative, so that one exponential serves both.
        exponent = jnp.where(positives, pull - pulled, push - pushed)
        exponent = jnp.where((positives | negatives) & some, exponent, -jnp.inf)
        return jnp.exp(exponent) * jnp.where(positives, 1.0 / alpha, 1.0 / beta)

    sides["sums"] = pulled, pushed, some
    # exp(exponent) / alpha has the derivative -exp(exponent) by s, and likewise for
    # negatives: the softmax weights, as A and B are constants here.
    surrogate = pairs.total(weighed, embeddings, labels, sides=sides, **options)
    value = pairs.with_gradient_of(jnp.sum(values), surrogate)
    return value / max(len(labels), 1)


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
