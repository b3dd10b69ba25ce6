"""What each file of a `folder` is: from its labels.csv or from where it lies."""

import csv
import io
import posixpath
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from metricjax.data.formats.file_tree import Files, absent
from metricjax.errors import InputError

# The words of a split column or folder, and the split they mean. open-metric-learning
# calls the unseen half "validation"; see `_resolve_validation`.
_SPLIT_WORDS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("validation", "valid", "val"),
}
_TRUE = ("true", "1", "1.0", "yes", "t")
_FALSE = ("false", "0", "0.0", "no", "f")


@dataclass(frozen=True, slots=True)
class Row:
    """One image: where it is and what it shows.

    Attributes:
      path, label, category: where it is, its class, and a coarser label.
      split: "train", "test" or None.
      is_query, is_gallery: its roles in testing.
      box: left, top, right, bottom in pixels, to which it is cropped; None: it is not.
        The right column and the bottom row are the first outside.
    """

    path: str
    label: str
    category: str | None = None
    split: str | None = None
    is_query: bool = True
    is_gallery: bool = True
    box: tuple[int, int, int, int] | None = None


def sorted_names(names: Iterable[str]) -> list[str]:
    """Names in the order that numbers the classes; whole numbers by their value."""
    names = list(names)
    if all(name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def rows_of(
    files: Files, table_name: str | None, *, everything: bool = False
) -> tuple[list[Row], list[str]]:
    """Every image that the table or the folders name, and notes.

    Args:
      files: the tree.
      table_name: of the table; None: labels.csv, if there is one.
      everything: whether to keep what training has no use for: files in no class
        folder, of class "", and images of a validation split beside a test split.
    """
    table_name = table_name or table_in(files)
    if table_name:
        return _read_table(files, table_name, everything)
    if not files.paths:
        raise InputError(
            f"There is no file in data.root {files.root!r}: put images in."
        )
    return _from_folders(files.paths, everything)


def table_in(files: Files) -> str | None:
    """The labels.csv at the root or in the only folder, if there is one."""
    folders = files.entries("")[0]
    nested = [f"{folders[0]}/labels.csv"] if len(folders) == 1 else []
    return next(filter(files.has, ["labels.csv", *nested]), None)


def _from_folders(
    paths: Sequence[str], everything: bool
) -> tuple[list[Row], list[str]]:
    """Class = the folder an image lies in, named by its path below the root."""
    tops = {path.split("/")[0] for path in paths if "/" in path}
    top = f"{tops.pop()}/" if len(tops) == 1 else ""
    if not any("/" in path.removeprefix(top) for path in paths):
        top = ""
    folders = {path: path.removeprefix(top).rpartition("/")[0] for path in paths}
    if not everything:
        folders = {path: folder for path, folder in folders.items() if folder}
    notes = []
    if len(folders) < len(paths):
        notes.append(
            f"{len(paths) - len(folders)} files lie in no class folder and are not "
            "used."
        )
    words = {folder.split("/")[0] for folder in folders.values()}
    split_of = {word: _split_word(word) for word in words}
    found = set(split_of.values())
    all_below = all("/" in folder for folder in folders.values())
    if None in found or "train" not in found or len(found) < 2 or not all_below:
        return [Row(path, folder) for path, folder in folders.items()], notes
    rows = []
    for path, folder in folders.items():
        word, _, label = folder.partition("/")
        rows.append(Row(path, label, split=split_of[word]))
    return rows if everything else _resolve_validation(rows, notes), notes


def _split_word(word: str) -> str | None:
    word = word.strip().lower()
    for split, words in _SPLIT_WORDS.items():
        if word in words:
            return split
    return None


def _resolve_validation(rows: list[Row], notes: list[str]) -> list[Row]:
    """Validation is the test split if there is no other; otherwise it is left out."""
    if any(row.split == "test" for row in rows):
        kept = [row for row in rows if row.split != "validation"]
        if len(kept) < len(rows):
            notes.append(
                f"The {len(rows) - len(kept)} images of the validation split are left "
                "out: there is a test split, and a run holds out classes of the "
                "training half for validation."
            )
        return kept
    notes.append("The validation split is the test split, as there is no other.")
    return [
        replace(row, split="test") if row.split == "validation" else row for row in rows
    ]


def _read_table(
    files: Files, table: str, everything: bool
) -> tuple[list[Row], list[str]]:
    name = f"{files.root}/{table}"
    try:
        text = files.read(table).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text ({error}): save it so.") from error
    lines = csv.reader(io.StringIO(text, newline=""))
    columns = [column.strip() for column in next(lines, [])]
    for column in ("path", "label"):
        if column not in columns:
            raise InputError(
                f"{name} has no column {column!r}, only {', '.join(columns) or 'none'}:"
                " its first line must name path and label, and may name category, "
                "split, is_query and is_gallery."
            )
    prefix = table.rpartition("/")[0]
    rows = []
    for line in lines:
        if any(field.strip() for field in line):
            fields = dict(zip(columns, map(str.strip, line), strict=False))
            rows.append(_row(f"{name}, line {lines.line_num}", fields, prefix))
    _check_present(name, files, rows)
    notes = []
    if "x_1" in columns:
        notes.append(f"{name} gives boxes (x_1, ...): the images are not cropped.")
    if any(row.split for row in rows):
        if not all(row.split for row in rows):
            blank = sum(row.split is None for row in rows)
            raise InputError(
                f"{name} gives a split to some rows but not to {blank} others: fill "
                "the column or remove it."
            )
        if any(row.split == "validation" for row in rows) and not everything:
            rows = _resolve_validation(rows, notes)
    return rows, notes


def _row(where: str, fields: dict[str, str], prefix: str) -> Row:
    """One line of the table; `where` names it in messages."""
    for column in ("path", "label"):
        if not fields.get(column):
            raise InputError(f"{where}: the {column} is empty; fill it in.")
    path = posixpath.normpath(posixpath.join(prefix, fields["path"].replace("\\", "/")))
    if path.startswith(("/", "../")) or path[1:2] == ":":
        raise InputError(
            f"{where}: the path {fields['path']!r} leads out of the folder; give it "
            "relative to the table."
        )
    split = fields.get("split") or None
    if split is not None and (word := _split_word(split)) is None:
        known = ", ".join(word for words in _SPLIT_WORDS.values() for word in words)
        raise InputError(f"{where}: the split is {split!r}, not one of {known}.")
    return Row(
        path=path,
        label=fields["label"],
        category=fields.get("category") or None,
        split=word if split else None,
        is_query=_flag(where, fields, "is_query"),
        is_gallery=_flag(where, fields, "is_gallery"),
    )


def _flag(where: str, fields: dict[str, str], column: str) -> bool:
    """A flag; empty means true, as it does for training rows and absent columns."""
    value = fields.get(column, "").lower()
    if value and value not in _TRUE + _FALSE:
        raise InputError(
            f"{where}: {column} is {fields[column]!r}; write true or false."
        )
    return value not in _FALSE


def _check_present(name: str, files: Files, rows: list[Row]) -> None:
    missing = absent(files, [row.path for row in rows])
    if missing:
        raise InputError(
            f"{name} names {len(missing)} files that are not there, the first "
            f"{missing[0]!r}: paths are relative to the folder of the table."
        )
    repeated = [path for path, n in Counter(row.path for row in rows).items() if n > 1]
    if repeated:
        raise InputError(
            f"{name} names {len(repeated)} files more than once, the first "
            f"{repeated[0]!r}: an image has one label; remove the other lines."
        )
