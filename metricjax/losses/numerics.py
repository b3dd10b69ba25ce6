"""Arithmetic that stays finite: safe roots and reductions under a mask.

Every loss goes through these, so that an empty set or a duplicate image gives a finite
value and a finite gradient. They do not hide a NaN that came in.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def safe_sqrt(squares: Float[Array, "..."]) -> Float[Array, "..."]:
    """Square root whose value and gradient are 0 where the square is not positive.

    `sqrt` has an infinite slope at 0, which a later mask turns into NaN; the root is
    therefore taken of 1 there and the result replaced. NaN stays NaN.
    """
    zero = squares <= 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, squares)))


def masked_max(values: Float[Array, " n"], mask: Bool[Array, " n"]) -> Float[Array, ""]:
    """Largest value under the mask; 0, with no gradient, where the mask is empty."""
    best = jnp.max(jnp.where(mask, values, -jnp.inf))
    return jnp.where(mask.any(), best, 0.0)


def masked_min(values: Float[Array, " n"], mask: Bool[Array, " n"]) -> Float[Array, ""]:
    """Smallest value under the mask; 0, with no gradient, where the mask is empty."""
    return -masked_max(-values, mask)


def masked_mean(
    values: Float[Array, " n"], mask: Bool[Array, " n"]
) -> Float[Array, ""]:
    """Mean of the values under the mask; 0 where the mask is empty."""
    total = jnp.sum(jnp.where(mask, values, 0.0))
    return total / jnp.maximum(jnp.sum(mask), 1)
