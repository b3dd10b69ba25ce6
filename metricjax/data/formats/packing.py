"""Pack a data set for `metricjax prepare`: images into shards, the rest in a manifest.

`unfinished.json` lists the shards that are complete, so an interrupted packing resumes
after them. Come here for what is written and when; `shard_writer` encodes the images.
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
    """Write the images of a data set into shards, or resume doing so.

    An image whose shorter side exceeds `short_side` is shrunk to it and written as JPEG
    of quality 95. Any other keeps the bytes of its file; without a file (drawn,
    cropped) it is written as PNG. So only shrinking changes a pixel. Images that cannot
    be decoded are left out and listed.

    Memory: per thread one decoded image, at most 89 million pixels (Pillow's limit;
    a larger one counts as unreadable), and some encoded ones.

    Args:
      dataset: both splits are packed.
      out: a directory or an fsspec URL. Shards for a URL are first written into the
        system's directory for temporary files.
      short_side: in pixels; 0: no image is shrunk.
      source: the path of the data set's files; its last part is recorded.
      cropped: whether the data set was opened with cropping; recorded.
      threads: for decoding; None: 2 per processor, at most 32.
      say: called with each sentence.
      progress: called with the number of finished images and the total.

    Raises:
      InputError: `out` holds something else, or cannot be written; no image or only
        those of one split can be decoded.
    """
    request = _request(dataset, short_side, cropped)
    storage = open_storage(out)
    _check_foreign_files(storage)
    if _is_complete(storage, request):
        say(f"{storage.root} is complete: there is nothing to do.")
        return
    with storage.staging() as scratch:
        done = _Done.read(storage, request)
        if done.images:
            say(f"Resuming after the {done.images:,} images that are already packed.")
        storage.write(packed.UNFINISHED, done.dump(request))
        shards = shard_writer.write(
            dataset, done.images, short_side, scratch, threads, progress
        )
        _move_in(shards, storage, done, request, say)
        manifest = _manifest(dataset, done, request, source)
        storage.write(packed.MANIFEST, packed.dump(manifest))
        storage.remove(packed.UNFINISHED)
    for note in manifest["notes"]:
        if note not in dataset.notes:
            say(note)


def _request(dataset: Dataset, short_side: int, cropped: bool) -> dict[str, Any]:
    """The images and options, which must be the same to resume a packing."""
    if short_side < 0:
        raise InputError(
            f"--short-side is {short_side}: give a number of pixels, or 0 to keep all "
            "images as they are."
        )
    return {
        "name": dataset.name,
        "short_side": short_side,
        "cropped": cropped,
        "images": len(dataset.train) + len(dataset.test),
        "listing": _digest(dataset),
    }


def _is_complete(storage: Storage, request: Mapping[str, Any]) -> bool:
    """Whether the images were already packed to the end, with the same options."""
    content = storage.read(packed.MANIFEST)
    if content is None:
        return False
    manifest = packed.parse(storage, content)
    with packed.reporting_damage(storage):
        _check_same(storage, manifest["request"], request)
    # Both exist where we stopped between writing the one and removing the other.
    if storage.read(packed.UNFINISHED) is not None:
        storage.remove(packed.UNFINISHED)
    return True


def _move_in(
    shards: Iterator[shard_writer.Shard],
    storage: Storage,
    done: "_Done",
    request: Mapping[str, Any],
    say: Callable[[str], None],
) -> None:
    """Move each finished shard into the directory and record it as done.

    In this order: a shard that is not recorded yet is written again after a crash.
    """
    with closing(shards):
        for shard in shards:
            entry = shard.close(f"images-{len(done.shards):05d}{_SUFFIX}")
            if entry is not None:
                storage.put(shard.path, entry["name"])
                say(f"{entry['name']}: {_contents([entry])}")
            done.add(shard, entry)
            storage.write(packed.UNFINISHED, done.dump(request))


@dataclass
class _Done:
    """What the finished shards contain.

    Attributes:
      images: how many images, in the order of the data set, are packed or skipped.
      shards: name, records, bytes and sha256 of each.
      crc32, bytes: of each record.
      skipped: (image number, reason) of images that cannot be decoded.
    """

    images: int = 0
    shards: list[dict[str, Any]] = field(default_factory=list)
    crc32: list[int] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    skipped: list[tuple[int, str]] = field(default_factory=list)

    @classmethod
    def read(cls, storage: Storage, request: Mapping[str, Any]) -> "_Done":
        """The progress of an interrupted packing; empty if there is none."""
        content = storage.read(packed.UNFINISHED)
        if content is None:
            return cls()
        with packed.reporting_damage(storage):
            unfinished = packed.parse(storage, content)
            _check_same(storage, unfinished["request"], request)
            done = cls(**unfinished["done"])
        missing = {shard["name"] for shard in done.shards} - set(storage.names())
        if missing:
            raise InputError(
                f"{storage.root}: the finished shard {min(missing)} is missing: "
                "delete the directory and pack the images again."
            )
        return done

    def add(self, shard: shard_writer.Shard, entry: dict[str, Any] | None) -> None:
        """Add a closed shard; its entry is None if it has no record."""
        self.skipped += [(self.images + at, reason) for at, reason in shard.skipped]
        self.images += shard.images
        self.crc32 += shard.crc32
        self.bytes += shard.bytes
        if entry is not None:
            self.shards.append(entry)

    def dump(self, request: Mapping[str, Any]) -> bytes:
        return packed.dump({"request": request, "done": asdict(self)})


def _check_foreign_files(storage: Storage) -> None:
    """Raise `InputError` unless the directory is new, empty or packed by us."""
    names = [name for name in storage.names() if not name.startswith(".")]
    ours = {packed.MANIFEST, packed.UNFINISHED} & set(names)
    foreign = [name for name in names if not (ours and name.endswith(_SUFFIX))]
    foreign = [name for name in foreign if name not in ours]
    if foreign:
        raise InputError(
            f"--out {storage.root} holds something else, such as {foreign[0]!r}: "
            "choose a directory that is new or empty."
        )


def _check_same(
    storage: Storage, theirs: Mapping[str, Any], mine: Mapping[str, Any]
) -> None:
    for name, value in mine.items():
        if theirs.get(name) != value:
            raise InputError(
                f"--out {storage.root} belongs to a packing with other images or "
                f"options ({name} is {theirs.get(name)!r} there and {value!r} now): "
                "choose another directory."
            )


def _digest(dataset: Dataset) -> str:
    """SHA-256 of names, labels and roles, in order; not of the images."""
    sides = {"train": dataset.train, "test": dataset.test}
    columns = {side: packed.columns(split) for side, split in sides.items()}
    return hashlib.sha256(packed.dump(columns)).hexdigest()


def _manifest(
    dataset: Dataset, done: _Done, request: Mapping[str, Any], source: str
) -> dict[str, Any]:
    """The content of manifest.json.

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
        "notes": [*_lasting_notes(dataset, source), *_notes(done, request, unreadable)],
        "skipped": [*dataset.skipped, *unreadable],
        "shards": done.shards,
        **{side: packed.columns(split) for side, split in splits.items()},
        "crc32": done.crc32,
        "bytes": done.bytes,
    }


def _lasting_notes(dataset: Dataset, source: str) -> Iterator[str]:
    """The data set's notes, without those on the archive it was read from."""
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
