"""N-pair loss: one anchor and one positive of every class."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from metricjax.errors import InputError
from metricjax.losses._kernels import anchors
from metricjax.losses._kernels.first_pairs import evaluate, first_pairs
from metricjax.losses._kernels.inputs import labelled_pairs
from metricjax.losses._kernels.measures import dot_products
from metricjax.losses._kernels.numerics import log1p_sum_exp, masked_mean
from metricjax.losses._kernels.tiling import Tiling


def n_pair(
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    *,
    l2_weight: float = 0.0,
    references: Float[Array, "n d"] | None = None,
    reference_labels: Int[Array, " n"] | None = None,
    reference_mask: Bool[Array, " n"] | None = None,
    tiling: Tiling = Tiling(),
) -> Float[Array, ""]:
    """Multi-class N-pair loss.

    The first image of every class is its anchor a_i, the second its positive p_i:
    `1 / N sum_i log(1 + sum_{k != i} exp(a_i . p_k - a_i . p_i))
    + l2_weight / (2 N) sum_i (|a_i|^2 + |p_i|^2)`
    over the N classes that have both. Further images of a class are not used.

    Args:
      embeddings: images [b, d], not normalised: products of unit vectors are at most 1,
        and the gradient of the loss then stays small.
      labels: their classes [b].
      l2_weight: weight of the mean squared length of anchors and positives, at least 0.
      references: the positive of an anchor is the first of its class here [n, d],
        instead of the second image of the batch.
      reference_labels: classes of the references [n].
      reference_mask: False for what is not to be taken as a positive [n].
      tiling: memory, devices and precision, see `losses.Tiling`; `block_size` counts
        anchors.

    Returns:
      A float32 scalar; 0 where no class has both.

    Raises:
      InputError: a negative weight, or shapes and types that do not fit.

    Source: Sohn, "Improved Deep Metric Learning with Multi-class N-pair Loss Objective"
    (NIPS 2016), N-pair-mc. Common code weighs lengths as `0.25 * 0.002 * (mean |a|^2 +
    mean |p|^2)`, which is `l2_weight=0.001`.
    """
    if l2_weight < 0:
        raise InputError(f"l2_weight must be 0 or more, but it is {l2_weight}.")
    batch, others, own = labelled_pairs(
        embeddings, labels, references, reference_labels, reference_mask,
        measure=dot_products,
    )  # fmt: skip
    pairs = first_pairs(batch.labels, others.labels, others.mask, own)
    if not len(pairs.anchors):
        return jnp.zeros(())

    def anchor(products, positives, negatives):
        """One anchor against the positives of all pairs; its own is `positives`."""
        own = jnp.sum(jnp.where(positives, products, 0.0))
        return log1p_sum_exp(products - own, negatives), positives.any()

    def loss(a, p, valid):
        """Anchors and positives [m, d], of which `valid` [m] are pairs."""
        numbers = jnp.arange(len(a))
        value = anchors.mean(
            anchor, a, numbers, references=p, reference_labels=numbers,
            reference_mask=valid, measure=dot_products, tiling=tiling,
        )  # fmt: skip
        if not l2_weight:
            return value
        squares = jnp.sum(jnp.square(a) + jnp.square(p), axis=1)
        return value + l2_weight / 2.0 * masked_mean(squares, valid)

    return evaluate(loss, batch.embeddings, others.embeddings, pairs, own)
