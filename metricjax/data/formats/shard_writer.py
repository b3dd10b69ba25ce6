"""Shards written: image after image made ready in threads and stored in order.

So the files depend on the images and the options alone. A shard is full when it has
reached a fixed size or number of images.
"""

import io
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

from metricjax.data import decoding
from metricjax.data.datasets import Dataset, Split, UnreadableImage
from metricjax.data.formats.shard_reader import sha256
from metricjax.errors import disk_errors

SHARD_BYTES = 128 << 20
# The time that ArrayRecord takes to find a record grows with their number: 12 us here.
SHARD_RECORDS = 4096
# With colour at half the resolution, as photographs have it: read half as fast again.
_QUALITY = 95
_JPEG_MAX_SIDE = 65_500
# One image a chunk, so that any can be read alone; images are compressed already.
_WRITER_OPTIONS = "group_size:1,uncompressed"


def write(
    dataset: Dataset,
    first: int,
    short_side: int,
    scratch: Path,
    threads: int | None,
    progress: Callable[[int, int], None] | None,
) -> Iterator["Shard"]:
    """The shards from image `first` on, each to be closed before the next."""
    count, total = len(dataset.train), len(dataset.train) + len(dataset.test)

    def encode(image: int) -> bytes | UnreadableImage:
        is_train = image < count
        split = dataset.train if is_train else dataset.test
        return _encode(split, image if is_train else image - count, short_side)

    images = range(first, total)
    shard = Shard(scratch)
    try:
        for image, content in zip(
            images, _in_order(encode, images, threads), strict=True
        ):
            shard.add(content)
            if progress is not None:
                progress(image + 1, total)
            if shard.is_full or image + 1 == total:
                yield shard
                shard = Shard(scratch)
    finally:
        shard.discard()


def _in_order(
    function: Callable[[int], Any], numbers: range, threads: int | None
) -> Iterator[Any]:
    """function(number) for each number, computed a little ahead in threads."""
    threads = threads or min(32, 2 * (os.cpu_count() or 1))
    pool = ThreadPoolExecutor(threads)
    ahead: deque[Future] = deque()
    try:
        for number in numbers:
            ahead.append(pool.submit(function, number))
            if len(ahead) > 2 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class Shard:
    """A shard being written into `path`, and what the manifest says of its images.

    Attributes:
      path: the file; there is none before the first record.
      images: how many images were dealt with.
      crc32, bytes: of each record.
      skipped: (place among the images, reason) of those without a record.
    """

    def __init__(self, directory: Path):
        self.path = directory / ".shard.tmp"
        self.images = 0
        self.crc32: list[int] = []
        self.bytes: list[int] = []
        self.size = 0
        self.skipped: list[tuple[int, str]] = []
        self._writer = None

    @property
    def is_full(self) -> bool:
        return self.size >= SHARD_BYTES or len(self.bytes) >= SHARD_RECORDS

    def add(self, content: bytes | UnreadableImage) -> None:
        """The next image, or why it has no record; raises InputError on a full disk."""
        if isinstance(content, UnreadableImage):
            self.skipped.append((self.images, content.reason))
        else:
            with disk_errors(self.path.parent):
                if self._writer is None:
                    self._writer = _open_writer(self.path)
                self._writer.write(content)
            self.crc32.append(zlib.crc32(content))
            self.bytes.append(len(content))
            self.size += len(content)
        self.images += 1

    def close(self, name: str) -> dict[str, Any] | None:
        """Finishes the file; what the manifest says of it, or None without a record.

        Raises:
          InputError: the disk is full.
        """
        if self._writer is None:
            return None
        writer, self._writer = self._writer, None
        with disk_errors(self.path.parent):
            writer.close()  # Most often it is here that one hears of a full disk.
        return {
            "name": name,
            "records": len(self.bytes),
            "bytes": self.path.stat().st_size,
            "sha256": sha256(self.path),
        }

    def discard(self) -> None:
        """Removes the file of a shard that was not put anywhere."""
        if self._writer is not None:
            with suppress(RuntimeError):
                self._writer.close()
        self.path.unlink(missing_ok=True)


def _open_writer(path: Path):
    from array_record.python.array_record_module import ArrayRecordWriter

    return ArrayRecordWriter(str(path), _WRITER_OPTIONS)


def _encode(split: Split, index: int, short_side: int) -> bytes | UnreadableImage:
    """The image file to store of an image, or why it cannot be decoded."""
    try:
        content = split.encoded(index)
        if content is None:
            pixels = split.read(index)
        else:
            pixels = decoding.decode(content, 3)
    except UnreadableImage as error:
        return error
    except ValueError as error:
        return UnreadableImage(split.names[index], str(error))
    height, width = pixels.shape[:2]
    is_shrunk = 0 < short_side < min(height, width)
    if content is not None and not is_shrunk:
        return content
    is_grey = (pixels == pixels[:, :, :1]).all()
    image = Image.fromarray(pixels[:, :, 0] if is_grey else pixels)
    if is_shrunk:
        image = _shrink(image, short_side)
    file = io.BytesIO()
    if is_shrunk and max(image.size) <= _JPEG_MAX_SIDE:
        image.save(file, "JPEG", quality=_QUALITY, subsampling=2)
    else:
        image.save(file, "PNG")
    return file.getvalue()


def _shrink(image: Image.Image, short_side: int) -> Image.Image:
    scale = short_side / min(image.size)
    size = tuple(max(short_side, round(side * scale)) for side in image.size)
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
