"""Packs a data set: its images in shards, everything else in a manifest.

What `unfinished.json` names is done: a packing that was stopped goes on from there.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from metricjax.data.datasets import Dataset
from metricjax.data.formats import packed, shard_writer
from metricjax.errors import InputError, counted
from metricjax.storage.directories import Storage, open_storage

_SUFFIX = ".array_record"


def pack(
    dataset: Dataset,
    out: str,
    *,
    short_side: int = 256,
    source: str = "",
    cropped: bool = False,
    threads: int | None = None,
    say: Callable[[str], None] = print,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes the images of a data set into shards, or goes on with that.

    An image whose shorter side is longer than `short_side` is shrunk to it and written
    as JPEG of quality 95; any other keeps the bytes of its file, and where there is no
    file (drawn, cropped) it is written as PNG: only shrinking changes a pixel. Images
    that cannot be decoded are left out and listed.

    Memory: per thread one decoded image, at most 89 million pixels (Pillow's limit;
    a larger one counts as unreadable), and some encoded ones.

    Args:
      dataset: both splits are packed.
      out: a directory or an fsspec URL. Shards for a URL are first written into the
        system's directory for temporary files.
      short_side: in pixels; 0: no image is shrunk.
      source: the path of the data set's files; its last part is written down.
      cropped: whether the data set was opened so; written down.
      threads: that decode; None: 2 per processor, at most 32.
      say: called with each sentence.
      progress: called with how many images are done and how many there are.

    Raises:
      InputError: `out` holds something else, or cannot be written; no image or only
        those of one split can be decoded.
    """
    if short_side < 0:
        raise InputError(
            f"--short-side is {short_side}: give a number of pixels, or 0 to keep all "
            "images as they are."
        )
    request = {
        "name": dataset.name,
        "short_side": short_side,
        "cropped": cropped,
        "images": len(dataset.train) + len(dataset.test),
        "listing": _digest(dataset),
    }
    place = open_storage(out)
    _refuse_other(place)
    if (content := place.read(packed.MANIFEST)) is not None:
        manifest = packed.parse(place, content)
        with packed.damage_told(place):
            _check_same(place, manifest["request"], request)
        if place.read(packed.UNFINISHED) is not None:
            place.remove(packed.UNFINISHED)
        say(f"{place.root} is complete: there is nothing to do.")
        return
    with place.claimed() as scratch:
        done = _Done.read(place, request)
        if done.images:
            say(f"Going on after the {done.images:,} images that are already packed.")
        place.write(packed.UNFINISHED, done.dump(request))
        left = shard_writer.write(
            dataset, done.images, short_side, scratch, threads, progress
        )
        with closing(left):
            for shard in left:
                entry = shard.close(f"images-{len(done.shards):05d}{_SUFFIX}")
                if entry is not None:
                    place.put(shard.path, entry["name"])
                    say(f"{entry['name']}: {_contents([entry])}")
                done.add(shard, entry)
                place.write(packed.UNFINISHED, done.dump(request))
        manifest = _manifest(dataset, done, request, source)
        place.write(packed.MANIFEST, packed.dump(manifest))
        place.remove(packed.UNFINISHED)
    for note in manifest["notes"]:
        if note not in dataset.notes:
            say(note)


@dataclass
class _Done:
    """What stands in finished shards.

    Attributes:
      images: how many of the data set's images, in order, were dealt with.
      shards: name, records, bytes and sha256 of each.
      crc32, bytes: of each record.
      skipped: (number of the image, reason) of those that cannot be decoded.
    """

    images: int = 0
    shards: list[dict[str, Any]] = field(default_factory=list)
    crc32: list[int] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    skipped: list[tuple[int, str]] = field(default_factory=list)

    @classmethod
    def read(cls, place: Storage, request: Mapping[str, Any]) -> "_Done":
        """What an earlier packing has done; nothing if there was none."""
        content = place.read(packed.UNFINISHED)
        if content is None:
            return cls()
        with packed.damage_told(place):
            unfinished = packed.parse(place, content)
            _check_same(place, unfinished["request"], request)
            done = cls(**unfinished["done"])
        missing = {shard["name"] for shard in done.shards} - set(place.names())
        if missing:
            raise InputError(
                f"{place.root}: the finished shard {min(missing)} is missing: delete "
                "the directory and pack the images again."
            )
        return done

    def add(self, shard: shard_writer.Shard, entry: dict[str, Any] | None) -> None:
        """A shard that is closed; None of one without a record."""
        self.skipped += [(self.images + at, reason) for at, reason in shard.skipped]
        self.images += shard.images
        self.crc32 += shard.crc32
        self.bytes += shard.bytes
        if entry is not None:
            self.shards.append(entry)

    def dump(self, request: Mapping[str, Any]) -> bytes:
        return packed.dump({"request": request, "done": asdict(self)})


