"""Normalisation by the statistics of a batch, and its gradient in two sums.

Differentiated as written, the sums of the gradient become single loops of everything
that leads to them, which on CPU take as long as the convolutions. Worked out by hand
they are two sums for each channel, of plain products.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# Rows that are added up in one turn on CPU, as sums of vectors.
_TOGETHER = 8


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalize(
    features: Float[Array, "*n c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    epsilon: float,
) -> tuple[Float[Array, "*n c"], Float[Array, " c"], Float[Array, " c"]]:
    """`(x - mean) / sqrt(var + epsilon) * scale + bias`, by channel, in float32.

    Args:
      features: [..., c], any float type.
      scale, bias: [c].
      epsilon: added to the variance, above 0.

    Returns:
      The normalised features, float32, and mean and biased variance [c], through which
      no gradient flows.
    """
    return _forward(features, scale, bias, epsilon)[0]


def _forward(features, scale, bias, epsilon):
    wide = features.astype(jnp.float32)
    count = float(features.size // features.shape[-1])  # may be beyond int32
    sums, squares = channel_sums(wide, jnp.square(wide))
    mean = sums / count
    var = jnp.maximum(squares / count - jnp.square(mean), 0.0)
    inverse = lax.rsqrt(var + epsilon)
    factor = scale * inverse
    normalized = wide * factor + (bias - mean * factor)
    return (normalized, mean, var), (features, scale, mean, inverse)


def _backward(epsilon, residuals, cotangents):
    features, scale, mean, inverse = residuals
    wide, slopes = features.astype(jnp.float32), cotangents[0]
    count = float(features.size // features.shape[-1])  # may be beyond int32
    sums, products = channel_sums(slopes, slopes * wide)
    to_scale = (products - mean * sums) * inverse
    # The slope less its mean and less what lies along the normalised features.
    along = to_scale * inverse / count
    to_features = (scale * inverse) * (
        slopes - wide * along - (sums / count - mean * along)
    )
    return to_features.astype(features.dtype), to_scale, sums


normalize.defvjp(_forward, _backward)


def channel_sums(
    *arrays: Float[Array, "*n c"],
) -> tuple[Float[Array, " c"], ...]:
    """The sums of each array over all axes but the last."""

    def native(*arrays):
        return tuple(
            jnp.sum(array, axis=tuple(range(array.ndim - 1))) for array in arrays
        )

    def in_turns(*arrays):
        return tuple(_in_turns(array) for array in arrays)

    return lax.platform_dependent(*arrays, cpu=in_turns, default=native)


def _in_turns(array):
    """Some rows at a time, as sums of vectors, then the sum of these."""
    rows = array.reshape(-1, array.shape[-1])
    turns = len(rows) // _TOGETHER
    if turns < _TOGETHER:
        return jnp.sum(rows, axis=0)
    whole = rows[: turns * _TOGETHER].reshape(turns, _TOGETHER, -1)
    total = sum(whole[:, row] for row in range(_TOGETHER))
    return jnp.sum(total, axis=0) + jnp.sum(rows[turns * _TOGETHER :], axis=0)
