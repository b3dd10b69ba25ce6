"""Global descriptors: a feature map [b, h, w, c] to one vector per image [b, c].

All three are the generalised mean `f_c = (mean over the map of x_c^p)^(1/p)` with
p = 1 (SPoC), p -> infinity (MAC) and p in between (GeM): CGD (Jun et al., arXiv
1903.10663), the formula of its global descriptors. All are computed in, and return,
float32 whatever the feature map's type.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metricjax.errors import InputError


def spoc(features: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
    """SPoC, the mean over the map (the mean, p = 1; not the sum): `mean_hw x`.

    Args:
      features: [b, h, w, c], any float type.

    Returns:
      [b, c] float32.

    Raises:
      InputError: `features` is not of rank 4.
    """
    _check_rank(features)
    return jnp.mean(features.astype(jnp.float32), axis=(1, 2))


def mac(features: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
    """MAC, the maximum over the map: `max_hw x`.

    Positions that tie for the maximum share its gradient equally (PyTorch gives it to
    one of them).

    Args:
      features: [b, h, w, c], any float type.

    Returns:
      [b, c] float32.

    Raises:
      InputError: `features` is not of rank 4.
    """
    _check_rank(features)
    return jnp.max(features.astype(jnp.float32), axis=(1, 2))


def gem(
    features: Float[Array, "b h w c"],
    p: float | Float[Array, "..."] = 3.0,
    eps: float = 1e-6,
) -> Float[Array, "b c"]:
    """GeM, the generalised mean: `(mean_hw max(x, eps)^p)^(1/p)`.

    Computed as `exp((logsumexp_hw(p log max(x, eps)) - log(h w)) / p)`: no power over-
    or underflows for any p, and value and gradients (by x and by p) stay finite where a
    channel is zero everywhere, where `m^(1/p)` has an infinite slope.

    Args:
      features: [b, h, w, c], any float type; meant to be non-negative (after a ReLU),
        values below `eps` count as `eps` and get no gradient.
      p: exponent, >= 1: a number, or an array [] or [c] (an exponent per channel).
        1 is SPoC of non-negative features; large values approach MAC.
      eps: smallest value of a feature, > 0.

    Returns:
      [b, c] float32.

    Raises:
      InputError: `features` is not of rank 4, or the number `p` is less than 1.
    """
    _check_rank(features)
    if isinstance(p, int | float) and not p >= 1:
        raise InputError(f"GeM's exponent p is {p}; it must be at least 1.")
    height, width = features.shape[1:3]
    logarithms = jnp.log(jnp.maximum(features.astype(jnp.float32), eps))
    total = jax.nn.logsumexp(p * logarithms, axis=(1, 2))
    return jnp.exp((total - jnp.log(height * width)) / p)


class GeM(nn.Module):
    """GeM with a learnable exponent `p = 1 + softplus(raw_p)`, one for all channels.

    Parameter `raw_p` [] float32 starts where p is `initial_p`; p stays above 1.

    Attributes:
      initial_p: the exponent before training, > 1.

    Raises:
      InputError: `initial_p` is not above 1 (it would start at an infinite `raw_p`).
    """

    initial_p: float = 3.0

    def __post_init__(self):
        if not self.initial_p > 1:
            raise InputError(
                f"A learnable GeM exponent starts at gem_p={self.initial_p}; "
                "it must start above 1."
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, features: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
        raw = self.param("raw_p", lambda _: jnp.log(jnp.expm1(self.initial_p - 1.0)))
        return gem(features, 1.0 + jax.nn.softplus(raw))


def _check_rank(features):
    if features.ndim != 4:
        raise InputError(
            "A global descriptor pools a feature map [batch, height, width, channels]; "
            f"this one has shape {tuple(features.shape)}."
        )
