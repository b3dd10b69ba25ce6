"""GoogLeNet feature maps (Szegedy et al., CVPR 2015), NHWC, in two layouts.

"caffe" is the network of the ABE and the older metric learning papers: no batch
normalisation, biases, a 5x5 branch, local response normalisation, 3x3 pooling. "bn" is
torchvision's: batch normalisation, 3x3 in place of 5x5, pool4 of 2x2. Poolings round up
in both. Submodules are named after torchvision's, so that its weights map one to one:
`inception3a/branch2_0/conv/kernel` is `inception3a.branch2.0.conv.weight`.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from metricjax.errors import InputError
from metricjax.models import layers
from metricjax.models._lowering import windows
from metricjax.models.backbone import Backbone, check_last_stride

# Channels: 1x1; 1x1 before 3x3, 3x3; 1x1 before 5x5, 5x5; 1x1 behind the pooling.
_INCEPTIONS = {
    "inception3a": (64, 96, 128, 16, 32, 32),
    "inception3b": (128, 128, 192, 32, 96, 64),
    "inception4a": (192, 96, 208, 16, 48, 64),
    "inception4b": (160, 112, 224, 24, 64, 64),
    "inception4c": (128, 128, 256, 24, 64, 64),
    "inception4d": (112, 144, 288, 32, 64, 64),
    "inception4e": (256, 160, 320, 32, 128, 128),
    "inception5a": (256, 160, 320, 32, 128, 128),
    "inception5b": (384, 192, 384, 48, 128, 128),
}
_BLOCKS = (
    "conv1", "pool1", "conv2", "pool2", "inception3a", "inception3b", "pool3",
    "inception4a", "inception4b", "inception4c", "inception4d", "inception4e",
    "pool4", "inception5a", "inception5b",
)  # fmt: skip


class Inception(nn.Module):
    """Four branches side by side: 1x1, 3x3, 5x5 and pooling, each behind a 1x1.

    Attributes:
      widths: channels, as in the table above.
      large: side of the third branch's kernel, 5 or 3.
      unit: settings of every `layers.ConvUnit`.
    """

    widths: tuple[int, int, int, int, int, int]
    large: int
    unit: dict

    @nn.compact
    def __call__(
        self, features: Float[Array, "b h w c"], train: bool
    ) -> Float[Array, "b h w o"]:
        def conv(name, index, side, features):
            width = self.widths[index]
            return layers.ConvUnit(width, side, name=name, **self.unit)(features, train)

        pooled = windows.max_pool(features, 3, 1, padding=1)
        branches = [
            conv("branch1", 0, 1, features),
            conv("branch2_1", 2, 3, conv("branch2_0", 1, 1, features)),
            conv("branch3_1", 4, self.large, conv("branch3_0", 3, 1, features)),
            conv("branch4_1", 5, 1, pooled),
        ]
        return jnp.concatenate(branches, axis=-1)


class GoogLeNet(Backbone):
    """GoogLeNet without its pooling, classifier and auxiliary classifiers.

    At 224x224 in Caffe's layout: 5.97 M parameters, 1.58 GMAC, 1024 channels.

    Attributes:
      layout: "caffe" or "bn".
      last_stride: stride of pool4; 1 leaves that pooling out (a 14x14 map from 224x224
        pixels instead of 7x7), for CGD.
      dtype: type of computation and of the features, float32 or bfloat16.
      frozen_bn, only, keep_size: see `Backbone`.

    Raises:
      InputError: another layout or stride.
    """

    layout: str = "caffe"
    last_stride: int = 2
    dtype: jnp.dtype = jnp.float32
    frozen_bn: bool = False
    only: tuple[str, ...] | None = None
    keep_size: bool = False

    def __post_init__(self):
        if self.layout not in ("caffe", "bn"):
            raise InputError(
                f"GoogLeNet layout is {self.layout!r}; it can be 'caffe' or 'bn'."
            )
        check_last_stride(self)
        super().__post_init__()

    @property
    def blocks(self) -> tuple[str, ...]:
        return _BLOCKS

    @property
    def branch_after(self) -> str:
        return "pool3"

    def apply_block(self, name, features, train):
        caffe = self.layout == "caffe"
        if name.startswith("pool"):
            features = self._pool(name, features)
            return self._respond(features) if name == "pool1" else features
        unit = {
            "use_bias": caffe,
            "batch_norm": not caffe,
            "epsilon": 1e-3,
            "frozen": self.frozen_bn,
            "dtype": self.dtype,
        }
        if name == "conv1":
            stride = self.stride(2)
            return layers.ConvUnit(64, 7, stride, name=name, **unit)(features, train)
        if name == "conv2":
            features = layers.ConvUnit(64, 1, name="conv2", **unit)(features, train)
            features = layers.ConvUnit(192, 3, name="conv3", **unit)(features, train)
            return self._respond(features)
        large = 5 if caffe else 3
        return Inception(_INCEPTIONS[name], large, unit, name=name)(features, train)

    def _pool(self, name, features):
        if self.keep_size or (name == "pool4" and self.last_stride == 1):
            return features
        window = 2 if name == "pool4" and self.layout == "bn" else 3
        return windows.max_pool(features, window, 2, ceil_mode=True)

    def _respond(self, features):
        if self.layout == "bn":
            return features
        return layers.local_response_normalize(features)
