"""Triplet losses: the hardest pair of each anchor, all triplets, or semi-hard ones."""

from functools import partial

import jax
from jaxtyping import Array, Bool, Float, Int

from metricjax.errors import InputError
from metricjax.losses._kernels import anchors, measures, triplets
from metricjax.losses._kernels.mining import batch_hard
from metricjax.losses._kernels.numerics import masked_max, masked_min
from metricjax.losses._kernels.platform import Kernel
from metricjax.losses._kernels.tiling import Tiling

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
    tiling: Tiling = Tiling(),
) -> Float[Array, ""]:
    """Triplet loss over the triplets (i, j, k) with `y_j = y_i != y_k`, `j != i`.

    With d the Euclidean distance, or its square:

    - "hard": `mean_i relu(max_j d_ij - min_k d_ik + margin)` over the anchors i that
      have both a positive and a negative ("batch-hard").
    - "all": mean of `d_ij - d_ik + margin` over the triplets for which it is above 0.
    - "semihard": the same mean over the triplets with `0 < d_ik - d_ij <= margin`.

    Args:
      embeddings: anchors [b, d], of unit length unless another scale is meant.
      labels: their classes [b].
      margin: in units of the distance, at least 0; unit vectors are at most 2 apart.
      mining: "hard", "all" or "semihard". The last two go through the positives of each
        anchor one by one: O(b n K) time for K positives, O(b n) memory.
      squared: compare squared distances instead of distances.
      soft: `log(1 + exp(d+ - d-))` instead of the hinge; only with "hard", and the
        margin is not used.
      references: where positives and negatives are taken from [n, d] instead of the
        batch; no reference is then left out as the anchor itself.
      reference_labels: classes of the references [n].
      reference_mask: False where a reference does not count [n].
      tiling: memory, devices and precision, see `losses.Tiling`.

    Returns:
      A float32 scalar; 0 where there is no such triplet.

    Raises:
      InputError: a negative margin, an unknown mining, `soft` with another mining than
        "hard", or shapes and types that do not fit.

    Source: "hard" is the ranking loss of Jun et al., "Combination of Multiple Global
    Descriptors for Image Retrieval" (arXiv 1903.10663), on the combined descriptor; its
    margin 0.1 is that of a reimplementation, as the paper gives none. "semihard" are
    the negatives of Schroff et al., "FaceNet" (arXiv 1503.03832).

    >>> import jax.numpy as jnp
    >>> x = jnp.array([[0.0], [1.0], [1.5], [4.0]])
    >>> round(float(triplet(x, jnp.array([0, 0, 1, 1]), margin=1.0)), 3)
    1.375
    """
    if margin < 0:
        raise InputError(f"margin must be 0 or more, but it is {margin}.")
    if mining not in MININGS:
        raise InputError(f"mining is {mining!r}: choose one of {', '.join(MININGS)}.")
    if soft and mining != "hard":
        raise InputError(f"soft goes with mining 'hard' only, but it is {mining!r}.")
    measure = measures.squared_distances if squared else measures.distances

    def cost(gap):
        """Of a triplet whose positive is farther than its negative by `gap`."""
        return jax.nn.softplus(gap) if soft else jax.nn.relu(gap + margin)

    def hardest(distances, positives, negatives):
        """One anchor against all references: [n], [n] bool, [n] bool."""
        gap = masked_max(distances, positives) - masked_min(distances, negatives)
        return cost(gap), positives.any() & negatives.any()

    def hinge(positive, distances, negatives):
        """One positive of an anchor against its negatives, and which of them count."""
        gaps = positive - distances + margin
        # Written so that NaN counts, and is not hidden.
        if mining == "semihard":
            return gaps, negatives & ~(gaps < 0) & ~(distances <= positive)
        return gaps, negatives & ~(gaps <= 0)

    def each_positive(distances, positives, negatives):
        """One anchor, every positive against all negatives: [n], [n] bool, [n] bool."""
        return triplets.over_positives(hinge, distances, positives, negatives)

    if mining == "hard":
        anchor = hardest
        kernel = Kernel(partial(batch_hard, cost, squared), at_once=True)
    else:
        anchor = each_positive
        kernel = Kernel(partial(triplets.in_tiles, hinge, squared, each_positive))
    return anchors.mean(
        anchor, embeddings, labels, references=references,
        reference_labels=reference_labels, reference_mask=reference_mask,
        measure=measure, kernel=kernel, tiling=tiling,
    )  # fmt: skip
