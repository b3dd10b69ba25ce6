"""Distances and similarities of all anchors and all references, by one Gram matrix.

A squared distance computed from products has a rounding error of about 1e-7 of the
squared lengths, whatever the distance. Losses therefore move embeddings to their common
centre first (`centre_of`): distances stay the same, lengths become as small as they can
be, and embeddings that have almost collapsed into one point are still told apart.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from metricjax.losses._kernels.numerics import safe_sqrt

Measure = Callable[
    [Float[Array, "b d"], Float[Array, "n d"], DTypeLike], Float[Array, "b n"]
]


def dot_products(
    anchors: Float[Array, "b d"], references: Float[Array, "n d"], dtype: DTypeLike
) -> Float[Array, "b n"]:
    """`x_i . y_j`, accumulated in float32; exact products when `dtype` is float32."""
    # TPUs multiply float32 in bfloat16 passes unless the precision is asked for.
    return jnp.matmul(
        anchors.astype(dtype),
        references.astype(dtype).T,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def squared_distances(
    anchors: Float[Array, "b d"], references: Float[Array, "n d"], dtype: DTypeLike
) -> Float[Array, "b n"]:
    """`|x_i|^2 + |y_j|^2 - 2 x_i . y_j`, at least 0."""
    anchors, references = anchors.astype(jnp.float32), references.astype(jnp.float32)
    squares = jnp.sum(jnp.square(anchors), axis=1)[:, None]
    squares = squares + jnp.sum(jnp.square(references), axis=1)[None, :]
    # Rounding can take the difference below 0.
    return jnp.maximum(squares - 2.0 * dot_products(anchors, references, dtype), 0.0)


def distances(
    anchors: Float[Array, "b d"], references: Float[Array, "n d"], dtype: DTypeLike
) -> Float[Array, "b n"]:
    """Euclidean distances; value and gradient are 0 where the square is not positive.

    The distance of two equal rows is 0 up to rounding, which can be 1e-3 of their
    length. The losses take lengths from the centre of the references.
    """
    return safe_sqrt(squared_distances(anchors, references, dtype))


def paired_distances(
    anchors: Float[Array, "b d"], others: Float[Array, "b d"], *, squared: bool = False
) -> Float[Array, " b"]:
    """`|x_i - y_i|`, or its square, from the differences: exact for close vectors too.

    Value and gradient are 0 where the two are equal.
    """
    squares = jnp.sum(jnp.square(anchors - others), axis=1)
    return squares if squared else safe_sqrt(squares)


def centre_of(
    vectors: Float[Array, "n d"], mask: Bool[Array, " n"]
) -> Float[Array, " d"]:
    """Mean of the masked vectors, without gradient; 0 if it is not finite."""
    total = jnp.sum(jnp.where(mask[:, None], vectors, 0.0), axis=0)
    mean = jax.lax.stop_gradient(total / jnp.maximum(jnp.sum(mask), 1))
    # Rounded to eight bits, so that subtracting it from vectors of few bits is exact,
    # and distances that are equal stay equal.
    mean = jax.lax.reduce_precision(mean, exponent_bits=8, mantissa_bits=7)
    # One vector with NaN must not make the distances of all others NaN.
    return jnp.where(jnp.isfinite(mean).all(), mean, 0.0)
