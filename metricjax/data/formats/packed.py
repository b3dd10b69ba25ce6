"""`packed`: what `python -m metricjax.prepare` wrote, and how it is read.

A directory or bucket with a manifest.json and shards, ArrayRecord files of one image
file (JPEG, PNG, ...) a record: first those of the train split, then those of the test
split, in order. The manifest holds everything else.
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
# What reading a manifest may raise in which anything stands.
_DAMAGE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def is_packed(root: str | os.PathLike | None) -> bool:
    """Whether the root holds packed images, finished or not; a URL can hold no other.

    Reads a few bytes.
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
    """Opens packed images; of a bucket, shards are copied here when first needed.

    They are kept in the user's cache directory ($XDG_CACHE_HOME/metricjax).

    Args:
      root: a directory, or an fsspec URL such as gs://bucket/directory.
      channels: 3 (colour) or 1 (grey).
      closed_set: whether a class may stand in both splits.

    Raises:
      InputError: there is nothing packed, or not to the end, a shard is missing, or
        the manifest is damaged.
    """
    if not root:
        raise InputError(
            "data.name=packed needs data.root: the directory that "
            "`python -m metricjax.prepare` has written."
        )
    image_rows.check_channels(channels)
    place = open_storage(root)
    manifest = read_manifest(place)
    with damage_told(place):
        _check(place, manifest, closed_set)
        shards = Shards(place, manifest)
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


def _check(place: Storage, manifest: Mapping[str, Any], closed_set: bool) -> None:
    present = set(place.names())
    missing = [s["name"] for s in manifest["shards"] if s["name"] not in present]
    if missing:
        raise InputError(
            f"{place.root}: {len(missing)} of {len(manifest['shards'])} shards are "
            f"missing, the first {missing[0]}: put them back, or pack the images again."
        )
    if manifest["closed_set"] and not closed_set:
        raise InputError(
            f"{place.root} was packed as a closed set, with classes in both splits: "
            "retrieval is tested on unseen classes; set closed_set if this is meant."
        )


def read_manifest(place: Storage) -> dict[str, Any]:
    """The manifest of a directory that was packed to the end.

    Raises:
      InputError: there is none, it is damaged, or from a later version.
    """
    content = place.read(MANIFEST)
    if content is None:
        if place.read(UNFINISHED) is not None:
            raise InputError(
                f"{place.root} was not packed to the end: run the same command of "
                "python -m metricjax.prepare again, which goes on where it stopped."
            )
        raise InputError(
            f"{place.root} holds no {MANIFEST}: name a directory that "
            "`python -m metricjax.prepare` has written."
        )
    manifest = parse(place, content)
    manifest["digest"] = hashlib.sha256(content).hexdigest()
    return manifest


def parse(place: Storage, content: bytes) -> dict[str, Any]:
    """A manifest, or that of an unfinished packing.

    Raises:
      InputError: it is damaged, or from a later version.
    """
    with damage_told(place):
        manifest = json.loads(content)
        if manifest["format"] != FORMAT:
            raise ValueError(f"its format is {manifest['format']!r}")
    if manifest.get("version") != VERSION:
        raise InputError(
            f"{place.root} was packed as version {manifest.get('version')}, but this "
            f"metricjax reads version {VERSION}: update it, or pack the images again."
        )
    return manifest


def dump(content: Mapping[str, Any]) -> bytes:
    """A manifest as JSON; any reader recognises it by its first bytes."""
    return _dump({"format": FORMAT, "version": VERSION, **content}) + b"\n"


def _dump(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode("ascii")


@contextmanager
def damage_told(place: Storage) -> Iterator[None]:
    """What a damaged manifest leads to, as one sentence."""
    try:
        yield
    except InputError:
        raise
    except _DAMAGE as error:
        what = f"there is no {error}" if isinstance(error, KeyError) else error
        raise InputError(
            f"The manifest of {place.root} is damaged or not one of metricjax ({what}):"
            " pack the images again into another directory."
        ) from error


def columns(split: Split) -> dict[str, Any]:
    """A split without its images, as a manifest holds it; undone by `_split`."""

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
    """The images of a split: the records from number `first` on."""

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
