"""Gradients of a loss of the whole batch, of which a part at a time is in memory.

A loss of pairs is no mean over images, so the gradients of parts of a batch do not add
up to its gradient. What does: embed in parts and keep the embeddings alone, take the
gradient of the loss of all embeddings with respect to them, then go through the parts
once more and pull each part's share of it back to the parameters (Gao et al., "Scaling
Deep Contrastive Learning Batch Size under Memory Limited Setup", arXiv 2101.06983).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Apply = Callable[[Any, Any], tuple[Any, Any]]
LossFn = Callable[[Any, Any], tuple[jax.Array, Any]]


def gradients(
    apply: Apply,
    loss_fn: LossFn,
    params: Any,
    inputs: Any,
    parts: int = 1,
    mesh: Mesh | None = None,
) -> tuple[Any, Any, Any]:
    """The gradient of `loss_fn(params, apply(params, inputs))` by `params`.

    With `parts` above 1 it is the same number, for the price of a second forward pass,
    wherever a row of the outputs depends on its own row of the inputs alone. Batch
    normalisation is the exception: each part is normalised by its own statistics, as
    are batches of its size, and the running statistics move by their mean. Part t is
    the rows t, t + parts, t + 2 parts, ..., whatever the devices; each device takes
    its own rows, so that none have to move.

    Args:
      apply: `(params, inputs [m, ...]) -> (outputs [m, ...], statistics)`, two trees.
      loss_fn: `(params, outputs [b, ...]) -> (scalar, aux)`.
      params: what to differentiate by.
      inputs: tree of arrays [b, ...].
      parts: divides b.
      mesh: devices over which the rows are split.

    Returns:
      The gradient; the statistics; `aux`.
    """
    if parts == 1:

        def value(params):
            outputs, statistics = apply(params, inputs)
            value, aux = loss_fn(params, outputs)
            return value, (statistics, aux)

        found, (statistics, aux) = jax.grad(value, has_aux=True)(params)
        return found, statistics, aux

    inputs = in_parts(inputs, parts, mesh)
    outputs, statistics = lax.map(lambda part: apply(params, part), inputs)
    by_params, by_outputs, aux = _by_outputs(loss_fn, params, _whole(outputs, mesh))

    def add(total, part):
        rows, slopes = part
        _, pull_back = jax.vjp(lambda params: apply(params, rows)[0], params)
        return jax.tree.map(jnp.add, total, *pull_back(slopes)), None

    slopes = in_parts(by_outputs, parts, mesh)
    found, _ = lax.scan(add, by_params, (inputs, slopes))
    return found, jax.tree.map(lambda each: each.mean(axis=0), statistics), aux


def _by_outputs(loss_fn, params, outputs):
    """The gradients of the loss by the parameters and by the outputs, and its aux."""
    slopes, aux = jax.grad(loss_fn, argnums=(0, 1), has_aux=True)(params, outputs)
    return *slopes, aux


def in_parts(tree, parts, mesh):
    """[b, ...] to [parts, b / parts, ...], on the devices where the rows are."""

    def divide(rows):
        rows = rows.reshape(-1, parts, *rows.shape[1:])
        return _split(jnp.swapaxes(rows, 0, 1), mesh, 1)

    return jax.tree.map(divide, tree)


def _whole(tree, mesh):
    """The rows of [parts, b / parts, ...] in their order again."""

    def join(rows):
        rows = jnp.swapaxes(rows, 0, 1)
        return _split(rows.reshape(-1, *rows.shape[2:]), mesh, 0)

    return jax.tree.map(join, tree)


def _split(rows, mesh, axis):
    """Have an axis split over the devices."""
    if mesh is None or mesh.size == 1:
        return rows
    spec = PartitionSpec(*[None] * axis, *mesh.axis_names)
    return lax.with_sharding_constraint(rows, NamedSharding(mesh, spec))
