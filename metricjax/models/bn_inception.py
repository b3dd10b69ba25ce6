"""BN-Inception feature maps (Ioffe and Szegedy, ICML 2015), NHWC.

The network of Proxy-Anchor, multi-similarity and many others. Convolutions have biases
although batch normalisation follows, and poolings round up, as in the Caffe model whose
weights are in use; they map one to one onto the submodules here: `inception_3a_3x3`
there is `inception3a/3x3/conv` here, `inception_3a_3x3_bn` is `inception3a/3x3/bn`.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from metricjax.errors import InputError
from metricjax.models import layers
from metricjax.models._lowering import windows
from metricjax.models.backbone import Backbone, check_last_stride

# Channels: 1x1; 1x1 before 3x3, 3x3; 1x1 before the double 3x3, both of the double;
# 1x1 behind the pooling. None: a block that halves the map, without those branches.
_INCEPTIONS = {
    "inception3a": (64, 64, 64, 64, 96, 32),
    "inception3b": (64, 64, 96, 64, 96, 64),
    "inception3c": (None, 128, 160, 64, 96, None),
    "inception4a": (224, 64, 96, 96, 128, 128),
    "inception4b": (192, 96, 128, 96, 128, 128),
    "inception4c": (160, 128, 160, 128, 160, 128),
    "inception4d": (96, 128, 192, 160, 192, 128),
    "inception4e": (None, 128, 192, 192, 256, None),
    "inception5a": (352, 192, 320, 160, 224, 128),
    "inception5b": (352, 192, 320, 192, 224, 128),
}
_BLOCKS = ("conv1", "pool1", "conv2", "pool2", *_INCEPTIONS)


class Inception(nn.Module):
    """1x1, 3x3, two 3x3 and pooling side by side, each behind a 1x1.

    Attributes:
      widths: channels, as in the table above.
      strides: 2 halves the map; the pooling is then of maxima.
      max_pooling: pool maxima although the map keeps its size.
      unit: settings of every `layers.ConvUnit`.
    """

    widths: tuple[int | None, int, int, int, int, int | None]
    strides: int
    max_pooling: bool
    unit: dict

    @nn.compact
    def __call__(
        self, features: Float[Array, "b h w c"], train: bool
    ) -> Float[Array, "b p q o"]:
        def conv(name, width, side, features, strides=1):
            unit = layers.ConvUnit(width, side, strides, name=name, **self.unit)
            return unit(features, train)

        single, reduced, large, double_reduced, double, projected = self.widths
        branches = []
        if single is not None:
            branches.append(conv("1x1", single, 1, features))
        branch = conv("3x3_reduce", reduced, 1, features)
        branches.append(conv("3x3", large, 3, branch, self.strides))
        branch = conv("double_3x3_reduce", double_reduced, 1, features)
        branch = conv("double_3x3_1", double, 3, branch)
        branches.append(conv("double_3x3_2", double, 3, branch, self.strides))
        if self.strides == 2:
            height, width = features.shape[1:3]
            if height % 2 or width % 2:
                raise InputError(
                    f"BN-Inception can only halve even sides, but the map of these "
                    f"images becomes {height}x{width}: choose sides that 32 divides."
                )
            pooled = windows.max_pool(features, 3, 2, ceil_mode=True)
        elif self.max_pooling:
            pooled = windows.max_pool(features, 3, 1, padding=1)
        else:
            pooled = windows.average_pool(features, 3, padding=1)
        if projected is not None:
            pooled = conv("pool_proj", projected, 1, pooled)
        return jnp.concatenate([*branches, pooled], axis=-1)


class BNInception(Backbone):
    """BN-Inception without its pooling and classifier.

    At 224x224: 10.27 M parameters, 2.04 GMAC, 1024 channels.

    Attributes:
      last_stride: stride of inception 4e; 1 removes its downsampling (a 14x14 map from
        224x224 pixels instead of 7x7), for CGD.
      dtype: type of computation and of the features, float32 or bfloat16.
      frozen_bn, only, keep_size: see `Backbone`.

    Raises:
      InputError: another stride.
    """

    last_stride: int = 2
    dtype: jnp.dtype = jnp.float32
    frozen_bn: bool = False
    only: tuple[str, ...] | None = None
    keep_size: bool = False

    def __post_init__(self):
        check_last_stride(self)
        super().__post_init__()

    @property
    def blocks(self) -> tuple[str, ...]:
        return _BLOCKS

    @property
    def branch_after(self) -> str:
        return "inception3c"

    def apply_block(self, name, features, train):
        unit = {"use_bias": True, "frozen": self.frozen_bn, "dtype": self.dtype}
        if name.startswith("pool"):
            if self.keep_size:
                return features
            return windows.max_pool(features, 3, 2, ceil_mode=True)
        if name == "conv1":
            stride = self.stride(2)
            return layers.ConvUnit(64, 7, stride, name=name, **unit)(features, train)
        if name == "conv2":
            reduce = layers.ConvUnit(64, 1, name="conv2_reduce", **unit)
            return layers.ConvUnit(192, 3, name="conv2", **unit)(
                reduce(features, train), train
            )
        halved = {"inception3c": 2, "inception4e": self.last_stride}
        strides = self.stride(halved.get(name, 1))
        halves = _INCEPTIONS[name][0] is None
        return Inception(
            _INCEPTIONS[name],
            strides,
            max_pooling=halves or name == "inception5b",
            unit=unit,
            name=name,
        )(features, train)
