"""Softmax cross-entropy with temperature and label smoothing."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from metricjax.errors import InputError


def softmax_cross_entropy(
    logits: Float[Array, "b c"],
    labels: Int[Array, " b"],
    *,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Classification loss of CGD's auxiliary branch.

    `mean_i [(1 - eps) (-log p_i,y_i) + eps mean_j (-log p_ij)]` with
    `p_i = softmax(logits_i / temperature)` and eps the label smoothing, spread over all
    classes, the right one included.

    Args:
      logits: unscaled scores [b, c].
      labels: classes [b] in 0..c-1.
      temperature: above 0; below 1 sharpens the distribution, so that hard images get
        the larger gradient.
      label_smoothing: eps, from 0 up to but without 1.

    Returns:
      A float32 scalar.

    Raises:
      InputError: a temperature or smoothing outside its range, shapes or types that
        do not fit.

    Source: Jun et al. (arXiv 1903.10663), the auxiliary classification loss; the form
    of the smoothing is that of a reimplementation.
    """
    if temperature <= 0:
        raise InputError(f"temperature must be above 0, but it is {temperature}.")
    if not 0 <= label_smoothing < 1:
        raise InputError(
            f"label_smoothing must be in [0, 1), but it is {label_smoothing}."
        )
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise InputError(
            f"logits [b, c] and labels [b] are needed, but their shapes are "
            f"{list(logits.shape)} and {list(labels.shape)}."
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise InputError(f"labels must be integers, but they are {labels.dtype}.")
    scores = logits.astype(jnp.float32) / temperature
    # A mask instead of an index: its gradient needs no scatter.
    own = jnp.arange(logits.shape[1]) == labels[:, None]
    whole = jax.nn.logsumexp(scores, axis=1)
    right = jnp.sum(jnp.where(own, scores, 0.0), axis=1)
    right = jnp.where(own.any(axis=1), right, jnp.nan)  # no class of that number
    if not label_smoothing:  # 0 times the mean is NaN where a logit is -inf
        return jnp.mean(whole - right)
    smooth = jnp.mean(scores, axis=1)
    return jnp.mean(whole - right + label_smoothing * (right - smooth))
