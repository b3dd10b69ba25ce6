"""All pairs of one batch in square tiles: each product serves both of its images.

The measure of (i, j) is that of (j, i). The batch is sorted by label and cut into
tiles, of which only those on and above the diagonal are visited: half of the products
of whole rows, O(tile^2) memory, and everything between two matrix products stays in the
processor's cache. A tile is used twice, with its rows as anchors and with its columns.
Sorting also gathers all positive pairs in few tiles, whatever the order of the labels;
the others contain negatives only and need no masks.

What is computed from a tile is handed in, as in `blocks.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from metricjax.losses._kernels.blocks import Anchors


class Tile(NamedTuple):
    """Some anchors against some references, along either axis.

    Attributes:
      measures: [k, n] or [n, k].
      positives: pairs of one class, of the same shape; an image and itself are none.
      negatives: pairs of two classes.
      sides: of the anchors, arrays [k, 1] or [1, k].
      other_sides: of the references, arrays [1, n] or [n, 1].
      numbers: the references' places in the batch counted from 1, likewise.
    """

    measures: Float[Array, "k n"]
    positives: Bool[Array, "k n"]
    negatives: Bool[Array, "k n"]
    sides: Any
    other_sides: Any
    numbers: Int[Array, "1 n"]


@dataclass(frozen=True)
class Statistic:
    """A reduction over the references of each anchor, computed tile by tile.

    Attributes:
      of_tile: `(Tile, axis) -> tree of [k]`, reduced over `axis`, the references'.
      start: tree of numbers or arrays, the result over no references.
      merge: `(tree of [k], tree of [k]) -> tree of [k]`, joins two results.
    """

    of_tile: Callable[[Tile, int], Any]
    start: Any
    merge: Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Tiles:
    """How a batch is cut.

    Attributes:
      measure: `(x [k, d], y [n, d], dtype) -> [k, n]`, the same both ways.
      dtype: of its products.
      size: images along a tile; None for one tile of all, in `statistics` alone.
      symmetric: for `total`: a pair's value is the same both ways.
    """

    measure: Callable[[Array, Array, DTypeLike], Array]
    dtype: DTypeLike
    size: int | None
    symmetric: bool = False


def statistics(tiles: Tiles, statistic: Statistic, anchors: Anchors) -> Any:
    """`statistic` of every anchor against all others: tree of [b]. No gradient."""
    if tiles.size is None:
        measures = tiles.measure(anchors.embeddings, anchors.embeddings, tiles.dtype)
        _, across = _views(measures, _masks(anchors, anchors), anchors, anchors)
        return statistic.of_tile(across, 1)
    batch, order = _sorted(tiles, anchors)

    def step(carry, top, left, kind):
        of_top, of_left = (_part(tiles, carry, index) for index in (top, left))
        rows, columns = (_part(tiles, batch, index) for index in (top, left))
        measures = tiles.measure(rows.embeddings, columns.embeddings, tiles.dtype)

        def both(masks, measures, rows, columns, of_top, of_left):
            down, across = _views(measures, masks(rows, columns), rows, columns)
            of_top = statistic.merge(of_top, statistic.of_tile(across, 1))
            of_left = statistic.merge(of_left, statistic.of_tile(down, 0))
            return of_top, of_left

        def diagonal(measures, rows, columns, of_top, of_left):
            _, across = _views(measures, _masks(rows, columns), rows, columns)
            of_top = statistic.merge(of_top, statistic.of_tile(across, 1))
            return of_top, of_top

        branches = [partial(both, _no_masks), partial(both, _masks), diagonal]
        of_top, of_left = lax.switch(
            kind, branches, measures, rows, columns, of_top, of_left
        )
        carry = _put(tiles, carry, of_top, top)
        return _put(tiles, carry, of_left, left)

    count = len(batch.labels)
    start = jax.tree.map(
        lambda first: jnp.full((count, *jnp.shape(first)), first), statistic.start
    )
    results = _each(tiles, batch, step, start)
    return _unsorted(results, order)


def total(
    tiles: Tiles,
    pair: Callable[[Tile, int], tuple[Array, Any]],
    shapes: Any,
    anchors: Anchors,
) -> tuple[Float[Array, ""], Any]:
    """Sum of `pair`'s values over all ordered pairs, and its sums for each anchor.

    Args:
      tiles: how the batch is cut.
      pair: `(Tile, axis) -> (values [k, n], tree of [k, ...])`, see `pairs.total`.
      shapes: of the tree for one anchor, a tuple of tuples.
      anchors: the batch.

    The value is differentiable with respect to the embeddings, once: the gradient of a
    tile is computed with its value, and scaled in the backward pass. Sides and sums
    carry no gradient.
    """
    return _total(tiles, pair, shapes, anchors)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _total(tiles, pair, shapes, anchors):
    batch, order = _sorted(tiles, anchors)

    def step(carry, top, left, kind):
        rows, columns = (_part(tiles, batch, index) for index in (top, left))
        branches = [partial(_of_tile, tiles, pair, masks) for masks in _KINDS_OF_MASKS]
        value, sums = lax.cond(kind == 0, *branches, rows, columns)
        share = _share(kind)
        sums = _add_to_both(tiles, carry[1], sums, share, top, left)
        return carry[0] + share * value, sums

    value, sums = _each(tiles, batch, step, _no_sums(batch, shapes))
    return value, _unsorted(sums, order)


def _total_forward(tiles, pair, shapes, anchors):
    batch, order = _sorted(tiles, anchors)

    def gradient(masks, rows, columns):
        def value(of_rows, of_columns):
            return _of_tile(
                tiles, pair, masks,
                rows._replace(embeddings=of_rows),
                columns._replace(embeddings=of_columns),
            )  # fmt: skip

        both = jax.value_and_grad(value, (0, 1), has_aux=True)
        return both(rows.embeddings, columns.embeddings)

    def step(carry, top, left, kind):
        total, sums, slopes = carry
        rows, columns = (_part(tiles, batch, index) for index in (top, left))
        branches = [partial(gradient, masks) for masks in _KINDS_OF_MASKS]
        (value, more), parts = lax.cond(kind == 0, *branches, rows, columns)
        share = _share(kind)
        sums = _add_to_both(tiles, sums, more, share, top, left)
        slopes = _add_to_both(tiles, slopes, parts, share, top, left)
        return total + share * value, sums, slopes

    start = *_no_sums(batch, shapes), jnp.zeros_like(batch.embeddings)
    value, sums, slopes = _each(tiles, batch, step, start)
    return (value, _unsorted(sums, order)), _unsorted(slopes, order)


def _total_backward(tiles, pair, shapes, slopes, cotangents):
    return (Anchors(cotangents[0] * slopes, None, None, None),)


_total.defvjp(_total_forward, _total_backward)


def _no_sums(batch, shapes):
    count = len(batch.labels)
    return jnp.float32(0.0), tuple(jnp.zeros((count, *shape)) for shape in shapes)


def _of_tile(tiles, pair, masks, rows, columns):
    """Sum over a tile's pairs in both directions; sums of its rows and its columns."""
    measures = tiles.measure(rows.embeddings, columns.embeddings, tiles.dtype)
    down, across = _views(measures, masks(rows, columns), rows, columns)
    values, of_rows = pair(across, 1)
    if tiles.symmetric:  # only for pairs without sums
        return 2.0 * jnp.sum(values), (of_rows, of_rows)
    others, of_columns = pair(down, 0)
    return jnp.sum(values) + jnp.sum(others), (of_rows, of_columns)


