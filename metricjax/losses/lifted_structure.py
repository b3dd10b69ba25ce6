"""Lifted structure loss: every positive pair against all negatives of both members."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from metricjax.errors import InputError
from metricjax.losses._kernels import anchors
from metricjax.losses._kernels.lifted_structure import in_tiles
from metricjax.losses._kernels.numerics import masked_logsumexp
from metricjax.losses._kernels.platform import Kernel
from metricjax.losses._kernels.tiling import Tiling


def lifted_structure(
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    *,
    margin: float = 1.0,
    references: Float[Array, "n d"] | None = None,
    reference_labels: Int[Array, " n"] | None = None,
    reference_mask: Bool[Array, " n"] | None = None,
    tiling: Tiling = Tiling(),
) -> Float[Array, ""]:
    """Lifted structured loss over the positive pairs P of the batch.

    `1 / (2 |P|) sum_{(i,j) in P} relu(J_ij)^2` with
    `J_ij = log(sum_{k neg of i} exp(margin - d_ik) + sum_{l neg of j} exp(margin -
    d_jl)) + d_ij` and d the Euclidean distance. A pair whose members have no negative
    costs nothing.

    Args:
      embeddings: anchors [b, d].
      labels: their classes [b].
      margin: in units of the distance, at least 0.
      references: the j and k [n, d] instead of the batch, none of them left out as the
        anchor itself; the negatives l of a reference j are then the anchors of other
        classes.
      reference_labels: classes of the references [n].
      reference_mask: False where a reference does not count [n].
      tiling: memory, devices and precision, see `losses.Tiling`.

    Returns:
      A float32 scalar; 0 where there is no positive pair.

    Raises:
      InputError: a negative margin, or shapes and types that do not fit.

    Source: Oh Song et al., "Deep Metric Learning via Lifted Structured Feature
    Embedding" (arXiv 1511.06452), the smooth bound that is minimised.
    """
    if margin < 0:
        raise InputError(f"margin must be 0 or more, but it is {margin}.")

    def push(distances, positives, negatives):
        """log sum_k exp(margin - d_ik) of one anchor; -inf if it has no negative."""
        return masked_logsumexp(margin - distances, negatives)

    def anchor(distances, positives, negatives, own, others):
        """One anchor against all references, with its push and theirs [n]."""
        counts = positives & ((own != -jnp.inf) | (others != -jnp.inf))
        # Where neither has a negative, 0 in place of -inf: else the gradient is NaN.
        own, others = (jnp.where(counts, push, 0.0) for push in (own, others))
        joined = jnp.logaddexp(own, others) + distances
        hinges = jnp.where(counts, jax.nn.relu(joined), 0.0)
        return jnp.sum(jnp.square(hinges)) / 2.0, jnp.sum(positives)

    return anchors.mean(
        anchor, embeddings, labels, references=references,
        reference_labels=reference_labels, reference_mask=reference_mask,
        before=push, kernel=Kernel(partial(in_tiles, margin)), tiling=tiling,
    )  # fmt: skip
