"""Images to embed or to search: any folder, archive, list of paths or data set.

Unlike `open_dataset` it asks for nothing that only training needs: one class will do,
or none.
"""

import os
import posixpath
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from metricjax.data import datasets, decoding
from metricjax.data.datasets import Dataset, Split
from metricjax.data.formats import folder, image_rows, labels_table, packed
from metricjax.data.formats.file_tree import Directory, archive_kind, open_files
from metricjax.data.formats.labels_table import Row, sorted_names
from metricjax.errors import InputError

PARTS = ("all", "train", "test")


def open_collection(
    source: str | os.PathLike | None,
    *,
    name: str | None = None,
    part: str | None = None,
    channels: int = 3,
    cropped: bool = False,
    size: int | None = None,
    seed: int | None = None,
    say: Callable[[str], None] | None = None,
) -> Split:
    """Opens images in a fixed order.

    Of a folder or archive every image is taken, in the order of the paths, and its
    class is the folder it lies in, "" at the top; files that do not begin like an image
    are left out. Of a labels.csv, or of a text list of paths relative to it, every line
    is taken, whatever its file is: reading it may raise `UnreadableImage`.

    Args:
      source: a directory, .zip, .tar, labels.csv, packed set (`packed.open`), text
        list of paths, or one image; None where `name` needs none.
      name: of a data set, as of `open_dataset`; None: what `source` shows itself.
      part: "train" or "test" of a data set that `open_dataset` opens, classes in both
        allowed; "all" (None): everything.
      channels: 3 (colour) or 1 (grey).
      cropped: to the boxes that some data sets come with.
      size, seed: of a data set that is drawn.
      say: called with each sentence worth printing.

    Returns:
      The images: n of c classes, n at least 1.

    Raises:
      InputError: there is no image, or one sentence for whatever else is wrong.
    """
    say = say or (lambda note: None)
    part = part or "all"
    if part not in PARTS:
        raise InputError(f"The part is {part!r}: it must be {', '.join(PARTS)}.")
    image_rows.check_channels(channels)
    source = None if source is None else os.path.expanduser(os.fspath(source))
    if name in (None, "folder") and part == "all" and not cropped:
        if not source:
            raise InputError(
                "No images are named: give a directory, a .zip, a .tar, a text list of "
                "paths or an image."
            )
        if not packed.is_packed(source):
            return _anything(source, channels, say)
    offered = {"channels": channels, "size": size, "seed": seed, "closed_set": True}
    name = name or "folder"
    accepted = datasets.options_of(name)
    options = {key: value for key, value in offered.items() if key in accepted}
    options = {key: value for key, value in options.items() if value is not None}
    if cropped:  # Never passed over in silence: who cannot crop refuses.
        options["cropped"] = True
    return part_of(datasets.open_dataset(name, source, **options), part, say)


def part_of(dataset: Dataset, part: str, say: Callable[[str], None]) -> Split:
    """One side of a data set, or ("all") both; what there is to say of it is said."""
    for note in dataset.notes:
        say(note)
    if part == "all":
        return _joined(dataset.train, dataset.test)
    return dataset.train if part == "train" else dataset.test


def _anything(source: str, channels: int, say: Callable[[str], None]) -> Split:
    """The images of what `source` shows itself to be."""
    if not os.path.exists(source):
        raise InputError(
            f"{source!r} does not exist: give a directory, a .zip, a .tar, a text list "
            "of paths or an image."
        )
    root, table = folder.table_of(source)
    if table is None and not os.path.isdir(source) and archive_kind(source) is None:
        with open(source, "rb") as file:
            is_image = decoding.looks_like_image(file.read(decoding.HEAD_BYTES))
        directory, name = os.path.split(source)
        lines = [name] if is_image else _lines(source)
        rows = [Row(line, label) for line, label in _labelled(lines)]
        return image_rows.make_split(Directory(directory or "."), rows, channels)
    files = open_files(root)
    table = table or labels_table.table_in(files)
    rows, notes, skipped = [], [], []
    if table or files.paths:
        rows, notes = labels_table.rows_of(files, table, everything=True)
    notes = [*files.notes, *notes]
    if not table:
        rows, skipped = folder.only_images(files, rows, None)
    if not rows:
        raise InputError(
            f"There is no image in {source!r} ({len(skipped)} other files): "
            "name a place with images."
        )
    if skipped:
        name, reason = skipped[0]
        notes.append(
            f"{len(skipped):,} of {len(rows) + len(skipped):,} files are left out, the "
            f"first {name!r} ({reason})."
        )
    for note in notes:
        say(note)
    return image_rows.make_split(files, rows, channels)


