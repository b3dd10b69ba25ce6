"""Multi-similarity loss with its mining of informative pairs."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from metricjax.errors import InputError
from metricjax.losses import pairwise
from metricjax.losses.numerics import log1p_sum_exp


def multi_similarity(
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    *,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    epsilon: float = 0.1,
    references: Float[Array, "n d"] | None = None,
    reference_labels: Int[Array, " n"] | None = None,
    reference_mask: Bool[Array, " n"] | None = None,
    tiling: pairwise.Tiling = pairwise.Tiling(),
) -> Float[Array, ""]:
    """Multi-similarity loss over the similarities `s_ij = x_i . x_j`.

    Of each anchor i the positives with `s_ij < max_{k neg} s_ik + epsilon` and the
    negatives with `s_ik > min_{j pos} s_ij - epsilon` are kept, P_i and N_i, and

    `mean_i [log(1 + sum_{j in P_i} exp(-alpha (s_ij - base))) / alpha
    + log(1 + sum_{k in N_i} exp(beta (s_ik - base))) / beta]`.

    The mean is over all anchors; one with an empty P_i or N_i contributes 0.

    Args:
      embeddings: anchors [b, d] of unit length, so that s is the cosine, -1 to 1.
      labels: their classes [b].
      alpha: sharpness over positives, above 0.
      beta: sharpness over negatives, above 0.
      base: similarity about which pairs are weighed.
      epsilon: slack of the mining in units of s; 2 or more keeps every pair of an
        anchor that has both kinds.
      references: the j and k [n, d] instead of the batch; none is then left out as the
        anchor itself.
      reference_labels: classes of the references [n].
      reference_mask: False where a reference does not count [n].
      tiling: memory, devices and precision, see `pairwise.Tiling`.

    Returns:
      A float32 scalar.

    Raises:
      InputError: alpha or beta not above 0, or shapes and types that do not fit.

    Source: Wang et al., "Multi-Similarity Loss with General Pair Weighting for Deep
    Metric Learning" (arXiv 1904.06627), mining and loss; base 0.5 and the anchors that
    contribute 0 follow the authors' code.
    """
    for name, value in (("alpha", alpha), ("beta", beta)):
        if value <= 0:
            raise InputError(f"{name} must be above 0, but it is {value}.")

    def anchor(similarities, positives, negatives):
        farthest = jnp.min(jnp.where(positives, similarities, jnp.inf))
        nearest = jnp.max(jnp.where(negatives, similarities, -jnp.inf))
        # Written so that NaN is kept, and shows.
        kept = positives & ~(similarities >= nearest + epsilon)
        pushed = negatives & ~(similarities <= farthest - epsilon)
        together = log1p_sum_exp(-alpha * (similarities - base), kept) / alpha
        apart = log1p_sum_exp(beta * (similarities - base), pushed) / beta
        both = kept.any() & pushed.any()
        return jnp.where(both, together + apart, 0.0), True

    return pairwise.mean_over_anchors(
        anchor, embeddings, labels, references=references,
        reference_labels=reference_labels, reference_mask=reference_mask,
        measure=pairwise.dot_products, tiling=tiling,
    )  # fmt: skip
