"""From settings to a model: which backbone under which head."""

import dataclasses
import difflib
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from metricjax.errors import InputError
from metricjax.models.cgd import CGD
from metricjax.models.convnet import ConvNet
from metricjax.models.resnet import ResNet


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What an embedding model is made of.

    Attributes:
      backbone: a name in `BACKBONES`.
      last_stride: a ResNet's stride of stage 4; 1 removes its downsampling.
      widths: channels of the ConvNet's stem and stages.
      whole: channels of the ConvNet's convolution over the whole map, see `ConvNet`.
      descriptors: global descriptors out of S (SPoC), M (MAC), G (GeM); one letter is
        the plain pooling and linear map.
      dim: length of the embedding; 0: that of the descriptors, see `CGD`.
      architecture: how CGD combines descriptors, "C", "A" or "B".
      combine: "concat" or "sum".
      gem_p: GeM's exponent, >= 1.
      learnable_p: whether GeM's exponent is learnt.
      dtype: the backbone's type of computation, "float32" or "bfloat16"; parameters,
        statistics, descriptors and embeddings are float32 in both.
      frozen_bn: the backbone's batch normalisation keeps its running averages in
        training (the classifier's, which starts untrained, does not).
    """

    backbone: str = "resnet50"
    last_stride: int = 1
    widths: tuple[int, ...] = (64, 128, 256)
    whole: int = 0
    descriptors: str = "MG"
    dim: int = 1536
    architecture: str = "C"
    combine: str = "concat"
    gem_p: float = 3.0
    learnable_p: bool = False
    dtype: str = "float32"
    frozen_bn: bool = False


def _resnet(depth: int) -> Callable[[ModelConfig], nn.Module]:
    def construct(config: ModelConfig) -> nn.Module:
        return ResNet(
            depth=depth,
            last_stride=config.last_stride,
            dtype=jnp.dtype(config.dtype),
            frozen_bn=config.frozen_bn,
        )

    return construct


def _convnet(config: ModelConfig) -> nn.Module:
    return ConvNet(
        widths=config.widths,
        whole=config.whole,
        dtype=jnp.dtype(config.dtype),
        frozen_bn=config.frozen_bn,
    )


# Name -> how the settings make it; a backbone is called as
# `backbone(images [b, h, w, c], train=bool) -> features [b, p, q, channels]`.
BACKBONES: dict[str, Callable[[ModelConfig], nn.Module]] = {
    "convnet": _convnet,
    "resnet18": _resnet(18),
    "resnet50": _resnet(50),
}


def build(config: ModelConfig, num_classes: int | None = None) -> nn.Module:
    """The model that the settings describe.

    Args:
      config: the settings.
      num_classes: classes of the training set, for the auxiliary classifier; None
        leaves the classifier out.

    Returns:
      A Linen module: `module.init(key, images)` gives its variables, and
      `module.apply(variables, images [b, h, w, c] float, train=bool)` an `Output`
      (with `mutable=["batch_stats"]` in training).

    Raises:
      InputError: an unknown backbone or dtype, or settings that a part rejects.
    """
    if config.backbone not in BACKBONES:
        near = difflib.get_close_matches(config.backbone, BACKBONES, n=1)
        hint = f"did you mean {near[0]!r}; " if near else ""
        raise InputError(
            f"There is no backbone {config.backbone!r}; {hint}"
            f"there are {', '.join(sorted(BACKBONES))}."
        )
    if config.dtype not in ("float32", "bfloat16"):
        raise InputError(
            f"dtype is {config.dtype!r}; it must be 'float32' or 'bfloat16'."
        )
    return CGD(
        descriptors=config.descriptors,
        dim=config.dim,
        architecture=config.architecture,
        combine=config.combine,
        num_classes=num_classes,
        backbone=BACKBONES[config.backbone](config),
        gem_p=config.gem_p,
        learnable_p=config.learnable_p,
    )
