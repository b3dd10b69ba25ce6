"""Sizes, crops and borders of uint8 images [h, w, c], by Pillow or OpenCV."""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from metricjax.errors import InputError

# Of random-resized crops: share of the area, width by height; and how often to try.
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
_TRIES = 10


def to_pil(image: np.ndarray) -> Image.Image:
    """The image as Pillow has it."""
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Squashes to a square: uint8 [h, w, c] -> uint8 [size, size, c].

    Bilinear, and antialiased when it shrinks: each new pixel is a weighted mean of all
    the old ones under it.
    """
    return _resample(image, (size, size))


def _resample(
    image: np.ndarray,
    shape: tuple[int, int],
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """To [h, w] = shape, from (left, top, right, bottom) = box where not from all."""
    if image.shape[:2] == shape and box is None:
        return image
    # The gap lets PIL first average whole blocks of a much larger image.
    resized = to_pil(image).resize(
        shape[::-1], Image.Resampling.BILINEAR, box, reducing_gap=3.0
    )
    return np.asarray(resized).reshape(*shape, image.shape[2])


def shrink(image: np.ndarray, shorter: int) -> np.ndarray:
    """Brings the shorter side down to `shorter` where it is above, in proportion."""
    height, width, _ = image.shape
    factor = shorter / min(height, width)
    if factor >= 1:
        return image
    return _resample(image, (round(height * factor), round(width * factor)))


def pad_to_square(image: np.ndarray, side: int, colour: np.ndarray) -> np.ndarray:
    """Brings the longer side to `side`, in proportion, and pads both ends of the other.

    Args:
      image: uint8 [h, w, c].
      side: of the result.
      colour: uint8 [c], to pad with.

    Returns:
      uint8 [side, side, c].
    """
    height, width, channels = image.shape
    factor = side / max(height, width)
    inner = (max(1, round(height * factor)), max(1, round(width * factor)))
    padded = np.empty((side, side, channels), np.uint8)
    padded[:] = colour
    top, left = (side - inner[0]) // 2, (side - inner[1]) // 2
    padded[top : top + inner[0], left : left + inner[1]] = _resample(image, inner)
    return padded


def center_crop(image: np.ndarray, size: int) -> np.ndarray:
    """The square of the given side in the middle."""
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return image[top : top + size, left : left + size]


def random_crop(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A square of the given side, each place equally likely."""
    height, width, _ = image.shape
    top, left = (rng.random(2) * (height - size + 1, width - size + 1)).astype(int)
    return image[top : top + size, left : left + size]


def resize_and_center_crop(image: np.ndarray, shorter: int, size: int) -> np.ndarray:
    """Brings the shorter side to `shorter`, in proportion, and crops the middle.

    Only what the crop shows is worked out, however long the image is.

    Args:
      image: uint8 [h, w, c].
      shorter: at least `size`.
      size: side of the crop.

    Returns:
      uint8 [size, size, c].
    """
    height, width, _ = image.shape
    factor = shorter / min(height, width)
    new_height, new_width = round(height * factor), round(width * factor)
    top, left = (new_height - size) // 2, (new_width - size) // 2
    across, down = width / new_width, height / new_height
    box = (left * across, top * down, (left + size) * across, (top + size) * down)
    return _resample(image, (size, size), box)


def random_box(
    height: int, width: int, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Where a random-resized crop lies: (top, left, h, w) inside the image.

    Area and ratio of its sides are drawn until the crop fits: the area uniform in
    `AREA` times the image's, the logarithm of the ratio uniform in that of `RATIO`;
    then each place is equally likely. After ten tries it is the largest crop in the
    middle whose ratio is the nearest to the image's.

    Source: Szegedy et al., "Going Deeper with Convolutions" (arXiv 1409.4842), section
    6, with the tries and the last resort of torchvision.
    """
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    for _ in range(_TRIES):
        u = rng.random(4).tolist()
        area = height * width * (AREA[0] + u[0] * (AREA[1] - AREA[0]))
        ratio = math.exp(low + u[1] * (high - low))
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            return int(u[2] * (height - h + 1)), int(u[3] * (width - w + 1)), h, w
    h = min(height, max(1, round(width / RATIO[0])))
    w = min(width, max(1, round(height * RATIO[1])))
    return (height - h) // 2, (width - w) // 2, h, w


def random_resized_crop(
    image: np.ndarray, size: int, rng: np.random.Generator, squash=resize
) -> np.ndarray:
    """A crop of random area and ratio (`random_box`), squashed to [size, size, c]."""
    top, left, height, width = random_box(*image.shape[:2], rng)
    return squash(image[top : top + height, left : left + width], size)


def opencv_resize() -> Callable[[np.ndarray, int], np.ndarray]:
    """A `resize` by OpenCV, bilinear without antialiasing, for less than 2:1.

    Raises:
      InputError: OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise InputError(
            "config.data.transform.resizer is 'opencv', which is not installed: pip "
            "install 'metricjax[opencv]', or take 'pillow'."
        ) from error
    cv2.setNumThreads(1)  # The pipeline has threads of its own.

    def resize(image: np.ndarray, size: int) -> np.ndarray:
        resized = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
        return resized.reshape(size, size, image.shape[2])

    return resize


def border_colour(image: np.ndarray) -> int | tuple[int, ...]:
    """The median of the outermost pixels, for each channel."""
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    border.sort(axis=0)
    median = border[len(border) // 2].tolist()
    return median[0] if len(median) == 1 else tuple(median)
