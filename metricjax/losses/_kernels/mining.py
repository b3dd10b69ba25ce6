"""Batch-hard triplets on a CPU: find the hardest pairs, then only measure those.

Of a row, the loss depends on two entries. They are found in the Gram matrix without
gradient, and their distances then computed from the differences of the vectors: exact,
and the gradient needs no matrix product, where that of whole rows takes two.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from metricjax.losses._kernels.measures import (
    distances,
    paired_distances,
    squared_distances,
)
from metricjax.losses._kernels.numerics import masked_mean
from metricjax.losses._kernels.pairs import statistics
from metricjax.losses._kernels.tiles import Statistic
from metricjax.losses._kernels.tiling import Tiling

# Larger than the number of any reference.
_NOWHERE = jnp.iinfo(jnp.int32).max


def batch_hard(
    cost: Callable[[Array], Array],
    squared: bool,
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    *,
    tiling: Tiling,
) -> Float[Array, ""]:
    """Mean of `cost(d+ - d-)` over the anchors that have a positive and a negative."""
    measure = squared_distances if squared else distances
    positive, negative, valid = hardest(
        embeddings, labels, measure=measure, tiling=tiling
    )
    far, near = (
        paired_distances(embeddings, embeddings[index], squared=squared)
        for index in (positive, negative)
    )
    return masked_mean(cost(far - near), valid)


def hardest(
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    **options: Any,
) -> tuple[Int[Array, " b"], Int[Array, " b"], Bool[Array, " b"]]:
    """Farthest positive and nearest negative of every anchor, as indices.

    Arguments as in `pairs.statistics`; no gradient. Of equally far ones the first is
    taken, and a row with NaN leads to a reference with NaN.

    Returns:
      Index of the positive [b], of the negative [b], and whether the anchor has both.
    """
    (_, far), (_, near) = statistics(_HARDEST, embeddings, labels, **options)
    both = (far < _NOWHERE) & (near < _NOWHERE)
    first = jnp.zeros_like(far)
    return (
        jnp.where(far < _NOWHERE, far - 1, first),
        jnp.where(near < _NOWHERE, near - 1, first),
        both,
    )


def _first_largest(values, mask, numbers, axis):
    """The largest value under the mask, and the lowest number that has it.

    Two plain reductions: a variadic one (`argmax`) is several times slower on CPU.
    """
    masked = jnp.where(mask, values, -jnp.inf)
    best = jnp.max(masked, axis=axis, keepdims=True)
    found = mask & ((masked == best) | jnp.isnan(masked))
    number = jnp.min(jnp.where(found, numbers, _NOWHERE), axis=axis)
    return jnp.squeeze(best, axis), number


def _hardest_of_tile(tile, axis):
    return (
        _first_largest(tile.measures, tile.positives, tile.numbers, axis),
        _first_largest(-tile.measures, tile.negatives, tile.numbers, axis),
    )


def _harder(first, second):
    def larger(a, b):
        (value, number), (other, other_number) = a, b
        tied = (value == other) | (jnp.isnan(value) & jnp.isnan(other))
        better = (other > value) | (jnp.isnan(other) & ~jnp.isnan(value))
        chosen = jnp.where(better, other_number, number)
        lowest = jnp.minimum(number, other_number)
        return jnp.maximum(value, other), jnp.where(tied, lowest, chosen)

    return tuple(larger(a, b) for a, b in zip(first, second, strict=True))


_HARDEST = Statistic(
    of_tile=_hardest_of_tile,
    start=((-jnp.inf, _NOWHERE), (-jnp.inf, _NOWHERE)),
    merge=_harder,
)
