"""Contrastive loss over all pairs of a batch, or over adjacent ones."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from metricjax.errors import InputError
from metricjax.losses._kernels import anchors, measures
from metricjax.losses._kernels import contrastive as kernel
from metricjax.losses._kernels.inputs import check_labelled
from metricjax.losses._kernels.numerics import masked_mean
from metricjax.losses._kernels.platform import Kernel
from metricjax.losses._kernels.tiling import Tiling

REDUCTIONS = ("mean", "nonzero")
AMONG = ("all", "adjacent")


def contrastive(
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    *,
    margin: float = 1.0,
    squared: bool = True,
    reduction: str = "mean",
    among: str = "all",
    references: Float[Array, "n d"] | None = None,
    reference_labels: Int[Array, " n"] | None = None,
    reference_mask: Bool[Array, " n"] | None = None,
    tiling: Tiling = Tiling(),
) -> Float[Array, ""]:
    """Contrastive loss: positives close together, negatives at least a margin apart.

    The mean over all ordered pairs (i, j), `j != i`, of

        D_ij                  if y_j = y_i,
        relu(margin - D_ij)   otherwise,

    with `D_ij = |x_i - x_j|^2`, or `|x_i - x_j|` without `squared`.

    Args:
      embeddings: anchors [b, d], of unit length unless another scale is meant.
      labels: their classes [b].
      margin: in units of D, at least 0. Squared distances of unit vectors are at most
        4; below the default of 1 lie those whose cosine is above 0.5.
      squared: whether D is the squared distance.
      reduction: "mean" divides the sum by the number of pairs; "nonzero" averages
        positive and negative terms each over those that are above 0, and adds the two.
      among: "all" pairs of the batch, or "adjacent" ones only: the b / 2 pairs of rows
        2t and 2t + 1, the order of a sampler of pairs.
      references: the j [n, d] instead of the batch; no reference is then left out as
        the anchor itself.
      reference_labels: classes of the references [n].
      reference_mask: False where a reference does not count [n].
      tiling: memory, devices and precision, see `losses.Tiling`.

    Returns:
      A float32 scalar; 0 where there is no pair.

    Raises:
      InputError: a negative margin, an unknown reduction or `among`, shapes and types
        that do not fit; adjacent pairs of an odd batch, or beside references.

    Source: Kim et al., "Attention-based Ensemble for Deep Metric Learning" (arXiv
    1804.00382), the metric loss of one learner, with the squared distance inside the
    hinge and margin 1. "nonzero" is the reduction of pytorch-metric-learning.

    >>> import jax.numpy as jnp
    >>> x = jnp.array([[0.0], [0.5], [1.0]])
    >>> float(contrastive(x, jnp.array([0, 0, 1])))  # (0.25 + 0.75 + 0) / 3
    0.3333333432674408
    """
    if margin < 0:
        raise InputError(f"margin must be 0 or more, but it is {margin}.")
    if reduction not in REDUCTIONS:
        raise InputError(
            f"reduction is {reduction!r}: choose one of {', '.join(REDUCTIONS)}."
        )
    if among not in AMONG:
        raise InputError(f"among is {among!r}: choose one of {', '.join(AMONG)}.")
    if among == "adjacent":
        if references is not None:
            raise InputError("among='adjacent' compares rows of the batch alone.")
        return _adjacent(embeddings, labels, margin, squared, reduction)
    measure = measures.squared_distances if squared else measures.distances

    def terms(distances, positives, negatives):
        """What a pair costs, as a positive and as a negative."""
        pull = jnp.where(positives, distances, 0.0)
        push = jnp.where(negatives, jax.nn.relu(margin - distances), 0.0)
        return pull, push

    def anchor(distances, positives, negatives):
        """One anchor against all references: [n], [n] bool, [n] bool."""
        pull, push = terms(distances, positives, negatives)
        if reduction == "mean":
            return jnp.sum(pull + push), jnp.sum(positives | negatives)
        # Written so that NaN counts, and is not hidden.
        return (jnp.sum(pull), jnp.sum(push)), (
            jnp.sum(~(pull <= 0)),
            jnp.sum(~(push <= 0)),
        )

    in_tiles = partial(kernel.in_tiles, terms, reduction == "nonzero", measure)
    return anchors.mean(
        anchor, embeddings, labels, references=references,
        reference_labels=reference_labels, reference_mask=reference_mask,
        measure=measure, symmetric=True, kernel=Kernel(in_tiles), tiling=tiling,
    )  # fmt: skip


def _adjacent(embeddings, labels, margin, squared, reduction):
    check_labelled("embeddings", embeddings, labels)
    if len(labels) % 2:
        raise InputError(
            f"among='adjacent' needs an even batch, but it has {len(labels)} rows."
        )
    rows = embeddings.astype(jnp.float32)
    distances = measures.paired_distances(rows[0::2], rows[1::2], squared=squared)
    same = labels[0::2] == labels[1::2]
    hinges = jax.nn.relu(margin - distances)
    if reduction == "mean":
        return masked_mean(jnp.where(same, distances, hinges), jnp.ones_like(same))
    return masked_mean(distances, same & ~(distances <= 0)) + masked_mean(
        hinges, ~same & ~(hinges <= 0)
    )
