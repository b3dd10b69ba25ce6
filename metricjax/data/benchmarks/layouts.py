"""How the files of CUB, Stanford Online Products and In-Shop lie, and what they say.

A layout is a function `(files, train_classes, cropped) -> Layout`, or None if the files
do not lie so. Cars196 has several and a module of its own.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from metricjax.data.formats.archives import Zip
from metricjax.data.formats.file_tree import Directory, Files
from metricjax.data.formats.labels_table import Row
from metricjax.errors import InputError


@dataclass(frozen=True)
class Layout:
    """What was found.

    Attributes:
      name: the file or the folders by which the layout is known.
      rows: every image; each has a split.
      images: where their paths are.
      notes: sentences on how they were found.
    """

    name: str
    rows: list[Row]
    images: Files
    notes: tuple[str, ...] = ()


def cub(files: Files, train_classes: int, cropped: bool) -> Layout | None:
    """CUB-200-2011: the first class ids are for training."""
    found = find(files, "image_class_labels.txt")
    if found is None:
        return None
    top, name = found
    classes = {i: number(at, c) for at, (i, c) in table(files, top + name, 2)}
    boxes = {}
    if cropped:
        lines = table(files, f"{top}bounding_boxes.txt", 5)
        boxes = {image: _box(at, box) for at, (image, *box) in lines}
    rows = []
    for where, (image, path) in table(files, f"{top}images.txt", 2):
        if image not in classes or (cropped and image not in boxes):
            raise InputError(
                f"{where}: image {image} has no line in image_class_labels.txt or "
                "bounding_boxes.txt: get the files again."
            )
        split = "train" if classes[image] <= train_classes else "test"
        label = path.split("/")[0]
        box = boxes.get(image)
        rows.append(Row(f"{top}images/{path}", label, split=split, box=box))
    return Layout("images.txt", rows, files)


def _box(where: str, fields: list[str]) -> tuple[int, int, int, int]:
    """From left, top, width and height."""
    try:
        left, top, width, height = (round(float(field)) for field in fields)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{where}: {error}: get the file again.") from error
    return left, top, left + width, top + height


def sop(files: Files, train_classes: int, cropped: bool) -> Layout | None:
    """Stanford Online Products: as its two lists say; products by their ids."""
    found = find(files, "Ebay_train.txt")
    if found is None:
        return None
    top, _ = found
    rows = []
    for split in ("train", "test"):
        name = f"{top}Ebay_{split}.txt"
        for _, (_, product, _, path) in table(
            files, name, 4, "image_id class_id super_class_id path"
        ):
            category = path.split("/")[0].removesuffix("_final")
            rows.append(Row(top + path, product, category, split))
    return Layout("Ebay_train.txt", rows, files)


_INSHOP_LIST = "list_eval_partition.txt"


def inshop(files: Files, train_classes: int, cropped: bool) -> Layout | None:
    """In-Shop: train, query and gallery as its list says; images in img/ or img.zip."""
    folders = ("", "Eval/", "Anno/")
    found = find(files, *(folder + _INSHOP_LIST for folder in folders))
    if found is None:
        return None
    top, name = found
    listed = []
    for where, (path, item, status) in table(
        files, top + name, 3, "image_name item_id evaluation_status", first=2
    ):
        if status not in ("train", "query", "gallery"):
            raise InputError(
                f"{where}: the status is {status!r}, not train, query or gallery: this "
                "is not the list of the In-Shop benchmark."
            )
        listed.append((path, item, status))
    images, base, notes = _images(files, top, listed[0][0] if listed else "")
    rows = []
    for path, item, status in listed:
        split = "train" if status == "train" else "test"
        rows.append(
            Row(
                path=base + path,
                label=item,
                category="/".join(path.split("/")[1:-2]) or None,
                split=split,
                is_query=status != "gallery",
                is_gallery=status != "query",
            )
        )
    return Layout(_INSHOP_LIST, rows, images, notes)


def _images(files: Files, top: str, first: str) -> tuple[Files, str, tuple[str, ...]]:
    """Where the images are: (files, what stands before their paths there, notes).

    In folders as the list has them, below others, or in img.zip, which is read in
    place.
    """
    bases = ("", "Img/", "img/", "Img/img/")
    for base in bases:
        if files.has(f"{top}{base}{first}"):
            return files, top + base, ()
    for path in (f"{top}img.zip", f"{top}Img/img.zip"):
        if isinstance(files, Directory) and files.has(path):
            archive = Zip(os.path.join(files.root, path))
            base = next((base for base in bases if archive.has(base + first)), "")
            return archive, base, (f"The images are read from {archive.root}.",)
    return files, top, ()


def tops(files: Files) -> Iterator[str]:
    """The folders in which a benchmark may begin: "", those in it, those in these."""
    level = [""]
    yield ""
    for _ in range(2):
        level = [f"{top}{name}/" for top in level for name in files.entries(top)[0]]
        yield from level


def find(files: Files, *names: str) -> tuple[str, str] | None:
    """Where the first of the named files is found: (one of `tops`, name)."""
    for top in tops(files):
        for name in names:
            if files.has(top + name):
                return top, name
    return None


def text(files: Files, path: str) -> str:
    """A text file's content; `InputError` if it is not there or no text."""
    if not files.has(path):
        raise InputError(
            f"{path!r} is missing in {files.root!r}: get it from the official archive."
        )
    try:
        return files.read(path).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path!r} in {files.root!r} cannot be read ({error}): get it again."
        ) from error


def table(
    files: Files, path: str, columns: int, header: str | None = None, first: int = 1
) -> Iterator[tuple[str, list[str]]]:
    """(where it stands, fields) of each line of a table whose last field has spaces.

    Args:
      header: what must stand in line `first`, above the table; None: no header.

    Raises:
      InputError: there is no such file, or it is not such a table.
    """
    lines = text(files, path).split("\n")
    if header is not None:
        found = " ".join(lines[first - 1].split()) if len(lines) >= first else ""
        if found != header:
            raise InputError(
                f"{path!r} in {files.root!r} has {found!r} in line {first}, not "
                f"{header!r}: this is another file; get the benchmark's."
            )
        lines = lines[first:]
    start = 1 if header is None else first + 1
    for line_number, line in enumerate(lines, start):
        fields = line.split(None, columns - 1)
        where = f"{path!r} in {files.root!r}, line {line_number}"
        if fields and len(fields) < columns:
            raise InputError(
                f"{where}: {line.strip()!r} has {len(fields)} fields instead of "
                f"{columns}: get the file again."
            )
        if fields:
            yield where, [field.strip() for field in fields]


def number(where: str, field: str) -> int:
    """A whole number; `InputError` if it is none."""
    try:
        return int(field)
    except ValueError as error:
        raise InputError(
            f"{where}: {field!r} is no whole number: get the file again."
        ) from error