def _add_to_both(tiles, tree, parts, share, top, left):
    """Add the parts of a tile's rows and columns where they belong, one by one."""
    for index, part in zip((top, left), parts, strict=True):
        here = _part(tiles, tree, index)
        here = jax.tree.map(lambda old, new: old + share * new, here, part)
        tree = _put(tiles, tree, here, index)
    return tree


def _share(kind):
    """A tile on the diagonal has every ordered pair in both views: half of each."""
    return jnp.where(kind == 2, 0.5, 1.0)


def _views(measures, masks, rows, columns):
    """The tile with its columns as anchors, and with its rows."""

    def along(axis, anchors, references):
        return Tile(
            measures,
            *masks,
            expand(anchors.sides, axis),
            expand(references.sides, 1 - axis),
            jnp.expand_dims(references.numbers, 1 - axis),
        )

    return along(0, columns, rows), along(1, rows, columns)


def expand(tree: Any, axis: int) -> Any:
    """Arrays [k] along the other axis of a tile: [k, 1] for axis 1, [1, k] for 0."""
    return jax.tree.map(lambda array: jnp.expand_dims(array, axis), tree)


def _masks(rows, columns):
    same = rows.labels[:, None] == columns.labels[None, :]
    counts = (rows.numbers > 0)[:, None] & (columns.numbers > 0)[None, :]
    counts &= rows.numbers[:, None] != columns.numbers[None, :]
    return same & counts, ~same & counts


def _no_masks(rows, columns):
    shape = len(rows.labels), len(columns.labels)
    return jnp.zeros(shape, bool), jnp.ones(shape, bool)


# For tiles of negatives alone, and for all others.
_KINDS_OF_MASKS = _no_masks, _masks


def _sorted(tiles, anchors):
    """The batch by label, padded to whole tiles; and the order it was brought into."""
    order = jnp.argsort(anchors.labels)
    padding = -len(order) % tiles.size

    def bring(array, mode):
        sides = [(0, padding)] + [(0, 0)] * (array.ndim - 1)
        return jnp.pad(array[order], sides, mode=mode)

    by_label = Anchors(
        bring(anchors.embeddings, "constant"),
        bring(anchors.labels, "edge"),
        bring(anchors.numbers, "constant"),
        jax.tree.map(lambda array: bring(array, "constant"), anchors.sides),
    )
    return by_label, order


def _unsorted(tree, order):
    place = jnp.zeros_like(order).at[order].set(jnp.arange(len(order)))
    return jax.tree.map(lambda array: array[place], tree)


def _each(tiles, batch, step, carry):
    """`step(carry, top, left, kind)` over the tiles on and above the diagonal.

    Kind 0 has negatives alone, 1 may have positives or padding, 2 is on the diagonal.
    """
    # Labels are sorted: a tile has positives only if the last label of its rows reaches
    # the first of its columns.
    count = len(batch.labels) // tiles.size
    tops, lefts = np.triu_indices(count)
    first = batch.labels[:: tiles.size]
    last = batch.labels[tiles.size - 1 :: tiles.size]
    padded = batch.numbers[tiles.size - 1 :: tiles.size] == 0
    mixed = (last[tops] >= first[lefts]) | padded[lefts]
    kinds = jnp.where(tops == lefts, 2, mixed.astype(jnp.int32))

    def scanned(carry, tile):
        return step(carry, *tile), None

    return lax.scan(scanned, carry, (jnp.asarray(tops), jnp.asarray(lefts), kinds))[0]


def _part(tiles, tree, index):
    start = index * tiles.size
    return jax.tree.map(
        lambda array: lax.dynamic_slice_in_dim(array, start, tiles.size), tree
    )


def _put(tiles, tree, part, index):
    start = index * tiles.size
    return jax.tree.map(
        lambda array, new: lax.dynamic_update_slice_in_dim(array, new, start, 0),
        tree,
        part,
    )
