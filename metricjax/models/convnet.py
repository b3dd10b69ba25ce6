"""A small residual ConvNet for small images, quick on a CPU too."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from metricjax.errors import InputError
from metricjax.models import layers
from metricjax.models.backbone import Backbone


class ConvNet(Backbone):
    """A strided stem, then stages of `x + relu(bn(conv(x)))`.

    The stem is a 5x5 convolution of stride 2; every further stage begins with a 3x3
    convolution of stride 2 and has `depth` residual convolutions. Images of side s give
    features of side s / 2^len(widths), rounded up.

    Attributes:
      widths: channels of the stem and of each stage.
      depth: residual convolutions of a stage.
      whole: channels of a last convolution as large as the map, [b, 1, 1, whole], so
        that it counts where in the image a stroke lies; normalised and nothing more, as
        pooling leaves it as it is. 0: none.
      dtype: type of computation.
      frozen_bn, only, keep_size: see `Backbone`.
    """

    widths: tuple[int, ...] = (32, 64, 128)
    depth: int = 2
    whole: int = 0
    dtype: jnp.dtype = jnp.float32
    frozen_bn: bool = False
    only: tuple[str, ...] | None = None
    keep_size: bool = False

    def __post_init__(self):
        if not self.widths or any(width < 1 for width in self.widths):
            raise InputError(
                f"widths is {self.widths}; it must name the channels of at least the "
                "stem, each 1 or more."
            )
        if self.whole < 0:
            raise InputError(
                f"whole is {self.whole}; it must be 0 (none) or a number of channels."
            )
        super().__post_init__()

    @property
    def blocks(self) -> tuple[str, ...]:
        stages = [f"stage{index}" for index in range(len(self.widths) - 1)]
        return ("stem", *stages, *(["whole"] if self.whole else []))

    @property
    def branch_after(self) -> str:
        return self.blocks[(len(self.widths) - 1) // 2]

    def apply_block(self, name, features, train):
        conv = partial(layers.Conv, dtype=self.dtype)
        norm = partial(layers.BatchNorm, dtype=self.dtype, frozen=self.frozen_bn)
        if name == "stem":
            features = conv(self.widths[0], 5, self.stride(2), name="stem")(features)
            return nn.relu(norm(name="stem_bn")(features, train))
        if name == "whole":
            flat = features.reshape(features.shape[0], 1, 1, -1)
            features = conv(self.whole, 1, name="whole")(flat)
            return norm(name="whole_bn")(features, train)
        stage = int(name.removeprefix("stage"))
        width = self.widths[stage + 1]
        features = conv(width, 3, self.stride(2), name=f"down{stage}")(features)
        features = nn.relu(norm(name=f"down{stage}_bn")(features, train))
        for index in range(self.depth):
            branch = conv(width, 3, name=f"{name}_{index}")(features)
            features += nn.relu(norm(name=f"{name}_{index}_bn")(branch, train))
        return features
