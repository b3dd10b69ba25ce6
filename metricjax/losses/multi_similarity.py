"""Multi-similarity loss with its mining of informative pairs."""

from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from metricjax.errors import InputError
from metricjax.losses._kernels import anchors
from metricjax.losses._kernels import multi_similarity as kernel
from metricjax.losses._kernels.measures import dot_products
from metricjax.losses._kernels.numerics import log1p_sum_exp, masked_max, masked_min
from metricjax.losses._kernels.platform import Kernel
from metricjax.losses._kernels.tiling import Tiling


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
    tiling: Tiling = Tiling(),
) -> Float[Array, ""]:
    """Multi-similarity loss over the similarities `s_ij = x_i . x_j`.

    Mining keeps, for each anchor i, the positives P_i with
    `s_ij < max_{k neg} s_ik + epsilon` and the negatives N_i with
    `s_ik > min_{j pos} s_ij - epsilon`. The loss is

    `mean_i [log(1 + sum_{j in P_i} exp(-alpha (s_ij - base))) / alpha
    + log(1 + sum_{k in N_i} exp(beta (s_ik - base))) / beta]`.

    The mean is over all anchors; one with an empty P_i or N_i contributes 0.

    Args:
      embeddings: anchors [b, d] of unit length, so that s is the cosine, -1 to 1.
      labels: their classes [b].
      alpha: sharpness over positives, above 0.
      beta: sharpness over negatives, above 0.
      base: similarity at which a pair has the exponent 0.
      epsilon: slack of the mining in units of s; 2 or more keeps every pair of an
        anchor that has both kinds.
      references: the j and k [n, d] instead of the batch; no reference is then left out
        as the anchor itself.
      reference_labels: classes of the references [n].
      reference_mask: False where a reference does not count [n].
      tiling: memory, devices and precision, see `losses.Tiling`.

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

    def mined(similarities, positives, negatives, farthest, nearest):
        """Pairs that are hard enough, compared with the hardest of the other kind."""
        # Written so that NaN is mined, and is not hidden.
        positives &= ~(similarities >= nearest + epsilon)
        return positives, negatives & ~(similarities <= farthest - epsilon)

    def exponents(similarities):
        """Of a pair, as a positive and as a negative."""
        return -alpha * (similarities - base), beta * (similarities - base)

    def anchor(similarities, positives, negatives):
        """One anchor against all references: [n], [n] bool, [n] bool."""
        farthest = masked_min(similarities, positives)
        nearest = masked_max(similarities, negatives)
        positives, negatives = mined(
            similarities, positives, negatives, farthest, nearest
        )
        pull, push = exponents(similarities)
        value = log1p_sum_exp(pull, positives) / alpha
        value += log1p_sum_exp(push, negatives) / beta
        return jnp.where(positives.any() & negatives.any(), value, 0.0), True

    in_tiles = partial(kernel.in_tiles, mined, exponents, alpha, beta)
    return anchors.mean(
        anchor, embeddings, labels, references=references,
        reference_labels=reference_labels, reference_mask=reference_mask,
        measure=dot_products, kernel=Kernel(in_tiles), tiling=tiling,
    )  # fmt: skip
