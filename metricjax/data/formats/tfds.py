"""`tfds:NAME`: what tensorflow-datasets has prepared, read without TensorFlow.

TFDS divides CUB and Cars for classification, each class in both splits. Here all splits
of a data set are joined and the classes halved by their numbers, as the papers do it;
only Stanford Online Products keeps its split, which is that of the papers.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from metricjax.data.datasets import Dataset
from metricjax.data.formats import image_rows
from metricjax.data.formats.labels_table import Row
from metricjax.errors import InputError

_PRODUCTS = "stanford_online_products"
_EXAMPLES_AT_ONCE = 256


def open(name: str, root: str | None = None, *, channels: int = 3) -> Dataset:
    """Opens a data set that TFDS has prepared as array_record; reads all its labels.

    Args:
      name: that TFDS gives it, such as "cars196", or "NAME/CONFIG".
      root: the directory where TFDS keeps its data sets, or that of one version; None:
        $TFDS_DATA_DIR or ~/tensorflow_datasets, where TFDS puts them.
      channels: 3 (colour) or 1 (grey).

    Raises:
      InputError: it is not there, is of another format, or its examples do not have one
        image and one class each.
    """
    image_rows.check_channels(channels)
    tfds = _package(name)
    directory = _find(name, root)
    try:
        builder = tfds.builder_from_directory(directory)
    except Exception as error:  # On damaged files, nearly anything.
        raise InputError(
            f"{directory!r} cannot be opened by tensorflow-datasets ({error}): prepare "
            "the data set again."
        ) from error
    image, label, category = _features(tfds, builder)
    sources = _sources(tfds, builder, directory)
    rows, notes = [], [f"Read from {directory}."]
    for split, source in sources.items():
        found = _rows(builder.info.features, split, source, label, category)
        if len(found) < len(source):
            lacking = len(source) - len(found)
            notes.append(f"{lacking:,} examples of {split} have no class.")
        rows += found
    if builder.info.name != _PRODUCTS:
        rows = _halve(rows, builder.info.features[label].str2int)
        notes.append(
            f"The splits {', '.join(sources)} are joined and the classes halved by "
            "their numbers."
        )
    train = [row for row in rows if row.split == "train"]
    test = [row for row in rows if row.split == "test"]
    image_rows.check_splits(directory, train, test)
    examples = _Examples(directory, sources, image)
    return Dataset(
        "tfds",
        image_rows.make_split(examples, train, channels),
        image_rows.make_split(examples, test, channels),
        notes=tuple(notes),
        fingerprint=image_rows.fingerprint(rows),
    )


def _package(name: str):
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise InputError(
            f"data.name=tfds:{name} needs tensorflow-datasets ({error}): "
            "pip install 'metricjax[tfds]'."
        ) from error
    return tensorflow_datasets


def _find(name: str, root: str | None) -> str:
    """The directory of the newest version; it holds a dataset_info.json."""
    root = root or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    root = os.path.expanduser(root)
    below = os.path.join(root, *name.split("/"))
    versions = [
        os.path.join(below, entry)
        for entry in (sorted(os.listdir(below)) if os.path.isdir(below) else [])
    ]
    versions = [
        path
        for path in (root, *sorted(versions, key=_version))
        if os.path.isfile(os.path.join(path, "dataset_info.json"))
    ]
    if not name or not versions:
        raise InputError(
            f"TFDS has prepared no data set {name!r} in {root!r}: let data.name be "
            "tfds:NAME (or tfds:NAME/CONFIG) and data.root the directory that holds "
            "NAME/VERSION/dataset_info.json."
        )
    return versions[-1]


def _version(path: str) -> list[int]:
    """1.10.0 comes after 1.9.0."""
    parts = os.path.basename(path).split(".")
    return [int(part) if part.isdecimal() else -1 for part in parts]


def _features(tfds, builder) -> tuple[str, str, str | None]:
    """The names of the features that are the image, its class and its category."""
    if builder.info.name == _PRODUCTS:
        return "image", "class_id", "super_class_id"
    features = builder.info.features
    images = [k for k, f in features.items() if isinstance(f, tfds.features.Image)]
    labels = [k for k, f in features.items() if isinstance(f, tfds.features.ClassLabel)]
    supervised = builder.info.supervised_keys or ()
    if len(supervised) == 2 and supervised[0] in images and supervised[1] in labels:
        images, labels = supervised[:1], supervised[1:]
    if len(images) != 1 or len(labels) != 1:
        raise InputError(
            f"The examples of tfds:{builder.info.name} have {len(images)} images and "
            f"{len(labels)} class labels among {', '.join(features)}: one image of "
            "one class each is needed."
        )
    return images[0], labels[0], None


def _sources(tfds, builder, directory: str) -> Mapping[str, Any]:
    """The examples of each split; their images stay files until they are wanted."""
    features = builder.info.features.items()
    images = [name for name, kind in features if isinstance(kind, tfds.features.Image)]
    skip = {name: tfds.decode.SkipDecoding() for name in images}
    try:
        return builder.as_data_source(decoders=skip)
    except NotImplementedError as error:
        raise InputError(
            f"{directory!r} is prepared as {builder.info.file_format.value}, which "
            "only TensorFlow reads: prepare it with file_format='array_record'."
        ) from error


def _rows(features, split: str, source, label: str, category: str | None) -> list[Row]:
    """Every example that has a class; its path is `split[number]`, as TFDS has it."""
    rows = []
    for start in range(0, len(source), _EXAMPLES_AT_ONCE):
        numbers = range(start, min(start + _EXAMPLES_AT_ONCE, len(source)))
        for number, example in zip(numbers, source.__getitems__(numbers), strict=True):
            if example[label] >= 0:
                rows.append(
                    Row(
                        path=f"{split}[{number}]",
                        label=features[label].int2str(example[label]),
                        category=category
                        and features[category].int2str(example[category]),
                        split=split,
                    )
                )
    return rows


def _halve(rows: list[Row], number_of) -> list[Row]:
    """The first half of the classes by number for training, the others for testing."""
    classes = sorted({row.label for row in rows}, key=number_of)
    first = set(classes[: (len(classes) + 1) // 2])
    return [
        replace(row, split="train" if row.label in first else "test") for row in rows
    ]


class _Examples:
    """The encoded images of the examples, as `file_tree.Files` has them."""

    def __init__(self, root: str, sources: Mapping[str, Any], image: str):
        self.root = root
        self._sources = sources
        self._image = image

    def read(self, path: str, limit: int | None = None) -> bytes:
        split, _, number = path.removesuffix("]").rpartition("[")
        try:
            return self._sources[split][int(number)][self._image]
        except Exception as error:  # On damaged records, nearly anything.
            raise OSError(str(error) or type(error).__name__) from error

    def stamp(self, path: str) -> str:
        return hashlib.sha256(self.read(path)).hexdigest()
