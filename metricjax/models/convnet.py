"""A small residual ConvNet for small images, quick on a CPU too."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from metricjax.errors import InputError
from metricjax.models import layers


class ConvNet(nn.Module):
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
      frozen_bn: see `layers.BatchNorm`.
    """

    widths: tuple[int, ...] = (32, 64, 128)
    depth: int = 2
    whole: int = 0
    dtype: jnp.dtype = jnp.float32
    frozen_bn: bool = False

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

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b p q o"]:
        conv = partial(layers.Conv, dtype=self.dtype)
        norm = partial(layers.BatchNorm, dtype=self.dtype, frozen=self.frozen_bn)
        stem, *stages = self.widths
        features = conv(stem, 5, 2, name="stem")(images)
        features = nn.relu(norm(name="stem_bn")(features, train))
        for stage, width in enumerate(stages):
            features = conv(width, 3, 2, name=f"down{stage}")(features)
            features = nn.relu(norm(name=f"down{stage}_bn")(features, train))
            for index in range(self.depth):
                name = f"stage{stage}_{index}"
                branch = conv(width, 3, name=name)(features)
                features += nn.relu(norm(name=f"{name}_bn")(branch, train))
        if self.whole:
            flat = features.reshape(len(features), 1, 1, -1)
            features = conv(self.whole, 1, name="whole")(flat)
            features = norm(name="whole_bn")(features, train)
        return features
