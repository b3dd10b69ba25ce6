"""Divergence of the learners of an ensemble, ABE's second loss."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from metricjax.errors import InputError


def divergence(
    learners: Float[Array, "b m d"],
    *,
    margin: float = 1.0,
    reduction: str = "sum_pairs",
) -> Float[Array, ""]:
    """Pushes the learners of the same image apart.

    `mean_i sum_{p < q} relu(margin - |x_ip - x_iq|^2)` over the images i and the
    unordered pairs (p, q) of learners. On unit vectors and with margin 1 a pair costs
    something where its cosine is above 0.5.

    Args:
      learners: embeddings of each image by each learner [b, m, d], of unit length
        unless another scale is meant.
      margin: in units of the squared distance, at least 0; unit vectors are at most 4
        apart.
      reduction: "sum_pairs" as above, or "mean_pairs" for the mean over the
        m (m - 1) / 2 pairs. Whether the paper's sum is over ordered pairs, and whether
        it is a mean over the images, is not known; an ordered sum is twice this one.

    Returns:
      A float32 scalar; 0 for one learner, which has no pair.

    Raises:
      InputError: a negative margin, an unknown reduction, or learners that are not
        floating point of shape [b, m, d].

    Source: Kim et al., "Attention-based Ensemble for Deep Metric Learning" (arXiv
    1804.00382), the divergence loss.
    """
    if margin < 0:
        raise InputError(f"margin must be 0 or more, but it is {margin}.")
    if reduction not in ("sum_pairs", "mean_pairs"):
        raise InputError(
            f"reduction is {reduction!r}: choose 'sum_pairs' or 'mean_pairs'."
        )
    if learners.ndim != 3 or not jnp.issubdtype(learners.dtype, jnp.floating):
        raise InputError(
            f"learners must be floating point of shape [b, m, d], but they are "
            f"{learners.dtype} of shape {list(learners.shape)}."
        )
    count, width = learners.shape[:2]
    learners = learners.astype(jnp.float32)
    gram = jnp.einsum(
        "ipd,iqd->ipq", learners, learners, precision=jax.lax.Precision.HIGHEST
    )
    squares = jnp.sum(jnp.square(learners), axis=-1)
    apart = jnp.maximum(squares[:, :, None] + squares[:, None, :] - 2.0 * gram, 0.0)
    pairs = np.triu(np.ones((width, width), bool), 1)
    total = jnp.sum(jnp.where(pairs, jax.nn.relu(margin - apart), 0.0))
    if reduction == "mean_pairs":
        total = total / max(width * (width - 1) // 2, 1)
    return total / max(count, 1)
