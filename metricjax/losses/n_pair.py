"""N-pair loss: one anchor and one positive of every class."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from metricjax.errors import InputError
from metricjax.losses._kernels import anchors as pairwise
from metricjax.losses._kernels.numerics import log1p_sum_exp

# The most pairs a batch may have is half its size. How many it has is known only when
# it is there; the matrix is made for the smallest of these shares that holds them.
_SHARES = (8, 4, 3, 2)
_SMALL = 256  # images; below, the larger matrix costs nothing that counts


def n_pair(
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    *,
    l2_weight: float = 0.0,
    references: Float[Array, "n d"] | None = None,
    reference_labels: Int[Array, " n"] | None = None,
    reference_mask: Bool[Array, " n"] | None = None,
    tiling: pairwise.Tiling = pairwise.Tiling(),
) -> Float[Array, ""]:
    """Multi-class N-pair loss.

    The first image of every class is its anchor a_i, the second its positive p_i:
    `1 / N sum_i log(1 + sum_{k != i} exp(a_i . p_k - a_i . p_i))
    + l2_weight / (2 N) sum_i (|a_i|^2 + |p_i|^2)`
    over the N classes that have both. Further images of a class are not used.

    Args:
      embeddings: images [b, d], not brought to unit length: the products of unit
        vectors, at most 1 apart from 0, leave the loss without a slope worth having.
      labels: their classes [b].
      l2_weight: weight of the mean squared length of anchors and positives, at least 0.
      references: the positive of an anchor is the first of its class here [n, d],
        instead of the second image of the batch.
      reference_labels: classes of the references [n].
      reference_mask: False for what is not to be taken as a positive [n].
      tiling: memory, devices and precision, see `pairwise.Tiling`; `block_size` counts
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
    anchors, others, own = pairwise.labelled_pairs(
        embeddings, labels, references, reference_labels, reference_mask,
        measure=pairwise.dot_products,
    )  # fmt: skip
    pairs = _first_pairs(anchors.labels, others.labels, others.mask, own)
    most = len(pairs.anchors)
    if not most:
        return jnp.zeros(())
    bounds = [most]
    if len(anchors.labels) > _SMALL:
        smaller = (-(-len(anchors.labels) // share) for share in _SHARES)
        bounds = sorted({*bounds, *(bound for bound in smaller if bound < most)})
    choices = tuple(partial(_loss, l2_weight, tiling, bound) for bound in bounds)
    choice = jnp.searchsorted(jnp.array(bounds), pairs.count)
    images = (anchors.embeddings,) if own else (anchors.embeddings, others.embeddings)
    return _one_of(choices, choice, images, pairs)


class _Pairs(NamedTuple):
    """Rows of the anchors and of their positives [most], and how many are pairs."""

    anchors: Int[Array, " most"]
    positives: Int[Array, " most"]
    count: Int[Array, ""]


def _first_pairs(labels, others, mask, own):
    """The first image of every class with the first other one that may be its positive.

    Sorted by class, and stably, so that the batch's images stand in order before the
    references of their class.
    """
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
    # From every place, the nearest one behind it that may be a positive.
    usable_places = jnp.where(usable[order], places, len(labels))
    behind = jax.lax.cummin(usable_places, reverse=True)[1:]
    behind = jnp.append(behind, len(labels))
    partner = jnp.minimum(behind, len(labels) - 1)
    found = begins & (behind < len(labels)) & (ordered[partner] == ordered)
    found &= order < count
    (chosen,) = jnp.nonzero(found, size=most, fill_value=0)
    positives = order[partner[chosen]]
    if not own:
        positives = jnp.maximum(positives - count, 0)
    return _Pairs(order[chosen], positives, jnp.sum(found))


def _loss(l2_weight, tiling, bound, images, pairs):
    """The loss of the first `bound` pairs, of which only `pairs.count` are pairs.

    images: the batch, and the references where they are not the batch.
    """
    numbers = jnp.arange(bound)
    real = numbers < pairs.count
    rows = pairs.anchors[:bound], pairs.positives[:bound]
    if len(images) == 1:
        together = [jnp.where(real, row, len(images[0])) for row in rows]
        gathered = _rows_once(images[0], jnp.concatenate(together))
        anchors, positives = jnp.split(gathered, 2)
    else:
        anchors, positives = (x[i] for x, i in zip(images, rows, strict=True))

    def anchor(products, positives, negatives):
        own = jnp.sum(jnp.where(positives, products, 0.0))
        return log1p_sum_exp(products - own, negatives), positives.any()

    value = pairwise.mean_over_anchors(
        anchor, anchors, numbers, references=positives, reference_labels=numbers,
        reference_mask=real, measure=pairwise.dot_products, tiling=tiling,
    )  # fmt: skip
    if not l2_weight:
        return value
    squares = jnp.sum(jnp.square(anchors) + jnp.square(positives), axis=1)
    total = jnp.sum(jnp.where(real, squares, 0.0))
    return value + l2_weight * total / (2.0 * jnp.maximum(pairs.count, 1))


@jax.custom_vjp
def _rows_once(images, rows):
    """`images[rows]`, 0 for a row past the last; no row is asked for twice.

    The gradient is a gather too, where that of indexing would add rows one by one.
    """
    return images.at[rows].get(mode="fill", fill_value=0.0)


def _rows_once_forward(images, rows):
    return _rows_once(images, rows), (rows, len(images))


def _rows_once_backward(residuals, slopes):
    rows, count = residuals
    place = jnp.full(count, len(rows)).at[rows].set(jnp.arange(len(rows)), mode="drop")
    return slopes.at[place].get(mode="fill", fill_value=0.0), None


_rows_once.defvjp(_rows_once_forward, _rows_once_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _one_of(
    choices: tuple[Callable, ...],
    choice: Int[Array, ""],
    images: tuple[Float[Array, "n d"], ...],
    pairs: _Pairs,
) -> Float[Array, ""]:
    """`choices[choice](images, pairs)`.

    Value and gradient are taken inside of the choice: differentiated from outside, all
    choices would have to keep what any of them needs for its backward pass.
    """
    return jax.lax.switch(choice, choices, images, pairs)


def _one_of_forward(choices, choice, images, pairs):
    gradients = [jax.value_and_grad(function) for function in choices]
    return jax.lax.switch(choice, gradients, images, pairs)


def _one_of_backward(choices, gradients, cotangent):
    return None, jax.tree.map(lambda slopes: cotangent * slopes, gradients), None


_one_of.defvjp(_one_of_forward, _one_of_backward)
