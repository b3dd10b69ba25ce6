"""From settings to a model: which backbone under which head."""

import dataclasses
import difflib
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from metricjax.errors import InputError
from metricjax.models.abe import ABE, MHeads
from metricjax.models.backbone import Backbone
from metricjax.models.bn_inception import BNInception
from metricjax.models.cgd import CGD
from metricjax.models.convnet import ConvNet
from metricjax.models.googlenet import GoogLeNet
from metricjax.models.resnet import ResNet
from metricjax.models.shufflenet import ShuffleNetV2
from metricjax.models.vit import ViT

HEADS = ("cgd", "abe", "m_heads")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What an embedding model is made of.

    Attributes:
      backbone: a name in `BACKBONES`.
      pretrained: file of weights for the backbone, see `pretrained.load`; None: random
        values.
      last_stride: of the last downsampling of the backbone; 1 removes it. The ConvNet
        and ViT have no such thing.
      widths: channels of the ConvNet's stem and stages.
      whole: channels of the ConvNet's convolution over the whole map, see `ConvNet`.
      tokens: what a ViT gives, "class" or "patches", see `ViT`.
      head: "cgd" (one global descriptor or several), "abe" or "m_heads".
      descriptors: global descriptors, letters as `CGD` knows them; one letter is the
        plain pooling and linear map.
      dim: length of the embedding; 0: that of the descriptors, see `CGD`.
      architecture: how CGD combines descriptors, "C", "A" or "B".
      combine: "concat" or "sum".
      gem_p: GeM's exponent, >= 1.
      learnable_p: whether GeM's exponent is learnt.
      use_bias: whether CGD's linear maps have a bias.
      learners: of "abe" and "m_heads", M; it divides `dim`.
      branch_after: block of the backbone behind which those branch off; None: see
        `Backbone.branch_after`.
      attention_blocks: depth of the attention of "abe", see `ABE`.
      dtype: the backbone's type of computation, "float32" or "bfloat16"; parameters,
        statistics, descriptors and embeddings are float32 in both.
      frozen_bn: the backbone's batch normalisation keeps its running averages in
        training (the classifier's, which starts untrained, does not).
      remat: work the inside of the backbone's blocks out again for the gradient instead
        of keeping it, see `Backbone`.
    """

    backbone: str = "resnet50"
    pretrained: str | None = None
    last_stride: int = 1
    widths: tuple[int, ...] = (64, 128, 256)
    whole: int = 0
    tokens: str = "class"
    head: str = "cgd"
    descriptors: str = "MG"
    dim: int = 1536
    architecture: str = "C"
    combine: str = "concat"
    gem_p: float = 3.0
    learnable_p: bool = False
    use_bias: bool = False
    learners: int = 8
    branch_after: str | None = None
    attention_blocks: int = 5
    dtype: str = "float32"
    frozen_bn: bool = False
    remat: bool = False

    @property
    def ensemble(self) -> int:
        """Learners with an embedding of their own, side by side in the whole one."""
        if self.head != "cgd":
            return self.learners
        return len(self.descriptors) if self.architecture == "A" else 1


def _strided(kind: type[Backbone], **settings) -> Callable[..., Backbone]:
    """A network whose last downsampling can be removed."""

    def construct(config: ModelConfig, **common) -> Backbone:
        return kind(last_stride=config.last_stride, **settings, **common)

    return construct


def _convnet(config: ModelConfig, **common) -> Backbone:
    return ConvNet(widths=config.widths, whole=config.whole, **common)


def _vit_small(config: ModelConfig, **common) -> Backbone:
    return ViT(output=config.tokens, **common)


# Name -> how the settings make it, given its dtype and whether its normalisation is
# frozen.
BACKBONES: dict[str, Callable[..., Backbone]] = {
    "bn_inception": _strided(BNInception),
    "convnet": _convnet,
    "googlenet": _strided(GoogLeNet),
    "googlenet_bn": _strided(GoogLeNet, layout="bn"),
    "resnet18": _strided(ResNet, depth=18),
    "resnet50": _strided(ResNet, depth=50),
    "se_resnet50": _strided(ResNet, depth=50, squeeze_excitation=True),
    "shufflenet": _strided(ShuffleNetV2),
    "vit_small": _vit_small,
}


def build(config: ModelConfig, num_classes: int | None = None) -> nn.Module:
    """The model that the settings describe.

    Args:
      config: the settings; `pretrained` is not read here.
      num_classes: classes of the training set, for the auxiliary classifier; None
        leaves the classifier out.

    Returns:
      A Linen module: `module.init(key, images)` gives its variables, and
      `module.apply(variables, images [b, h, w, c] float, train=bool)` an `Output`
      (with `mutable=["batch_stats"]` in training).

    Raises:
      InputError: an unknown backbone, head or dtype, settings that a part rejects, or a
        classifier on a head that has none.
    """
    if config.dtype not in ("float32", "bfloat16"):
        raise InputError(
            f"dtype is {config.dtype!r}; it must be 'float32' or 'bfloat16'."
        )
    construct = BACKBONES[_known("backbone", config.backbone, BACKBONES)]
    backbone = construct(
        config,
        dtype=jnp.dtype(config.dtype),
        frozen_bn=config.frozen_bn,
        remat=config.remat,
    )
    if _known("head", config.head, HEADS) == "cgd":
        return CGD(
            descriptors=config.descriptors,
            dim=config.dim,
            architecture=config.architecture,
            combine=config.combine,
            num_classes=num_classes,
            backbone=backbone,
            gem_p=config.gem_p,
            learnable_p=config.learnable_p,
            use_bias=config.use_bias,
        )
    if num_classes is not None:
        raise InputError(
            f"The softmax loss needs a classifier, but head={config.head!r} has none: "
            "leave that loss out, or choose head='cgd'."
        )
    ensemble = {
        "learners": config.learners,
        "dim": config.dim,
        "backbone": backbone,
        "branch_after": config.branch_after,
    }
    if config.head == "m_heads":
        return MHeads(**ensemble)
    return ABE(**ensemble, attention_blocks=config.attention_blocks)


def _known(kind: str, name: str, names) -> str:
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}; " if near else ""
    raise InputError(
        f"There is no {kind} {name!r}; {hint}there are {', '.join(sorted(names))}."
    )
