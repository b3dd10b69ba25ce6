"""Vision transformer (Dosovitskiy et al., ICLR 2021) as DINO trains it, ViT-S/16.

Layers follow timm's and DINO's `vit_small`, so that their weights map one to one:
`block3/qkv` here is `blocks.3.attn.qkv` there, `block3/fc1` is `blocks.3.mlp.fc1`.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metricjax.errors import InputError
from metricjax.models import layers
from metricjax.models.backbone import Backbone

_small_normal = nn.initializers.truncated_normal(0.02)


class Block(nn.Module):
    """`x + attention(norm(x))`, then `x + mlp(norm(x))`.

    Attributes:
      heads: of the attention; they divide the width.
      ratio: width of the hidden layer per width of the tokens.
      dtype: type of computation; normalisation and softmax are float32.
    """

    heads: int
    ratio: int = 4
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: Float[Array, "b t c"]) -> Float[Array, "b t c"]:
        batch, count, width = tokens.shape

        def linear(features, name, tokens):
            return nn.Dense(
                features, dtype=self.dtype, kernel_init=_small_normal, name=name
            )(tokens)

        joint = linear(3 * width, "qkv", _norm("norm1", tokens, self.dtype))
        joint = joint.reshape(batch, count, 3, self.heads, width // self.heads)
        attended = jax.nn.dot_product_attention(*jnp.moveaxis(joint, 2, 0))
        tokens += linear(width, "proj", attended.reshape(tokens.shape))
        hidden = linear(self.ratio * width, "fc1", _norm("norm2", tokens, self.dtype))
        return tokens + linear(width, "fc2", nn.gelu(hidden, approximate=False))


class ViT(Backbone):
    """ViT without its classifier.

    ViT-S/16 at 224x224: 21.67 M parameters, 4.61 GMAC, 384 channels.

    Attributes:
      output: "class": the class token, as a map of one pixel, which every global
        descriptor but R-MAC hands on as it is (GeM and its kin cut it at 0, so use
        SPoC); "patches": the map of the patches' tokens.
      patch: side of a patch in pixels, which divides the image's.
      dim: width of the tokens.
      depth: number of blocks.
      heads: of the attention.
      dtype: type of computation and of the features, float32 or bfloat16.
      frozen_bn: without meaning, there is none.
      only, keep_size: see `Backbone`; no block but the first changes the size.

    Raises:
      InputError: heads that do not divide the width, another output; in the call,
        images whose sides the patch does not divide, or of another size than the
        variables were made for.
    """

    output: str = "class"
    patch: int = 16
    dim: int = 384
    depth: int = 12
    heads: int = 6
    dtype: jnp.dtype = jnp.float32
    frozen_bn: bool = False
    only: tuple[str, ...] | None = None
    keep_size: bool = False

    def __post_init__(self):
        if self.output not in ("class", "patches"):
            raise InputError(
                f"ViT output is {self.output!r}; it can be 'class' or 'patches'."
            )
        if self.dim % self.heads:
            raise InputError(
                f"ViT dim is {self.dim}, which {self.heads} heads cannot share "
                "equally: choose a number of heads that divides it."
            )
        super().__post_init__()

    @property
    def blocks(self) -> tuple[str, ...]:
        return ("embed", *(f"block{index}" for index in range(self.depth)), "norm")

    @property
    def branch_after(self) -> str:
        return f"block{self.depth // 2 - 1}"

    def apply_block(self, name, features, train):
        if name == "embed":
            return self._embed(features)
        if name == "norm":
            return self._map(_norm("norm", features, self.dtype))
        return Block(self.heads, dtype=self.dtype, name=name)(features)

    def _embed(self, images):
        """[b, h, w, c] to tokens [b, 1 + patches, dim], the class token first."""
        batch, height, width, _ = images.shape
        if height % self.patch or width % self.patch:
            nearest = max(1, round(height / self.patch)) * self.patch
            raise InputError(
                f"Images of {height}x{width} cannot be cut into patches of "
                f"{self.patch}x{self.patch}: choose sides that {self.patch} divides, "
                f"such as {nearest}."
            )
        patches = layers.Conv(
            self.dim, self.patch, self.patch, padding=0, use_bias=True,
            dtype=self.dtype, name="patch_embed",
        )(images).reshape(batch, -1, self.dim)  # fmt: skip
        first = self.param("cls_token", _small_normal, (1, 1, self.dim))
        shape = (1, 1 + patches.shape[1], self.dim)
        if self.has_variable("params", "pos_embed"):
            found = self.get_variable("params", "pos_embed").shape
            if found != shape:
                side = math.isqrt(found[1] - 1) * self.patch
                raise InputError(
                    f"This ViT was made for images of {side}x{side}, but these are "
                    f"{height}x{width}: use one size, or load its weights for the "
                    "other."
                )
        position = self.param("pos_embed", _small_normal, shape)
        first = jnp.broadcast_to(first, (batch, 1, self.dim)).astype(self.dtype)
        tokens = jnp.concatenate([first, patches], axis=1)
        return tokens + position.astype(self.dtype)

    def _map(self, tokens):
        batch, count, width = tokens.shape
        if self.output == "class":
            return tokens[:, :1, None]
        side = math.isqrt(count - 1)
        if side * side != count - 1:
            raise InputError(
                "A ViT gives a map of patches of square images only: make them "
                "square, or take output='class'."
            )
        return tokens[:, 1:].reshape(batch, side, side, width)


def _norm(name, tokens, dtype):
    return nn.LayerNorm(epsilon=1e-6, dtype=dtype, name=name)(tokens)
