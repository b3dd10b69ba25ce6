"""Sums over the pairs of one class, without the matrix of all pairs.

A batch has few positive pairs. Sorted by label, the references of an anchor's class
stand together, and a loop takes the first of every anchor, the second, and so on: each
turn is one gather of [b, d] and one row of distances, O(b K d) in all for K references
of a class, with value and gradient in the same pass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from metricjax.losses.arrangement import Anchors, Outcome, References, over_devices
from metricjax.losses.numerics import safe_sqrt


@dataclass(frozen=True)
class PositivePairs:
    """A function of positive pairs.

    Attributes:
      pair: `(distances [b], sides of the anchors [b], sides of the references [b]) ->
        values [b]`, elementwise.
      own: whether the references are the batch, where no anchor pairs with itself.
      mesh: devices that share the anchors, or None.
    """

    pair: Callable[[Array, Any, Any], Array]
    own: bool
    mesh: Mesh | None


def sum_over_positives(
    pairs: PositivePairs, anchors: Anchors, references: References
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum of `pairs.pair` over the ordered positive pairs, and how many there are.

    The sum is differentiable with respect to embeddings and sides, once.
    """
    return _sum(pairs, anchors, references)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum(pairs, anchors, references):
    def local(anchors, references):
        def turn(step, sums):
            _, chosen, counts = partners(step)
            value = _value(pairs, counts, _floats(anchors), _floats(chosen))
            return sums[0] + value, sums[1] + jnp.sum(counts, dtype=jnp.float32)

        turns, partners = _turns(pairs.own, anchors, references)
        zero = jnp.float32(0.0)
        return Outcome(lax.fori_loop(0, turns, turn, (zero, zero)))

    return over_devices(pairs.mesh, local, anchors, references).sums


def _sum_forward(pairs, anchors, references):
    def local(anchors, references):
        def turn(step, carry):
            (value, count), to_anchors, to_references = carry
            index, chosen, counts = partners(step)
            gradient = jax.value_and_grad(partial(_value, pairs, counts), (0, 1))
            more, (of_anchors, of_chosen) = gradient(_floats(anchors), _floats(chosen))
            return (
                (value + more, count + jnp.sum(counts, dtype=jnp.float32)),
                jax.tree.map(jnp.add, to_anchors, of_anchors),
                jax.tree.map(
                    lambda total, part: total.at[index].add(part),
                    to_references,
                    of_chosen,
                ),
            )

        turns, partners = _turns(pairs.own, anchors, references)
        zeros = partial(jax.tree.map, jnp.zeros_like)
        start = (
            (jnp.float32(0.0), jnp.float32(0.0)),
            zeros(_floats(anchors)),
            zeros(_floats(references)),
        )
        return Outcome(*lax.fori_loop(0, turns, turn, start))

    outcome = over_devices(pairs.mesh, local, anchors, references)
    return outcome.sums, (outcome.anchors, outcome.references)


def _sum_backward(pairs, gradients, cotangents):
    (to_anchors, of_anchors), (to_references, of_references) = jax.tree.map(
        lambda gradient: cotangents[0] * gradient, gradients
    )
    return (
        Anchors(to_anchors, None, None, of_anchors),
        References(to_references, None, None, of_references),
    )


_sum.defvjp(_sum_forward, _sum_backward)


def _floats(side):
    """What is differentiated of anchors or references."""
    return side.embeddings, side.sides


def _value(pairs, counts, anchors, chosen):
    (embeddings, anchor_sides), (others, other_sides) = anchors, chosen
    distances = safe_sqrt(jnp.sum(jnp.square(embeddings - others), axis=1))
    values = pairs.pair(distances, anchor_sides, other_sides)
    return jnp.sum(jnp.where(counts, values, 0.0))


def _turns(own, anchors, references):
    """How many turns there are, and a function of the turn: the anchors' partners.

    The function gives their indices [b], what is gathered of them, and whether each
    anchor has a partner in this turn [b].
    """
    order = jnp.argsort(references.labels)
    ordered = references.labels[order]
    first = jnp.searchsorted(ordered, anchors.labels, side="left")
    beyond = jnp.searchsorted(ordered, anchors.labels, side="right")
    real = anchors.numbers > 0

    def partners(step):
        place = first + step
        index = order[jnp.minimum(place, len(order) - 1)]
        counts = real & (place < beyond) & references.mask[index]
        if own:
            counts &= anchors.numbers != index + 1
        return index, jax.tree.map(lambda array: array[index], references), counts

    return jnp.max(jnp.where(real, beyond - first, 0)), partners
