"""Lifted structure loss: every positive pair against all negatives of both members."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from metricjax.errors import InputError
from metricjax.losses._kernels import anchors as pairwise
from metricjax.losses._kernels import pairs
from metricjax.losses._kernels.tiles import Statistic


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
      tiling: memory, devices and precision, see `pairwise.Tiling`.

    Returns:
      A float32 scalar; 0 where there is no positive pair.

    Raises:
      InputError: a negative margin, or shapes and types that do not fit.

    Source: Oh Song et al., "Deep Metric Learning via Lifted Structured Feature
    Embedding" (arXiv 1511.06452), the smooth bound that is minimised.
    """
    if margin < 0:
        raise InputError(f"margin must be 0 or more, but it is {margin}.")

    anchors = {
        "references": references,
        "reference_labels": reference_labels,
        "reference_mask": reference_mask,
        "tiling": tiling,
    }
    others = {"references": embeddings, "reference_labels": labels, "tiling": tiling}

    def push(tile):
        return margin - tile.measures, tile.negatives

    pushing = pairs.log_sum_exp(push)
    pushes = pairs.finish(pairs.statistics(pushing, embeddings, labels, **anchors))
    other_pushes = pushes
    if references is not None:
        other_pushes = pairs.finish(
            pairs.statistics(pushing, references, reference_labels, **others)
        )

    squares, slopes, numbers = pairs.statistics(
        _POSITIVES, embeddings, labels, sides=(pushes,),
        reference_sides=(other_pushes,), **anchors,
    )  # fmt: skip
    # A pair is also pushed by what its second member is pushed by.
    if references is None:
        seconds = slopes
        if reference_mask is not None:
            seconds = (
                reference_mask
                * pairs.statistics(
                    _POSITIVES, embeddings, labels, sides=(pushes,), tiling=tiling
                )[1]
            )
        slopes = slopes + seconds
    else:
        other_slopes = pairs.statistics(
            _POSITIVES, references, reference_labels, sides=(other_pushes,),
            reference_sides=(pushes,), **others,
        )[1]  # fmt: skip
        if reference_mask is not None:
            other_slopes = reference_mask * other_slopes

    def apart(tile):
        """Of the slope that an anchor's pushes, times theirs, have by this pair."""
        exponent = jnp.where(tile.negatives, push(tile)[0] - tile.sides[0], -jnp.inf)
        return tile.sides[1] * jnp.exp(exponent)

    def pair(tile):
        return apart(tile) + jnp.square(_hinge(tile))

    surrogate = pairs.sum_over_pairs(
        pair, embeddings, labels, sides=(pushes, slopes),
        reference_sides=(other_pushes,), **anchors,
    )  # fmt: skip
    if references is not None:
        surrogate += pairs.sum_over_pairs(
            apart, references, reference_labels, sides=(other_pushes, other_slopes),
            **others,
        )  # fmt: skip
    scale = 0.5 / jnp.maximum(jnp.sum(numbers), 1.0)
    return scale * pairs.with_gradient_of(jnp.sum(squares), surrogate)


def _joined(tile):
    """J of the positive pairs without d, the anchor's part, and which pairs count.

    A pair counts where either of its members has a negative at all.
    """
    some = (tile.sides[0] != -jnp.inf) | (tile.other_sides[0] != -jnp.inf)
    one, other = (
        jnp.where(some, side[0], 0.0) for side in (tile.sides, tile.other_sides)
    )
    return jnp.logaddexp(one, other), one, tile.positives & some


def _hinge(tile):
    both, _, counts = _joined(tile)
    return jnp.where(counts, jax.nn.relu(both + tile.measures), 0.0)


def _of_positives(tile, axis):
    """The sum of squares, its slope by the anchor's pushes, number of pairs."""
    both, own, _ = _joined(tile)
    hinges = _hinge(tile)
    share = jnp.where(hinges > 0, jnp.exp(own - both), 0.0)
    return tuple(
        jnp.sum(term, axis=axis, dtype=jnp.float32)
        for term in (jnp.square(hinges), 2.0 * hinges * share, tile.positives)
    )


_POSITIVES = Statistic(_of_positives, (0.0, 0.0, 0.0), partial(jax.tree.map, jnp.add))
