"""`folder`: a directory or a .zip of class folders, or with a labels.csv.

Without a labels.csv the class of an image is the folder it lies in. With one, at the
root or in the only top-level folder, it lists the images:

    path,label[,category][,split][,is_query,is_gallery]

with paths relative to it; other columns are not used, so that a table made for
open-metric-learning can be read as it is.
"""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from metricjax.data import decoding, tables
from metricjax.data.datasets import Dataset, Split, UnreadableImage
from metricjax.data.files import Files, open_files
from metricjax.data.tables import Row
from metricjax.errors import InputError


def open(
    root: str | None = None,
    *,
    channels: int = 3,
    closed_set: bool = False,
    threads: int | None = None,
) -> Dataset:
    """Opens a folder of images.

    A file that is empty or no image is left out and listed in `skipped`. The split is
    that of labels.csv, or of two top-level folders called train and test; otherwise the
    first half of the sorted class names is for training and the second for testing, as
    the papers divide CUB-200-2011 and Cars196.

    Args:
      root: a directory, a .zip, or the path of a .csv beside its images.
      channels: 3 (colour) or 1 (grey).
      closed_set: whether a class may stand in both splits.
      threads: that look at the files; None: 4 per processor, at most 32.

    Raises:
      InputError: one sentence for each thing that can be wrong with the files.
    """
    if channels not in (1, 3):
        raise InputError(f"channels is {channels}: it must be 1 (grey) or 3 (colour).")
    root, table_name = _table_of(root)
    files = open_files(root)
    if not files.paths:
        raise InputError(
            f"There is no file in data.root {files.root!r}: put images in."
        )
    rows, notes = tables.rows_of(files, table_name)
    rows, skipped = _only_images(files, rows, threads)
    if skipped:
        name, reason = skipped[0]
        notes.append(
            f"{len(skipped)} of {len(rows) + len(skipped)} files are left out, the "
            f"first {name} ({reason})."
        )
    _check_classes(files, rows)
    train, test = _divide(files, rows, notes)
    _check_splits(files, train, test, closed_set)
    train, test = _split(files, train, channels), _split(files, test, channels)
    notes.extend(_notes_on_single_images(train, test))
    return Dataset("folder", train, test, tuple(skipped), tuple(notes))


def _table_of(root: str | None) -> tuple[str | None, str | None]:
    """(root, name of the table): a root that is a .csv stands for its directory."""
    if root and str(root).lower().endswith(".csv") and os.path.isfile(root):
        return os.path.dirname(os.path.abspath(root)), os.path.basename(root)
    return root, None


def _only_images(
    files: Files, rows: list[Row], threads: int | None
) -> tuple[list[Row], list[tuple[str, str]]]:
    """The rows whose files begin like an image, and (path, reason) of the others."""

    def reason(row: Row) -> str | None:
        try:
            head = files.read(row.path, decoding.HEAD_BYTES)
        except OSError as error:
            return error.strerror or str(error)
        if not head:
            return "it is empty"
        return None if decoding.looks_like_image(head) else "it is not an image"

    threads = threads or min(32, 4 * (os.cpu_count() or 1))
    with ThreadPoolExecutor(threads) as pool:
        reasons = list(pool.map(reason, rows))
    kept = [row for row, why in zip(rows, reasons, strict=True) if why is None]
    skipped = [(row.path, why) for row, why in zip(rows, reasons, strict=True) if why]
    return kept, skipped


def _check_classes(files: Files, rows: list[Row]) -> None:
    if not rows:
        raise InputError(
            f"There is no readable image in a class folder of {files.root!r}: put the "
            "images of each class into a folder of its own, or add a labels.csv."
        )
    counts = Counter(row.label for row in rows)
    if len(counts) == 1:
        raise InputError(
            f"All {len(rows)} images of data.root {files.root!r} are of one class, "
            f"{rows[0].label!r}: an embedding is learned from at least two."
        )
    if max(counts.values()) < 2:
        raise InputError(
            f"Each of the {len(counts)} classes of data.root {files.root!r} has only "
            "one image: a class needs two for one to find the other."
        )


def _divide(
    files: Files, rows: list[Row], notes: list[str]
) -> tuple[list[Row], list[Row]]:
    """The rows of the train and of the test split."""
    if any(row.split for row in rows):
        train = [row for row in rows if row.split == "train"]
        test = [row for row in rows if row.split == "test"]
        for split, found in (("train", train), ("test", test)):
            if not found:
                raise InputError(
                    f"The split of {files.root!r} has no image for {split}: mark some, "
                    "or leave the split out to have the classes halved."
                )
        return train, test
    names = tables.sorted_names({row.label for row in rows})
    if len(names) < 4:
        raise InputError(
            f"The {len(names)} classes of {files.root!r} cannot be halved into two to "
            "train on and two others to test on: add classes, or a labels.csv with a "
            "split column (and closed_set if both splits hold the same classes)."
        )
    first = set(names[: (len(names) + 1) // 2])
    notes.append(
        f"No split is given: the first {len(first)} of the {len(names)} sorted class "
        f"names are for training, the other {len(names) - len(first)} for testing."
    )
    train = [row for row in rows if row.label in first]
    return train, [row for row in rows if row.label not in first]


def _check_splits(
    files: Files, train: list[Row], test: list[Row], closed_set: bool
) -> None:
    for role in ("is_query", "is_gallery"):
        if not any(getattr(row, role) for row in test):
            raise InputError(
                f"{role} is false for every test image of {files.root!r}: mark some, "
                "or remove the column to have every image as query and gallery."
            )
    shared = {row.label for row in train} & {row.label for row in test}
    if shared and not closed_set:
        raise InputError(
            f"{len(shared)} classes of {files.root!r} are in both splits, the first "
            f"{tables.sorted_names(shared)[0]!r}: retrieval is tested on unseen "
            "classes; divide by class, or set closed_set if this is meant."
        )


@dataclass(frozen=True)
class _Reader:
    files: Files
    paths: tuple[str, ...]
    channels: int

    def __call__(self, index: int) -> np.ndarray:
        path = self.paths[index]
        try:
            return decoding.decode(self.files.read(path), self.channels)
        except OSError as error:
            raise UnreadableImage(path, error.strerror or str(error)) from error
        except ValueError as error:
            raise UnreadableImage(path, str(error)) from error


def _split(files: Files, rows: list[Row], channels: int) -> Split:
    class_names = tables.sorted_names({row.label for row in rows})
    number = {name: i for i, name in enumerate(class_names)}
    categories, category_names = None, ()
    if all(row.category is not None for row in rows):
        category_names = tables.sorted_names({row.category for row in rows})
        place = {name: i for i, name in enumerate(category_names)}
        categories = np.array([place[row.category] for row in rows])
    paths = tuple(row.path for row in rows)
    return Split(
        labels=np.array([number[row.label] for row in rows]),
        class_names=tuple(class_names),
        names=paths,
        reader=_Reader(files, paths, channels),
        categories=categories,
        category_names=tuple(category_names),
        is_query=np.array([row.is_query for row in rows]),
        is_gallery=np.array([row.is_gallery for row in rows]),
    )


def _notes_on_single_images(train: Split, test: Split) -> list[str]:
    """Sentences on the classes that have one image."""
    notes = []
    for split, name, consequence in (
        (train, "train", "it forms no positive pair"),
        (test, "test", "nothing can find it and it is no query"),
    ):
        single = int((np.bincount(split.labels) == 1).sum())
        if single:
            notes.append(
                f"{single} of the {split.num_classes} {name} classes have one image: "
                f"{consequence}."
            )
    return notes
