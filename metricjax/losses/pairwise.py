"""The pair kernel: one anchor's row is the mathematics, the rest is arrangement.

A pair loss is a function of one anchor: its distances to all references and two masks,
`(row [n], positives [n], negatives [n]) -> (value, valid)`. This file makes the rows as
one Gram matrix, maps the function over the anchors, and averages over those that are
valid, at once or in blocks of anchors. Both ways run the same function, so they are the
same mathematics by construction.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from metricjax.errors import InputError
from metricjax.losses.numerics import safe_sqrt

Anchor = Callable[
    [Float[Array, " n"], Bool[Array, " n"], Bool[Array, " n"]],
    tuple[Float[Array, ""], Bool[Array, ""]],
]
Measure = Callable[[Float[Array, "b d"], Float[Array, "n d"]], Float[Array, "b n"]]


@dataclass(frozen=True)
class Tiling:
    """How the rows are computed; never what they are.

    Attributes:
      block_size: anchors per block, 1 or more. `None` makes all rows at once, memory
        O(b n); a number bounds the memory to O(block_size n), and takes value and
        gradient of a block in the same pass. It need not divide the batch.
      dtype: of the Gram matrix's operands. float32 is exact; bfloat16 is faster on
        matrix units and moves squared distances of unit vectors by up to about 1e-3.
    """

    block_size: int | None = None
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
    come out at up to about 1e-3 of their length instead of 0.
    """
    return safe_sqrt(squared_distances(anchors, references, dtype))


def mean_over_anchors(
    anchor: Anchor,
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    *,
    references: Float[Array, "n d"] | None = None,
    reference_labels: Int[Array, " n"] | None = None,
    measure: Measure = distances,
    tiling: Tiling = Tiling(),
) -> Float[Array, ""]:
    """Mean of `anchor` over the anchors for which it is valid; 0 where none is.

    Args:
      anchor: `(row, positives, negatives) -> (value, valid)` of one anchor: its
        measure to every reference [n], the references of its class [n] (itself left
        out by index) and those of other classes [n].
      embeddings: anchors [b, d].
      labels: classes of the anchors [b], any integers.
      references: what anchors are compared with [n, d]; the batch itself by default,
        and only then is an anchor left out of its own row.
      reference_labels: classes of the references [n].
      measure: `squared_distances`, `distances` or `dot_products`.
      tiling: memory and precision, see `Tiling`.

    Returns:
      A float32 scalar.

    Raises:
      InputError: a wrong rank, integer embeddings, numbers of labels or widths that
        differ, one of `references` and `reference_labels` without the other.
    """
    own = references is None
    if own != (reference_labels is None):
        raise InputError("references and reference_labels are given together or not.")
    check_labelled("embeddings", embeddings, labels)
    if own:
        references, reference_labels = embeddings, labels
    else:
        check_labelled("references", references, reference_labels)
        _check_widths(embeddings, references)
    # Blocks add their gradients up in the type of what they are given.
    embeddings, references = (x.astype(jnp.float32) for x in (embeddings, references))
    rows = partial(_sum_of_rows, anchor, measure, own, tiling.dtype)
    positions = jnp.arange(len(labels))
    if tiling.block_size is None or tiling.block_size >= len(labels):
        parts = rows(embeddings, references, labels, positions, reference_labels)
    else:
        blocked = partial(_sum_in_blocks, rows, tiling.block_size)
        parts = blocked(embeddings, references, labels, positions, reference_labels)
    total, valid = parts
    return total / jnp.maximum(valid, 1.0)


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


def _check_widths(embeddings: Array, references: Array) -> None:
    if embeddings.shape[1] != references.shape[1]:
        raise InputError(
            f"embeddings and references must be equally long, but they have "
            f"{embeddings.shape[1]} and {references.shape[1]} numbers each."
        )


def _sum_of_rows(
    anchor, measure, own, dtype, embeddings, references, labels, positions, others
):
    """Sum of the values and number of the valid ones over some anchors.

    An anchor at a negative position is padding and counts for nothing.
    """
    rows = measure(embeddings, references, dtype)
    same = labels[:, None] == others[None, :]
    positives, negatives = same, ~same
    if own:
        positives &= positions[:, None] != jnp.arange(len(others))[None, :]
    values, valid = jax.vmap(anchor)(rows, positives, negatives)
    valid &= positions >= 0
    return jnp.sum(jnp.where(valid, values, 0.0)), jnp.sum(valid, dtype=jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sum_in_blocks(rows, block_size, embeddings, references, *labelling):
    parts = _scan_blocks(rows, block_size, embeddings, references, *labelling)
    return parts[0]


def _sum_in_blocks_forward(rows, block_size, embeddings, references, *labelling):
    gradient = jax.value_and_grad(rows, argnums=(0, 1), has_aux=True)

    def with_gradient(*args):
        (total, valid), gradients = gradient(*args)
        return (total, valid), gradients

    sums, gradients = _scan_blocks(
        with_gradient, block_size, embeddings, references, *labelling, gradients=True
    )
    return sums, gradients


def _sum_in_blocks_backward(rows, block_size, gradients, cotangents):
    # The sum is linear in the blocks, so their gradients only wait to be scaled; the
    # count of valid anchors does not depend on the embeddings.
    scale = cotangents[0]
    to_anchors, to_references = gradients
    return scale * to_anchors, scale * to_references, None, None, None


_sum_in_blocks.defvjp(_sum_in_blocks_forward, _sum_in_blocks_backward)


def _scan_blocks(
    function,
    block_size,
    embeddings,
    references,
    labels,
    positions,
    others,
    *,
    gradients=False,
):
    """Run `function` over blocks of anchors and add up what it returns."""
    count = len(labels)
    blocks = -(-count // block_size)
    padding = blocks * block_size - count

    def split(array, fill):
        widths = [(0, padding)] + [(0, 0)] * (array.ndim - 1)
        padded = jnp.pad(array, widths, constant_values=fill)
        return padded.reshape(blocks, block_size, *array.shape[1:])

    def block(carry, inputs):
        embeddings, labels, positions = inputs
        sums, to_references = carry
        result = function(embeddings, references, labels, positions, others)
        if not gradients:
            return (jax.tree.map(jnp.add, sums, result), to_references), None
        added, (to_anchors, more) = result
        sums = jax.tree.map(jnp.add, sums, added)
        return (sums, to_references + more), to_anchors

    zero = (jnp.float32(0.0), jnp.float32(0.0))
    inputs = split(embeddings, 0), split(labels, 0), split(positions, -1)
    (sums, to_references), to_anchors = jax.lax.scan(
        block, (zero, jnp.zeros_like(references)), inputs
    )
    if not gradients:
        return sums, None
    return sums, (to_anchors.reshape(-1, embeddings.shape[1])[:count], to_references)
