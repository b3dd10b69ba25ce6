"""The data set format `packed`, which `metricjax prepare` writes: manifest and reader.

A directory or bucket with a manifest.json and shards: ArrayRecord files with one image
file (JPEG, PNG, ...) per record, the train split first, then the test split, in order.
The manifest holds everything else. Come here to change the manifest; `packing` writes
it, `shard_reader` reads the records.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from metricjax.data import decoding
from metricjax.data.datasets import Dataset, Split, UnreadableImage
from metricjax.data.formats import image_rows
from metricjax.data.formats.shard_reader import DamagedRecord, Shards
from metricjax.errors import InputError
from metricjax.storage.directories import Storage, local_path, open_storage

FORMAT = "metricjax packed images"
VERSION = 1
MANIFEST = "manifest.json"
UNFINISHED = "unfinished.json"
# What a manifest with arbitrary content may raise while it is read.
_DAMAGE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def is_packed(root: str | os.PathLike | None) -> bool:
    """Whether `root` holds packed images, finished or not. Reads a few bytes.

    Always true for a URL: no other format is read from buckets.
    """
    if not root:
        return False
    directory = local_path(root)
    if directory is None:
        return True
    start = _dump({"format": FORMAT})[:-1]
    for name in (MANIFEST, UNFINISHED):
        with suppress(OSError), (directory / name).open("rb") as file:
            if file.read(len(start)) == start:
                return True
    return False


def open(
    root: str | None = None, *, channels: int = 3, closed_set: bool = False
) -> Dataset:
    """Open packed images.

    Shards in a bucket are downloaded when first read, into the user's cache directory
    ($XDG_CACHE_HOME/metricjax).

    Args:
      root: a directory, or an fsspec URL such as gs://bucket/directory.
      channels: 3 (colour) or 1 (grey).
      closed_set: whether a class may be in both splits.

    Raises:
      InputError: nothing is packed there, packing was not finished, a shard is missing,
        or the manifest is damaged.
    """
    if not root:
        raise InputError(
            "data.name=packed needs data.root: the directory that "
            "`python -m metricjax.prepare` has written."
        )
    image_rows.check_channels(channels)
    storage = open_storage(root)
    manifest = read_manifest(storage)
    with reporting_damage(storage):
        _check(storage, manifest, closed_set)
        shards = Shards(storage, manifest)
        splits, first = [], 0
        for side in ("train", "test"):
            names = tuple(manifest[side]["names"])
            reader = _Reader(shards, first, names, channels)
            splits.append(_split(manifest[side], reader))
            first += len(names)
        if first != len(shards):
            raise ValueError(f"{first} names of {len(shards)} records")
        skipped = tuple((name, reason) for name, reason in manifest["skipped"])
        notes, fingerprint = tuple(manifest["notes"]), manifest["fingerprint"]
        return Dataset("packed", *splits, skipped, notes, fingerprint)


def _check(storage: Storage, manifest: Mapping[str, Any], closed_set: bool) -> None:
    present = set(storage.names())
    missing = [s["name"] for s in manifest["shards"] if s["name"] not in present]
    if missing:
        raise InputError(
            f"{storage.root}: {len(missing)} of {len(manifest['shards'])} shards are "
            f"missing, the first {missing[0]}: put them back, or pack the images again."
        )
    if manifest["closed_set"] and not closed_set:
        raise InputError(
            f"{storage.root} was packed as a closed set, with classes in both "
            "splits: retrieval is tested on unseen classes; set closed_set if this is "
            "meant."
        )


def read_manifest(storage: Storage) -> dict[str, Any]:
    """The manifest of a completely packed directory.

    Raises:
      InputError: there is none, or it is damaged or of another version.
    """
    content = storage.read(MANIFEST)
    if content is None:
        if storage.read(UNFINISHED) is not None:
            raise InputError(
                f"{storage.root} was not packed to the end: run the same command of "
                "python -m metricjax.prepare again, which resumes where it stopped."
            )
        raise InputError(
            f"{storage.root} holds no {MANIFEST}: name a directory that "
            "`python -m metricjax.prepare` has written."
        )
    manifest = parse(storage, content)
    manifest["digest"] = hashlib.sha256(content).hexdigest()
    return manifest


def parse(storage: Storage, content: bytes) -> dict[str, Any]:
    """Parse the JSON of manifest.json or unfinished.json.

    Raises:
      InputError: it is damaged or of another version.
    """
    with reporting_damage(storage):
        manifest = json.loads(content)
        if manifest["format"] != FORMAT:
            raise ValueError(f"its format is {manifest['format']!r}")
    if manifest.get("version") != VERSION:
        raise InputError(
            f"{storage.root} was packed as version {manifest.get('version')}, but "
            f"this metricjax reads version {VERSION}: update it, or pack the images "
            "again."
        )
    return manifest


def dump(content: Mapping[str, Any]) -> bytes:
    """A manifest as JSON; the format comes first, for `is_packed`."""
    return _dump({"format": FORMAT, "version": VERSION, **content}) + b"\n"


def _dump(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode("ascii")


@contextmanager
def reporting_damage(storage: Storage) -> Iterator[None]:
    """Raise whatever a damaged manifest leads to as an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except _DAMAGE as error:
        what = f"there is no {error}" if isinstance(error, KeyError) else error
        raise InputError(
            f"The manifest of {storage.root} is damaged or not one of metricjax "
            f"({what}): pack the images again into another directory."
        ) from error


def columns(split: Split) -> dict[str, Any]:
    """A split without its images, for the manifest; `_split` is the inverse."""

    def flags(values: np.ndarray) -> list[int] | None:
        return None if values.all() else values.astype(int).tolist()

    categories = split.categories
    return {
        "names": list(split.names),
        "class_names": list(split.class_names),
        "labels": split.labels.tolist(),
        "category_names": list(split.category_names),
        "categories": None if categories is None else categories.tolist(),
        "is_query": flags(split.is_query),
        "is_gallery": flags(split.is_gallery),
    }


def _split(columns: Mapping[str, Any], reader: "_Reader") -> Split:
    names = ("names", "class_names", "category_names")
    texts = {name: tuple(columns[name]) for name in names}
    rest = ("labels", "categories", "is_query", "is_gallery")
    return Split(**texts, **{name: columns[name] for name in rest}, reader=reader)


@dataclass(frozen=True)
class _Reader:
    """Reads the images of a split: the records starting at number `first`."""

    shards: Shards
    first: int
    names: tuple[str, ...]
    channels: int

    def __call__(self, index: int) -> np.ndarray:
        return self.smaller(index, 0)

    def smaller(self, index: int, least: int) -> np.ndarray:
        content = self.encoded(index)
        try:
            return decoding.decode(content, self.channels, least=least)
        except ValueError as error:
            raise UnreadableImage(self.names[index], str(error)) from error

    def encoded(self, index: int) -> bytes:
        try:
            return self.shards.read(self.first + index)
        except DamagedRecord as error:
            raise UnreadableImage(self.names[index], str(error)) from error

    def stamp(self, index: int) -> str:
        return self.shards.stamp(self.first + index)