def _lines(source: str) -> list[str]:
    """The paths that a text file lists.

    Raises:
      InputError: it is no text, lists nothing or nothing that is there.
    """
    what = "neither a directory, an archive, an image nor a text list of paths"
    try:
        with open(source, encoding="utf-8-sig", errors="strict", newline=None) as file:
            lines = [line.rstrip("\n") for line in file]
    except UnicodeDecodeError as error:
        raise InputError(f"{source!r} is {what}: give one of these.") from error
    lines = [line for line in lines if line.strip()]
    if any("\0" in line for line in lines[:1]):
        raise InputError(f"{source!r} is {what}: give one of these.")
    if not lines:
        raise InputError(f"{source!r} is empty: list one path of an image on a line.")
    directory = os.path.dirname(source)
    if not any(os.path.isfile(os.path.join(directory, line)) for line in lines):
        raise InputError(
            f"None of the {len(lines):,} lines of {source!r} is the path of a file, "
            f"the first is {lines[0][:200]!r}: list one path of an image on a line, "
            "relative to the list."
        )
    return lines


def _labelled(paths: Sequence[str]) -> list[tuple[str, str]]:
    """(path, class): the folder, named from the one on that holds all of them."""
    folders = [posixpath.normpath(posixpath.dirname(path)) for path in paths]
    try:
        top = posixpath.commonpath(folders)
    except ValueError:  # Some from the root, some not.
        return list(zip(paths, folders, strict=True))
    labels = [posixpath.relpath(folder, top or ".") for folder in folders]
    labels = ["" if label == "." else label for label in labels]
    return list(zip(paths, labels, strict=True))


def _joined(first: Split, second: Split) -> Split:
    """The images of both; classes and categories of the same name are one."""
    class_names, labels = _united(
        (first.class_names, first.labels), (second.class_names, second.labels)
    )
    category_names, categories = (), None
    if first.categories is not None and second.categories is not None:
        category_names, categories = _united(
            (first.category_names, first.categories),
            (second.category_names, second.categories),
        )
    return Split(
        labels=labels,
        class_names=class_names,
        names=(*first.names, *second.names),
        reader=_Joined(first, second),
        categories=categories,
        category_names=category_names,
        is_query=np.concatenate([first.is_query, second.is_query]),
        is_gallery=np.concatenate([first.is_gallery, second.is_gallery]),
    )


def _united(
    *sides: tuple[Sequence[str], np.ndarray],
) -> tuple[tuple[str, ...], np.ndarray]:
    names = tuple(sorted_names({name for side, _ in sides for name in side}))
    place = {name: number for number, name in enumerate(names)}
    numbers = [np.array([place[name] for name in side])[of] for side, of in sides]
    return names, np.concatenate(numbers)


@dataclass(frozen=True)
class _Joined:
    """The images of one split, then those of another."""

    first: Split
    second: Split

    def __call__(self, index: int) -> np.ndarray:
        split, index = self._of(index)
        return split.read(index)

    def smaller(self, index: int, least: int) -> np.ndarray:
        split, index = self._of(index)
        return split.read(index, least)

    def encoded(self, index: int) -> bytes | None:
        split, index = self._of(index)
        return split.encoded(index)

    def stamp(self, index: int) -> str:
        split, index = self._of(index)
        return split.stamp(index)

    def _of(self, index: int) -> tuple[Split, int]:
        if index < len(self.first):
            return self.first, index
        return self.second, index - len(self.first)
