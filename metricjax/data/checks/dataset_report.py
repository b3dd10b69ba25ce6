"""Check a data set: decode every image once, find duplicates and leaks.

Come here for what is measured; `messages` decides what is a problem and words it.
"""

import hashlib
import io
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, ImageOps

from metricjax.data import decoding
from metricjax.data.checks import perceptual_hash
from metricjax.data.datasets import Dataset, Split, UnreadableImage

# Near-duplicates: how many bits of the hash may differ, and the least correlation of
# the thumbnails. They catch nearly all photographs and drawings that were saved again
# as JPEG of quality 50 or at half the size, and hardly any two of 32,460 handwritten
# characters.
DISTANCE = 5
ALIKE = 0.97
WITHIN_CLASS, ACROSS_CLASSES, ACROSS_SPLITS = 0, 1, 2

# A JPEG is decoded at the smallest of its scales with at least so many pixels a side.
_DRAFT_SIDE = 128
_IMAGES_A_TASK = 32
_MODES = {"1": "grey", "L": "grey", "P": "palette", "CMYK": "CMYK"}


@dataclass(frozen=True, eq=False)
class DatasetReport:
    """The result of `check`. Images are numbered: train first, then test.

    Attributes:
      dataset: the data set that was checked.
      unreadable: image number -> why it cannot be decoded.
      sizes: int32 [n, 2], width and height in pixels, upright; 0 if unreadable.
      formats: number of files of each format; empty where there are no files.
      modes: number of grey, colour, palette, CMYK, transparent, 16 bit images.
      turned: number of JPEGs that the orientation in the EXIF data turns or mirrors.
      blank: int64 [b], images of one shade.
      pairs: int64 [m, 2], duplicates: an image and a later one. Of k identical images
        the first is paired with each of the others; near-duplicates only the first.
      alike: float32 [m], correlation of the two; 1 for identical ones.
      identical: bool [m], whether the two have the same bytes (pixels, if no file).
      relations: int [m], WITHIN_CLASS, ACROSS_CLASSES (same split) or ACROSS_SPLITS.
      leaked: test images identical to a training image.
      nearly_leaked: the other test images with a near-duplicate in train.
      not_compared: comparisons skipped because too many hashes were alike.
    """

    dataset: Dataset
    unreadable: dict[int, str]
    sizes: np.ndarray
    formats: Counter
    modes: Counter
    turned: int
    blank: np.ndarray
    pairs: np.ndarray
    alike: np.ndarray
    identical: np.ndarray
    relations: np.ndarray
    leaked: np.ndarray
    nearly_leaked: np.ndarray
    not_compared: int

    @property
    def is_readable(self) -> np.ndarray:
        """bool [n]: whether each image can be decoded."""
        return self.sizes[:, 0] > 0

    def is_test(self, image: int) -> bool:
        return image >= len(self.dataset.train)

    def place(self, image: int) -> tuple[Split, int]:
        """The split of an image and its index there."""
        return _place(self.dataset, image)

    def number(self, split: Split, index: int) -> int:
        """The number of an image of a split; the inverse of `place`."""
        first = 0 if split is self.dataset.train else len(self.dataset.train)
        return first + int(index)

    def name(self, image: int) -> str:
        """The name of an image, on one line."""
        split, index = self.place(image)
        return split.names[index].replace("\n", "\\n")

    def class_name(self, image: int) -> str:
        split, index = self.place(image)
        return split.class_names[split.labels[index]]

    def readable_of(self, split: Split) -> np.ndarray:
        """bool [images of the split]: whether each image can be decoded."""
        count = len(self.dataset.train)
        is_train = split is self.dataset.train
        return self.is_readable[:count] if is_train else self.is_readable[count:]

    def class_sizes(self, split: Split) -> np.ndarray:
        """Readable images of each class: int64 [c]."""
        readable = self.readable_of(split)
        return np.bincount(split.labels[readable], minlength=split.num_classes)


