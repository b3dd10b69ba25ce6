"""Arithmetic that stays finite: safe roots, unit vectors, reductions under a mask.

Every loss goes through these, so that an empty set or a duplicate image gives a finite
value and a finite gradient. They do not hide a NaN that came in.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def safe_sqrt(squares: Float[Array, "..."]) -> Float[Array, "..."]:
    """Square root whose value and gradient are 0 where the square is not positive.

    `sqrt` has an infinite slope at 0, which a later mask turns into NaN; the root is
    therefore taken of 1 there and the result replaced. NaN stays NaN.
    """
    zero = squares <= 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, squares)))


def unit(vectors: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """`v / sqrt(|v|^2 + 1e-12)` along the last axis; 0 stays 0, with a finite slope."""
    squares = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(squares + 1e-12)


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


def masked_logsumexp(
    values: Float[Array, " n"], mask: Bool[Array, " n"]
) -> Float[Array, ""]:
    """`log sum_mask exp(values)`; -inf, with no gradient, where the mask is empty."""
    masked = jnp.where(mask, values, -jnp.inf)
    some = mask.any()
    largest = jnp.where(some, jax.lax.stop_gradient(jnp.max(masked)), 0.0)
    total = jnp.sum(jnp.exp(masked - largest))
    return jnp.where(some, jnp.log(jnp.where(some, total, 1.0)) + largest, -jnp.inf)


def log1p_sum_exp(
    values: Float[Array, " n"], mask: Bool[Array, " n"]
) -> Float[Array, ""]:
    """`log(1 + sum_mask exp(values))` for values of any size; 0 for an empty mask."""
    masked = jnp.where(mask, values, -jnp.inf)
    largest = jnp.maximum(jax.lax.stop_gradient(jnp.max(masked)), 0.0)
    total = jnp.sum(jnp.exp(masked - largest))
    return largest + jnp.log1p(total + jnp.expm1(-largest))
