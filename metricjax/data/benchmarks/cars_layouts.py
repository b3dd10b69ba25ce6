"""The ways in which Cars196 lies on people's disks, and what its files say.

The 16,185 images in one folder with cars_annos.mat; cars_train/ and cars_test/ with
the files of the development kit; or train/ and test/ with a folder for each class, as
copies on Kaggle have them. The papers halve the classes by their official numbers, 1 to
196; which images are officially for training or testing does not matter.
"""

import csv
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from metricjax.data.benchmarks.layouts import Layout, find, number, text, tops
from metricjax.data.formats.file_tree import Files
from metricjax.data.formats.labels_table import Row
from metricjax.errors import InputError

_KITS = ("", "devkit/", "car_devkit/", "car_devkit/devkit/")
_TRAIN = "cars_train_annos.mat"
_TEST = "cars_test_annos_withlabels.mat"
_TEST_WITHOUT = "cars_test_annos.mat"
_CORNERS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")


def cars(files: Files, train_classes: int, cropped: bool) -> Layout | None:
    """Cars196: the first class numbers are for training."""
    for layout in (_one_folder, _two_folders, _class_folders):
        found = layout(files, train_classes, cropped)
        if found is not None:
            return found
    return None


def _one_folder(files: Files, train_classes: int, cropped: bool) -> Layout | None:
    """car_ims/000001.jpg and so on, and cars_annos.mat."""
    found = find(files, "cars_annos.mat")
    if found is None:
        return None
    top, name = found
    content = _load(files, top + name)
    names = _class_names(content)
    rows = [
        _row(top + image["relative_im_path"], image, names, train_classes, cropped)
        for image in _annotations(files, name, content, "relative_im_path", cropped)
    ]
    return Layout(name, rows, files, _note_on_names(names))


def _two_folders(files: Files, train_classes: int, cropped: bool) -> Layout | None:
    """cars_train/00001.jpg, cars_test/00001.jpg and the .mat of each."""
    found = find(files, *(kit + _TRAIN for kit in _KITS))
    if found is None:
        return None
    top, train = found
    test = _first(files, top, _TEST) or _first(files, top, _TEST_WITHOUT)
    meta = _first(files, top, "cars_meta.mat")
    names = _class_names(_load(files, top + meta)) if meta else []
    rows = []
    for part, name in (("cars_train", train), ("cars_test", test)):
        content = _load(files, top + name) if name else {}
        if part == "cars_test" and "class" not in _fields(content):
            raise InputError(
                f"The classes of the images in cars_test/ of {files.root!r} are not "
                f"known: {_TEST} is missing ({_TEST_WITHOUT} does not have them); put "
                "it beside the other files."
            )
        images = _annotations(files, name, content, "fname", cropped)
        folder = f"{top}{part}/"
        if images and files.has(f"{folder}{part}/{images[0]['fname']}"):
            folder += f"{part}/"
        rows += [
            _row(folder + image["fname"], image, names, train_classes, cropped)
            for image in images
        ]
    return Layout("cars_train and cars_test", rows, files, _note_on_names(names))


def _class_folders(files: Files, train_classes: int, cropped: bool) -> Layout | None:
    """train/CLASS/00001.jpg, test/CLASS/00001.jpg and, it may be, names.csv above."""
    parts = ("train", "test")
    top = next((t for t in tops(files) if set(parts) <= {*files.entries(t)[0]}), None)
    if top is None:
        return None
    folders = [(part, c) for part in parts for c in files.entries(top + part)[0]]
    labels = sorted({label for _, label in folders})
    numbers, origin = _numbers(files, top, labels, 2 * train_classes)
    boxes = {part: _boxes(files, top, part) if cropped else {} for part in parts}
    rows = []
    for part, label in folders:
        split = "train" if numbers[label] <= train_classes else "test"
        for name in files.entries(f"{top}{part}/{label}")[1]:
            path = f"{top}{part}/{label}/{name}"
            if cropped and name not in boxes[part]:
                raise InputError(
                    f"anno_{part}.csv in {files.root!r} has no bounding box for "
                    f"{path!r}: get it again, or leave data.cropped at False."
                )
            rows.append(Row(path, label, split=split, box=boxes[part].get(name)))
    return Layout("train and test", rows, files, (origin,))


