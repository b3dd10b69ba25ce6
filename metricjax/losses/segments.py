"""Points on segments between two images: which of them are closest to each other.

Every point of a segment is `a x + b y` of its ends x and y, so that its products with
points of other segments are sums of four entries of the ends' Gram matrix, and its
length follows from three. No point is ever made. A scan over the combinations of points
keeps the best one of every two segments, memory O(segments^2) for any number of points;
the gradient goes through the chosen combination alone, worked out once more.
"""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from metricjax.losses import pairwise

# Below this share of its ends' squares a point is at the origin, up to rounding.
_ORIGIN = 1e-6

# Products [r, m] of the starts and the ends of r segments (outer) with the starts and
# the ends of m segments (inner).
Gram = tuple[tuple[Float[Array, "r m"], ...], ...]


class Segments(NamedTuple):
    """What the lengths of the points on m segments follow from, arrays [m]."""

    start: Float[Array, " m"]
    product: Float[Array, " m"]
    end: Float[Array, " m"]

    def turned(self):
        """The same segments from end to start."""
        return Segments(self.end, self.product, self.start)

    def weights(self, share, normalize):
        """Of start and end in the point at `share` of the way, and its square."""
        rest = 1.0 - share
        squares = rest**2 * self.start + share**2 * self.end
        squares = squares + 2.0 * rest * share * self.product
        if not normalize:
            return rest, share, squares
        zero = squares <= _ORIGIN * (self.start + self.end)
        scale = jnp.where(zero, 0.0, jax.lax.rsqrt(jnp.where(zero, 1.0, squares)))
        scale = jnp.where((share == 0.0) | (share == 1.0), 1.0, scale)
        return scale * rest, scale * share, scale**2 * squares


def between(pairs: Float[Array, "m e"]) -> Segments:
    """Segments between the two images side by side in every row, e = 2 d."""
    starts, ends = jnp.split(pairs, 2, axis=1)
    return Segments(
        jnp.sum(jnp.square(starts), axis=1),
        jnp.sum(starts * ends, axis=1),
        jnp.sum(jnp.square(ends), axis=1),
    )


def gram(
    anchors: Float[Array, "r e"], references: Float[Array, "m e"], dtype: DTypeLike
) -> Gram:
    """All products of the ends of the anchors with the ends of the references."""
    count, others = len(anchors), len(references)
    anchors, references = (
        jnp.concatenate(jnp.split(pairs, 2, axis=1)) for pairs in (anchors, references)
    )
    products = pairwise.dot_products(anchors, references, dtype)
    halves = np.s_[:others], np.s_[others:]
    return tuple(
        tuple(products[rows, columns] for columns in halves)
        for rows in (np.s_[:count], np.s_[count:])
    )


def closest(
    products: Gram,
    anchors: Segments,
    references: Segments,
    *,
    numbers: Iterable[int],
    points: int,
    normalize: bool,
    similarity: bool = False,
) -> Float[Array, "r m"]:
    """Smallest squared distance between points of every two segments.

    Args:
      products: of the ends of the segments, see `gram`.
      anchors: r segments.
      references: m segments.
      numbers: the points of the anchors that are compared, from 0, the start, to
        `points + 1`, the end. Of the references all are.
      points: how many there are between start and end, equally far from each other.
      normalize: points between are of unit length. One next to the origin has no
        direction, and stays there.
      similarity: the largest inner product instead.

    Returns:
      [r, m], differentiable through the points that are closest.
    """
    stopped = jax.lax.stop_gradient((products, anchors, references))
    own, other = _best_numbers(*stopped, numbers, points, normalize, similarity)
    anchors = Segments(*(array[:, None] for array in anchors))
    a, b, own_square = anchors.weights(own / (points + 1), normalize)
    c, d, other_square = references.weights(other / (points + 1), normalize)
    (start_start, start_end), (end_start, end_end) = products
    product = a * (c * start_start + d * start_end) + b * (c * end_start + d * end_end)
    if similarity:
        return product
    return jnp.maximum(own_square + other_square - 2.0 * product, 0.0)


def _best_numbers(
    products, anchors, references, numbers, points, normalize, similarity
) -> tuple[Int[Array, "r m"], Int[Array, "r m"]]:
    """The numbers of the points that are closest, on the anchor and the reference."""
    (start_start, start_end), (end_start, end_end) = products
    every = range(points + 2)

    def listed(segments, numbers):
        """Weights and half squares of the points, arrays [p, m], and their numbers."""
        numbers = np.array(numbers, np.int32)
        start, end, squares = segments.weights(
            numbers.astype(np.float32)[:, None] / np.float32(points + 1), normalize
        )
        start, end = (jnp.broadcast_to(x, squares.shape) for x in (start, end))
        half = jnp.zeros_like(squares) if similarity else squares / 2.0
        return start, end, half, numbers

    others = listed(references, every)

    def each_own(best, own):
        a, b, half, number = own
        a, b, half = a[:, None], b[:, None], half[:, None]
        with_start = a * start_start + b * end_start
        with_end = a * start_end + b * end_end

        def each_other(best, other):
            c, d, other_half, other_number = other
            score = c * with_start + d * with_end - (half + other_half)
            better = score > best[0]
            combination = number * len(every) + other_number
            return (
                jnp.where(better, score, best[0]),
                jnp.where(better, combination, best[1]),
            ), None

        return jax.lax.scan(each_other, best, others)[0], None

    shape = start_start.shape
    nothing = jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32)
    (_, best), _ = jax.lax.scan(each_own, nothing, listed(anchors, numbers))
    own = jax.lax.div(best, len(every))
    return own, best - len(every) * own
