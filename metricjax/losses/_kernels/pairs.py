"""Sums and statistics over pairs: a pair loss as elementwise functions of tiles.

What an anchor asks of its references (`statistics`) and what a pair adds to a sum
(`sum_over_pairs`) are written for a `Tile` of any shape. They run on all rows at once,
in blocks of rows, over the devices of a mesh, against references, and within one batch
in square tiles, where each product serves both of its images (`tiles.py`).

A loss that is no plain sum of pairs is made of the two: statistics give its value and
the weights of the pairs, and the sum of the weighted pairs gives its gradient
(`with_gradient_of`).
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from metricjax.losses._kernels import blocks, tiles
from metricjax.losses._kernels.anchors import Measure, Tiling, distances, labelled_pairs
from metricjax.losses._kernels.blocks import Anchors, References
from metricjax.losses._kernels.tiles import Statistic, Tile, Tiles, expand


def statistics(
    statistic: Statistic,
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    *,
    sides: Any = None,
    references: Float[Array, "n d"] | None = None,
    reference_labels: Int[Array, " n"] | None = None,
    reference_mask: Bool[Array, " n"] | None = None,
    reference_sides: Any = None,
    measure: Measure = distances,
    tiling: Tiling = Tiling(),
) -> Any:
    """`statistic` of every anchor over its references: tree of [b]. No gradient.

    Args:
      statistic: what is asked, elementwise and reduced, see `tiles.Statistic`.
      sides: arrays [b] of the anchors that it is told of.
      reference_sides: arrays [n] of the references; `sides` where those are the batch.

    The other arguments are those of `anchors.mean_over_anchors`. In blocks, within one
    batch and on one device, half of the products are made, in tiles of `block_size`
    squared.
    """
    pairs = _Pairs.of(
        embeddings, labels, references, reference_labels, reference_mask, sides,
        reference_sides, measure,
    ).stopped()  # fmt: skip
    if in_tiles(embeddings, references, reference_mask, tiling):
        cut = Tiles(measure, tiling.dtype, tiling.block_size)
        return tiles.statistics(cut, statistic, pairs.anchors)

    def of_rows(anchors, others):
        tile = _rows(measure, pairs.own, tiling.dtype, anchors, others)
        return statistic.of_tile(tile, 1)

    plan = blocks.Plan(of_rows, tiling.block_size, tiling.mesh)
    return blocks.per_anchor(plan, pairs.anchors, pairs.references)


def sum_over_pairs(
    pair: Callable[[Tile], Float[Array, "k n"]],
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    *,
    sides: Any = None,
    references: Float[Array, "n d"] | None = None,
    reference_labels: Int[Array, " n"] | None = None,
    reference_mask: Bool[Array, " n"] | None = None,
    reference_sides: Any = None,
    measure: Measure = distances,
    tiling: Tiling = Tiling(),
    symmetric: bool = False,
) -> Float[Array, ""]:
    """Sum of `pair` over all ordered pairs; differentiable once, by the embeddings.

    Args:
      pair: `(Tile) -> values`, elementwise, 0 where neither mask is set. Sides carry no
        gradient.
      symmetric: the value of (i, j) is that of (j, i) where the references are the
        batch; the gradient then takes a matrix product less.

    The other arguments are those of `statistics`.
    """
    stop = jax.lax.stop_gradient
    pairs = _Pairs.of(
        embeddings, labels, references, reference_labels, reference_mask, stop(sides),
        stop(reference_sides), measure,
    )  # fmt: skip
    if in_tiles(embeddings, references, reference_mask, tiling):
        cut = Tiles(measure, tiling.dtype, tiling.block_size, symmetric)
        return tiles.total(cut, pair, pairs.anchors)

    def of_rows(anchors, others):
        tile = _rows(measure, pairs.own, tiling.dtype, anchors, others)
        return jnp.sum(pair(tile)), jnp.float32(0.0)

    symmetric = symmetric and pairs.own and reference_mask is None
    plan = blocks.Plan(of_rows, tiling.block_size, tiling.mesh, symmetric)
    return blocks.total(plan, pairs.anchors, pairs.references)[0]


@dataclass(frozen=True)
class Stage:
    """A statistic that later ones, and the pairs, are told of.

    Attributes:
      statistic: it finds what earlier stages made in `tile.sides`, one entry for each.
      finish: from its result, a tree of [b], to what is told of it, another one.
    """

    statistic: Statistic
    finish: Callable[[Any], Any] = lambda found: found


def sum_over_anchors(
    stages: tuple[Stage, ...],
    value: Callable[[tuple], Float[Array, " b"]],
    pair: Callable[[Tile], Float[Array, "k n"]],
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    *,
    references: Float[Array, "n d"] | None = None,
    reference_labels: Int[Array, " n"] | None = None,
    reference_mask: Bool[Array, " n"] | None = None,
    measure: Measure = distances,
    tiling: Tiling = Tiling(),
) -> Float[Array, ""]:
    """Sum of what each anchor's statistics make of it.

    Where whole rows are made, all stages and the gradient take one matrix of products;
    in tiles each stage makes its own, of half the size.

    Args:
      stages: one after the other.
      value: from what all stages made to the value of each anchor.
      pair: as in `sum_over_pairs`, told of all stages: its sum has the gradient of the
        sum of the values.

    The other arguments are those of `statistics`.
    """
    options = {
        "references": references,
        "reference_labels": reference_labels,
        "reference_mask": reference_mask,
        "measure": measure,
        "tiling": tiling,
    }
    if in_tiles(embeddings, references, reference_mask, tiling):
        sides = ()
        for stage in stages:
            found = statistics(
                stage.statistic, embeddings, labels, sides=sides, **options
            )
            sides = (*sides, stage.finish(found))
        surrogate = sum_over_pairs(pair, embeddings, labels, sides=sides, **options)
        return with_gradient_of(jnp.sum(value(sides)), surrogate)

    pairs = _Pairs.of(
        embeddings, labels, references, reference_labels, reference_mask, None, None,
        measure,
    )  # fmt: skip

    def of_rows(anchors, others):
        tile = _rows(measure, pairs.own, tiling.dtype, anchors, others)
        fixed = tile._replace(measures=jax.lax.stop_gradient(tile.measures))
        sides = ()
        for stage in stages:
            found = stage.statistic.of_tile(fixed._replace(sides=expand(sides, 1)), 1)
            sides = (*sides, stage.finish(found))
        values = jnp.where(anchors.numbers > 0, value(sides), 0.0)
        surrogate = jnp.sum(pair(tile._replace(sides=expand(sides, 1))))
        return with_gradient_of(jnp.sum(values), surrogate), jnp.float32(0.0)

    plan = blocks.Plan(of_rows, tiling.block_size, tiling.mesh)
    return blocks.total(plan, pairs.anchors, pairs.references)[0]


def in_tiles(
    embeddings: Array,
    references: Array | None,
    reference_mask: Array | None,
    tiling: Tiling,
) -> bool:
    """Whether `statistics` and `sum_over_pairs` work in square tiles."""
    blocks = tiling.block_size is not None and tiling.block_size < len(embeddings)
    # A mask is of the references alone, so that it makes pairs one-sided.
    own = references is None and reference_mask is None
    return blocks and own and tiling.mesh is None


def count_pairs(
    embeddings: Float[Array, "b d"],
    references: Float[Array, "n d"] | None = None,
    reference_mask: Bool[Array, " n"] | None = None,
) -> Float[Array, ""]:
    """How many ordered pairs there are, an image with itself left out; float32."""
    own, count = references is None, len(embeddings)
    others = count if own else len(references)
    if reference_mask is not None:
        others = jnp.sum(reference_mask, dtype=jnp.float32)
    return jnp.float32(count) * others - (others if own else 0.0)


def log_sum_exp(terms: Callable[[Tile], tuple[Array, Array]]) -> Statistic:
    """Of some of each anchor's pairs, as (largest, sum relative to it).

    `terms(Tile) -> (values, mask)`, elementwise; `finish` makes the logarithm of it.
    """

    def of_tile(tile, axis):
        values, mask = terms(tile)
        masked = jnp.where(mask, values, -jnp.inf)
        largest = jnp.max(masked, axis=axis, keepdims=True)
        none = largest == -jnp.inf
        total = jnp.sum(jnp.exp(masked - jnp.where(none, 0.0, largest)), axis=axis)
        return jnp.squeeze(largest, axis), total

    def merge(first, second):
        (one, total), (other, more) = first, second
        largest = jnp.maximum(one, other)
        finite = jnp.where(largest == -jnp.inf, 0.0, largest)
        return largest, total * jnp.exp(one - finite) + more * jnp.exp(other - finite)

    return Statistic(of_tile, (-jnp.inf, 0.0), merge)


def finish(parts: tuple[Array, Array]) -> Array:
    """`log sum exp` of what `log_sum_exp` gives; -inf where there was no term."""
    largest, total = parts
    none = largest == -jnp.inf
    return jnp.where(none, -jnp.inf, largest + jnp.log(jnp.where(none, 1.0, total)))


def both(first: Statistic, second: Statistic) -> Statistic:
    """Two statistics of the same tiles, as a pair."""
    return Statistic(
        lambda tile, axis: (first.of_tile(tile, axis), second.of_tile(tile, axis)),
        (first.start, second.start),
        lambda a, b: (first.merge(a[0], b[0]), second.merge(a[1], b[1])),
    )


@jax.custom_jvp
def with_gradient_of(
    value: Float[Array, "..."], surrogate: Float[Array, "..."]
) -> Float[Array, "..."]:
    """`value`, with the gradient of `surrogate` in place of its own."""
    return value


@with_gradient_of.defjvp
def _tangent_of_surrogate(primals, tangents):
    return primals[0], tangents[1]


@dataclass(frozen=True)
class _Pairs:
    """What a loss over pairs was given, checked."""

    anchors: Anchors
    references: References
    own: bool

    @classmethod
    def of(
        cls, embeddings, labels, references, reference_labels, mask, sides, others,
        measure,
    ):  # fmt: skip
        anchors, columns, own = labelled_pairs(
            embeddings, labels, references, reference_labels, mask, sides,
            measure=measure,
        )  # fmt: skip
        columns = columns._replace(sides=sides if own else others)
        return cls(anchors, columns, own)

    def stopped(self) -> "_Pairs":
        stop = jax.lax.stop_gradient
        return dataclasses.replace(
            self, anchors=stop(self.anchors), references=stop(self.references)
        )


def _rows(measure, own, dtype, anchors, references) -> Tile:
    """Some anchors against all references; masks are empty for padding."""
    measures = measure(anchors.embeddings, references.embeddings, dtype)
    same = anchors.labels[:, None] == references.labels[None, :]
    counts = (anchors.numbers > 0)[:, None] & references.mask[None, :]
    numbers = jnp.arange(1, len(references.labels) + 1)[None, :]
    positives, negatives = same & counts, ~same & counts
    if own:
        positives &= anchors.numbers[:, None] != numbers
    return Tile(
        measures,
        positives,
        negatives,
        expand(anchors.sides, 1),
        expand(references.sides, 0),
        numbers,
    )
