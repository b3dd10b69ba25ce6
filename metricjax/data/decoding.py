"""Image files to uint8 arrays, whatever their mode; and a cheap look at their kind."""

import io

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

# How the files of the usual formats begin.
_SIGNATURES = (
    b"\xff\xd8\xff",  # JPEG
    b"\x89PNG\r\n\x1a\n",
    b"GIF87a",
    b"GIF89a",
    b"BM",
    b"II*\x00",  # TIFF
    b"MM\x00*",
)
HEAD_BYTES = 4096
_MODES = {1: "L", 3: "RGB"}
# Of images of more than 8 bits, at a time.
_ROWS = 64
_JPEG_COLOURS = {1: "Gray", 3: "YCbCr"}
# What stands in a JPEG whose EXIF or XMP data may say how it lies.
_MAY_TURN = (b"Exif\x00\x00", b"Orientation")


def looks_like_image(head: bytes) -> bool:
    """Whether a file that begins so is an image that PIL knows; decodes nothing.

    Args:
      head: the first `HEAD_BYTES` of the file, or all of it.
    """
    if head.startswith(_SIGNATURES) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return True
    try:
        with Image.open(io.BytesIO(head)):
            return True
    except Image.DecompressionBombError:
        return True  # An image; too large a one to be decoded.
    except Exception:  # PIL's plug-ins raise nearly anything on foreign bytes.
        return False


def decode(data: bytes, channels: int, *, least: int = 0) -> np.ndarray:
    """An image file's content as uint8 [h, w, channels], upright.

    Grey, palette, CMYK, 16-bit and transparent images come out as they look in a
    viewer: 16 bits are scaled to 8, transparency is laid on white, the orientation in
    the EXIF data is applied.

    Args:
      data: the whole file.
      channels: 1 (grey, ITU-R 601 luma) or 3 (RGB).
      least: sides that are enough: a JPEG may come out smaller, down to these, in a
        fraction of the time. 0: as it is.

    Raises:
      ValueError: it cannot be decoded; the message is the reason.
    """
    try:
        pixels = _plain_jpeg(data, channels, least)
        if pixels is not None:
            return pixels
        with Image.open(io.BytesIO(data)) as image:
            if _too_large(image.width, image.height):
                raise Image.DecompressionBombError
            image.load()
            upright = ImageOps.exif_transpose(image)
            return _to_array(upright, _MODES[channels])
    except UnidentifiedImageError:
        raise ValueError("it is not an image of a known format") from None
    except Image.DecompressionBombError:
        limit = Image.MAX_IMAGE_PIXELS
        raise ValueError(f"it has more than {limit:,} pixels, the limit") from None
    except Exception as error:  # On damaged data PIL's decoders raise nearly anything.
        raise ValueError(str(error) or type(error).__name__) from error


def _too_large(width: int, height: int) -> bool:
    limit = Image.MAX_IMAGE_PIXELS
    return limit is not None and width * height > limit


def _plain_jpeg(data: bytes, channels: int, least: int) -> np.ndarray | None:
    """The pixels of an upright JPEG that has the wanted channels; None of any other.

    They are those that PIL decodes, in half of its time, unless smaller will do.
    """
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours != _JPEG_COLOURS[channels] or _too_large(width, height):
            return None
        if any(mark in data for mark in _MAY_TURN) and _is_turned(data):
            return None
        colours = "GRAY" if channels == 1 else "RGB"
        # To less than half smaller takes longer than all of it.
        return simplejpeg.decode_jpeg(
            data,
            colours,
            min_height=least,
            min_width=least,
            min_factor=2 if least else 1,
        )
    except ValueError:  # PIL forgives more, and says what is wrong.
        return None


def _is_turned(data: bytes) -> bool:
    """Whether a JPEG does not lie upright as it is stored."""
    with Image.open(io.BytesIO(data)) as image:
        return image.getexif().get(ExifTags.Base.Orientation, 1) != 1


def _to_array(image: Image.Image, mode: str) -> np.ndarray:
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_to_eight_bits(image))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image)
    pixels = np.asarray(image.convert(mode))
    return pixels[:, :, None] if mode == "L" else pixels


def _to_eight_bits(image: Image.Image) -> np.ndarray:
    """Grey of more than 8 bits: 65535 becomes 255; of fractions, 1.0 does.

    Some rows at a time, as they are worked out in 64 bits.
    """
    values = np.asarray(image)
    starts = range(0, len(values), _ROWS)
    blocks = [values[row : row + _ROWS] for row in starts]
    largest = max(_finite(block).max(initial=0.0) for block in blocks)
    factor, divisor = 1.0, 1.0
    if image.mode == "F" and largest <= 1.0:
        factor = 255.0
    elif image.mode.startswith("I;16") or largest > 255.0:
        divisor = 257.0
    pixels = np.empty(values.shape, np.uint8)
    for row, block in zip(starts, blocks, strict=True):
        scaled = _finite(block) * factor / divisor
        pixels[row : row + _ROWS] = np.clip(np.rint(scaled), 0, 255)
    return pixels


def _finite(values: np.ndarray) -> np.ndarray:
    return np.nan_to_num(values.astype(np.float64))
