"""A loss within one batch by tiles: statistics of each image, then a sum over pairs.

A loss that is a plain sum of pairs is one `total`. Any other needs something of each
anchor first, such as its hardest negative or a log-sum-exp over all of its negatives:
`statistics`, one pass over the tiles for each stage. The value of the loss follows from
the statistics of the last stage. Its gradient is a sum over pairs, of a weight times
the gradient of the pair's measure: a surrogate `sum_ij w_ij m_ij`, whose weights follow
from the statistics and carry no gradient, has the same gradient. `total` computes it,
and `with_gradient_of` joins it to the value. No array over all pairs is ever stored.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from metricjax.losses._kernels import tiles
from metricjax.losses._kernels.inputs import labelled_pairs
from metricjax.losses._kernels.measures import Measure, distances
from metricjax.losses._kernels.tiles import Statistic, Tile, Tiles
from metricjax.losses._kernels.tiling import Tiling


def statistics(
    statistic: Statistic,
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    *,
    sides: Any = None,
    measure: Measure = distances,
    tiling: Tiling = Tiling(),
) -> Any:
    """`statistic` of every anchor over the rest of its batch: tree of [b]. No gradient.

    Args:
      statistic: reduced over tiles, see `tiles.Statistic`.
      embeddings: [b, d], float32.
      labels: [b].
      sides: arrays [b, ...] that the statistic finds in `tile.sides` for its anchors,
        and in `tile.other_sides` for the others.
      measure: `squared_distances`, `distances` or `dot_products`.
      tiling: tiles are `block_size` squared; without, the batch is one tile.
    """
    anchors, _, _ = labelled_pairs(embeddings, labels, measure=measure)
    anchors = jax.lax.stop_gradient(anchors._replace(sides=sides))
    size = tiling.block_size if tiling.in_blocks(len(labels)) else None
    return tiles.statistics(Tiles(measure, tiling.dtype, size), statistic, anchors)


def total(
    pair: Callable[[Tile], Float[Array, "k n"]],
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    *,
    sides: Any = None,
    measure: Measure = distances,
    tiling: Tiling = Tiling(),
    symmetric: bool = False,
) -> Float[Array, ""]:
    """Sum of `pair` over all ordered pairs of the batch.

    Differentiable once, by the embeddings; sides carry no gradient.

    Args:
      pair: `(Tile) -> values`, elementwise, 0 where neither mask is set.
      symmetric: the value of (i, j) is that of (j, i), so that one of them is enough.

    The other arguments are those of `statistics`.
    """

    def without_sums(tile, axis):
        return pair(tile), ()

    value, _ = total_and_sums(
        without_sums, (), embeddings, labels, sides=sides, measure=measure,
        tiling=tiling, symmetric=symmetric,
    )  # fmt: skip
    return value


def total_and_sums(
    pair: Callable[[Tile, int], tuple[Float[Array, "k n"], Any]],
    shapes: Any,
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    *,
    sides: Any = None,
    measure: Measure = distances,
    tiling: Tiling = Tiling(),
    symmetric: bool = False,
) -> tuple[Float[Array, ""], Any]:
    """`total`, and sums over the pairs of each anchor, from the same pass over tiles.

    Args:
      pair: `(Tile, axis) -> (values [k, n], tree of [k, ...])`; the tree is reduced
        over `axis`, that of the references. It has no gradient.
      shapes: of the tree for one anchor, a tuple of tuples.

    The other arguments are those of `total`.
    """
    anchors, _, _ = labelled_pairs(embeddings, labels, measure=measure)
    anchors = anchors._replace(sides=jax.lax.stop_gradient(sides))
    cut = Tiles(measure, tiling.dtype, tiling.block_size, symmetric)
    return tiles.total(cut, pair, shapes, anchors)


def log_sum_exp(terms: Callable[[Tile], tuple[Array, Array]]) -> Statistic:
    """`log sum exp` over some pairs of each anchor, as (largest, sum relative to it).

    `terms(Tile) -> (values, mask)`, elementwise. `log_of` takes the logarithm when all
    tiles have been merged.
    """

    def of_tile(tile, axis):
        values, mask = terms(tile)
        masked = jnp.where(mask, values, -jnp.inf)
        largest = jnp.max(masked, axis=axis, keepdims=True)
        none = largest == -jnp.inf
        total = jnp.sum(jnp.exp(masked - jnp.where(none, 0.0, largest)), axis=axis)
        return jnp.squeeze(largest, axis), total

    def merge(first, second):
        # Both sums are brought to the larger of the two maxima.
        (one, total), (other, more) = first, second
        largest = jnp.maximum(one, other)
        finite = jnp.where(largest == -jnp.inf, 0.0, largest)
        return largest, total * jnp.exp(one - finite) + more * jnp.exp(other - finite)

    return Statistic(of_tile, (-jnp.inf, 0.0), merge)


def log_of(parts: tuple[Array, Array]) -> Array:
    """The logarithm of a result of `log_sum_exp`; -inf where there was no term."""
    largest, total = parts
    none = largest == -jnp.inf
    return jnp.where(none, -jnp.inf, largest + jnp.log(jnp.where(none, 1.0, total)))


def both(first: Statistic, second: Statistic) -> Statistic:
    """Two statistics of the same tiles, as a pair."""
    return Statistic(
        lambda tile, axis: (first.of_tile(tile, axis), second.of_tile(tile, axis)),
        (first.start, second.start),
        lambda a, b: (first.merge(a[0], b[0]), second.merge(a[1], b[1])),
    )


@jax.custom_jvp
def with_gradient_of(
    value: Float[Array, "..."], surrogate: Float[Array, "..."]
) -> Float[Array, "..."]:
    """`value`, with the gradient of `surrogate` in place of its own."""
    return value


@with_gradient_of.defjvp
def _tangent_of_surrogate(primals, tangents):
    return primals[0], tangents[1]
