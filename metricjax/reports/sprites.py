"""Many small pictures on few sheets, each sheet one encoded image."""

import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import UInt8
from PIL import Image

COLUMNS = 8
TILES = COLUMNS * COLUMNS
# Up to how many pictures a tile may have which side, in pixels.
_SIDES = ((1500, 128), (5000, 96), (20_000, 64))
_SMALLEST_SIDE = 48


def side_for(count: int) -> int:
    """The side of a tile that so many pictures can have on one page, in pixels."""
    return next((side for most, side in _SIDES if count <= most), _SMALLEST_SIDE)


def sheets(
    count: int,
    read: Callable[[int], UInt8[np.ndarray, "h w c"] | None],
    side: int,
    threads: int | None = None,
) -> Iterator[tuple[bytes, np.ndarray]]:
    """Pictures 0 .. count - 1 on sheets of 8 x 8, in order, row by row.

    All tiles of a sheet are squares as large as its largest picture; a picture lies in
    the upper left corner of its tile, in its own proportions.

    Args:
        count: how many there are.
        read: index to uint8 [h, w, 1 or 3], None if it cannot be read; called from
            many threads.
        side: pictures shrink to this at most.
        threads: that read; None: one per processor, at most 16.

    Yields:
        (a WebP file, uint8 [tiles, 2] width and height of each picture, 0 where there
        is none) of each sheet.
    """
    threads = min(os.cpu_count() or 1, 16) if threads is None else threads

    def make(first: int):
        indices = range(first, min(first + TILES, count))
        return _sheet([_small(read(index), side) for index in indices])

    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(make, range(0, count, TILES))


def _small(image: np.ndarray | None, side: int) -> tuple[Image.Image | None, bool]:
    """A picture of at most `side`, and whether it had to shrink for that."""
    if image is None:
        return None, False
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    shrinks = max(picture.size) > side
    if shrinks:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    return picture.convert("RGB"), shrinks


def _sheet(found: list[tuple[Image.Image | None, bool]]) -> tuple[bytes, np.ndarray]:
    """A sheet and the sizes on it; drawings pixel for pixel if that costs little."""
    pictures = [picture for picture, _ in found]
    sizes = [(0, 0) if picture is None else picture.size for picture in pictures]
    cell = max(max(map(max, sizes)), 1)
    rows = -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * cell, rows * cell))
    for number, picture in enumerate(pictures):
        if picture is not None:
            row, column = divmod(number, COLUMNS)
            sheet.paste(picture, (column * cell, row * cell))
    content = _webp(sheet, quality=80, method=2)
    if not any(shrinks for _, shrinks in found):
        lossless = _webp(sheet, lossless=True, quality=50, method=2)
        content = lossless if len(lossless) < 1.5 * len(content) else content
    return content, np.array(sizes, np.uint8)


def _webp(sheet: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    sheet.save(buffer, "WEBP", **options)
    return buffer.getvalue()
