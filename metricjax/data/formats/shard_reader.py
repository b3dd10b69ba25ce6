"""The records of shards, read one by one from any thread."""

import bisect
import hashlib
import itertools
import os
import threading
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from metricjax.errors import InputError
from metricjax.storage.directories import Storage, local_path

# Random reads: nothing is read ahead.
_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_BUFFER = 1 << 15


class DamagedRecord(Exception):
    """A record is not what was packed; the message names it and its shard."""


class Shards:
    """The records of all shards, numbered through, from any thread. Can be pickled.

    Attributes:
      first: the first record of each shard; then the number of all.
    """

    def __init__(self, place: Storage, manifest: Mapping[str, Any]):
        self._place = place
        self._shards = manifest["shards"]
        counts = (shard["records"] for shard in self._shards)
        self.first = list(itertools.accumulate(counts, initial=0))
        self._crc32 = np.array(manifest["crc32"], np.uint32)
        self._bytes = np.array(manifest["bytes"], np.int64)
        for values in (self._crc32, self._bytes):
            if values.shape != (len(self),):
                raise ValueError(f"{len(values)} checksums of {len(self)} records")
        self._cache = _cache_directory() / manifest["digest"][:16]
        self._open_later()

    def _open_later(self) -> None:
        self._readers: dict[int, Any] = {}
        self._locks = [threading.Lock() for _ in self._shards]

    def __getstate__(self):
        state = self.__dict__.copy()
        del state["_readers"], state["_locks"]
        return state

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._open_later()

    def __len__(self) -> int:
        return self.first[-1]

    def read(self, number: int) -> bytes:
        """The image file of a record.

        Raises:
          DamagedRecord: it is not what was packed.
          InputError: its shard cannot be copied from the bucket.
        """
        shard = bisect.bisect_right(self.first, number) - 1
        position = number - self.first[shard]
        content = read_record(self._reader(shard), position)
        if not self.is_whole(number, content):
            name = self._shards[shard]["name"]
            raise DamagedRecord(f"record {position} of {name} is damaged")
        return content

    def stamp(self, number: int) -> str:
        """Size and checksum of a record, as they were when it was packed."""
        return f"{self._bytes[number]} {self._crc32[number]:08x}"

    def is_whole(self, number: int, content: bytes | None) -> bool:
        """Whether this is what was packed as record `number`."""
        return (
            content is not None
            and len(content) == self._bytes[number]
            and zlib.crc32(content) == self._crc32[number]
        )

    def _reader(self, shard: int):
        if shard not in self._readers:
            with self._locks[shard]:
                if shard not in self._readers:
                    self._readers[shard] = open_shard(self._on_this_machine(shard))
        return self._readers[shard]

    def _on_this_machine(self, shard: int) -> Path:
        """The file of a shard; one of a bucket is copied into the cache at first.

        Processes may do so at the same time: each copies under a name of its own.
        """
        name, size = self._shards[shard]["name"], self._shards[shard]["bytes"]
        if local_path(self._place.root) is not None:
            return self._place.fetch(name, self._cache)
        cached = self._cache / name
        if cached.is_file() and cached.stat().st_size == size:
            return cached
        try:
            self._cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"The cache directory {self._cache} cannot be made ({error}): set "
                "XDG_CACHE_HOME to a directory with room for the images."
            ) from error
        self._place.fetch(name, self._cache)
        if cached.stat().st_size != size:
            raise InputError(
                f"{self._place.root}/{name} has {cached.stat().st_size:,} bytes, not "
                f"{size:,}: pack the images again."
            )
        return cached


def open_shard(path: Path):
    """A reader of an ArrayRecord file; what is wrong with the file, reading shows."""
    from array_record.python.array_record_module import ArrayRecordReader

    return ArrayRecordReader(
        str(path), options=_OPTIONS, file_reader_buffer_size=_BUFFER
    )


def read_record(reader, position: int) -> bytes | None:
    """A record of an open shard, or None if it cannot be read.

    Of a file cut short after it was opened, records may come out empty.
    """
    try:
        return reader.read([position])[0]
    except RuntimeError:
        return None


def _cache_directory() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "metricjax"


def sha256(path: Path) -> str:
    """The digest of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
