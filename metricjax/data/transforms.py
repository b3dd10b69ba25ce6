"""From an image of any size to what the network sees, in three places.

`prepare_train` is the deterministic half on the host (its result may be kept in a
cache), `augment` the random half on the host, `normalize` and `random_flip` run on the
device. Everything crosses to the device as uint8 NHWC.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from metricjax.errors import InputError

RECIPES = ("resize_crop", "affine", "none")

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class TransformConfig:
    """How images are prepared and augmented.

    Attributes:
      recipe: "resize_crop" for photographs: squash to 1.125 times the image size,
        random crop, horizontal flip; tests squash to the image size; ImageNet mean and
        deviation. With image_size 224 this is CGD's 252 -> 224 as re-implementations
        have it. "affine" for characters and other small pictures: squash to the image
        size, then one random rotation, scale, shear and shift; x / 127.5 - 1.
        "none": squash to the image size, nothing random; x / 127.5 - 1.
      image_size: s, the side of what the network sees, in pixels.
      channels: 1 or 3.
      flip: whether training images are mirrored at random; None: as the recipe says
        (only "resize_crop" does).
      rotation: of "affine": the angle is uniform within this many degrees either way.
      scale: of "affine": the factor is (1 + scale)^u, u uniform in [-1, 1].
      stretch: of "affine": width times and height divided by (1 + stretch)^u, likewise.
      shear: of "affine": x per y, uniform in [-shear, shear].
      shift: of "affine": share of the side, uniform in [-shift, shift], x and y apart.
    """

    recipe: str = "resize_crop"
    image_size: int = 224
    channels: int = 3
    flip: bool | None = None
    rotation: float = 15.0
    scale: float = 0.15
    stretch: float = 0.1
    shear: float = 0.15
    shift: float = 0.1

    def __post_init__(self):
        if self.recipe not in RECIPES:
            raise InputError(
                f"There is no transform recipe {self.recipe!r}: choose one of "
                f"{', '.join(RECIPES)}."
            )
        if self.image_size < 1:
            raise InputError(
                f"image_size is {self.image_size}: it must be at least 1 pixel."
            )
        if self.channels not in (1, 3):
            raise InputError(
                f"channels is {self.channels}: it must be 1 (grey) or 3 (colour)."
            )
        for name in ("rotation", "scale", "stretch", "shear", "shift"):
            if getattr(self, name) < 0:
                raise InputError(
                    f"The augmentation's {name} is {getattr(self, name)}: it must not "
                    "be negative."
                )

    @property
    def shape(self) -> tuple[int, int, int]:
        """[h, w, c] of what the network sees."""
        return (self.image_size, self.image_size, self.channels)

    @property
    def flips(self) -> bool:
        """Whether training images are mirrored at random."""
        return self.recipe == "resize_crop" if self.flip is None else self.flip


@dataclass(frozen=True)
class Transform:
    """The host's part of a recipe; every function is safe to call from any thread.

    Attributes:
      config: what it was built from.
      prepare_train: uint8 [h, w, c] of any size -> uint8 of a fixed size.
      augment: (prepared, np.random.Generator) -> uint8 [s, s, c].
      prepare_test: uint8 [h, w, c] of any size -> uint8 [s, s, c].
    """

    config: TransformConfig
    prepare_train: Callable[[np.ndarray], np.ndarray]
    augment: Callable[[np.ndarray, np.random.Generator], np.ndarray]
    prepare_test: Callable[[np.ndarray], np.ndarray]


def build(config: TransformConfig) -> Transform:
    """The host functions of a recipe."""
    size = config.image_size

    def prepare_test(image: np.ndarray) -> np.ndarray:
        return resize(image, size)

    if config.recipe == "resize_crop":
        larger = round(size * 1.125)
        return Transform(
            config,
            prepare_train=lambda image: resize(image, larger),
            augment=lambda prepared, rng: _crop(prepared, size, rng),
            prepare_test=prepare_test,
        )
    if config.recipe == "affine":
        return Transform(
            config,
            prepare_train=prepare_test,
            augment=lambda prepared, rng: _affine(prepared, config, rng),
            prepare_test=prepare_test,
        )
    return Transform(config, prepare_test, lambda prepared, rng: prepared, prepare_test)


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Squashes to a square: uint8 [h, w, c] -> uint8 [size, size, c].

    Bilinear, and antialiased when it shrinks: each new pixel is a weighted mean of all
    the old ones under it.
    """
    if image.shape[:2] == (size, size):
        return image
    # The gap lets PIL first average whole blocks of a much larger image.
    resized = _to_pil(image).resize(
        (size, size), Image.Resampling.BILINEAR, reducing_gap=3.0
    )
    return np.asarray(resized).reshape(size, size, image.shape[2])


