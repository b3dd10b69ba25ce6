"""From an image of any size to what the network sees, in three places.

`prepare_train` is the deterministic half on the host (its result may be kept in a
cache), `augment` the random half on the host, `normalize` and `random_flip` run on the
device. Everything crosses to the device as uint8 NHWC.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from metricjax.data.geometry import (
    border_colour,
    center_crop,
    opencv_resize,
    pad_to_square,
    random_crop,
    random_resized_crop,
    resize,
    resize_and_center_crop,
    shrink,
    to_pil,
)
from metricjax.errors import InputError

# Recipe -> the normalisation of the weights that it was published with.
_RECIPES = {
    "resize_crop": "imagenet",
    "resize_or_crop": "imagenet",
    "random_resized_crop": "imagenet",
    "pad_crop": "caffe",
    "affine": "half",
    "none": "half",
}
RECIPES = tuple(_RECIPES)
# Normalisation -> mean and deviation of red, green and blue, where white is 1.
_NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "caffe": ((123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255,) * 3),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


@dataclass(frozen=True)
class TransformConfig:
    """How images are prepared and augmented.

    Attributes:
      recipe: for photographs, mirrored at random,
        "resize_crop": squash to 1.125 s, random crop; tests squash to s. With s = 224
        this is CGD's 252 -> 224 as re-implementations have it.
        "resize_or_crop": half of the time that, otherwise squash to s as tests do; EE's
        with s = 227.
        "random_resized_crop": a crop of 8% to 100% of the area and 3/4 to 4/3 as wide
        as high, squashed; tests bring the shorter side to s 256/224 and crop the
        middle; Proxy-Anchor's with s = 224.
        "pad_crop": the longer side to s 256/224, padded to a square, random crop; tests
        crop the middle; ABE's with s = 224.
        For characters and other small pictures, "affine": squash to s, then one random
        rotation, scale, shear and shift. "none": squash to s, nothing random.
      image_size: s, the side of what the network sees, in pixels.
      channels: 1 or 3.
      normalization: what the network sees of the values x of 0 to 255. "imagenet":
        less ImageNet's mean, by its deviation; "half": x / 127.5 - 1; "caffe": blue,
        green, red, each less its mean, in 0 to 255; "none": x / 255. None: as the
        recipe says, "caffe" for "pad_crop", "half" for "affine" and "none", "imagenet"
        for the others. It must be that of the pretrained weights, if there are any.
      resizer: of the crops of "random_resized_crop". "pillow": antialiased; "opencv":
        not, in a fifth of the time, where `metricjax[opencv]` is installed.
      flip: whether training images are mirrored at random; None: as the recipe says
        (all for photographs do).
      rotation: of "affine": the angle is uniform within this many degrees either way.
      scale: of "affine": the factor is (1 + scale)^u, u uniform in [-1, 1].
      stretch: of "affine": width times and height divided by (1 + stretch)^u, likewise.
      shear: of "affine": x per y, uniform in [-shear, shear].
      shift: of "affine": share of the side, uniform in [-shift, shift], x and y apart.
    """

    recipe: str = "resize_crop"
    image_size: int = 224
    channels: int = 3
    normalization: str | None = None
    resizer: str = "pillow"
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
        if self.normalization not in (None, *_NORMALIZATIONS):
            raise InputError(
                f"There is no normalization {self.normalization!r}: choose one of "
                f"{', '.join(_NORMALIZATIONS)}."
            )
        if self.resizer not in ("pillow", "opencv"):
            raise InputError(
                f"There is no resizer {self.resizer!r}: choose pillow or opencv."
            )
        if self.resizer == "opencv" and self.recipe != "random_resized_crop":
            raise InputError(
                f"The resizer is 'opencv', but recipe {self.recipe!r} is resized by "
                "pillow: only random_resized_crop has the choice."
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
        drawn = self.recipe in ("affine", "none")
        return not drawn if self.flip is None else self.flip

    @property
    def normalizes_as(self) -> str:
        """The normalisation, whether it was named or is the recipe's."""
        return self.normalization or _RECIPES[self.recipe]

    @property
    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation [c], where white is 1; of grey, the means of the three."""
        values = np.array(_NORMALIZATIONS[self.normalizes_as])
        if self.channels == 1:
            values = values.mean(axis=1, keepdims=True)
        mean, deviation = values.astype(np.float32)
        return mean, deviation


@dataclass(frozen=True)
class Transform:
    """The host's part of a recipe; every function is safe to call from any thread.

    Attributes:
      config: what it was built from.
      prepare_train: uint8 [h, w, c] of any size -> uint8, what `augment` begins with.
      augment: (prepared, np.random.Generator) -> uint8 [s, s, c].
      prepare_test: uint8 [h, w, c] of any size -> uint8 [s, s, c].
    """

    config: TransformConfig
    prepare_train: Callable[[np.ndarray], np.ndarray]
    augment: Callable[[np.ndarray, np.random.Generator], np.ndarray]
    prepare_test: Callable[[np.ndarray], np.ndarray]

    @property
    def enough(self) -> int:
        """Sides of an image that both `prepare_` shrink: more pixels show no more."""
        return 2 * _before_crop(self.config.image_size)


def _before_crop(size: int) -> int:
    """The side of which crops of a side are taken: 256 of 224."""
    return round(size * 256 / 224)


def build(config: TransformConfig) -> Transform:
    """The host functions of a recipe."""
    size = config.image_size

    squash = partial(resize, size=size)
    larger, scaled = round(size * 1.125), _before_crop(size)
    if config.recipe == "resize_crop":
        return Transform(
            config,
            prepare_train=partial(resize, size=larger),
            augment=lambda prepared, rng: random_crop(prepared, size, rng),
            prepare_test=squash,
        )
    if config.recipe == "resize_or_crop":
        return Transform(
            config,
            prepare_train=lambda image: _two_sizes(image, size, larger),
            augment=lambda prepared, rng: _either(prepared, size, rng),
            prepare_test=squash,
        )
    if config.recipe == "random_resized_crop":
        crop = opencv_resize() if config.resizer == "opencv" else resize
        return Transform(
            config,
            # Twice the size of tests is as much as all but the smallest crops show.
            prepare_train=lambda image: shrink(image, 2 * scaled),
            augment=lambda prepared, rng: random_resized_crop(
                prepared, size, rng, crop
            ),
            prepare_test=lambda image: resize_and_center_crop(image, scaled, size),
        )
    if config.recipe == "pad_crop":
        # The mean colour becomes about 0, as padding in the network is.
        mean = np.rint(255 * config.statistics[0]).astype(np.uint8)
        pad = partial(pad_to_square, side=scaled, colour=mean)
        return Transform(
            config,
            prepare_train=pad,
            augment=lambda prepared, rng: random_crop(prepared, size, rng),
            prepare_test=lambda image: center_crop(pad(image), size),
        )
    if config.recipe == "affine":
        return Transform(
            config,
            prepare_train=squash,
            augment=lambda prepared, rng: _affine(prepared, config, rng),
            prepare_test=squash,
        )
    return Transform(config, squash, lambda prepared, rng: prepared, squash)


def _two_sizes(image: np.ndarray, size: int, larger: int) -> np.ndarray:
    """The image at both sizes, side by side: one array, for the cache."""
    sheet = np.zeros((larger, larger + size, image.shape[2]), np.uint8)
    sheet[:, :larger] = resize(image, larger)
    sheet[:size, larger:] = resize(image, size)
    return sheet


def _either(sheet: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """From `_two_sizes`, with equal chances the smaller, or a crop of the larger."""
    larger = len(sheet)
    if rng.random() < 0.5:
        return sheet[:size, larger:]
    return random_crop(sheet[:, :larger], size, rng)


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
    changed = to_pil(image).transform(
        (size, size),
        Image.Transform.AFFINE,
        (a, b, size / 2 - a * x - b * y, c, d, size / 2 - c * x - d * y),
        Image.Resampling.BILINEAR,
        fillcolor=border_colour(image),
    )
    return np.asarray(changed).reshape(image.shape)


def normalize(
    images: UInt8[Array, "b s s c"], config: TransformConfig
) -> Float[Array, "b s s c"]:
    """What the network sees, on the device: (x / 255 - mean) / deviation, float32.

    Mean and deviation are those of `TransformConfig.normalization`; with "caffe" the
    channels come out as blue, green, red.
    """
    mean, deviation = config.statistics
    values = (images.astype(jnp.float32) / 255.0 - mean) / deviation
    return values[..., ::-1] if config.normalizes_as == "caffe" else values


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
