"""How rows of pairs are computed: at once, in blocks of anchors, over many devices.

What is computed is a function of some anchors and all references; it is handed in, and
nothing here knows of losses. Blocks run one after the other on each device (memory
O(block x n) instead of O(b x n)), and devices each take their share of the anchors
(`jax.shard_map`). A sum of rows takes value and gradient of a block in the same pass:
it is linear, so its gradient waits only for the factor that comes back.
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
      numbers: [b], the anchor's place in the batch counted from 1; 0 for padding.
      sides: any further arrays [b, ...], or None; they carry no gradient.
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
      sides: any further arrays [n, ...], or None; they carry no gradient.
    """

    embeddings: Float[Array, "n d"]
    labels: Int[Array, " n"]
    mask: Bool[Array, " n"]
    sides: Any = None


class Outcome(NamedTuple):
    """What one device made of its anchors and all references.

    Attributes:
      sums: arrays to be added up over devices.
      anchors: arrays [b, ...], each device its own rows.
      references: arrays [n, ...], to be added up over devices.
    """

    sums: Any = None
    anchors: Any = None
    references: Any = None


@dataclass(frozen=True)
class Plan:
    """A function of anchors and references, and how it is laid out.

    Attributes:
      function: `(Anchors, References) -> result`; for `total` (value, weight), two
        scalars, for `per_anchor` a tree of arrays [b, ...].
      block_size: anchors at a time on one device, or None for all of them.
      mesh: devices that share the anchors, or None.
      symmetric: for `total`: the references are the anchors, and what a pair adds to
        the value is the same both ways. Then the gradient of an embedding as an anchor
        is half of its whole gradient, and the other half need not be computed.
    """

    function: Callable[[Anchors, References], Any]
    block_size: int | None
    mesh: Mesh | None
    symmetric: bool = False

    def at_once(self, anchors: Anchors) -> bool:
        """Whether there is nothing to arrange."""
        all_rows = self.block_size is None or self.block_size >= len(anchors.labels)
        return self.mesh is None and all_rows


def total(
    plan: Plan, anchors: Anchors, references: References
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(value, weight) of `plan.function` added up over all anchors.

    The value is differentiable with respect to the embeddings, once; the weight not.
    """
    if not plan.at_once(anchors):
        return _total(plan, anchors, references)
    if not plan.symmetric:
        return plan.function(anchors, references)
    fixed = references._replace(embeddings=lax.stop_gradient(references.embeddings))
    value, weight = plan.function(anchors, fixed)
    return value + (value - lax.stop_gradient(value)), weight


def per_anchor(plan: Plan, anchors: Anchors, references: References) -> Any:
    """`plan.function` of every anchor: arrays [b, ...].

    Differentiable with respect to the embeddings, once; in blocks the backward pass
    makes the rows again.
    """
    if plan.at_once(anchors):
        return plan.function(anchors, references)
    return _per_anchor(plan, anchors, references)


def over_devices(
    mesh: Mesh | None,
    local: Callable[[Any, References], Outcome],
    rows: Any,
    references: References,
) -> Outcome:
    """Run `local(its rows, all references)` on every device and join the outcomes.

    Rows and references are padded with zeros to what the devices can share equally.
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


def _of_embeddings(plan, anchors, references):
    """`plan.function` as a function of the two embeddings alone."""

    def function(embeddings, others):
        return plan.function(
            anchors._replace(embeddings=embeddings),
            references._replace(embeddings=others),
        )

    return function, anchors.embeddings, references.embeddings


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _total(plan, anchors, references):
    def local(anchors, references):
        def step(sums, some):
            return jax.tree.map(jnp.add, sums, plan.function(some, references)), None

        sums, _ = in_blocks(plan.block_size, step, _no_sums(), anchors)
        return Outcome(sums)

    return over_devices(plan.mesh, local, anchors, references).sums


def _total_forward(plan, anchors, references):
    def local(anchors, references):
        def step(carry, some):
            sums, to_references = carry
            function, *embeddings = _of_embeddings(plan, some, references)
            if plan.symmetric:
                function = partial(function, others=embeddings.pop())
            value, back, weight = jax.vjp(function, *embeddings, has_aux=True)
            to_some, *more = back(jnp.float32(1.0))
            sums = sums[0] + value, sums[1] + weight
            if plan.symmetric:
                return (sums, None), 2.0 * to_some
            return (sums, to_references + more[0]), to_some

        zeros = None if plan.symmetric else jnp.zeros_like(references.embeddings)
        (sums, to_references), to_anchors = in_blocks(
            plan.block_size, step, (_no_sums(), zeros), anchors
        )
        return Outcome(sums, to_anchors, to_references)

    outcome = over_devices(plan.mesh, local, anchors, references)
    return outcome.sums, (outcome.anchors, outcome.references)


def _total_backward(plan, gradients, cotangents):
    to_anchors, to_references = jax.tree.map(
        lambda gradient: cotangents[0] * gradient, gradients
    )
    return Anchors(to_anchors, None, None), References(to_references, None, None)


_total.defvjp(_total_forward, _total_backward)


def _no_sums():
    return jnp.float32(0.0), jnp.float32(0.0)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _per_anchor(plan, anchors, references):
    def local(anchors, references):
        def step(_, some):
            return None, plan.function(some, references)

        return Outcome(anchors=in_blocks(plan.block_size, step, None, anchors)[1])

    return over_devices(plan.mesh, local, anchors, references).anchors


def _per_anchor_forward(plan, anchors, references):
    return _per_anchor(plan, anchors, references), (anchors, references)


def _per_anchor_backward(plan, inputs, cotangents):
    anchors, references = inputs

    def local(rows, references):
        def step(to_references, some):
            anchors, cotangents = some
            _, back = jax.vjp(*_of_embeddings(plan, anchors, references))
            to_some, more = back(cotangents)
            return to_references + more, to_some

        start = jnp.zeros_like(references.embeddings)
        to_references, to_anchors = in_blocks(plan.block_size, step, start, rows)
        return Outcome(None, to_anchors, to_references)

    outcome = over_devices(plan.mesh, local, (anchors, cotangents), references)
    return (
        Anchors(outcome.anchors, None, None),
        References(outcome.references, None, None),
    )


_per_anchor.defvjp(_per_anchor_forward, _per_anchor_backward)