def _to_pil(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def _crop(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A square of the given side, each place equally likely."""
    height, width, _ = image.shape
    top, left = (rng.random(2) * (height - size + 1, width - size + 1)).astype(int)
    return image[top : top + size, left : left + size]


def _affine(
    image: np.ndarray, config: TransformConfig, rng: np.random.Generator
) -> np.ndarray:
    """One bilinear resampling under a random affine map about the centre.

    A point q of the image goes to p = factor * R(angle) @ [[1, shear], [0, 1]] @
    diag(stretch, 1 / stretch) @ q + shift, both relative to the centre; what comes from
    outside has the colour of the border (its median, so that a drawing's ground goes
    on).
    """
    size = image.shape[0]
    u = rng.random(6).tolist()
    angle = math.radians(config.rotation) * (2.0 * u[0] - 1.0)
    factor = (1.0 + config.scale) ** (2.0 * u[1] - 1.0)
    shear = config.shear * (2.0 * u[2] - 1.0)
    x = size * (0.5 + config.shift * (2.0 * u[3] - 1.0))
    y = size * (0.5 + config.shift * (2.0 * u[4] - 1.0))
    stretch = (1.0 + config.stretch) ** (2.0 * u[5] - 1.0)
    # PIL asks for the inverse, where the outermost map comes off first:
    # q = diag(1 / stretch, stretch) @ [[1, -shear], [0, 1]] @ R(-angle) @ p / factor.
    cosine, sine = math.cos(angle) / factor, math.sin(angle) / factor
    a, b = (cosine + shear * sine) / stretch, (sine - shear * cosine) / stretch
    c, d = -sine * stretch, cosine * stretch
    changed = _to_pil(image).transform(
        (size, size),
        Image.Transform.AFFINE,
        (a, b, size / 2 - a * x - b * y, c, d, size / 2 - c * x - d * y),
        Image.Resampling.BILINEAR,
        fillcolor=border_colour(image),
    )
    return np.asarray(changed).reshape(image.shape)


def border_colour(image: np.ndarray) -> int | tuple[int, ...]:
    """The median of the outermost pixels, for each channel."""
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    border.sort(axis=0)
    median = border[len(border) // 2].tolist()
    return median[0] if len(median) == 1 else tuple(median)


def normalize(
    images: UInt8[Array, "b s s c"], config: TransformConfig
) -> Float[Array, "b s s c"]:
    """What the network sees, on the device: (x / 255 - mean) / deviation, float32.

    With "resize_crop" mean and deviation are ImageNet's (of one channel: the means of
    the three), otherwise both are 0.5, so that the result lies in [-1, 1].
    """
    if config.recipe != "resize_crop":
        mean, deviation = np.float32(0.5), np.float32(0.5)
    elif config.channels == 3:
        mean = np.array(_IMAGENET_MEAN, np.float32)
        deviation = np.array(_IMAGENET_STD, np.float32)
    else:
        mean = np.float32(np.mean(_IMAGENET_MEAN))
        deviation = np.float32(np.mean(_IMAGENET_STD))
    return (images.astype(jnp.float32) / 255.0 - mean) / deviation


def random_flip(images: Array, key: jax.Array, config: TransformConfig) -> Array:
    """Mirrors each image left to right with probability one half, on the device.

    Args:
      images: [b, s, s, c], of any dtype.
      key: a JAX random key; image i's choice is a function of it, i and b.
      config: where it does not flip, the images are returned as they are.
    """
    if not config.flips:
        return images
    mirrored = jax.random.bernoulli(key, 0.5, (images.shape[0], 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1, :], images)
