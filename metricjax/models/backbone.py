"""What every backbone is: a row of named blocks, of which any part can be built."""

import dataclasses

import flax.linen as nn
from jaxtyping import Array, Float

from metricjax.errors import InputError


class Backbone(nn.Module):
    """Images to a feature map, through the blocks that `blocks` names, in that order.

    All have these settings, the last by name alone:

      only: names of the blocks that are built, in order; None: all of them. A head that
        branches inside a network (`abe.ABE`) builds its parts this way; their variables
        have the names that they have in the whole network.
      keep_size: every stride is 1 and no pooling halves the map.
      frozen_bn: batch normalisation uses its running averages in training too.
      remat: rematerialise in training: of each block only what it is given is kept for
        the gradient, and all inside is worked out once more, about a third more time
        for a fraction of the memory.

    Called as `backbone(images [b, h, w, c], train=bool) -> [b, p, q, channels]`.

    Raises:
      InputError: `only` names a block that is none; in the call, images of which the
        strides leave nothing.
    """

    remat: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self):
        unknown = [name for name in self.only or () if name not in self.blocks]
        if unknown:
            raise InputError(
                f"{type(self).__name__} has no block {unknown[0]!r}; it has "
                f"{', '.join(self.blocks)}."
            )
        super().__post_init__()

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of all blocks; those that only pool begin with "pool"."""
        raise NotImplementedError

    @property
    def branch_after(self) -> str:
        """The block behind which an attention ensemble branches off."""
        raise NotImplementedError

    def apply_block(
        self, name: str, features: Float[Array, "b h w c"], train: bool
    ) -> Float[Array, "b p q o"]:
        """One block; called from the compact `__call__`, so it may make submodules."""
        raise NotImplementedError

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w c"], train: bool = False
    ) -> Float[Array, "b p q o"]:
        features = images
        for name in self.blocks if self.only is None else self.only:
            features = self._apply(name, features, train)
            if 0 in features.shape[1:-1]:
                height, width = images.shape[1:3]
                raise InputError(
                    f"Images of {height}x{width} are too small for "
                    f"{type(self).__name__}: nothing of them is left behind {name}. "
                    "Use larger images, or a backbone with fewer strides."
                )
        return features

    def _apply(self, name, features, train):
        def apply(backbone, features):
            return backbone.apply_block(name, features, train)

        return (nn.remat(apply) if self.remat and train else apply)(self, features)

    def stride(self, wanted: int) -> int:
        """A block's stride, unless the map keeps its size."""
        return 1 if self.keep_size else wanted


def check_last_stride(backbone: Backbone) -> None:
    """Raise `InputError` unless `last_stride` is 1 or 2."""
    if backbone.last_stride not in (1, 2):
        raise InputError(
            f"{type(backbone).__name__} last_stride is {backbone.last_stride}; it can "
            "be 1 or 2."
        )
