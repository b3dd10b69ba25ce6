"""The pair kernel: one anchor's row is the mathematics, the rest is blocks.

A pair loss is a function of one anchor: its distances to all references and two masks,
`(row [n], positives [n], negatives [n]) -> (value, weight)`. This file makes the rows
as one Gram matrix, maps the function over the anchors, and adds up; at once, in blocks
of anchors, or over the devices of a mesh (`blocks.py`). All of them run the same
function, so they are the same mathematics by construction.

A squared distance out of products is rounded by about 1e-7 of the squared lengths, not
of itself. Distances are therefore made about the mean of the references, which leaves
them as they are and the lengths as small as they can be: embeddings that have all come
close to each other are still told apart.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from metricjax.errors import InputError
from metricjax.losses._kernels import blocks
from metricjax.losses._kernels.blocks import Anchors, References
from metricjax.losses._kernels.numerics import safe_sqrt

# (row [n], positives [n], negatives [n][, side]) -> (value, weight), or -> value.
Anchor = Callable[..., Any]
Measure = Callable[
    [Float[Array, "b d"], Float[Array, "n d"], DTypeLike], Float[Array, "b n"]
]


@dataclass(frozen=True)
class Tiling:
    """How the rows are computed; never what they are.

    Attributes:
      block_size: anchors per block, 1 or more. `None` makes all rows at once, memory
        O(b n); a number bounds the memory to O(block_size n), and takes value and
        gradient of a block in the same pass. It need not divide the batch.
      mesh: devices among which the anchors are divided, each looping over its own
        blocks; they need not divide the batch. `None` leaves the division of rows made
        all at once to the compiler, and runs blocks without any.
      dtype: of the Gram matrix's operands. float32 is exact; bfloat16 is faster on
        matrix units and moves squared distances of unit vectors by up to about 1e-3.
    """

    block_size: int | None = None
    mesh: Mesh | None = None
    dtype: DTypeLike = jnp.float32

    def __post_init__(self):
        if self.block_size is not None and self.block_size < 1:
            raise InputError(
                f"block_size is {self.block_size}: it must be 1 or more, or None for "
                "all rows at once."
            )


def dot_products(
    anchors: Float[Array, "b d"], references: Float[Array, "n d"], dtype: DTypeLike
) -> Float[Array, "b n"]:
    """`x_i . y_j`, accumulated in float32; exact products when `dtype` is float32."""
    return jnp.matmul(
        anchors.astype(dtype),
        references.astype(dtype).T,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def squared_distances(
    anchors: Float[Array, "b d"], references: Float[Array, "n d"], dtype: DTypeLike
) -> Float[Array, "b n"]:
    """`|x_i|^2 + |y_j|^2 - 2 x_i . y_j`, rounding below 0 cut off."""
    anchors, references = anchors.astype(jnp.float32), references.astype(jnp.float32)
    squares = jnp.sum(jnp.square(anchors), axis=1)[:, None]
    squares = squares + jnp.sum(jnp.square(references), axis=1)[None, :]
    return jnp.maximum(squares - 2.0 * dot_products(anchors, references, dtype), 0.0)


def distances(
    anchors: Float[Array, "b d"], references: Float[Array, "n d"], dtype: DTypeLike
) -> Float[Array, "b n"]:
    """Euclidean distances; value and gradient 0 where the square is not positive.

    The square of two rows that coincide is 0 up to rounding, so that their distance may
    come out at up to about 1e-3 of their length instead of 0. The losses take lengths
    from the mean of the references.
    """
    return safe_sqrt(squared_distances(anchors, references, dtype))


def mean_over_anchors(
    anchor: Anchor,
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    *,
    references: Float[Array, "n d"] | None = None,
    reference_labels: Int[Array, " n"] | None = None,
    reference_mask: Bool[Array, " n"] | None = None,
    anchor_sides: Any = None,
    measure: Measure = distances,
    tiling: Tiling = Tiling(),
    batched: bool = False,
) -> Float[Array, ""]:
    """Sum of the values of `anchor` over the sum of its weights; 0 where that is 0.

    Args:
      anchor: `(row, positives, negatives) -> (value, weight)` of one anchor: its
        measure to every reference [n], the references of its class [n] (itself left
        out by index) and those of other classes [n]. The value counts where the weight
        is above 0; a bool says whether it does. Without traced arrays of its own, see
        `anchor_sides`.
      embeddings: anchors [b, d].
      labels: classes of the anchors [b], any integers.
      references: what anchors are compared with [n, d]; the batch itself by default,
        and only then is an anchor left out of its own row.
      reference_labels: classes of the references [n].
      reference_mask: False where a reference is to count neither as positive nor as
        negative [n].
      anchor_sides: arrays [b, ...] of which `anchor` gets its own as a fourth argument;
        they carry no gradient.
      measure: `squared_distances`, `distances` or `dot_products`.
      tiling: memory, devices and precision, see `Tiling`.
      batched: `anchor` takes a block of anchors, arrays [k, n], and returns [k] values
        and weights; an anchor without positives and negatives must add nothing.

    Returns:
      A float32 scalar.

    Raises:
      InputError: a wrong rank, integer embeddings, numbers of labels or widths that
        differ, one of `references` and `reference_labels` without the other.
    """
    value, weight = _totals(
        anchor, embeddings, labels, references=references,
        reference_labels=reference_labels, reference_mask=reference_mask,
        anchor_sides=anchor_sides, measure=measure, tiling=tiling, batched=batched,
    )  # fmt: skip
    return value / jnp.where(weight > 0, weight, 1.0)


def sum_over_anchors(
    anchor: Anchor, embeddings: Array, labels: Array, **options: Any
) -> Float[Array, ""]:
    """Sum of the values of `anchor`; arguments as in `mean_over_anchors`."""
    return _totals(anchor, embeddings, labels, **options)[0]


def anchor_values(
    anchor: Anchor,
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    *,
    references: Float[Array, "n d"] | None = None,
    reference_labels: Int[Array, " n"] | None = None,
    reference_mask: Bool[Array, " n"] | None = None,
    measure: Measure = distances,
    tiling: Tiling = Tiling(),
    batched: bool = False,
) -> Any:
    """What `anchor` returns for every anchor, arrays [b, ...]: nothing is added up.

    `anchor(row, positives, negatives) -> tree of arrays`; the other arguments as in
    `mean_over_anchors`. In blocks the backward pass makes the rows a second time.
    """
    anchors, others, own = labelled_pairs(
        embeddings, labels, references, reference_labels, reference_mask,
        measure=measure,
    )  # fmt: skip

    function = partial(_values_of_rows, anchor, measure, own, tiling.dtype, batched)
    plan = blocks.Plan(function, tiling.block_size, tiling.mesh)
    return blocks.per_anchor(plan, anchors, others)


def paired_distances(
    anchors: Float[Array, "b d"], others: Float[Array, "b d"], *, squared: bool = False
) -> Float[Array, " b"]:
    """`|x_i - y_i|`, or its square, from the differences: exact for near vectors too.

    Value and gradient are 0 where the two coincide.
    """
    squares = jnp.sum(jnp.square(anchors - others), axis=1)
    return squares if squared else safe_sqrt(squares)


def centre_of(
    vectors: Float[Array, "n d"], mask: Bool[Array, " n"]
) -> Float[Array, " d"]:
    """Mean of the vectors under the mask, without gradient; 0 if it is not finite.

    What distances are made about: no vector then makes those of others NaN. It is
    rounded to eight bits, so that differences from it are exact where the numbers are
    short, and equal distances of such stay equal.
    """
    total = jnp.sum(jnp.where(mask[:, None], vectors, 0.0), axis=0)
    mean = jax.lax.stop_gradient(total / jnp.maximum(jnp.sum(mask), 1))
    mean = jax.lax.reduce_precision(mean, exponent_bits=8, mantissa_bits=7)
    return jnp.where(jnp.isfinite(mean).all(), mean, 0.0)


def labelled_pairs(
    embeddings: Array,
    labels: Array,
    references: Array | None,
    reference_labels: Array | None,
    reference_mask: Array | None = None,
    anchor_sides: Any = None,
    *,
    measure: Measure,
) -> tuple[Anchors, References, bool]:
    """Checked anchors and references in float32, and whether they are the same batch.

    What is measured by distances is moved to about the mean of the references.

    Raises:
      InputError: as `mean_over_anchors`.
    """
    own = references is None
    if own != (reference_labels is None):
        raise InputError("references and reference_labels are given together or not.")
    check_labelled("embeddings", embeddings, labels)
    labels = jnp.asarray(labels)
    if own:
        references, reference_labels = embeddings, labels
    else:
        check_labelled("references", references, reference_labels)
        _check_widths(embeddings, references)
        reference_labels = jnp.asarray(reference_labels)
    if reference_mask is None:
        reference_mask = jnp.ones(len(reference_labels), bool)
    elif reference_mask.shape != reference_labels.shape:
        raise InputError(
            f"reference_mask must have one value for each of the "
            f"{len(reference_labels)} references, but its shape is "
            f"{list(reference_mask.shape)}."
        )
    # Blocks add their gradients up in the type of what they are given.
    embeddings, references = (x.astype(jnp.float32) for x in (embeddings, references))
    if measure in (distances, squared_distances):
        centre = centre_of(references, reference_mask)
        # Made once: fused into all that reads them, they are made every time anew.
        made_once = jax.lax.optimization_barrier
        references = made_once(references - centre)
        embeddings = references if own else made_once(embeddings - centre)
    numbers = jnp.arange(1, len(labels) + 1)
    anchors = Anchors(embeddings, labels, numbers, anchor_sides)
    return anchors, References(references, reference_labels, reference_mask), own


def check_labelled(name: str, embeddings: Array, labels: Array) -> None:
    """Raise `InputError` unless these are [b, d] floating and [b] integer."""
    if embeddings.ndim != 2 or not jnp.issubdtype(embeddings.dtype, jnp.floating):
        raise InputError(
            f"{name} must be floating point of shape [b, d], but they are "
            f"{embeddings.dtype} of shape {list(embeddings.shape)}."
        )
    if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise InputError(
            f"the labels of the {name} must be integers of shape [b], but they are "
            f"{labels.dtype} of shape {list(labels.shape)}."
        )
    if len(embeddings) != len(labels):
        raise InputError(
            f"there are {len(embeddings)} {name} but {len(labels)} labels for them."
        )
    if isinstance(labels, np.ndarray) and labels.size:
        largest = max(int(labels.max()), -int(labels.min()))
        if largest >= 2**31 and not jax.config.jax_enable_x64:
            raise InputError(
                f"the labels of the {name} reach {largest}, which JAX would cut to 32 "
                "bits: number the classes from 0, such as with numpy.unique."
            )


def _check_widths(embeddings: Array, references: Array) -> None:
    if embeddings.shape[1] != references.shape[1]:
        raise InputError(
            f"embeddings and references must be equally long, but they have "
            f"{embeddings.shape[1]} and {references.shape[1]} numbers each."
        )


def _totals(
    anchor, embeddings, labels, *, references=None, reference_labels=None,
    reference_mask=None, anchor_sides=None, measure=distances, tiling=Tiling(),
    batched=False,
):  # fmt: skip
    anchors, others, own = labelled_pairs(
        embeddings, labels, references, reference_labels, reference_mask, anchor_sides,
        measure=measure,
    )  # fmt: skip
    function = partial(_sum_of_rows, anchor, measure, own, tiling.dtype, batched)
    plan = blocks.Plan(function, tiling.block_size, tiling.mesh)
    return blocks.total(plan, anchors, others)


def _values_of_rows(anchor, measure, own, dtype, batched, anchors, references):
    """`anchor` of every anchor; masks are empty for padding."""
    rows = measure(anchors.embeddings, references.embeddings, dtype)
    same = anchors.labels[:, None] == references.labels[None, :]
    counts = (anchors.numbers > 0)[:, None] & references.mask[None, :]
    positives, negatives = same & counts, ~same & counts
    if own:
        places = jnp.arange(1, len(references.labels) + 1)
        positives &= anchors.numbers[:, None] != places[None, :]
    sides = () if anchors.sides is None else (anchors.sides,)
    mapped = anchor if batched else jax.vmap(anchor)
    return mapped(rows, positives, negatives, *sides)


def _sum_of_rows(anchor, measure, own, dtype, batched, anchors, references):
    """Sum of the values and of the weights over some anchors."""
    values, weights = _values_of_rows(
        anchor, measure, own, dtype, batched, anchors, references
    )
    weights = jnp.where(anchors.numbers > 0, weights, 0).astype(jnp.float32)
    return jnp.sum(jnp.where(weights > 0, values, 0.0)), jnp.sum(weights)
