"""Exact gradients of a whole-batch loss with the memory of a micro-batch.

A loss over pairs is not a mean over images, so plain gradient accumulation computes
another gradient. Gradient caching computes the right one: embed the micro-batches and
keep only the embeddings; take the gradient of the loss by all embeddings; then run each
micro-batch forward again and backpropagate its rows of that gradient to the parameters
(Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
arXiv 2101.06983).
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

    With `parts` above 1 the result is the same, at the price of a second forward pass,
    if each output row depends on its own input row only. Batch normalization is the
    exception: each part is normalized by its own statistics, like a batch of that size,
    and the running statistics are averaged over parts. Part t consists of the rows t,
    t + parts, t + 2 parts, ... on any number of devices; each device takes its own
    rows, so that none move between devices.

    Args:
      apply: `(params, inputs [m, ...]) -> (outputs [m, ...], statistics)`, two trees.
      loss_fn: `(params, outputs [b, ...]) -> (scalar, aux)`.
      params: the parameters to differentiate by.
      inputs: tree of arrays [b, ...].
      parts: number of micro-batches; divides b.
      mesh: devices over which the rows are split.

    Returns:
      The gradient; the statistics; `aux`.
    """
    if parts == 1:

        def value(params):
            outputs, statistics = apply(params, inputs)
            value, aux = loss_fn(params, outputs)
            return value, (statistics, aux)

        by_params, (statistics, aux) = jax.grad(value, has_aux=True)(params)
        return by_params, statistics, aux

    inputs = in_parts(inputs, parts, mesh)
    outputs, statistics = lax.map(lambda part: apply(params, part), inputs)
    by_params, by_outputs, aux = _by_outputs(loss_fn, params, _joined(outputs, mesh))

    def add(total, part):
        rows, cotangents = part
        _, pull_back = jax.vjp(lambda params: apply(params, rows)[0], params)
        return jax.tree.map(jnp.add, total, *pull_back(cotangents)), None

    cotangents = in_parts(by_outputs, parts, mesh)
    # Starts from the direct gradient: the loss has parameters of its own, the proxies.
    total, _ = lax.scan(add, by_params, (inputs, cotangents))
    return total, jax.tree.map(lambda each: each.mean(axis=0), statistics), aux


def _by_outputs(loss_fn, params, outputs):
    """The gradients of the loss by the parameters and by the outputs, and its aux."""
    by_both, aux = jax.grad(loss_fn, argnums=(0, 1), has_aux=True)(params, outputs)
    return *by_both, aux


def in_parts(tree, parts, mesh):
    """[b, ...] to [parts, b / parts, ...] without moving rows between devices."""

    def divide(rows):
        rows = rows.reshape(-1, parts, *rows.shape[1:])
        return _split(jnp.swapaxes(rows, 0, 1), mesh, 1)

    return jax.tree.map(divide, tree)


def _joined(tree, mesh):
    """[parts, b / parts, ...] to [b, ...]: the inverse of `in_parts`."""

    def join(rows):
        rows = jnp.swapaxes(rows, 0, 1)
        return _split(rows.reshape(-1, *rows.shape[2:]), mesh, 0)

    return jax.tree.map(join, tree)


def _split(rows, mesh, axis):
    """Constrain an axis to be split over the devices."""
    if mesh is None or mesh.size == 1:
        return rows
    spec = PartitionSpec(*[None] * axis, *mesh.axis_names)
    return lax.with_sharding_constraint(rows, NamedSharding(mesh, spec))