def check(
    dataset: Dataset,
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> DatasetReport:
    """Decode every image once and collect what `DatasetReport` holds.

    Copies that were turned, mirrored or cropped by more than a few percent are not
    found. Memory: about 1.5 KiB per image.

    Args:
      dataset: both splits are read.
      threads: for decoding; None: 1 per processor, at most 8.
      progress: called with the number of images decoded and the total.
    """
    images = _inspect_all(dataset, threads, progress)
    count = len(dataset.train)
    readable = images.sizes[:, 0] > 0
    blank = readable & perceptual_hash.is_blank(images.thumbnails)
    first = _first_of_same(images.digests)
    copies = np.flatnonzero(readable & (first != np.arange(len(first))))
    same = np.stack([first[copies], copies], axis=1)

    unique = np.flatnonzero(readable & ~blank & (first == np.arange(len(first))))
    near, not_compared = perceptual_hash.near(
        perceptual_hash.hashes(images.thumbnails[unique]), DISTANCE
    )
    near = unique[near]
    alike = perceptual_hash.correlation(images.thumbnails, near)
    near, alike = near[alike >= ALIKE], alike[alike >= ALIKE]

    pairs = np.concatenate([same, near])
    in_test = np.arange(len(first)) >= count
    leaked = readable & in_test & (first < count)
    partners = near[~in_test[near[:, 0]] & in_test[near[:, 1]], 1]
    nearly = readable & in_test & ~leaked & np.isin(first, partners)
    return DatasetReport(
        dataset=dataset,
        unreadable=images.reasons,
        sizes=images.sizes,
        formats=images.formats,
        modes=images.modes,
        turned=images.turned,
        blank=np.flatnonzero(blank),
        pairs=pairs,
        alike=np.concatenate([np.ones(len(same), np.float32), alike]),
        identical=np.arange(len(pairs)) < len(same),
        relations=_relations(dataset, pairs),
        leaked=np.flatnonzero(leaked),
        nearly_leaked=np.flatnonzero(nearly),
        not_compared=not_compared,
    )


@dataclass(frozen=True)
class _Inspection:
    """What is known of one image; format is None if it comes from no file."""

    thumbnail: np.ndarray
    size: tuple[int, int]
    digest: bytes
    format: str | None = None
    mode: str = ""
    turned: bool = False


class _Inspections:
    """The results of `_inspect` of all images, as arrays and counters."""

    def __init__(self, count: int):
        self.thumbnails = np.zeros(
            (count, perceptual_hash.SIDE, perceptual_hash.SIDE), np.uint8
        )
        self.sizes = np.zeros((count, 2), np.int32)
        self.digests: list[bytes | None] = [None] * count
        self.reasons: dict[int, str] = {}
        self.formats, self.modes, self.turned = Counter(), Counter(), 0

    def add(self, image: int, inspection: _Inspection | str) -> None:
        if isinstance(inspection, str):
            self.reasons[image] = inspection
            return
        self.thumbnails[image] = inspection.thumbnail
        self.sizes[image] = inspection.size
        self.digests[image] = inspection.digest
        if inspection.format is not None:
            self.formats[inspection.format] += 1
            self.modes[inspection.mode] += 1
            self.turned += inspection.turned


def _inspect_all(dataset, threads, progress) -> _Inspections:
    count = len(dataset.train) + len(dataset.test)
    images = _Inspections(count)

    def inspect(task: range) -> list[_Inspection | str]:
        return [_inspect(*_place(dataset, image)) for image in task]

    starts = range(0, count, _IMAGES_A_TASK)
    tasks = [range(i, min(i + _IMAGES_A_TASK, count)) for i in starts]
    pool = ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1))
    try:
        for task, inspections in zip(tasks, pool.map(inspect, tasks), strict=True):
            for image, inspection in zip(task, inspections, strict=True):
                images.add(image, inspection)
            if progress is not None:
                progress(task.stop, count)
    finally:
        pool.shutdown(cancel_futures=True)
    return images


def _place(dataset: Dataset, image: int) -> tuple[Split, int]:
    image = int(image)
    count = len(dataset.train)
    return (dataset.train, image) if image < count else (dataset.test, image - count)


def _inspect(split: Split, index: int) -> _Inspection | str:
    """Inspect one image; a string says why it cannot be read."""
    try:
        content = split.encoded(index)
        if content is not None:
            return _inspect_file(content)
        pixels = split.read(index)
    except UnreadableImage as error:
        return error.reason
    except ValueError as error:
        return str(error)
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels))
    height, width = pixels.shape[:2]
    grey = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    return _Inspection(_thumbnail(grey), (width, height), digest.digest())


def _inspect_file(content: bytes) -> _Inspection:
    """Inspect an image file; raises ValueError wherever `decoding.decode` does."""
    kind = {"digest": hashlib.sha256(content).digest(), "format": "unknown"}
    with suppress(Exception):  # `decode` below fails too, with a good message.
        with Image.open(io.BytesIO(content)) as image:
            kind["format"], kind["mode"] = image.format, _mode(image)
            if image.format in ("JPEG", "MPO") and not _is_too_large(image):
                turn = image.getexif().get(ExifTags.Base.Orientation, 1)
                kind["turned"] = turn in range(2, 9)
                size = image.size[::-1] if turn in range(5, 9) else image.size
                # Grey and small: reads the whole stream, skips most of the computation.
                image.draft("L", (_DRAFT_SIDE, _DRAFT_SIDE))
                upright = ImageOps.exif_transpose(image)
                return _Inspection(_thumbnail(upright), size, **kind)
    pixels = decoding.decode(content, 1)[:, :, 0]
    return _Inspection(_thumbnail(Image.fromarray(pixels)), pixels.shape[::-1], **kind)


def _is_too_large(image: Image.Image) -> bool:
    limit = Image.MAX_IMAGE_PIXELS
    return bool(limit) and image.width * image.height > limit


def _mode(image: Image.Image) -> str:
    if image.mode.startswith(("I", "F")):
        return "16 bit"
    if image.has_transparency_data:
        return "transparent"
    return _MODES.get(image.mode, "colour")


def _thumbnail(image: Image.Image) -> np.ndarray:
    side = (perceptual_hash.SIDE, perceptual_hash.SIDE)
    return np.asarray(image.convert("L").resize(side, Image.Resampling.BICUBIC))


def _first_of_same(digests: list[bytes | None]) -> np.ndarray:
    """For each image the first one with its digest: int64 [n]; its own if None."""
    first: dict[bytes, int] = {}
    return np.array(
        [
            image if digest is None else first.setdefault(digest, image)
            for image, digest in enumerate(digests)
        ],
        np.int64,
    )


def _relations(dataset: Dataset, pairs: np.ndarray) -> np.ndarray:
    """The relation of each pair: int [m]. Classes are the same if their names are."""
    numbers: dict[str, int] = {}
    labels = []
    for split in (dataset.train, dataset.test):
        named = [numbers.setdefault(name, len(numbers)) for name in split.class_names]
        labels.append(np.array(named, np.int64)[split.labels])
    label = np.concatenate(labels)[pairs]
    in_test = pairs >= len(dataset.train)
    relation = np.where(label[:, 0] == label[:, 1], WITHIN_CLASS, ACROSS_CLASSES)
    return np.where(in_test[:, 0] == in_test[:, 1], relation, ACROSS_SPLITS)
