"""Rows of pairs at once, in blocks of anchors, or over the devices of a mesh.

A function of some anchors and all references is handed in; nothing here knows of
losses. Blocks run one after the other on each device (memory O(block x n) instead of
O(b x n)), and each device takes its share of the anchors (`jax.shard_map`).

Automatic differentiation of a loop over blocks would store every block's rows for the
backward pass, O(b x n) again. A sum over anchors is linear in its blocks, so its
gradient is known up to the factor that comes back from the rest of the program:
`total` computes each block's gradient together with its value, stores O((b + n) d) and
multiplies by that factor in the backward pass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int


class Anchors(NamedTuple):
    """Rows of the pair matrix. All zeros is padding, which must count for nothing.

    Attributes:
      embeddings: [b, d].
      labels: [b].
      numbers: [b], the anchor's position in the batch, from 1; 0 for padding.
      sides: any further arrays [b, ...], or None.
    """

    embeddings: Float[Array, "b d"]
    labels: Int[Array, " b"]
    numbers: Int[Array, " b"]
    sides: Any = None


class References(NamedTuple):
    """Columns of the pair matrix.

    Attributes:
      embeddings: [n, d].
      labels: [n].
      mask: [n], False where a reference does not count.
      sides: any further arrays [n, ...], or None.
    """

    embeddings: Float[Array, "n d"]
    labels: Int[Array, " n"]
    mask: Bool[Array, " n"]
    sides: Any = None


class Outcome(NamedTuple):
    """What one device computed from its anchors and all references.

    Attributes:
      sums: arrays to be added up over devices.
      anchors: arrays [b, ...], each device its own rows.
      references: arrays [n, ...], to be added up over devices.
    """

    sums: Any = None
    anchors: Any = None
    references: Any = None


@dataclass(frozen=True)
class Layout:
    """A function of anchors and references, and how its anchors are divided.

    Attributes:
      function: `(Anchors, References) -> result`; for `total` (value, weight), two
        trees of scalars, for `per_anchor` a tree of arrays [b, ...].
      block_size: anchors at a time on one device, or None for all of them.
      mesh: devices that share the anchors, or None.
      symmetric: for `total`: the references are the anchors, and what a pair adds to
        the value is the same both ways. The gradient of an embedding as an anchor is
        then half of its gradient, and the other half need not be computed.
    """

    function: Callable[[Anchors, References], Any]
    block_size: int | None
    mesh: Mesh | None
    symmetric: bool = False

    def at_once(self, anchors: Anchors) -> bool:
        """Whether all anchors are one block on one device."""
        all_rows = self.block_size is None or self.block_size >= len(anchors.labels)
        return self.mesh is None and all_rows


def total(layout: Layout, anchors: Anchors, references: References) -> tuple[Any, Any]:
    """(value, weight) of `layout.function` added up over all anchors.

    The value is differentiable with respect to embeddings and sides; the weight is not.
    In blocks and on a mesh it is differentiable once.
    """
    if not layout.at_once(anchors):
        return _total(layout, anchors, references)
    if not layout.symmetric:
        return layout.function(anchors, references)
    fixed = references._replace(embeddings=lax.stop_gradient(references.embeddings))
    value, weight = layout.function(anchors, fixed)
    # The same value with twice the gradient.
    return jax.tree.map(lambda v: v + (v - lax.stop_gradient(v)), value), weight


def per_anchor(layout: Layout, anchors: Anchors, references: References) -> Any:
    """`layout.function` of every anchor: arrays [b, ...].

    Differentiable with respect to the embeddings. Every anchor has a factor of its own
    in the backward pass, so that in blocks the rows are computed again there.
    """
    if layout.at_once(anchors):
        return layout.function(anchors, references)
    return _per_anchor(layout, anchors, references)


def over_devices(
    mesh: Mesh | None,
    local: Callable[[Any, References], Outcome],
    rows: Any,
    references: References,
) -> Outcome:
    """Run `local(its rows, all references)` on every device and join the outcomes.

    Rows and references are padded with zeros to a multiple of the number of devices.
    """
    if mesh is None:
        return local(rows, references)
    axes = mesh.axis_names

    def device(rows, references):
        everywhere = jax.tree.map(
            lambda array: lax.all_gather(array, axes, tiled=True), references
        )
        outcome = local(rows, everywhere)
        scatter = partial(
            lax.psum_scatter, axis_name=axes, scatter_dimension=0, tiled=True
        )
        return Outcome(
            lax.psum(outcome.sums, axes),
            outcome.anchors,
            jax.tree.map(scatter, outcome.references),
        )

    split, whole = PartitionSpec(axes), PartitionSpec()
    outcome = jax.shard_map(
        device,
        mesh=mesh,
        in_specs=split,
        out_specs=Outcome(whole, split, split),
        check_vma=False,
    )(_padded(rows, mesh.size), _padded(references, mesh.size))
    return Outcome(
        outcome.sums,
        _first(outcome.anchors, _count(rows)),
        _first(outcome.references, _count(references)),
    )


def in_blocks(
    block_size: int | None,
    step: Callable[[Any, Any], tuple[Any, Any]],
    carry: Any,
    rows: Any,
) -> tuple[Any, Any]:
    """`step(carry, some rows) -> (carry, results)` over blocks of rows, in order."""
    count = _count(rows)
    if block_size is None or block_size >= count:
        return step(carry, rows)
    padded = jax.tree.map(
        lambda array: array.reshape(-1, block_size, *array.shape[1:]),
        _padded(rows, block_size),
    )
    carry, results = lax.scan(step, carry, padded)
    merged = jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), results)
    return carry, _first(merged, count)


def _count(rows) -> int:
    return len(jax.tree.leaves(rows)[0])


def _padded(rows, multiple):
    padding = -_count(rows) % multiple
    return jax.tree.map(
        lambda array: jnp.pad(array, [(0, padding)] + [(0, 0)] * (array.ndim - 1)),
        rows,
    )


def _first(rows, count):
    return jax.tree.map(lambda array: array[:count], rows)


def _differentiable(layout, anchors, references):
    """`layout.function` of what has a gradient, and that of either side."""

    def function(own, theirs):
        return layout.function(
            anchors._replace(embeddings=own[0], sides=own[1]),
            references._replace(embeddings=theirs[0], sides=theirs[1]),
        )

    theirs = references.embeddings, references.sides
    return function, (anchors.embeddings, anchors.sides), theirs


def _zeros(tree):
    return jax.tree.map(lambda array: jnp.zeros(array.shape, array.dtype), tree)


def _plus(first, second):
    return jax.tree.map(jnp.add, first, second)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _total(layout, anchors, references):
    def local(anchors, references):
        def step(sums, some):
            return _plus(sums, layout.function(some, references)), None

        start = _zeros(jax.eval_shape(layout.function, anchors, references))
        sums, _ = in_blocks(layout.block_size, step, start, anchors)
        return Outcome(sums)

    return over_devices(layout.mesh, local, anchors, references).sums


def _total_forward(layout, anchors, references):
    def local(anchors, references):
        def step(carry, some):
            sums, to_references = carry
            function, own, theirs = _differentiable(layout, some, references)
            if layout.symmetric:
                value, back, weight = jax.vjp(
                    partial(function, theirs=theirs), own, has_aux=True
                )
            else:
                value, back, weight = jax.vjp(function, own, theirs, has_aux=True)
            # One gradient for each value: each gets its own factor in the end.
            slopes = [back(one) for one in _units(value)]
            sums = _plus(sums, (value, weight))
            if layout.symmetric:
                return (sums, None), [2.0 * slope[0][0] for slope in slopes]
            to_references = _plus(to_references, [slope[1] for slope in slopes])
            return (sums, to_references), [slope[0] for slope in slopes]

        sums = _zeros(jax.eval_shape(layout.function, anchors, references))
        theirs = None
        if not layout.symmetric:
            one = _zeros((references.embeddings, references.sides))
            theirs = [one for _ in jax.tree.leaves(sums[0])]
        (sums, to_references), to_anchors = in_blocks(
            layout.block_size, step, (sums, theirs), anchors
        )
        if layout.symmetric:
            to_anchors = [(slope, None) for slope in to_anchors]
        return Outcome(sums, to_anchors, to_references)

    outcome = over_devices(layout.mesh, local, anchors, references)
    return outcome.sums, (outcome.anchors, outcome.references)


def _units(value):
    """The tree with a single 1, for each of its scalars."""
    leaves, structure = jax.tree.flatten(value)
    for one in range(len(leaves)):
        yield structure.unflatten(
            [jnp.ones_like(x) if k == one else jnp.zeros_like(x)
             for k, x in enumerate(leaves)]
        )  # fmt: skip


def _total_backward(layout, gradients, cotangents):
    factors = jax.tree.leaves(cotangents[0])

    def weighed(slopes):
        if slopes is None:
            return None, None
        return jax.tree.map(
            lambda *parts: sum(f * p for f, p in zip(factors, parts, strict=True)),
            *slopes,
        )

    (own, own_sides), (theirs, their_sides) = map(weighed, gradients)
    return (
        Anchors(own, None, None, own_sides),
        References(theirs, None, None, their_sides),
    )


_total.defvjp(_total_forward, _total_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _per_anchor(layout, anchors, references):
    def local(anchors, references):
        def step(_, some):
            return None, layout.function(some, references)

        return Outcome(anchors=in_blocks(layout.block_size, step, None, anchors)[1])

    return over_devices(layout.mesh, local, anchors, references).anchors


def _per_anchor_forward(layout, anchors, references):
    return _per_anchor(layout, anchors, references), (anchors, references)


def _per_anchor_backward(layout, inputs, cotangents):
    anchors, references = inputs

    def local(rows, references):
        def step(to_references, some):
            anchors, cotangents = some
            function, own, theirs = _differentiable(layout, anchors, references)
            _, back = jax.vjp(function, own, theirs)
            to_some, more = back(cotangents)
            return _plus(to_references, more), to_some

        start = _zeros((references.embeddings, references.sides))
        to_references, to_anchors = in_blocks(layout.block_size, step, start, rows)
        return Outcome(None, to_anchors, to_references)

    outcome = over_devices(layout.mesh, local, (anchors, cotangents), references)
    own, theirs = outcome.anchors, outcome.references
    return (
        Anchors(own[0], None, None, own[1]),
        References(theirs[0], None, None, theirs[1]),
    )


_per_anchor.defvjp(_per_anchor_forward, _per_anchor_backward)
