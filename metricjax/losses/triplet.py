"""Triplet loss with the hardest positive and the hardest negative of each anchor."""

import jax
from jaxtyping import Array, Float, Int

from metricjax.errors import InputError
from metricjax.losses import pairwise
from metricjax.losses.numerics import masked_max, masked_min


def triplet(
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    *,
    margin: float = 0.1,
    squared: bool = False,
    soft: bool = False,
    references: Float[Array, "n d"] | None = None,
    reference_labels: Int[Array, " n"] | None = None,
    tiling: pairwise.Tiling = pairwise.Tiling(),
) -> Float[Array, ""]:
    """Batch-hard triplet loss, the ranking loss of CGD.

    `mean_i relu(max_{j: y_j = y_i, j != i} d_ij - min_{k: y_k != y_i} d_ik + margin)`
    over the anchors i that have both a positive and a negative.

    Args:
      embeddings: anchors [b, d], of unit length unless another scale is meant.
      labels: their classes [b].
      margin: in units of the distance, at least 0; unit vectors are at most 2 apart.
      squared: compare squared distances instead of distances.
      soft: `log(1 + exp(d+ - d-))` instead of the hinge; the margin is not used.
      references: positives and negatives are sought here [n, d] instead of in the
        batch, and no reference is left out as the anchor itself.
      reference_labels: classes of the references [n].
      tiling: memory and precision, see `pairwise.Tiling`.

    Returns:
      A float32 scalar; 0 where no anchor has both a positive and a negative.

    Raises:
      InputError: a negative margin, or shapes and types that do not fit.

    Source: Jun et al., "Combination of Multiple Global Descriptors for Image
    Retrieval" (arXiv 1903.10663), batch-hard triplet on the joined descriptor. The
    margin 0.1 is what a reimplementation takes as the paper's, not the paper's word.
    """
    if margin < 0:
        raise InputError(f"margin must be 0 or more, but it is {margin}.")

    def anchor(distances, positives, negatives):
        hardest_positive = masked_max(distances, positives)
        hardest_negative = masked_min(distances, negatives)
        gap = hardest_positive - hardest_negative
        value = jax.nn.softplus(gap) if soft else jax.nn.relu(gap + margin)
        return value, positives.any() & negatives.any()

    measure = pairwise.squared_distances if squared else pairwise.distances
    return pairwise.mean_over_anchors(
        anchor, embeddings, labels, references=references,
        reference_labels=reference_labels, measure=measure, tiling=tiling,
    )  # fmt: skip