def _refuse_other(place: Storage) -> None:
    """Pack only into a directory that is new, empty or of a packing."""
    names = [name for name in place.names() if not name.startswith(".")]
    ours = {packed.MANIFEST, packed.UNFINISHED} & set(names)
    foreign = [name for name in names if not (ours and name.endswith(_SUFFIX))]
    foreign = [name for name in foreign if name not in ours]
    if foreign:
        raise InputError(
            f"--out {place.root} holds something else, such as {foreign[0]!r}: choose "
            "a directory that is new or empty."
        )


def _check_same(
    place: Storage, theirs: Mapping[str, Any], mine: Mapping[str, Any]
) -> None:
    for name, value in mine.items():
        if theirs.get(name) != value:
            raise InputError(
                f"--out {place.root} belongs to a packing with other images or options "
                f"({name} is {theirs.get(name)!r} there and {value!r} now): choose "
                "another directory."
            )


def _digest(dataset: Dataset) -> str:
    """Of everything but the images, in order."""
    sides = {"train": dataset.train, "test": dataset.test}
    columns = {side: packed.columns(split) for side, split in sides.items()}
    return hashlib.sha256(packed.dump(columns)).hexdigest()


def _manifest(
    dataset: Dataset, done: _Done, request: Mapping[str, Any], source: str
) -> dict[str, Any]:
    """What the finished directory says of itself.

    Raises:
      InputError: no image of a split can be decoded.
    """
    numbers = [number for number, _ in done.skipped]
    is_kept = np.ones(request["images"], bool)
    is_kept[numbers] = False
    count = len(dataset.train)
    names = [*dataset.train.names, *dataset.test.names]
    unreadable = [(names[number], reason) for number, reason in done.skipped]
    splits = {}
    for side, split, kept in (
        ("train", dataset.train, is_kept[:count]),
        ("test", dataset.test, is_kept[count:]),
    ):
        if not kept.any():
            name, reason = unreadable[0]
            raise InputError(
                f"None of the {len(split)} images of the {side} split can be decoded; "
                f"the first left out is {name!r} ({reason}): replace the files."
            )
        splits[side] = split if kept.all() else split.subset(kept)
    shared = set(splits["train"].class_names) & set(splits["test"].class_names)
    return {
        "request": dict(request),
        "source": os.path.basename(os.path.abspath(source)) if source else "",
        "fingerprint": dataset.fingerprint,
        "closed_set": bool(shared),
        "notes": [*_lasting(dataset, source), *_notes(done, request, unreadable)],
        "skipped": [*dataset.skipped, *unreadable],
        "shards": done.shards,
        **{side: packed.columns(split) for side, split in splits.items()},
        "crc32": done.crc32,
        "bytes": done.bytes,
    }


def _lasting(dataset: Dataset, source: str) -> Iterator[str]:
    """The notes on the images, without those on an archive that is read no more."""
    archive = source if os.path.isfile(source) else None
    return (note for note in dataset.notes if archive is None or archive not in note)


def _notes(
    done: _Done, request: Mapping[str, Any], unreadable: list[tuple[str, str]]
) -> Iterator[str]:
    if unreadable:
        name, reason = unreadable[0]
        yield (
            f"{len(unreadable):,} of {request['images']:,} images cannot be decoded "
            f"and are not packed, the first {name!r} ({reason})."
        )
    side = request["short_side"]
    size = f"no shorter side is over {side:,} pixels" if side else "none is shrunk"
    yield f"Packed {_contents(done.shards)}; {size}."


def _contents(entries: list[dict[str, Any]]) -> str:
    """`2,731 images, 128.0 MiB`."""
    images = sum(entry["records"] for entry in entries)
    size = sum(entry["bytes"] for entry in entries) / (1 << 20)
    return f"{counted(images, 'image')}, {size:,.1f} MiB"
