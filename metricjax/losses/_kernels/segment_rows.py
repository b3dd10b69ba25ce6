"""The rows of embedding expansion: of each pair, its closest points to all other pairs.

A pair lies in one row of `pairs` [N, e], its two images side by side, e = 2 d. These
functions take the place of the measures of `measures.py`; what they compute with is in
`segments.py`.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from metricjax.errors import InputError
from metricjax.losses._kernels import segments
from metricjax.losses._kernels.inputs import check_labelled
from metricjax.losses._kernels.measures import centre_of


class Row(NamedTuple):
    """What a loss sees of some pairs, r of them, and of all N; later of one.

    Attributes:
      within: squared distance, or product, of the two images of the pair [r].
      nearest: the smallest squared distance, or largest product, to each pair [r, N],
        or of each of the two images [r, 2, N].
      farthest: largest squared distance of each of the two images to the images of
        each pair [r, 2, N].
    """

    within: Float[Array, " r"]
    nearest: Float[Array, "r N"] | Float[Array, "r 2 N"]
    farthest: Float[Array, "r 2 N"] | None = None


def as_pairs(
    embeddings: Array, labels: Array, points: int
) -> tuple[Float[Array, "N e"], Int[Array, " N"]]:
    """Rows 2t and 2t + 1 side by side, e = 2 d, and the classes of the pairs."""
    check_labelled("embeddings", embeddings, labels)
    if points < 0:
        raise InputError(f"points must be 0 or more, but it is {points}.")
    count, width = embeddings.shape
    if count % 2:
        raise InputError(
            f"embedding expansion takes images in pairs, but the batch has {count}: "
            "draw an even number of images of every class."
        )
    traced = isinstance(labels, jax.core.Tracer)
    if not traced and getattr(labels, "is_fully_addressable", True):
        given = np.asarray(labels)
        differ = np.flatnonzero(given[0::2] != given[1::2])
        if len(differ):
            row = 2 * differ[0]
            raise InputError(
                f"rows {row} and {row + 1} must be a pair of one class, but their "
                f"classes are {given[row]} and {given[row + 1]}."
            )
    pairs = embeddings.astype(jnp.float32).reshape(count // 2, 2 * width)
    return pairs, labels[0::2]


def _about_centre(anchors, references):
    """Pairs less the centre of the references' images, and that."""
    images = references.reshape(2 * len(references), -1)
    centre = centre_of(images, jnp.ones(len(images), bool))
    both = jnp.concatenate([centre, centre])
    return anchors - both, references - both, centre


def pair_rows(anchors, references, dtype, *, points, normalize, similarity=False):
    """`Row` of pairs: all points of a pair on either side."""
    starts, ends = jnp.split(anchors, 2, axis=1)
    within = starts * ends if similarity else jnp.square(starts - ends)
    anchors, references, centre = _about_centre(anchors, references)
    nearest = segments.closest(
        segments.gram(anchors, references, dtype),
        segments.between(anchors, centre), segments.between(references, centre),
        numbers=range(points + 2), points=points, normalize=normalize,
        similarity=similarity,
    )  # fmt: skip
    return Row(jnp.sum(within, axis=1), nearest)


def image_rows(anchors, references, dtype, *, points, normalize):
    """`Row` of pairs: either image with the points on its side, without the other."""
    anchors, references, centre = _about_centre(anchors, references)
    own = segments.between(anchors, centre)
    others = segments.between(references, centre)
    of_starts, of_ends = segments.gram(anchors, references, dtype)
    # The segments, and the segments turned: the image is the start, its partner, which
    # does not count, the end.
    joined = partial(jax.tree.map, lambda *parts: jnp.concatenate(parts))
    nearest = segments.closest(
        joined((of_starts, of_ends), (of_ends, of_starts)), joined(own, own.turned()),
        others, numbers=range(points + 1), points=points, normalize=normalize,
    )  # fmt: skip

    def farthest(square, products):
        squares = square[:, None] + jnp.stack([others.start, others.end])[:, None]
        return jnp.max(squares - 2.0 * jnp.stack(products), axis=0)

    starts, ends = jnp.split(anchors, 2, axis=1)
    return Row(
        jnp.sum(jnp.square(starts - ends), axis=1),
        jnp.stack(jnp.split(nearest, 2), axis=1),
        jnp.stack([farthest(own.start, of_starts), farthest(own.end, of_ends)], axis=1),
    )
