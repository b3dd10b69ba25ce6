"""ResNet-18, ResNet-50 and SE-ResNet-50 feature maps (He et al., CVPR 2016), NHWC.

Stride placement is "v1.5": a bottleneck strides in its 3x3 convolution. Padding, batch
normalisation and submodule names follow torchvision's, so that its weights map one to
one: `layer3_0/conv2/kernel` here is `layer3.0.conv2.weight` there (transposed), and
`downsample_conv`, `downsample_bn` are `downsample.0` and `downsample.1`. Squeeze and
excitation (Hu et al., CVPR 2018) is timm's `layer3.0.se`.
"""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from metricjax.errors import InputError
from metricjax.models import layers
from metricjax.models._lowering import windows
from metricjax.models.backbone import Backbone, check_last_stride

BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: `relu(f(x) + shortcut(x))`.

    Attributes:
      width: channels inside the block; it returns `width * expansion`.
      strides: of the first convolution and of the shortcut.
      dtype: type of computation.
      frozen_bn: see `layers.BatchNorm`.
      squeeze_excitation: weight the channels of `f(x)`, see
        `layers.SqueezeExcitation`.
    """

    width: int
    strides: int = 1
    dtype: jnp.dtype = jnp.float32
    frozen_bn: bool = False
    squeeze_excitation: bool = False
    expansion = 1

    @nn.compact
    def __call__(
        self, features: Float[Array, "b h w c"], train: bool
    ) -> Float[Array, "b p q o"]:
        conv = partial(layers.Conv, dtype=self.dtype)
        norm = partial(layers.BatchNorm, dtype=self.dtype, frozen=self.frozen_bn)
        branch = conv(self.width, 3, self.strides, name="conv1")(features)
        branch = nn.relu(norm(name="bn1")(branch, train))
        branch = conv(self.width, 3, name="conv2")(branch)
        branch = _excited(self, norm(name="bn2")(branch, train))
        return nn.relu(branch + _shortcut(self, features, train))


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided) and 1x1 convolutions, a shortcut; attributes as BasicBlock."""

    width: int
    strides: int = 1
    dtype: jnp.dtype = jnp.float32
    frozen_bn: bool = False
    squeeze_excitation: bool = False
    expansion = 4

    @nn.compact
    def __call__(
        self, features: Float[Array, "b h w c"], train: bool
    ) -> Float[Array, "b p q o"]:
        conv = partial(layers.Conv, dtype=self.dtype)
        norm = partial(layers.BatchNorm, dtype=self.dtype, frozen=self.frozen_bn)
        branch = conv(self.width, 1, name="conv1")(features)
        branch = nn.relu(norm(name="bn1")(branch, train))
        branch = conv(self.width, 3, self.strides, name="conv2")(branch)
        branch = nn.relu(norm(name="bn2")(branch, train))
        branch = conv(self.width * self.expansion, 1, name="conv3")(branch)
        branch = _excited(self, norm(name="bn3")(branch, train))
        return nn.relu(branch + _shortcut(self, features, train))


class ResNet(Backbone):
    """ResNet without its pooling and classifier: images to the last feature map.

    Parameters are float32. At 224x224 with `last_stride=2`: ResNet-18 11.18 M
    parameters, 1.81 GMAC, 512 channels; ResNet-50 23.51 M, 4.09 GMAC, 2048 channels,
    with squeeze and excitation 26.04 M, 4.09 GMAC.

    Attributes:
      depth: 18 or 50.
      last_stride: stride of the fourth stage; 1 removes its downsampling (a 14x14 map
        from 224x224 pixels instead of 7x7), as CGD does (arXiv 1903.10663, Fig. 1).
      squeeze_excitation: SE-ResNet.
      dtype: type of computation and of the features, float32 or bfloat16.
      frozen_bn, only, keep_size: see `Backbone`.

    Raises:
      InputError: another depth or stride.
    """

    depth: int = 50
    last_stride: int = 2
    squeeze_excitation: bool = False
    dtype: jnp.dtype = jnp.float32
    frozen_bn: bool = False
    only: tuple[str, ...] | None = None
    keep_size: bool = False

    def __post_init__(self):
        if self.depth not in BLOCKS_PER_STAGE:
            raise InputError(f"ResNet depth is {self.depth}; it can be 18 or 50.")
        check_last_stride(self)
        super().__post_init__()

    @property
    def blocks(self) -> tuple[str, ...]:
        counts = enumerate(BLOCKS_PER_STAGE[self.depth], start=1)
        units = [f"layer{stage}_{index}" for stage, n in counts for index in range(n)]
        return ("conv1", "pool1", *units)

    @property
    def branch_after(self) -> str:
        return f"layer2_{BLOCKS_PER_STAGE[self.depth][1] - 1}"

    def apply_block(self, name, features, train):
        if name == "conv1":
            stride = self.stride(2)
            features = layers.Conv(64, 7, stride, dtype=self.dtype, name=name)(features)
            norm = layers.BatchNorm(dtype=self.dtype, frozen=self.frozen_bn, name="bn1")
            return nn.relu(norm(features, train))
        if name == "pool1":
            if self.keep_size:
                return features
            return windows.max_pool(features, window=3, stride=2, padding=1)
        stage, index = (int(part) for part in name.removeprefix("layer").split("_"))
        wanted = (1, 2, 2, self.last_stride)[stage - 1] if index == 0 else 1
        block = BasicBlock if self.depth == 18 else Bottleneck
        return block(
            width=64 * 2 ** (stage - 1),
            strides=self.stride(wanted),
            dtype=self.dtype,
            frozen_bn=self.frozen_bn,
            squeeze_excitation=self.squeeze_excitation,
            name=name,
        )(features, train)


def _excited(block, branch):
    if not block.squeeze_excitation:
        return branch
    return layers.SqueezeExcitation(dtype=block.dtype, name="se")(branch)


def _shortcut(block, features, train):
    """The block's input, through a strided 1x1 convolution where its shape changes."""
    channels = block.width * block.expansion
    if block.strides == 1 and features.shape[-1] == channels:
        return features
    conv = layers.Conv(
        channels, 1, block.strides, dtype=block.dtype, name="downsample_conv"
    )
    norm = layers.BatchNorm(
        dtype=block.dtype, frozen=block.frozen_bn, name="downsample_bn"
    )
    return norm(conv(features), train)
