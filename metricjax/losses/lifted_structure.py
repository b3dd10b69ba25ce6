"""Lifted structure loss: every positive pair against all negatives of both members."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from metricjax.errors import InputError
from metricjax.losses import pairwise
from metricjax.losses.numerics import masked_logsumexp
from metricjax.losses.positives import PositivePairs, sum_over_positives


def lifted_structure(
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    *,
    margin: float = 1.0,
    references: Float[Array, "n d"] | None = None,
    reference_labels: Int[Array, " n"] | None = None,
    reference_mask: Bool[Array, " n"] | None = None,
    tiling: pairwise.Tiling = pairwise.Tiling(),
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
      references: the j and k [n, d] instead of the batch, none left out as the anchor
        itself; the negatives l of a reference j are then the anchors of other classes.
      reference_labels: classes of the references [n].
      reference_mask: False where a reference does not count [n].
      tiling: memory, devices and precision, see `pairwise.Tiling`. It shapes the sums
        over negatives; positive pairs are few and taken one by one.

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
        return masked_logsumexp(margin - distances, negatives)

    anchors, others, own = pairwise.labelled_pairs(
        embeddings, labels, references, reference_labels, reference_mask
    )
    pushes = partial(pairwise.anchor_values, push, tiling=tiling)
    if own:
        of_anchors = pushes(
            anchors.embeddings, anchors.labels, reference_mask=reference_mask
        )
        of_others = of_anchors
    else:
        of_anchors = pushes(
            anchors.embeddings, anchors.labels, references=others.embeddings,
            reference_labels=others.labels, reference_mask=others.mask,
        )  # fmt: skip
        of_others = pushes(
            others.embeddings, others.labels, references=anchors.embeddings,
            reference_labels=anchors.labels,
        )  # fmt: skip

    def pair(distances, of_anchor, of_other):
        pushed = (of_anchor != -jnp.inf) | (of_other != -jnp.inf)
        both = jnp.logaddexp(
            jnp.where(pushed, of_anchor, 0.0), jnp.where(pushed, of_other, 0.0)
        )
        return jnp.where(pushed, jnp.square(jax.nn.relu(both + distances)), 0.0)

    value, count = sum_over_positives(
        PositivePairs(pair, own, tiling.mesh),
        anchors._replace(sides=of_anchors),
        others._replace(sides=of_others),
    )
    return value / (2.0 * jnp.where(count > 0, count, 1.0))
