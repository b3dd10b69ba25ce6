"""Contrastive loss on a CPU, by tiles: a plain sum over pairs."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from metricjax.losses._kernels import pairs
from metricjax.losses._kernels.measures import Measure
from metricjax.losses._kernels.tiles import Statistic, Tile
from metricjax.losses._kernels.tiling import Tiling


def in_tiles(
    terms: Callable[..., tuple[Array, Array]],
    nonzero: bool,
    measure: Measure,
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    *,
    tiling: Tiling,
) -> Float[Array, ""]:
    """`losses.contrastive` over all pairs of a batch.

    `terms(measures, positives, negatives)` are the pulls and pushes, elementwise.
    """
    options = {"measure": measure, "tiling": tiling}

    def of(tile: Tile):
        return terms(tile.measures, tile.positives, tile.negatives)

    if not nonzero:
        value = pairs.total(
            lambda tile: sum(of(tile)), embeddings, labels, symmetric=True, **options
        )
        count = len(labels)
        return value / max(count * (count - 1), 1)

    # The number of terms above 0 must be known before a pair can be weighed by it.
    def above_zero(tile, axis):
        return tuple(
            jnp.sum(~(term <= 0), axis=axis, dtype=jnp.float32) for term in of(tile)
        )

    counting = Statistic(above_zero, (0.0, 0.0), partial(jax.tree.map, jnp.add))
    counts = pairs.statistics(counting, embeddings, labels, **options)
    scales = tuple(
        jnp.full(len(labels), 1.0 / jnp.maximum(jnp.sum(count), 1.0))
        for count in counts
    )

    def weighed(tile):
        pull, push = of(tile)
        return tile.sides[0] * pull + tile.sides[1] * push

    return pairs.total(
        weighed, embeddings, labels, sides=scales, symmetric=True, **options
    )
