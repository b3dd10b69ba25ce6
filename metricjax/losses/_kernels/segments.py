"""Points on segments between two images: which of them are closest to each other.

Every point of a segment is `a x + b y` of its ends x and y, so that its products with
points of other segments are sums of four entries of the ends' Gram matrix, and its
length follows from three. No point is ever made. A scan over the combinations of points
keeps the best one of every two segments, memory O(segments^2) for any number of points;
the gradient goes through the chosen combination alone, worked out once more.

The ends are taken from their centre c, as distances are in `anchors.py`. A point is
then `s c + u`, u out of the moved ends and s the factor that brings it to unit length,
1 without. With `g = c u + (s - 1) |c|^2 / 2` and t, v and h of another point,

    |s c + u - t c - v|^2 = |u - v|^2 + 2 (s - t) (g - h)
    (s c + u) (t c + v) = |c|^2 + u v + c u + (s - 1) |c|^2 + c v + (t - 1) |c|^2
                          + (s - 1) h + (t - 1) g

where but for `|c|^2` all numbers are as small as the ends are near to each other.
"""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from metricjax.losses._kernels.measures import dot_products

# Below this share of its ends' squares a point is at the origin, up to rounding.
_ORIGIN = 1e-6

# Products [r, m] of the starts and the ends of r segments (outer) with the starts and
# the ends of m segments (inner).
Gram = tuple[tuple[Float[Array, "r m"], ...], ...]


class Points(NamedTuple):
    """One point of each of m segments, arrays [m].

    Attributes:
      start: weight of the start in u.
      end: weight of the end.
      alone: its own part of a score: `-|u|^2 / 2` for distances, `c u + (s - 1) |c|^2`
        for products.
      stretch: `s - 1`, and
      along: g; None for points that are left as they are.
    """

    start: Float[Array, " m"]
    end: Float[Array, " m"]
    alone: Float[Array, " m"]
    stretch: Float[Array, " m"] | None = None
    along: Float[Array, " m"] | None = None


class Segments(NamedTuple):
    """What the lengths of the points on m segments follow from, arrays [m].

    Attributes:
      start, product, end: products of the ends, taken from the centre.
      along_start, along_end: their products with the centre.
      centre: its square.
    """

    start: Float[Array, " m"]
    product: Float[Array, " m"]
    end: Float[Array, " m"]
    along_start: Float[Array, " m"]
    along_end: Float[Array, " m"]
    centre: Float[Array, " m"]

    def turned(self):
        """The same segments from end to start."""
        return Segments(
            self.end, self.product, self.start, self.along_end, self.along_start,
            self.centre,
        )  # fmt: skip

    def points(self, share, normalize, similarity):
        """The points at `share` of the way."""
        rest = 1.0 - share
        squares = rest**2 * self.start + share**2 * self.end
        squares = squares + 2.0 * rest * share * self.product
        along = rest * self.along_start + share * self.along_end
        if not normalize:
            return Points(rest, share, along if similarity else -squares / 2.0)
        ends = self.start + self.end + 2.0 * (self.along_start + self.along_end)
        whole = self.centre + 2.0 * along + squares
        zero = whole <= _ORIGIN * (ends + 2.0 * self.centre)
        root = jax.lax.rsqrt(jnp.where(zero, 1.0, whole))
        # root - 1, without the rounding that 1 brings where it is near to it.
        excess = (self.centre - 1.0) + (2.0 * along + squares)
        stretch = jnp.where(zero, -1.0, -excess * root**2 / (1.0 + root))
        stretch = jnp.where((share == 0.0) | (share == 1.0), 0.0, stretch)
        scale, along = 1.0 + stretch, (1.0 + stretch) * along
        longer = stretch * self.centre
        alone = along + longer if similarity else -(scale**2) * squares / 2.0
        return Points(scale * rest, scale * share, alone, stretch, along + longer / 2.0)


def between(pairs: Float[Array, "m e"], centre: Float[Array, " d"]) -> Segments:
    """Segments between the two images side by side in every row, e = 2 d.

    `centre` is what they have been taken from.
    """
    starts, ends = jnp.split(pairs, 2, axis=1)
    return Segments(
        jnp.sum(jnp.square(starts), axis=1),
        jnp.sum(starts * ends, axis=1),
        jnp.sum(jnp.square(ends), axis=1),
        jnp.sum(starts * centre, axis=1),
        jnp.sum(ends * centre, axis=1),
        jnp.full(len(pairs), jnp.sum(jnp.square(centre))),
    )


def gram(
    anchors: Float[Array, "r e"], references: Float[Array, "m e"], dtype: DTypeLike
) -> Gram:
    """All products of the ends of the anchors with the ends of the references."""
    count, others = len(anchors), len(references)
    anchors, references = (
        jnp.concatenate(jnp.split(pairs, 2, axis=1)) for pairs in (anchors, references)
    )
    products = dot_products(anchors, references, dtype)
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
    anchors = jax.tree.map(lambda array: array[:, None], anchors)
    own = anchors.points(own / (points + 1), normalize, similarity)
    other = references.points(other / (points + 1), normalize, similarity)
    (start_start, start_end), (end_start, end_end) = products
    from_start = other.start * start_start + other.end * start_end
    from_end = other.start * end_start + other.end * end_end
    product = own.start * from_start + own.end * from_end
    score = _score(product, own, other, similarity)
    return score + anchors.centre if similarity else jnp.maximum(-2.0 * score, 0.0)


def _score(product, own, other, similarity):
    """Their product less `|c|^2`, or half their squared distance below 0."""
    score = product + (own.alone + other.alone)
    if own.stretch is None:
        return score
    if similarity:
        return score + (own.stretch * other.along + other.stretch * own.along)
    return score - (own.stretch - other.stretch) * (own.along - other.along)


def _best_numbers(
    products, anchors, references, numbers, points, normalize, similarity
) -> tuple[Int[Array, "r m"], Int[Array, "r m"]]:
    """The numbers of the points that are closest, on the anchor and the reference."""
    (start_start, start_end), (end_start, end_end) = products
    every = range(points + 2)

    def listed(segments, numbers):
        """The points, arrays [p, m], and their numbers."""
        numbers = np.array(numbers, np.int32)
        shares = numbers.astype(np.float32)[:, None] / np.float32(points + 1)
        made = segments.points(shares, normalize, similarity)
        return jax.tree.map(
            lambda x: jnp.broadcast_to(x, made.alone.shape), made
        ), numbers

    others = listed(references, every)

    def each_own(best, own):
        own, number = own
        own = jax.tree.map(lambda array: array[:, None], own)
        with_start = own.start * start_start + own.end * end_start
        with_end = own.start * start_end + own.end * end_end

        def each_other(best, other):
            other, other_number = other
            product = other.start * with_start + other.end * with_end
            score = _score(product, own, other, similarity)
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
