"""Thumbnails, as files or as data URIs, so that a page holds its own pictures."""

import base64
import dataclasses
import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

SMALL_SIDE = 64
THUMBNAIL_SIDE = 128


@dataclasses.dataclass(frozen=True)
class Thumbnail:
    """A picture small enough for the page.

    Attributes:
        uri: the encoded picture as a `data:` URI.
        pixelated: whether it is to be enlarged without smoothing.
        width: its width in pixels.
        height: its height in pixels.
    """

    uri: str
    pixelated: bool
    width: int
    height: int


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A picture as a file.

    Attributes:
        content: the file.
        kind: "png" or "webp".
        pixelated: whether it is to be enlarged without smoothing.
        width: its width in pixels.
        height: its height in pixels.
    """

    content: bytes
    kind: str
    pixelated: bool
    width: int
    height: int


def thumbnail(image: UInt8[np.ndarray, "h w c"]) -> Thumbnail:
    """Encodes an image for the page; see `encoded`, with at most 128 pixels a side."""
    made = encoded(image, THUMBNAIL_SIDE)
    text = base64.b64encode(made.content).decode("ascii")
    uri = f"data:image/{made.kind};base64,{text}"
    return Thumbnail(uri, made.pixelated, made.width, made.height)


def encoded(image: UInt8[np.ndarray, "h w c"], side: int) -> Encoded:
    """Encodes an image small.

    Images of up to 64 pixels are kept as they are (PNG, enlarged without smoothing);
    larger ones shrink to at most `side` pixels a side and become PNG or WebP, whichever
    is smaller.

    Args:
        image: uint8 [h, w, c] with c = 1 (grey) or 3 (RGB).
        side: in pixels, at least 64.

    Raises:
        ValueError: if the array is of another type or shape.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ValueError(
            "An image of the report must be uint8 [h, w, 1 or 3], not "
            f"{image.dtype} {list(image.shape)}."
        )
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    small = max(picture.size) <= SMALL_SIDE
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    found = [("png", _encode(picture, "PNG", optimize=True))]
    if not small:
        found.append(("webp", _encode(picture, "WEBP", quality=78, method=4)))
    kind, content = min(found, key=lambda one: len(one[1]))
    return Encoded(content, kind, small, *picture.size)


def _encode(picture: Image.Image, file_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()
