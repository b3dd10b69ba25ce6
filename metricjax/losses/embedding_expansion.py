"""Embedding expansion: points between two images of a class join the negatives.

A batch is `N` pairs, rows `(2t, 2t + 1)`, both of one class. The segment of a pair is
its two images and `n` points between them. Of two pairs of different classes only the
closest of the `(n + 2)^2` combinations of their points counts as the negative;
positives are images only.

A loss never creates the points, see `_kernels/segments.py`: O(N^2) memory for any `n`.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from metricjax.errors import InputError
from metricjax.losses._kernels import anchors
from metricjax.losses._kernels.numerics import (
    log1p_sum_exp,
    masked_logsumexp,
    masked_max,
    masked_min,
    safe_sqrt,
    unit,
)
from metricjax.losses._kernels.segment_rows import as_pairs, image_rows, pair_rows
from metricjax.losses._kernels.tiling import Tiling


def synthesize(
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    *,
    points: int = 2,
    normalize: bool = True,
) -> Float[Array, "b points d"]:
    """The points that divide the segment from every image to its partner.

    The partner j of an image i is the other one of the rows `(2t, 2t + 1)`. With n
    points, the k-th of image i is `(k x_j + (n + 1 - k) x_i) / (n + 1)`, k = 1..n,
    brought back to unit length. Both images of a pair have the same points, in opposite
    order. Gradients flow to both.

    Args:
      embeddings: images [b, d], b even.
      labels: their classes [b], equal in rows 2t and 2t + 1.
      points: n, 0 or more.
      normalize: divide every point by its length, `sqrt(|x|^2 + 1e-12)`.

    Returns:
      The points [b, points, d], float32.

    Raises:
      InputError: an odd number of images, a negative number of points, two classes in
        one pair (where the labels are known outside of a traced function), or shapes
        and types that do not fit.

    Source: Ko and Gu, "Embedding Expansion" (arXiv 2003.02546), synthesis as in the
    authors' code, in n + 1 equal parts.
    """
    pairs, _ = as_pairs(embeddings, labels, points)
    images = pairs.reshape(len(pairs), 2, -1)
    partners = images[:, ::-1]
    share = (np.arange(1, points + 1, dtype=np.float32) / (points + 1))[:, None]
    made = (1.0 - share) * images[:, :, None] + share * partners[:, :, None]
    made = made.reshape(*embeddings.shape[:1], points, embeddings.shape[1])
    return unit(made) if normalize else made


def triplet(
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    *,
    points: int = 2,
    margin: float = 0.1,
    normalize: bool = True,
    tiling: Tiling = Tiling(),
) -> Float[Array, ""]:
    """Triplet loss of every pair against every pair of another class.

    The mean over pairs A = (i, j) and B of different classes of
    `relu(d_ij^2 - min_{u in A, v in B} d_uv^2 + margin)`, u and v among the images and
    points of their pairs. Triplets that cost nothing count in the mean.

    Args:
      embeddings: images [b, d] of unit length, pairs in rows (2t, 2t + 1).
      labels: their classes [b]. Pairs of one class, several are allowed, are not
        negatives of each other, and only the two images of one pair are positives.
      points: between the images of a pair, 0 or more; with 0 the images alone count.
      margin: in units of the squared distance, at least 0; no paper's word.
      normalize: whether the points are of unit length.
      tiling: memory, devices and precision; `block_size` counts pairs.

    Returns:
      A float32 scalar; 0 where there are not two classes.

    Raises:
      InputError: a negative margin, or as `synthesize`.

    Source: Ko and Gu (arXiv 2003.02546): the rule of mining. How it enters the sum is
    a reading of it, not the paper's formula.
    """
    _check_not_negative("margin", margin)

    def anchor(row, positives, negatives):
        costs = jax.nn.relu(row.within - row.nearest + margin)
        return jnp.sum(jnp.where(negatives, costs, 0.0)), jnp.sum(negatives)

    measure = partial(pair_rows, points=points, normalize=normalize)
    return _mean_over_pairs(anchor, embeddings, labels, points, measure, tiling)


def hphn_triplet(
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    *,
    points: int = 2,
    margin: float = 1e-5,
    soft: bool = False,
    normalize: bool = True,
    tiling: Tiling = Tiling(),
) -> Float[Array, ""]:
    """Triplet loss with the hardest positive and the hardest expanded negative.

    `mean_i relu(d+_i - d-_i + margin)` over the images i that have a negative, with
    `d+_i` the largest distance to an image of its class, and `d-_i` the smallest from
    i or one of its own points (its partner left out) to the images and points of other
    classes. With no points it is batch-hard `losses.triplet`.

    Args:
      embeddings: images [b, d] of unit length, pairs in rows (2t, 2t + 1).
      labels: their classes [b]; a class may have any even number of images.
      points: between the images of a pair, 0 or more.
      margin: in units of the distance, at least 0. The default is that of the authors'
        run.
      soft: `log(1 + exp(d+ - d-))` instead of the hinge; the margin is not used.
      normalize: whether the points are of unit length.
      tiling: memory, devices and precision; `block_size` counts pairs.

    Returns:
      A float32 scalar; 0 where there are not two classes.

    Raises:
      InputError: a negative margin, or as `synthesize`.

    Source: Ko and Gu (arXiv 2003.02546), as in the authors' code, where the sum over
    images stands in place of the mean: b times this value.
    """
    _check_not_negative("margin", margin)

    def of_image(within, farthest, nearest, positives, negatives):
        farthest = jnp.maximum(within, masked_max(farthest, positives))
        gap = safe_sqrt(farthest) - safe_sqrt(masked_min(nearest, negatives))
        return jax.nn.softplus(gap) if soft else jax.nn.relu(gap + margin)

    def anchor(row, positives, negatives):
        of_both = jax.vmap(of_image, in_axes=(None, 0, 0, None, None))
        costs = of_both(row.within, row.farthest, row.nearest, positives, negatives)
        return jnp.sum(costs), 2 * negatives.any()

    measure = partial(image_rows, points=points, normalize=normalize)
    return _mean_over_pairs(anchor, embeddings, labels, points, measure, tiling)


def n_pair(
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    *,
    points: int = 2,
    l2_weight: float = 0.0,
    normalize: bool = False,
    tiling: Tiling = Tiling(),
) -> Float[Array, ""]:
    """N-pair loss with the most similar combination of every two pairs.

    The mean over pairs A = (i, j) of
    `log(1 + sum_B exp(max_{u in A, v in B} u . v - x_i . x_j))`, B the pairs of other
    classes, u and v among the images and points of their pairs.

    Without `normalize` a product is linear along both segments, so that the largest is
    that of two images and points change nothing. With it, embeddings should be of one
    length not far from that of the points, which is 1.

    Args:
      embeddings: images [b, d], pairs in rows (2t, 2t + 1).
      labels: their classes [b]; pairs of one class are not negatives of each other.
      points: between the images of a pair, 0 or more.
      l2_weight: weight of the mean squared length of the images, at least 0.
      normalize: whether the points are brought to unit length; not by default, as the
        loss is meant for embeddings of free length.
      tiling: memory, devices and precision; `block_size` counts pairs.

    Returns:
      A float32 scalar; but for the weighted lengths, 0 where there are not two classes.

    Raises:
      InputError: a negative weight, or as `synthesize`.

    Source: Ko and Gu (arXiv 2003.02546): the rule of mining. How it enters the sum, and
    leaving the points as they are, are a reading of it, not the paper's formula.
    """
    _check_not_negative("l2_weight", l2_weight)

    def anchor(row, positives, negatives):
        return log1p_sum_exp(row.nearest - row.within, negatives), True

    measure = partial(
        pair_rows,
        points=points if normalize else 0,
        normalize=normalize,
        similarity=True,
    )
    value = _mean_over_pairs(anchor, embeddings, labels, points, measure, tiling)
    if not l2_weight:
        return value
    squares = jnp.sum(jnp.square(embeddings.astype(jnp.float32)), axis=1)
    return value + l2_weight * jnp.sum(squares) / max(len(squares), 1)


def lifted_structure(
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    *,
    points: int = 2,
    margin: float = 1.0,
    normalize: bool = True,
    tiling: Tiling = Tiling(),
) -> Float[Array, ""]:
    """Lifted structure loss with the closest combination of every two pairs.

    `1 / (2 N) sum_A relu(log sum_B exp(margin - min_{u in A, v in B} d_uv) + d_ij)^2`
    over the N pairs A = (i, j), B the pairs of other classes, u and v among the images
    and points of their pairs.

    Args:
      embeddings: images [b, d] of unit length, pairs in rows (2t, 2t + 1).
      labels: their classes [b]; pairs of one class are not negatives of each other.
      points: between the images of a pair, 0 or more.
      margin: in units of the distance, at least 0; 1 is that of the loss without
        expansion.
      normalize: whether the points are of unit length.
      tiling: memory, devices and precision; `block_size` counts pairs.

    Returns:
      A float32 scalar; 0 where there are not two classes.

    Raises:
      InputError: a negative margin, or as `synthesize`.

    Source: Ko and Gu (arXiv 2003.02546): the rule of mining. How it enters the sum is
    a reading of it, not the paper's formula.
    """
    _check_not_negative("margin", margin)

    def anchor(row, positives, negatives):
        push = masked_logsumexp(margin - safe_sqrt(row.nearest), negatives)
        some = negatives.any()
        total = jnp.where(some, push, 0.0) + safe_sqrt(row.within)
        return jnp.where(some, jnp.square(jax.nn.relu(total)) / 2.0, 0.0), True

    measure = partial(pair_rows, points=points, normalize=normalize)
    return _mean_over_pairs(anchor, embeddings, labels, points, measure, tiling)


def multi_similarity(
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    *,
    points: int = 2,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    normalize: bool = True,
    tiling: Tiling = Tiling(),
) -> Float[Array, ""]:
    """Multi-similarity loss with the most similar combination of every two pairs.

    The mean over pairs A = (i, j) of `log(1 + exp(-alpha (s_ij - base))) / alpha
    + log(1 + sum_B exp(beta (max_{u in A, v in B} s_uv - base))) / beta`, B the pairs
    of other classes, u and v among the images and points of their pairs. A pair without
    any B contributes 0. Nothing else is mined.

    Args:
      embeddings: images [b, d] of unit length, pairs in rows (2t, 2t + 1).
      labels: their classes [b]; pairs of one class are not negatives of each other.
      points: between the images of a pair, 0 or more.
      alpha: sharpness over positives, above 0.
      beta: sharpness over negatives, above 0.
      base: similarity about which pairs are weighed.
      normalize: whether the points are of unit length.
      tiling: memory, devices and precision; `block_size` counts pairs.

    Returns:
      A float32 scalar; 0 where there are not two classes.

    Raises:
      InputError: alpha or beta not above 0, or as `synthesize`.

    Source: Ko and Gu (arXiv 2003.02546): the rule of mining. How it enters the sum, and
    alpha and beta, which are those of the loss without expansion, are a reading of it.
    """
    for name, value in (("alpha", alpha), ("beta", beta)):
        if value <= 0:
            raise InputError(f"{name} must be above 0, but it is {value}.")

    def anchor(row, positives, negatives):
        together = jax.nn.softplus(-alpha * (row.within - base)) / alpha
        apart = log1p_sum_exp(beta * (row.nearest - base), negatives) / beta
        return jnp.where(negatives.any(), together + apart, 0.0), True

    measure = partial(pair_rows, points=points, normalize=normalize, similarity=True)
    return _mean_over_pairs(anchor, embeddings, labels, points, measure, tiling)


def _check_not_negative(name, value):
    if value < 0:
        raise InputError(f"{name} must be 0 or more, but it is {value}.")


def _mean_over_pairs(anchor, embeddings, labels, points, measure, tiling):
    pairs, classes = as_pairs(embeddings, labels, points)
    return anchors.mean(anchor, pairs, classes, measure=measure, tiling=tiling)
