"""The layers every backbone is made of: convolution, batch normalisation, max pooling.

Backbones use these and nothing below them, so that how a convolution is carried out is
decided in one place (`convolution.py`).
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from metricjax.models.convolution import convolve

# Kaiming-normal over the outputs: what ResNets are trained from scratch with.
kaiming_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def l2_normalize(
    vectors: Float[Array, "*n d"], epsilon: float = 1e-12
) -> Float[Array, "*n d"]:
    """Scales every vector to unit length: `x / sqrt(sum(x^2) + epsilon)`.

    The zero vector stays zero and its gradient is finite, which `x / norm(x)` does not
    give (its gradient there is NaN).

    Args:
      vectors: [..., d] of any float type; computed in that type.
      epsilon: added to the squared length; vectors much shorter than its square root
        come out shorter than one.

    Returns:
      [..., d], unit length along the last axis.
    """
    squared_length = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
    return vectors * lax.rsqrt(squared_length + epsilon)


class Conv(nn.Module):
    """A square convolution; parameter `kernel` [k, k, c / groups, features], float32.

    Attributes:
      features: output channels.
      kernel_size: side of the kernel in pixels.
      strides: step in pixels, the same in both directions.
      padding: zeros added on every side; None means `(kernel_size - 1) // 2`, which
        keeps the size at stride 1 and is what torchvision's networks use.
      groups: number of groups the channels are divided into.
      use_bias: adds parameter `bias` [features]; off where batch normalisation follows.
      dtype: type the convolution is computed and returned in.
    """

    features: int
    kernel_size: int = 3
    strides: int = 1
    padding: int | None = None
    groups: int = 1
    use_bias: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b p q o"]:
        side = self.kernel_size
        kernel = self.param(
            "kernel",
            kaiming_normal,
            (side, side, images.shape[-1] // self.groups, self.features),
            jnp.float32,
        )
        features = convolve(
            images.astype(self.dtype),
            kernel.astype(self.dtype),
            strides=self.strides,
            padding=(side - 1) // 2 if self.padding is None else self.padding,
            groups=self.groups,
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            features = features + bias.astype(self.dtype)
        return features


class BatchNorm(nn.BatchNorm):
    """Batch normalisation over the whole global batch, torchvision's settings.

    Statistics and parameters are float32 whatever `dtype`; the running averages move by
    0.1 of the way to a batch's mean and (biased) variance at every training step.

    Attributes:
      frozen: normalise with the running averages, and leave them alone, in training
        too; scale and bias still train.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    frozen: bool = False

    def __call__(
        self, features: Float[Array, "*n c"], train: bool
    ) -> Float[Array, "*n c"]:
        return super().__call__(features, use_running_average=self.frozen or not train)


def max_pool(
    features: Float[Array, "b h w c"], window: int, stride: int, padding: int = 0
) -> Float[Array, "b p q c"]:
    """The largest value in every window; rows and columns left over are dropped.

    Windows that tile the image are reduced as a reshape and a maximum: the same values,
    and a gradient without the select-and-scatter that is slow on CPU. Where several
    positions of such a window hold the maximum they share the gradient.

    Args:
      features: [b, h, w, c].
      window: side of the window in pixels.
      stride: step between windows in pixels.
      padding: pixels of minus infinity on every side, at most `window // 2`.

    Returns:
      [b, p, q, c] with `p = (h + 2 padding - window) // stride + 1`, `q` likewise.
    """
    if window != stride or padding:
        sides = ((padding, padding), (padding, padding))
        return nn.max_pool(features, (window, window), (stride, stride), sides)
    batch, height, width, channels = features.shape
    rows, columns = height // window, width // window
    tiled = features[:, : rows * window, : columns * window]
    tiled = tiled.reshape(batch, rows, window, columns, window, channels)
    return jnp.max(tiled, axis=(2, 4))
