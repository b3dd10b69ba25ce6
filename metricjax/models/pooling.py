"""Global descriptors: a feature map [b, h, w, c] to one vector per image [b, c].

SPoC, MAC and GeM are the generalised mean `f_c = (mean over the map of x_c^p)^(1/p)`
with p = 1, p -> infinity and p in between: CGD (Jun et al., arXiv 1903.10663), the
formula of its global descriptors. Beside them stand SPoC and GeM with a weight for
every position and R-MAC. All are computed in, and return, float32 whatever the feature
map's type.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from metricjax.errors import InputError
from metricjax.models.layers import l2_normalize


def spoc(
    features: Float[Array, "b h w c"], weights: Float[Array, "h w"] | None = None
) -> Float[Array, "b c"]:
    """SPoC, the mean over the map (the mean, p = 1; not the sum): `mean_hw x`.

    Args:
      features: [b, h, w, c], any float type.
      weights: [h, w], not negative, of a sum above 0: how much each position counts,
        `sum_hw w x / sum_hw w`, such as `center_weights`; None: all the same.

    Returns:
      [b, c] float32.

    Raises:
      InputError: `features` is not of rank 4, or `weights` not of its [h, w].
    """
    _check_rank(features, weights)
    features = features.astype(jnp.float32)
    if weights is None:
        return jnp.mean(features, axis=(1, 2))
    share = weights / jnp.sum(weights)
    return jnp.sum(features * share[..., None], axis=(1, 2))


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
    weights: Float[Array, "h w"] | None = None,
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
      weights: [h, w], see `spoc`: the mean is then a weighted one.

    Returns:
      [b, c] float32.

    Raises:
      InputError: `features` is not of rank 4, `weights` not of its [h, w], or the
        number `p` is less than 1.
    """
    _check_rank(features, weights)
    if isinstance(p, int | float) and not p >= 1:
        raise InputError(f"GeM's exponent p is {p}; it must be at least 1.")
    height, width = features.shape[1:3]
    whole = height * width
    if weights is not None:
        weights, whole = weights[..., None], jnp.sum(weights)
    logarithms = jnp.log(jnp.maximum(features.astype(jnp.float32), eps))
    total = jax.nn.logsumexp(p * logarithms, axis=(1, 2), b=weights)
    return jnp.exp((total - jnp.log(whole)) / p)


def center_weights(height: int, width: int) -> Float[np.ndarray, "h w"]:
    """SPoC's centring prior: a Gaussian around the middle of the map.

    `exp(-(dy^2 + dx^2) / (2 sigma^2))`, sigma a third of the way from the middle to the
    nearest border (Babenko and Lempitsky, ICCV 2015).

    Args:
      height, width: of the map in positions, at least 1.
    """
    sigma = max(min(height, width) / 2 / 3, 1e-6)
    down, across = (np.arange(side) - (side - 1) / 2 for side in (height, width))
    squared = down[:, None] ** 2 + across**2
    # Nearest to the middle it is 1, also where no position lies in the middle.
    return np.exp(-(squared - squared.min()) / (2 * sigma**2)).astype(np.float32)


def rmac(features: Float[Array, "b h w c"], levels: int = 3) -> Float[Array, "b c"]:
    """R-MAC: maxima over regions, each of unit length, added up.

    The whole map, and at level l = 1..levels squares of side `2 min(h, w) / (l + 1)`
    placed so that neighbours overlap by about 40% (Tolias et al., ICLR 2016).

    Args:
      features: [b, h, w, c], any float type.
      levels: how many sizes of squares, >= 1; sizes below a position are left out.

    Returns:
      [b, c] float32, not of unit length.

    Raises:
      InputError: `features` is not of rank 4, or there is no level.
    """
    _check_rank(features)
    if levels < 1:
        raise InputError(f"R-MAC has {levels} levels; it must have at least 1.")
    features = features.astype(jnp.float32)
    regions = [features]
    for top, left, side in regions_of(*features.shape[1:3], levels):
        regions.append(features[:, top : top + side, left : left + side])
    return sum(l2_normalize(mac(region)) for region in regions)


def regions_of(height: int, width: int, levels: int) -> list[tuple[int, int, int]]:
    """R-MAC's squares as (top, left, side), level by level."""
    short, long = sorted((height, width))
    # Extra squares along the longer side: as many as bring their overlap nearest 40%.
    extra = 0
    if short != long:
        steps = (long - short) / np.arange(1, 7)
        extra = 1 + int(np.argmin(np.abs(1 - steps / short - 0.4)))
    regions = []
    for level in range(1, levels + 1):
        side = 2 * short // (level + 1)
        if not side:
            break
        along = {short: level, long: level + extra}
        tops, lefts = (
            np.floor(np.linspace(0, length - side, along[length])).astype(int)
            if along[length] > 1
            else [(length - side) // 2]
            for length in (height, width)
        )
        regions += [(int(top), int(left), side) for top in tops for left in lefts]
    return regions


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
    def __call__(
        self,
        features: Float[Array, "b h w c"],
        weights: Float[Array, "h w"] | None = None,
    ) -> Float[Array, "b c"]:
        raw = self.param("raw_p", lambda _: jnp.log(jnp.expm1(self.initial_p - 1.0)))
        return gem(features, self.exponent({"raw_p": raw}), weights=weights)

    @staticmethod
    def exponent(params: dict[str, Array]) -> Float[Array, ""]:
        """The exponent p that the module's parameters stand for."""
        return 1.0 + jax.nn.softplus(params["raw_p"])


def _check_rank(features, weights=None):
    if features.ndim != 4:
        raise InputError(
            "A global descriptor pools a feature map [batch, height, width, channels]; "
            f"this one has shape {tuple(features.shape)}."
        )
    if weights is not None and weights.shape != features.shape[1:3]:
        raise InputError(
            f"The weights of a global descriptor are of shape {tuple(weights.shape)}; "
            f"they must be of the map's, {tuple(features.shape[1:3])}."
        )
