"""Contrastive loss: positives together, negatives at least a margin apart."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from metricjax.errors import InputError
from metricjax.losses._kernels import anchors as pairwise
from metricjax.losses._kernels import pairs
from metricjax.losses._kernels.numerics import masked_mean
from metricjax.losses._kernels.tiles import Statistic

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
    tiling: pairwise.Tiling = pairwise.Tiling(),
) -> Float[Array, ""]:
    """Contrastive loss over all ordered pairs (i, j), `j != i`.

    A pair of one class costs `D_ij`, any other `relu(margin - D_ij)`, with
    `D = |x_i - x_j|^2`, or the distance itself.

    Args:
      embeddings: anchors [b, d], of unit length unless another scale is meant.
      labels: their classes [b].
      margin: in units of D, at least 0. Squared distances of unit vectors are at most
        4; below the default of 1 lie those whose cosine is above 0.5.
      squared: whether D is the squared distance.
      reduction: "mean" divides the sum by the number of pairs; "nonzero" averages
        positive and negative terms each over those that are above 0, and adds the two.
      among: "all" pairs of the batch, or "adjacent" ones alone: rows 2t and 2t + 1 are
        a pair, as a sampler of pairs puts them, b / 2 in all.
      references: the j [n, d] instead of the batch; none is then left out as the
        anchor itself.
      reference_labels: classes of the references [n].
      reference_mask: False where a reference does not count [n].
      tiling: memory, devices and precision, see `pairwise.Tiling`.

    Returns:
      A float32 scalar; 0 where there is no pair.

    Raises:
      InputError: a negative margin, an unknown reduction or `among`, shapes and types
        that do not fit; adjacent pairs of an odd batch, or beside references.

    Source: Kim et al., "Attention-based Ensemble for Deep Metric Learning" (arXiv
    1804.00382), the metric loss of one learner, with the squared distance inside the
    hinge and margin 1. "nonzero" is the reduction of pytorch-metric-learning.
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
        return _of_adjacent(embeddings, labels, margin, squared, reduction)
    options = {
        "references": references,
        "reference_labels": reference_labels,
        "reference_mask": reference_mask,
        "measure": pairwise.squared_distances if squared else pairwise.distances,
        "tiling": tiling,
    }

    def together(tile):
        return jnp.where(tile.positives, tile.measures, 0.0)

    def apart(tile):
        return jnp.where(tile.negatives, jax.nn.relu(margin - tile.measures), 0.0)

    def pair(tile):
        return together(tile) + apart(tile)

    if reduction == "mean":
        total = pairs.sum_over_pairs(
            pair, embeddings, labels, symmetric=True, **options
        )
        count = pairs.count_pairs(embeddings, references, reference_mask)
        return total / jnp.maximum(count, 1.0)

    def above_zero(tile, axis):
        return tuple(
            jnp.sum(term(tile) > 0, axis=axis, dtype=jnp.float32)
            for term in (together, apart)
        )

    def scaled(tile):
        return tile.sides[0] * together(tile) + tile.sides[1] * apart(tile)

    counting = Statistic(above_zero, (0.0, 0.0), partial(jax.tree.map, jnp.add))
    counts = pairs.statistics(counting, embeddings, labels, **options)
    scales = tuple(
        jnp.full(len(labels), 1.0 / jnp.maximum(jnp.sum(count), 1.0))
        for count in counts
    )
    return pairs.sum_over_pairs(
        scaled, embeddings, labels, sides=scales, symmetric=True, **options
    )


def _of_adjacent(embeddings, labels, margin, squared, reduction):
    pairwise.check_labelled("embeddings", embeddings, labels)
    if len(labels) % 2:
        raise InputError(
            f"among='adjacent' needs an even batch, but it has {len(labels)} rows."
        )
    rows = embeddings.astype(jnp.float32)
    distances = pairwise.paired_distances(rows[0::2], rows[1::2], squared=squared)
    same = labels[0::2] == labels[1::2]
    hinges = jax.nn.relu(margin - distances)
    if reduction == "mean":
        return masked_mean(jnp.where(same, distances, hinges), jnp.ones_like(same))
    return masked_mean(distances, same & ~(distances <= 0)) + masked_mean(
        hinges, ~same & ~(hinges <= 0)
    )
