"""Triplet losses: the hardest pair of each anchor, all triplets, or semi-hard ones."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from metricjax.errors import InputError
from metricjax.losses import pairwise, triplet_sums

MININGS = ("hard", "all", "semihard")


def triplet(
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    *,
    margin: float = 0.1,
    mining: str = "hard",
    squared: bool = False,
    soft: bool = False,
    references: Float[Array, "n d"] | None = None,
    reference_labels: Int[Array, " n"] | None = None,
    reference_mask: Bool[Array, " n"] | None = None,
    tiling: pairwise.Tiling = pairwise.Tiling(),
) -> Float[Array, ""]:
    """Triplet loss over the triplets (i, j, k) with `y_j = y_i != y_k`, `j != i`.

    "hard": `mean_i relu(max_j d_ij - min_k d_ik + margin)` over the anchors i that have
    both a positive and a negative. The two are looked for in the Gram matrix, and their
    distances then taken from the differences: exact, and without a second matrix
    product for the gradient.
    "all": mean of `d_ij - d_ik + margin` over the triplets where that is above 0.
    "semihard": its mean over the triplets with `0 < d_ik - d_ij <= margin`.

    Args:
      embeddings: anchors [b, d], of unit length unless another scale is meant.
      labels: their classes [b].
      margin: in units of the distance, at least 0; unit vectors are at most 2 apart.
      mining: "hard", "all" or "semihard". The last two go through the positives of each
        anchor one by one, O(b n K) for K positives, or sort where there are many.
      squared: compare squared distances instead of distances.
      soft: `log(1 + exp(d+ - d-))` instead of the hinge; only with "hard", and the
        margin is not used.
      references: positives and negatives are sought here [n, d] instead of in the
        batch, and no reference is left out as the anchor itself.
      reference_labels: classes of the references [n].
      reference_mask: False where a reference does not count [n].
      tiling: memory, devices and precision, see `pairwise.Tiling`.

    Returns:
      A float32 scalar; 0 where there is no such triplet.

    Raises:
      InputError: a negative margin, an unknown mining, `soft` with another mining than
        "hard", or shapes and types that do not fit.

    Source: "hard" is the ranking loss of Jun et al., "Combination of Multiple Global
    Descriptors for Image Retrieval" (arXiv 1903.10663), on the joined descriptor; the
    margin 0.1 is what a reimplementation takes as the paper's, not the paper's word.
    "semihard" are the negatives of Schroff et al., "FaceNet" (arXiv 1503.03832).
    """
    if margin < 0:
        raise InputError(f"margin must be 0 or more, but it is {margin}.")
    if mining not in MININGS:
        raise InputError(f"mining is {mining!r}: choose one of {', '.join(MININGS)}.")
    if soft and mining != "hard":
        raise InputError(f"soft goes with mining 'hard' only, but it is {mining!r}.")
    pairs = {
        "references": references,
        "reference_labels": reference_labels,
        "reference_mask": reference_mask,
        "measure": pairwise.squared_distances if squared else pairwise.distances,
        "tiling": tiling,
    }
    if mining != "hard":
        rows = triplet_sums.semihard if mining == "semihard" else triplet_sums.active
        anchor = partial(rows, margin)
        return pairwise.mean_over_anchors(
            anchor, embeddings, labels, batched=True, **pairs
        )
    positive, negative, valid = pairwise.hardest(embeddings, labels, **pairs)
    anchors = embeddings.astype(jnp.float32)
    others = anchors if references is None else references.astype(jnp.float32)
    far = pairwise.paired_distances(anchors, others[positive], squared=squared)
    near = pairwise.paired_distances(anchors, others[negative], squared=squared)
    value = jax.nn.softplus(far - near) if soft else jax.nn.relu(far - near + margin)
    return jnp.sum(jnp.where(valid, value, 0.0)) / jnp.maximum(jnp.sum(valid), 1)
