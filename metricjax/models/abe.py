"""ABE: attention-based ensemble (Kim et al., ECCV 2018), and its baseline M-heads."""

import math

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from metricjax.errors import InputError
from metricjax.models import layers, pooling
from metricjax.models.backbone import Backbone
from metricjax.models.googlenet import GoogLeNet
from metricjax.models.output import Output

# What Caffe calls "xavier", as which the paper starts its own layers: uniform, of
# variance 1 / inputs.
_caffe_xavier = nn.initializers.lecun_uniform()


class Pooled(nn.Module):
    """A part of a network and the mean of its map.

    Attributes:
      network: the part.
    """

    network: Backbone

    @nn.compact
    def __call__(
        self, features: Float[Array, "b h w c"], train: bool
    ) -> tuple[Float[Array, "b o"], Float[Array, "b p q o"]]:
        """The mean of the last feature map, and that map."""
        features = self.network(features, train=train)
        return pooling.spoc(features), features


class Parts(nn.Module):
    """A network cut at the branching point; one parameter group, like a whole one.

    Attributes:
      shared: S of the paper.
      branch: G of the paper, with its pooling.
      attention: the trunk of the attention, for `ABE`.
    """

    shared: Backbone
    branch: nn.Module
    attention: Backbone | None = None

    @property
    def whole(self) -> Backbone:
        """The network that this is cut from."""
        return self.shared.clone(parent=None, name=None, only=None)

    def __call__(self, part: str, features: Array, train: bool):
        """One of the parts applied to features."""
        return getattr(self, part)(features, train)

    def branches(self, features: Float[Array, "b h w c"], train: bool, count: int):
        """`branch` with `count` sets of variables, results side by side on axis 1."""
        each = _of_each(lambda branch, features: branch(features, train), count, None)
        return each(self.branch, features)


class ABE(nn.Module):
    """Learners that look at the same features through masks of their own (ABE-M).

    With `S` the network up to the branching point, `A_m` the attention of learner m and
    `G` the network behind (arXiv 1804.00382, Sec. 3):

        B_m(x) = l2(G(S(x) o A_m(S(x)))),   embedding = concat_m B_m(x) / sqrt(M)

    `G` and its last linear map are one for all learners. The attention is one trunk, a
    copy of the blocks behind the branching point that keeps the map's size, with
    weights of its own, and for each learner a 1x1 convolution and a sigmoid: a mask for
    every channel and position. (The sharing is what gives the paper's Table 1; that the
    mask is a sigmoid and each learner of unit length is how two re-implementations read
    the paper.) The learners run as one batch of M times the images. The masks
    [b, M, h, w, c] are sown as "intermediates/masks".

    Attributes:
      learners: M; it divides `dim`.
      dim: length of the embedding, `dim / M` for each learner.
      backbone: the network; None is the paper's GoogLeNet.
      branch_after: name of the last block of S; None: the backbone's own choice,
        pool3 of GoogLeNet.
      attention_blocks: blocks of the attention's trunk, at most as many as there are
        behind the branching point, poolings not counted.

    Raises:
      InputError: M does not divide `dim`, or there is no such block.
    """

    learners: int = 8
    dim: int = 512
    backbone: Backbone | Parts | None = None
    branch_after: str | None = None
    attention_blocks: int = 5

    def __post_init__(self):
        if self.attention_blocks < 1:
            raise InputError(
                f"attention_blocks is {self.attention_blocks}; it must be at least 1."
            )
        _cut(self, self.attention_blocks)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], train: bool = False) -> Output:
        """Embeds images; see `cgd.CGD`. `learners` is [b, M, dim / M]."""
        shared = self.backbone("shared", images, train)
        attention = self.backbone("attention", shared, train)
        *places, channels = shared.shape
        # A 1x1 convolution for every learner, or a linear map of tokens.
        masks = nn.Dense(
            self.learners * channels,
            kernel_init=_caffe_xavier,
            dtype=attention.dtype,
            name="mask",
        )(attention)
        masks = nn.sigmoid(masks.reshape(*places, self.learners, channels))
        masks = jnp.moveaxis(masks, -2, 1)
        self.sow("intermediates", "masks", masks)
        pooled, features = self._branches(shared, masks, train)
        return _output(_linear(nn.Dense, self)(pooled), features)

    def _branches(self, shared, masks, train):
        """What G makes for every learner, [b, m, ...], pooled and as a map."""
        masked = (shared[:, None] * masks).reshape(-1, *shared.shape[1:])
        both = self.backbone("branch", masked, train)
        each = (shared.shape[0], self.learners)  # which may be a symbol
        return [one.reshape(*each, *one.shape[1:]) for one in both]


class MHeads(nn.Module):
    """M branches of their own weights over shared features: ABE's baseline.

    `B_m(x) = l2(G_m(S(x)))`, notation and attributes as for `ABE`.
    """

    learners: int = 8
    dim: int = 512
    backbone: Backbone | Parts | None = None
    branch_after: str | None = None

    def __post_init__(self):
        _cut(self)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], train: bool = False) -> Output:
        """Embeds images; see `cgd.CGD`. `learners` is [b, M, dim / M]."""
        shared = self.backbone("shared", images, train)
        pooled, features = self.backbone.branches(shared, train, self.learners)
        linear = _of_each(nn.Dense, self.learners, 1)
        return _output(_linear(linear, self)(pooled), features)


def _cut(head, attention_blocks=0):
    """Check a head's settings, and put its backbone into parts."""
    if head.learners < 1:
        raise InputError(f"learners is {head.learners}; it must be at least 1.")
    if head.dim < 1 or head.dim % head.learners:
        nearest = max(1, round(head.dim / head.learners)) * head.learners
        raise InputError(
            f"dim is {head.dim}, which {head.learners} learners cannot share equally: "
            f"set it to {nearest}, or choose a number of learners that divides it."
        )
    if isinstance(head.backbone, Parts):  # of a head that is copied
        return
    backbone = GoogLeNet() if head.backbone is None else head.backbone
    blocks, last = backbone.blocks, head.branch_after or backbone.branch_after
    if last not in blocks[:-1]:
        raise InputError(
            f"branch_after is {last!r}; the blocks of {type(backbone).__name__} to "
            f"branch after are {', '.join(blocks[:-1])}."
        )
    cut = blocks.index(last) + 1
    trunk = [name for name in blocks[cut:] if not name.startswith("pool")]
    head.backbone = Parts(
        shared=backbone.clone(only=blocks[:cut]),
        branch=Pooled(backbone.clone(only=blocks[cut:])),
        attention=backbone.clone(only=tuple(trunk[:attention_blocks]), keep_size=True)
        if attention_blocks
        else None,
    )


def _of_each(target, count, in_axes):
    """A module, or a function of one, with variables of its own for each learner."""
    return nn.vmap(
        target,
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
        in_axes=in_axes,
        out_axes=1,
        axis_size=count,
    )


def _linear(kind, head):
    """The last linear map: from what is pooled to a learner's embedding."""
    width = head.dim // head.learners
    return kind(
        width,
        kernel_init=_caffe_xavier,
        precision=lax.Precision.HIGHEST,
        name="fc",
    )


def _output(embeddings, features) -> Output:
    """Of the learners' embeddings [b, m, k] and feature maps [b, m, ...]."""
    batch, count, width = embeddings.shape
    learners = layers.l2_normalize(embeddings)
    together = learners.reshape(batch, count * width) / math.sqrt(count)
    return Output(
        embedding=layers.l2_normalize(together),
        learners=learners,
        logits=None,
        features=features,
        unnormalized=embeddings.reshape(batch, count * width),
    )