def _numbers(
    files: Files, top: str, labels: list[str], count: int
) -> tuple[dict[str, int], str]:
    """(the official number of each class, a sentence on where it comes from)."""
    path = _above(files, top, "names.csv")
    if path is not None:
        lines = csv.reader(io.StringIO(text(files, path)))
        # A folder cannot have the slash of "Ram C/V Cargo Van Minivan 2012".
        names = [line[0].strip().replace("/", "-") for line in lines if line]
        numbers = {name: i for i, name in enumerate(names, 1)}
        unknown = [label for label in labels if label not in numbers]
        if unknown:
            raise InputError(
                f"{path!r} in {files.root!r} does not name the class {unknown[0]!r}, "
                "which has a folder: get both from the same source."
            )
        return numbers, f"Numbers of the classes as in {path}."
    if len(labels) != count:
        raise InputError(
            f"train/ and test/ in {files.root!r} have {len(labels)} class folders, "
            f"but Cars196 has {count} classes; without names.csv it is not known "
            "which belong to which half: get the whole data set."
        )
    # Official numbers ascend with the make: 98 is Eagle Talon, 99 FIAT 500 Abarth. So
    # the first 98 by name are those of the numbers 1 to 98, though in another order.
    numbers = {label: i for i, label in enumerate(labels, 1)}
    return numbers, "The classes are halved by the names of their folders."


def _boxes(files: Files, top: str, part: str) -> dict[str, tuple[int, int, int, int]]:
    """The box of each image, by its file's name: name, x1, y1, x2, y2, class."""
    name = f"anno_{part}.csv"
    path = _above(files, top, name) or name
    boxes = {}
    for line_number, line in enumerate(csv.reader(io.StringIO(text(files, path))), 1):
        where = f"{path!r} in {files.root!r}, line {line_number}"
        if line and len(line) != 6:
            raise InputError(f"{where}: it has {len(line)} columns instead of 6.")
        if line:
            boxes[line[0]] = _box(*(number(where, field) for field in line[1:5]))
    return boxes


def _above(files: Files, folder: str, name: str) -> str | None:
    """The path of a file in a folder or in one of those above it."""
    while not files.has(folder + name):
        if not folder:
            return None
        folder = folder.rstrip("/").rpartition("/")[0]
        folder = f"{folder}/" if folder else ""
    return folder + name


def _first(files: Files, top: str, name: str) -> str | None:
    """Where below `top` one of the development kit's files is."""
    return next((kit + name for kit in _KITS if files.has(top + kit + name)), None)


def _load(files: Files, path: str) -> Mapping[str, Any]:
    from scipy.io import loadmat  # It takes a while to import.

    try:
        return loadmat(io.BytesIO(files.read(path)), squeeze_me=True)
    except Exception as error:  # On damaged data, nearly anything.
        raise InputError(
            f"{path!r} in {files.root!r} cannot be read ({error}): get it again."
        ) from error


def _fields(content: Mapping[str, Any]) -> tuple[str, ...]:
    return np.asarray(content.get("annotations")).dtype.names or ()


def _annotations(
    files: Files, name: str, content: Mapping[str, Any], path: str, cropped: bool
) -> list[dict[str, Any]]:
    """What is known of each image, by the fields' names; `path` is that of its path."""
    fields = _fields(content)
    for field in (path, "class", *(_CORNERS if cropped else ())):
        if field not in fields:
            raise InputError(
                f"{name!r} in {files.root!r} has no annotations with the field "
                f"{field!r}: this is another file; get the benchmark's."
            )
    annotations = np.atleast_1d(content["annotations"])
    return [dict(zip(fields, one.tolist(), strict=True)) for one in annotations]


def _class_names(content: Mapping[str, Any]) -> list[str]:
    """In the order of their numbers, from 1."""
    return [str(name) for name in np.atleast_1d(content.get("class_names", []))]


def _note_on_names(names: list[str]) -> tuple[str, ...]:
    return () if names else ("cars_meta.mat is missing: the classes have no names.",)


def _row(
    path: str,
    image: Mapping[str, Any],
    names: list[str],
    train_classes: int,
    cropped: bool,
) -> Row:
    class_number = int(image["class"])
    named = 0 < class_number <= len(names)
    return Row(
        path=path,
        label=names[class_number - 1] if named else str(class_number),
        split="train" if class_number <= train_classes else "test",
        box=_box(*(int(image[corner]) for corner in _CORNERS)) if cropped else None,
    )


def _box(x1: int, y1: int, x2: int, y2: int) -> tuple[int, int, int, int]:
    """Of the file's numbers: pixels count from 1 there, and the last ones belong."""
    return x1 - 1, y1 - 1, x2, y2
