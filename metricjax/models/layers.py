"""The layers every backbone is made of: convolution, normalisation, excitation.

Backbones use these and nothing below them, so that how a convolution is carried out is
decided in one place (`models/_lowering/convolution.py`).
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from metricjax.models._lowering.convolution import convolve
from metricjax.models.normalization import normalize

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


class BatchNorm(nn.Module):
    """Batch normalisation over the whole global batch, torchvision's settings.

    Parameters `scale` and `bias` [c], running averages `mean` and `var` [c] in
    "batch_stats". Statistics and parameters are float32 whatever `dtype`; the running
    averages move by 0.1 of the way to a batch's mean and (biased) variance at every
    training step.

    Attributes:
      epsilon: added to the variance.
      frozen: normalise with the running averages, and leave them alone, in training
        too; scale and bias still train.
      dtype: type of the result.
    """

    epsilon: float = 1e-5
    frozen: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, features: Float[Array, "*n c"], train: bool
    ) -> Float[Array, "*n c"]:
        shape = features.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        if self.frozen or not train:
            factor = scale * lax.rsqrt(var.value + self.epsilon)
            shift = bias - mean.value * factor
            return (features * factor + shift).astype(self.dtype)
        normalized, *batch = normalize(features, scale, bias, self.epsilon)
        if not self.is_initializing():
            for running, value in zip((mean, var), batch, strict=True):
                running.value += 0.1 * (lax.stop_gradient(value) - running.value)
        return normalized.astype(self.dtype)


class ConvUnit(nn.Module):
    """Convolution, batch normalisation and ReLU; submodules `conv` and `bn`.

    Attributes:
      features, kernel_size, strides, padding, groups, dtype: see `Conv`.
      use_bias: the convolution has one; needed where nothing is normalised.
      batch_norm: whether there is normalisation.
      epsilon, frozen: of the normalisation, see `BatchNorm`.
      relu: whether the result is cut at 0.
    """

    features: int
    kernel_size: int = 3
    strides: int = 1
    padding: int | None = None
    groups: int = 1
    use_bias: bool = False
    batch_norm: bool = True
    epsilon: float = 1e-5
    frozen: bool = False
    relu: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, features: Float[Array, "b h w c"], train: bool
    ) -> Float[Array, "b p q o"]:
        features = Conv(
            self.features,
            self.kernel_size,
            self.strides,
            self.padding,
            self.groups,
            self.use_bias,
            self.dtype,
            name="conv",
        )(features)
        if self.batch_norm:
            features = BatchNorm(
                epsilon=self.epsilon, frozen=self.frozen, dtype=self.dtype, name="bn"
            )(features, train)
        return nn.relu(features) if self.relu else features


class SqueezeExcitation(nn.Module):
    """Channels weighted by a small network of their means (Hu et al., CVPR 2018).

    `x * sigmoid(W_2 relu(W_1 mean_hw(x) + b_1) + b_2)`; submodules `fc1`, `fc2`.

    Attributes:
      reduction: channels of the image per channel of the hidden layer.
      dtype: type of computation.
    """

    reduction: int = 16
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        channels = features.shape[-1]
        weights = jnp.mean(features, axis=(1, 2))
        hidden = nn.Dense(channels // self.reduction, dtype=self.dtype, name="fc1")
        weights = nn.relu(hidden(weights))
        weights = nn.Dense(channels, dtype=self.dtype, name="fc2")(weights)
        return features * nn.sigmoid(weights)[:, None, None]


def local_response_normalize(
    features: Float[Array, "b h w c"],
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
) -> Float[Array, "b h w c"]:
    """Divides by the squares of neighbouring channels, as GoogLeNet in Caffe does.

    `x_c / (1 + alpha / size * sum_{|j - c| <= size / 2} x_j^2)^beta` (Krizhevsky et
    al., NeurIPS 2012, with Caffe's division by the size).

    Args:
      features: [b, h, w, c].
      size: neighbouring channels, odd.
      alpha, beta: of the formula.
    """
    reach = size // 2
    channels = features.shape[-1]
    squares = jnp.pad(jnp.square(features), [(0, 0)] * 3 + [(reach, reach)])
    around = sum(squares[..., start : start + channels] for start in range(size))
    scale = 1 + alpha / size * around
    if beta == 0.75:
        # The same as the power, which takes many times as long on CPU.
        return features * lax.rsqrt(scale * lax.sqrt(scale))
    return features * scale**-beta
