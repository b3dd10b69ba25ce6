"""Maps the function of one anchor's row, which is the loss, over all anchors.

    def anchor(distances, positives, negatives):   # [n], [n] bool, [n] bool
        gap = masked_max(distances, positives) - masked_min(distances, negatives)
        return jax.nn.relu(gap + margin), positives.any() & negatives.any()

    loss = anchors.mean(anchor, embeddings, labels, tiling=tiling)

The rows come from one Gram matrix (`measures`): all at once, in blocks of anchors, or
divided over the devices of a mesh (`blocks`). All of them run the same function.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from metricjax.losses._kernels import blocks, platform
from metricjax.losses._kernels.inputs import check_labelled, labelled_pairs
from metricjax.losses._kernels.measures import Measure, distances
from metricjax.losses._kernels.platform import Kernel
from metricjax.losses._kernels.tiling import Tiling

# (row [n], positives [n], negatives [n], ...) -> (value, weight), or -> value.
Anchor = Callable[..., Any]

# Name of the axis of anchors under `vmap`, for collectives in a function of one anchor.
AXIS = "anchors"


def mean(
    anchor: Anchor,
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    *,
    kernel: Kernel | None = None,
    tiling: Tiling = Tiling(),
    **options: Any,
) -> Float[Array, ""]:
    """Sum of the values of `anchor` over the sum of its weights; 0 where that is 0.

    Args:
      anchor: `(row, positives, negatives) -> (value, weight)` of one anchor: its
        measure to every reference [n], the references of its class [n] (itself left
        out by index) and those of other classes [n]. The value counts where the weight
        is above 0; a bool says whether it counts. Both may be tuples of as many
        scalars: each value then has a mean of its own, and the means are added.
      embeddings: anchors [b, d].
      labels: classes of the anchors [b], any integers.
      kernel: an implementation of the mean for CPUs.
      tiling: memory, devices and precision, see `Tiling`.
      options: of `_totals`: references and their labels and mask, `before`, `sides`,
        `measure`, `symmetric`.

    Returns:
      A float32 scalar.

    Raises:
      InputError: a wrong rank, integer embeddings, numbers of labels or widths that
        differ, one of `references` and `reference_labels` without the other.
    """

    def of_rows(embeddings, labels):
        sums, weights = _totals(anchor, embeddings, labels, tiling=tiling, **options)
        means = jax.tree.map(lambda s, w: s / jnp.where(w > 0, w, 1.0), sums, weights)
        return sum(jax.tree.leaves(means))

    given = ("references", "reference_labels", "reference_mask")
    own = all(options.get(name) is None for name in given)
    if kernel is None or not kernel.covers(labels, own, tiling):
        return of_rows(embeddings, labels)
    check_labelled("embeddings", embeddings, labels)
    return platform.choose(
        of_rows, partial(kernel.function, tiling=tiling),
        jnp.asarray(embeddings).astype(jnp.float32), jnp.asarray(labels),
    )  # fmt: skip


def total(
    anchor: Anchor, embeddings: Array, labels: Array, **options: Any
) -> Float[Array, ""]:
    """Sum of the values of `anchor`; arguments as in `mean`."""
    return _totals(anchor, embeddings, labels, **options)[0]


def values(
    anchor: Anchor,
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    *,
    references: Float[Array, "n d"] | None = None,
    reference_labels: Int[Array, " n"] | None = None,
    reference_mask: Bool[Array, " n"] | None = None,
    measure: Measure = distances,
    tiling: Tiling = Tiling(),
) -> Any:
    """`anchor(row, positives, negatives) -> tree of arrays` of every anchor, [b, ...].

    Arguments as in `_totals`. In blocks the backward pass computes the rows again.
    """
    pairs = labelled_pairs(
        embeddings, labels, references, reference_labels, reference_mask,
        measure=measure,
    )  # fmt: skip
    return _values(anchor, *pairs, measure, tiling)


def _totals(
    anchor: Anchor,
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    *,
    references: Float[Array, "n d"] | None = None,
    reference_labels: Int[Array, " n"] | None = None,
    reference_mask: Bool[Array, " n"] | None = None,
    before: Anchor | None = None,
    sides: Any = None,
    measure: Measure = distances,
    symmetric: bool = False,
    tiling: Tiling = Tiling(),
) -> tuple[Any, Any]:
    """Sums of the values and of the weights of `anchor` over all anchors.

    Args:
      references: what anchors are compared with [n, d]; the batch itself by default,
        and only then is an anchor left out of its own row.
      reference_labels: classes of the references [n].
      reference_mask: False where a reference counts neither as positive nor as
        negative [n].
      before: a function of one anchor that runs first, `(row, positives, negatives) ->
        scalar`. `anchor` gets its own scalar and those of the references [n] as fourth
        and fifth argument; the row of a reference holds its measures to all anchors.
      sides: arrays [b, ...]; `anchor` gets its own as a fourth argument.
      measure: `squared_distances`, `distances` or `dot_products`.
      symmetric: in one batch, (i, j) adds to the value what (j, i) adds; this saves a
        matrix product in the gradient.

    The other arguments are those of `mean`.
    """
    anchors, others, own = labelled_pairs(
        embeddings, labels, references, reference_labels, reference_mask,
        measure=measure,
    )  # fmt: skip
    anchors = anchors._replace(sides=None if sides is None else (sides,))
    function = partial(_sum_of_rows, anchor, before, measure, own, tiling.dtype)
    symmetric = symmetric and own and reference_mask is None
    layout = blocks.Layout(function, tiling.block_size, tiling.mesh, symmetric)
    if before is not None and not layout.at_once(anchors):
        # A block has only some anchors, but `before` of a reference looks at all.
        first = second = _values(before, anchors, others, own, measure, tiling)
        if not own:
            second = _values(before, *_swapped(anchors, others), own, measure, tiling)
        anchors, others = anchors._replace(sides=first), others._replace(sides=second)
    return blocks.total(layout, anchors, others)


def _values(anchor, anchors, references, own, measure, tiling):
    function = partial(_values_of_rows, anchor, None, measure, own, tiling.dtype)
    layout = blocks.Layout(function, tiling.block_size, tiling.mesh)
    return blocks.per_anchor(layout, anchors, references)


def _swapped(anchors, references):
    """The references as anchors, the anchors as references."""
    numbers = jnp.arange(1, len(references.labels) + 1)
    everyone = jnp.ones(len(anchors.labels), bool)
    return (
        blocks.Anchors(references.embeddings, references.labels, numbers),
        blocks.References(anchors.embeddings, anchors.labels, everyone),
    )


def _values_of_rows(anchor, before, measure, own, dtype, anchors, references):
    """`anchor` of every anchor; masks are empty for padding."""
    rows = measure(anchors.embeddings, references.embeddings, dtype)
    same = anchors.labels[:, None] == references.labels[None, :]
    counts = (anchors.numbers > 0)[:, None] & references.mask[None, :]
    positives, negatives = same & counts, ~same & counts
    if own:
        places = jnp.arange(1, len(references.labels) + 1)
        positives &= anchors.numbers[:, None] != places[None, :]
    if before is None:
        return _mapped(anchor)(rows, positives, negatives, *(anchors.sides or ()))
    first, second = anchors.sides, references.sides
    if first is None:  # all rows are here: nothing is computed twice
        first = second = _mapped(before)(rows, positives, negatives)
        if not own:
            turned = (array.T for array in (rows, positives, negatives))
            second = _mapped(before)(*turned)
    over_rows = jax.vmap(anchor, (0, 0, 0, 0, None), axis_name=AXIS)
    return over_rows(rows, positives, negatives, first, second)


def _mapped(anchor):
    return jax.vmap(anchor, axis_name=AXIS)


def _sum_of_rows(anchor, before, measure, own, dtype, anchors, references):
    """Sums of the values and of the weights of some anchors."""
    values, weights = _values_of_rows(
        anchor, before, measure, own, dtype, anchors, references
    )

    def summed(value, weight):
        # Padding has no weight. A value without weight may be anything, but NaN.
        weight = jnp.where(anchors.numbers > 0, weight, 0).astype(jnp.float32)
        return jnp.sum(jnp.where(weight > 0, value, 0.0)), jnp.sum(weight)

    pairs = jax.tree.map(summed, values, weights)
    return jax.tree.transpose(jax.tree.structure(values), None, pairs)
