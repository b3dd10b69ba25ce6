"""N-pair's batch: the first image of every class, and its positive.

How many classes have such a pair depends on the labels, and arrays need a static size:
the largest possible number of pairs, half of the batch, and a mask. With four images of
a class that is twice the rows and twice the columns needed. Batches that are not small
therefore get a few sizes, and the smallest that fits is chosen while the program runs.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Sizes that are compiled, as fractions of the batch.
_FRACTIONS = (8, 4, 3, 2)
_SMALL = 256  # images; below, the larger matrix costs nothing that counts

# `(anchors [m, d], positives [m, d], valid [m]) -> loss`
Loss = Callable[..., Float[Array, ""]]


class Pairs(NamedTuple):
    """Rows of the anchors and of their positives [most], and how many are pairs."""

    anchors: Int[Array, " most"]
    positives: Int[Array, " most"]
    count: Int[Array, ""]


def first_pairs(
    labels: Int[Array, " b"],
    others: Int[Array, " n"],
    mask: Bool[Array, " n"],
    own: bool,
) -> Pairs:
    """The first image of every class with the first other one that may be its positive.

    Args:
      labels: of the batch.
      others: labels of the references, the batch itself if `own`.
      mask: references that may be a positive.
    """
    # A stable sort by class keeps the batch's images in order, before the references.
    count = len(labels)
    if own:
        usable, most = mask, count // 2
    else:
        usable = jnp.concatenate([jnp.zeros(count, bool), mask])
        labels, most = jnp.concatenate([labels, others]), min(count, len(others))
    places = jnp.arange(len(labels))
    order = jnp.argsort(labels)
    ordered = labels[order]
    begins = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])
    # From every place, the nearest one after it that may be a positive.
    usable_places = jnp.where(usable[order], places, len(labels))
    after = jax.lax.cummin(usable_places, reverse=True)[1:]
    after = jnp.append(after, len(labels))
    partner = jnp.minimum(after, len(labels) - 1)
    valid = begins & (after < len(labels)) & (ordered[partner] == ordered)
    valid &= order < count
    (chosen,) = jnp.nonzero(valid, size=most, fill_value=0)
    positives = order[partner[chosen]]
    if not own:
        positives = jnp.maximum(positives - count, 0)
    return Pairs(order[chosen], positives, jnp.sum(valid))


def evaluate(
    loss: Loss,
    embeddings: Float[Array, "b d"],
    references: Float[Array, "n d"],
    pairs: Pairs,
    own: bool,
) -> Float[Array, ""]:
    """`loss` of the pairs, in arrays of the smallest size that holds them."""
    images = (embeddings,) if own else (embeddings, references)
    most = len(pairs.anchors)
    whole = partial(_of_size, loss, most)
    if len(embeddings) <= _SMALL:
        return whole(images, pairs)
    smaller = (-(-len(embeddings) // fraction) for fraction in _FRACTIONS)
    sizes = sorted({most, *(size for size in smaller if size < most)})
    functions = tuple(partial(_of_size, loss, size) for size in sizes)
    return _smallest(functions, tuple(sizes), images, pairs)


def _of_size(loss, size, images, pairs):
    """`loss` of the first `size` pairs."""
    valid = jnp.arange(size) < pairs.count
    rows = pairs.anchors[:size], pairs.positives[:size]
    if len(images) == 2:
        anchors, positives = (x[i] for x, i in zip(images, rows, strict=True))
        return loss(anchors, positives, valid)
    distinct = [jnp.where(valid, row, len(images[0])) for row in rows]
    gathered = _gather(images[0], jnp.concatenate(distinct))
    anchors, positives = jnp.split(gathered, 2)
    return loss(anchors, positives, valid)


@jax.custom_vjp
def _gather(images, rows):
    """`images[rows]`, 0 for a row past the last; no row may occur twice.

    The gradient is a gather too, where that of indexing would add rows one by one.
    """
    return images.at[rows].get(mode="fill", fill_value=0.0)


def _gather_forward(images, rows):
    return _gather(images, rows), (rows, len(images))


def _gather_backward(residuals, slopes):
    rows, count = residuals
    place = jnp.full(count, len(rows)).at[rows].set(jnp.arange(len(rows)), mode="drop")
    return slopes.at[place].get(mode="fill", fill_value=0.0), None


_gather.defvjp(_gather_forward, _gather_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _smallest(functions, sizes, images, pairs):
    """The function of the smallest size that holds the pairs.

    Value and gradient are computed within the choice: differentiated from outside, each
    function would have to return what any of them keeps for its backward pass.
    """
    return _switch(functions, sizes, images, pairs)


def _smallest_forward(functions, sizes, images, pairs):
    both = [jax.value_and_grad(function) for function in functions]
    return _switch(both, sizes, images, pairs)


def _smallest_backward(functions, sizes, gradients, cotangent):
    return jax.tree.map(lambda slopes: cotangent * slopes, gradients), None


_smallest.defvjp(_smallest_forward, _smallest_backward)


def _switch(functions, sizes, images, pairs):
    choice = jnp.searchsorted(jnp.array(sizes), pairs.count)
    return jax.lax.switch(choice, functions, images, pairs)
