"""`folder`: a directory, .zip or .tar of class folders, or with a labels.csv.

Without a labels.csv the class of an image is the folder it lies in. With one, at the
root or in the only top-level folder, it lists the images:

    path,label[,category][,split][,is_query,is_gallery]

with paths relative to it; other columns are not used, so that a table made for
open-metric-learning can be read as it is.
"""

import itertools
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from metricjax.data import decoding
from metricjax.data.datasets import Dataset, Split
from metricjax.data.formats import image_rows, labels_table, packed
from metricjax.data.formats.file_tree import Files, open_files
from metricjax.data.formats.labels_table import Row
from metricjax.errors import InputError

# Files that a thread looks into in one go: handing them out one by one takes longer.
_AT_A_TIME = 256


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
      root: a directory, a .zip, a .tar (.tar.gz), the path of a .csv beside its
        images, or a packed data set (`packed.open`).
      channels: 3 (colour) or 1 (grey).
      closed_set: whether a class may stand in both splits.
      threads: that look at the files; None: 4 per processor, at most 32.

    Raises:
      InputError: one sentence for each thing that can be wrong with the files.
    """
    image_rows.check_channels(channels)
    if packed.is_packed(root):
        return packed.open(root, channels=channels, closed_set=closed_set)
    root, table_name = table_of(root)
    files = open_files(root)
    rows, notes = labels_table.rows_of(files, table_name)
    notes = [*files.notes, *notes]
    rows, skipped = only_images(files, rows, threads)
    if skipped:
        name, reason = skipped[0]
        notes.append(
            f"{len(skipped)} of {len(rows) + len(skipped)} files are left out, the "
            f"first {name!r} ({reason})."
        )
    _check_classes(files, rows)
    train, test = _divide(files, rows, notes)
    image_rows.check_splits(files.root, train, test, closed_set)
    fingerprint = image_rows.fingerprint([*train, *test])
    train, test = (
        image_rows.make_split(files, part, channels) for part in (train, test)
    )
    notes.extend(_notes_on_single_images(train, test))
    return Dataset("folder", train, test, tuple(skipped), tuple(notes), fingerprint)


def table_of(root: str | None) -> tuple[str | None, str | None]:
    """(root, name of the table): a root that is a .csv stands for its directory."""
    if root and str(root).lower().endswith(".csv") and os.path.isfile(root):
        return os.path.dirname(os.path.abspath(root)), os.path.basename(root)
    return root, None


def only_images(
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

    def of_some(first: int) -> list[str | None]:
        return [reason(row) for row in rows[first : first + _AT_A_TIME]]

    threads = threads or min(32, 4 * (os.cpu_count() or 1))
    with ThreadPoolExecutor(threads) as pool:
        parts = pool.map(of_some, range(0, len(rows), _AT_A_TIME))
        reasons = list(itertools.chain.from_iterable(parts))
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
        return train, test
    names = labels_table.sorted_names({row.label for row in rows})
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
