"""From rows to splits: images read from files, cropped where a row has a box."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from metricjax.data import decoding
from metricjax.data.datasets import Split, UnreadableImage
from metricjax.data.formats.file_tree import Files
from metricjax.data.formats.labels_table import Row, sorted_names
from metricjax.errors import InputError


def check_channels(channels: int) -> None:
    """Raises `InputError` unless there are 1 or 3."""
    if channels not in (1, 3):
        raise InputError(f"channels is {channels}: it must be 1 (grey) or 3 (colour).")


def check_splits(
    root: str, train: list[Row], test: list[Row], closed_set: bool = False
) -> None:
    """Raises `InputError` if retrieval cannot be tested on `test`."""
    for split, rows in (("train", train), ("test", test)):
        if not rows:
            raise InputError(
                f"The split of {root!r} has no image for {split}: give both splits "
                "images."
            )
    for role in ("is_query", "is_gallery"):
        if not any(getattr(row, role) for row in test):
            raise InputError(
                f"{role} is false for every test image of {root!r}: mark some, "
                "or remove the column to have every image as query and gallery."
            )
    shared = {row.label for row in train} & {row.label for row in test}
    if shared and not closed_set:
        raise InputError(
            f"{len(shared)} classes of {root!r} are in both splits, the first "
            f"{sorted_names(shared)[0]!r}: retrieval is tested on unseen "
            "classes; divide by class, or set closed_set if this is meant."
        )


def make_split(files: Files, rows: list[Row], channels: int) -> Split:
    """The images of the rows; classes and categories in the order of their names."""
    class_names = sorted_names({row.label for row in rows})
    number = {name: i for i, name in enumerate(class_names)}
    categories, category_names = None, ()
    if all(row.category is not None for row in rows):
        category_names = sorted_names({row.category for row in rows})
        place = {name: i for i, name in enumerate(category_names)}
        categories = np.array([place[row.category] for row in rows])
    boxes = None
    if any(row.box is not None for row in rows):
        boxes = np.array([row.box for row in rows])
    paths = tuple(row.path for row in rows)
    return Split(
        labels=np.array([number[row.label] for row in rows]),
        class_names=tuple(class_names),
        names=paths,
        reader=_Reader(files, paths, channels, boxes),
        categories=categories,
        category_names=tuple(category_names),
        is_query=np.array([row.is_query for row in rows]),
        is_gallery=np.array([row.is_gallery for row in rows]),
    )


@dataclass(frozen=True)
class _Reader:
    files: Files
    paths: tuple[str, ...]
    channels: int
    boxes: np.ndarray | None

    def __call__(self, index: int) -> np.ndarray:
        return self.smaller(index, 0)

    def smaller(self, index: int, least: int) -> np.ndarray:
        content = self._content(index)
        try:
            if self.boxes is None:
                return decoding.decode(content, self.channels, least=least)
            return _crop(decoding.decode(content, self.channels), self.boxes[index])
        except ValueError as error:
            raise UnreadableImage(self.paths[index], str(error)) from error

    def encoded(self, index: int) -> bytes | None:
        return self._content(index) if self.boxes is None else None

    def stamp(self, index: int) -> str:
        try:
            stamp = self.files.stamp(self.paths[index])
        except OSError:
            stamp = "not to be read"
        return stamp if self.boxes is None else f"{stamp} {self.boxes[index].tolist()}"

    def _content(self, index: int) -> bytes:
        path = self.paths[index]
        try:
            return self.files.read(path)
        except OSError as error:
            raise UnreadableImage(path, error.strerror or str(error)) from error


def _crop(pixels: np.ndarray, box: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    left, top, right, bottom = np.clip(box, 0, [width, height] * 2)
    if left >= right or top >= bottom:
        raise ValueError(
            f"its box {tuple(box.tolist())} lies outside of its {width} x {height} "
            "pixels"
        )
    # A copy, for a view would keep the whole image in memory.
    return pixels[top:bottom, left:right].copy()


def fingerprint(rows: Iterable[Row]) -> str:
    """SHA-256 of which images there are, of which class, and how they are cropped.

    Of an image the last folder and the name count, so that it does not matter where
    the data set lies: lines `folder/file<TAB>class[<TAB>box]`, sorted.
    """
    lines = []
    for row in rows:
        line = "/".join(row.path.split("/")[-2:]) + f"\t{row.label}"
        lines.append(line if row.box is None else f"{line}\t{row.box}")
    text = "\n".join(sorted(lines))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
