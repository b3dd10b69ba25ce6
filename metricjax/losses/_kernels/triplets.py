"""All triplets or semi-hard ones: sums over (i, j, k) without an array of triplets.

A hinge `d_ij - d_ik + margin` has the derivative 1 by the positive's distance and -1 by
the negative's wherever it counts. So the gradient of the sum by d_ij is the number of
triplets that count with the positive j, and by d_ik minus the number with the negative
k. `over_positives` sums a row, one positive after the other. `in_tiles` is the same for
a CPU, with the distances to an anchor's few positives computed in advance.

Sorting each row instead gives all sums at once, but two sorts cost as much as going
through 900 positives (2,048 images of 2 classes, two cores), so nothing sorts here.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from metricjax.losses._kernels import anchors, pairs
from metricjax.losses._kernels.measures import (
    distances,
    paired_distances,
    squared_distances,
)
from metricjax.losses._kernels.positives import Positives, positives_of
from metricjax.losses._kernels.tiling import Tiling

# `(d_ij, d_ik, negatives) -> (hinges, whether they count)`, elementwise.
Hinge = Callable[[Array, Array, Array], tuple[Array, Array]]

# Positives of an anchor, up to which tiles are faster than rows.
_FEW = 16


def over_positives(
    hinge: Hinge,
    distances: Float[Array, " n"],
    positives: Bool[Array, " n"],
    negatives: Bool[Array, " n"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The sum of the hinges that count over the triplets of one anchor; their number.

    For use in a function of one anchor, see `anchors`.
    """
    return _over_positives(hinge, distances, positives, negatives)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _over_positives(hinge, distances, positives, negatives):
    value, number, _ = _one_by_one(hinge, distances, positives, negatives)
    return value, number


def _over_positives_forward(hinge, distances, positives, negatives):
    value, number, slopes = _one_by_one(hinge, distances, positives, negatives)
    return (value, number), slopes


def _over_positives_backward(hinge, slopes, cotangents):
    return cotangents[0] * slopes, None, None


_over_positives.defvjp(_over_positives_forward, _over_positives_backward)


def _one_by_one(hinge, distances, positives, negatives):
    """Value, number of triplets, derivative by the distances [n]."""
    count = len(distances)
    columns = jnp.arange(count, dtype=jnp.int32)

    def after(index):
        """The next positive; `count` where there is none."""
        return jnp.min(jnp.where(positives & (columns > index), columns, count))

    def add(turn, state):
        index, value, number, slopes = state
        positive = distances[jnp.minimum(index, count - 1)]
        gaps, counts = hinge(positive, distances, negatives & (index < count))
        triplets = jnp.sum(counts, dtype=jnp.float32)
        slopes += jnp.where(columns == index, triplets, 0.0) - counts
        value += jnp.sum(jnp.where(counts, gaps, 0.0))
        return after(index), value, number + triplets, slopes

    # All anchors take as many turns as the one with most positives: with a number of
    # its own for each, `vmap` would select between old and new state in every turn.
    turns = lax.pmax(jnp.sum(positives), anchors.AXIS)
    zero = jnp.float32(0.0)
    start = after(-1), zero, zero, 0.0 * distances
    return lax.fori_loop(0, turns, add, start)[1:]


def in_tiles(
    hinge: Hinge,
    squared: bool,
    anchor: anchors.Anchor,
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    *,
    tiling: Tiling,
) -> Float[Array, ""]:
    """Mean of the hinges that count over all triplets of a batch.

    `anchor` is the same for one row, for batches in which an anchor has many positives.
    Which one runs depends on the labels, so that both are compiled.
    """
    measure = squared_distances if squared else distances
    rows = partial(anchors.mean, anchor, measure=measure, tiling=tiling)
    positives = positives_of(labels, _FEW)
    few = partial(_few, hinge, squared, tiling, positives)
    return lax.cond(positives.largest > _FEW, rows, few, embeddings, labels)


def _few(hinge, squared, tiling, positives, embeddings, labels):
    """The mean, each anchor with up to `_FEW` positives."""
    fixed = lax.stop_gradient(embeddings)
    near = _distances_to(positives, fixed, squared)

    def pair(tile, axis):
        """Surrogate of the negatives; value and numbers of triplets of each anchor.

        What a positive's distance gets is not a matter of its tile: see `_pull`.
        """
        measures = lax.stop_gradient(tile.measures)

        def add(turn, carry):
            slopes, value, numbers = carry
            positive = lax.dynamic_index_in_dim(tile.sides[0], turn, -1, False)
            real = tile.negatives & (positive != -jnp.inf)
            gaps, counts = hinge(positive, measures, real)
            number = jnp.sum(counts, axis=axis, dtype=jnp.float32)
            return (
                slopes - counts,
                value + jnp.sum(jnp.where(counts, gaps, 0.0), axis=axis),
                lax.dynamic_update_index_in_dim(numbers, number, turn, 1),
            )

        count = measures.shape[1 - axis]
        start = jnp.zeros(measures.shape), jnp.zeros(count), jnp.zeros((count, _FEW))
        # As many turns as the anchors of this tile need.
        most = jnp.max(jnp.sum(tile.sides[0] != -jnp.inf, axis=-1))
        slopes, *sums = lax.fori_loop(0, most, add, start)
        return slopes * tile.measures, tuple(sums)

    push, (value, numbers) = pairs.total_and_sums(
        pair, ((), (_FEW,)), embeddings, labels, sides=(near,),
        measure=squared_distances if squared else distances, tiling=tiling,
    )  # fmt: skip
    value = pairs.with_gradient_of(
        jnp.sum(value), push + _pull(squared, positives, numbers, embeddings)
    )
    return value / jnp.maximum(jnp.sum(numbers), 1.0)


def _distances_to(positives, embeddings, squared) -> Float[Array, "b m"]:
    """Distance to every positive, minus infinity where there is none."""

    def measured(turn, near):
        index, valid = positives.index[:, turn], positives.valid[:, turn]
        one = paired_distances(embeddings, embeddings[index], squared=squared)
        return near.at[:, turn].set(jnp.where(valid, one, -jnp.inf))

    # In turns, as all pairs at once would take O(b m d) memory.
    near = jnp.full(positives.index.shape, -jnp.inf)
    return lax.fori_loop(0, positives.largest, measured, near)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _pull(
    squared: bool,
    positives: Positives,
    numbers: Float[Array, "b m"],
    embeddings: Float[Array, "b d"],
) -> Float[Array, ""]:
    """A surrogate of value 0 for `sum_ij numbers_ij d_ij` over the positives j of i."""
    return jnp.float32(0.0)


def _pull_forward(squared, positives, numbers, embeddings):
    return jnp.float32(0.0), (positives, numbers, embeddings)


def _pull_backward(squared, residuals, cotangent):
    positives, numbers, embeddings = residuals
    # An image is the anchor of its pairs, and the positive in those of its positives:
    # with both numbers, the gradient of each image is a sum over its own list, and
    # nothing needs to be scattered to the others.
    weights = numbers + positives.mirrored(numbers)

    def add(turn, slopes):
        others = embeddings[positives.index[:, turn]]
        weight = jnp.where(positives.valid[:, turn], weights[:, turn], 0.0)

        def weighed(embeddings):
            measured = paired_distances(embeddings, others, squared=squared)
            return jnp.sum(weight * measured)

        return slopes + jax.grad(weighed)(embeddings)

    slopes = lax.fori_loop(0, positives.largest, add, jnp.zeros_like(embeddings))
    return None, None, cotangent * slopes


_pull.defvjp(_pull_forward, _pull_backward)
