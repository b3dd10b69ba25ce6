"""ShuffleNet-v2 feature maps (Ma et al., ECCV 2018), NHWC.

Layers follow torchvision's, so that its weights map one to one: `stage2_0/branch2_0`
here is the convolution `stage2.0.branch2.0` and its normalisation `stage2.0.branch2.1`
there.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from metricjax.errors import InputError
from metricjax.models import layers
from metricjax.models._lowering import windows
from metricjax.models.backbone import Backbone, check_last_stride

# Factor of the widths -> channels of the stages 2 to 4 and of the last convolution.
WIDTHS = {
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (244, 488, 976, 2048),
}
_UNITS = {"stage2": 4, "stage3": 8, "stage4": 4}


class ShuffleUnit(nn.Module):
    """Half of the channels pass, half go through 1x1, depthwise 3x3, 1x1; shuffled.

    A unit that changes the number of channels sends all of them through both branches.

    Attributes:
      width: channels that it returns.
      strides: of the depthwise convolutions.
      unit: settings of every `layers.ConvUnit`.
    """

    width: int
    strides: int
    unit: dict

    @nn.compact
    def __call__(
        self, features: Float[Array, "b h w c"], train: bool
    ) -> Float[Array, "b p q o"]:
        def depthwise(name, features):
            channels = features.shape[-1]
            settings = {"groups": channels, "relu": False, **self.unit}
            conv = layers.ConvUnit(channels, 3, self.strides, name=name, **settings)
            return conv(features, train)

        def pointwise(name, features):
            conv = layers.ConvUnit(self.width // 2, 1, name=name, **self.unit)
            return conv(features, train)

        if features.shape[-1] == self.width:
            kept, branch = jnp.split(features, 2, axis=-1)
        else:
            branch = features
            kept = pointwise("branch1_2", depthwise("branch1_0", features))
        branch = depthwise("branch2_3", pointwise("branch2_0", branch))
        branch = pointwise("branch2_5", branch)
        # Channels of the two halves in turn: a shuffle with two groups.
        shuffled = jnp.stack([kept, branch], axis=-1)
        return shuffled.reshape(*shuffled.shape[:3], self.width)


class ShuffleNetV2(Backbone):
    """ShuffleNet-v2 without its pooling and classifier.

    At 224x224 with `width=1.0`: 1.25 M parameters, 0.14 GMAC, 1024 channels.

    Attributes:
      width: factor of the channels, 0.5, 1.0, 1.5 or 2.0.
      last_stride: stride of stage 4; 1 removes its downsampling (a 14x14 map from
        224x224 pixels instead of 7x7), for CGD.
      dtype: type of computation and of the features, float32 or bfloat16.
      frozen_bn, only, keep_size: see `Backbone`.

    Raises:
      InputError: another width or stride.
    """

    width: float = 1.0
    last_stride: int = 2
    dtype: jnp.dtype = jnp.float32
    frozen_bn: bool = False
    only: tuple[str, ...] | None = None
    keep_size: bool = False

    def __post_init__(self):
        if self.width not in WIDTHS:
            raise InputError(
                f"ShuffleNet width is {self.width}; it can be "
                f"{', '.join(str(width) for width in WIDTHS)}."
            )
        check_last_stride(self)
        super().__post_init__()

    @property
    def blocks(self) -> tuple[str, ...]:
        units = [f"{stage}_{i}" for stage, n in _UNITS.items() for i in range(n)]
        return ("conv1", "pool1", *units, "conv5")

    @property
    def branch_after(self) -> str:
        return "stage2_3"

    def apply_block(self, name, features, train):
        unit = {"frozen": self.frozen_bn, "dtype": self.dtype}
        *stages, last = WIDTHS[self.width]
        if name == "conv1":
            stride = self.stride(2)
            return layers.ConvUnit(24, 3, stride, name=name, **unit)(features, train)
        if name == "pool1":
            if self.keep_size:
                return features
            return windows.max_pool(features, 3, 2, padding=1)
        if name == "conv5":
            return layers.ConvUnit(last, 1, name=name, **unit)(features, train)
        stage, index = name.split("_")
        wanted = self.last_stride if stage == "stage4" else 2
        return ShuffleUnit(
            stages[int(stage[-1]) - 2],
            self.stride(wanted if index == "0" else 1),
            unit,
            name=name,
        )(features, train)
