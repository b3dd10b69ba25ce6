"""Random access to the records of packed shards, from any thread.

Come here for how shards are opened, cached from a bucket and checked by CRC-32.
"""

import bisect
import hashlib
import itertools
import threading
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from metricjax.errors import InputError
from metricjax.storage import user_cache
from metricjax.storage.directories import Storage, local_path

# No read-ahead: training reads records in random order.
_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_BUFFER = 1 << 15


class DamagedRecord(Exception):
    """A record is not what was packed; the message names it and its shard."""


class Shards:
    """The records of all shards under consecutive numbers; thread-safe, picklable.

    Attributes:
      first: the number of each shard's first record, then the total.
    """

    def __init__(self, storage: Storage, manifest: Mapping[str, Any]):
        self._storage = storage
        self._shards = manifest["shards"]
        counts = (shard["records"] for shard in self._shards)
        self.first = list(itertools.accumulate(counts, initial=0))
        self._crc32 = np.array(manifest["crc32"], np.uint32)
        self._bytes = np.array(manifest["bytes"], np.int64)
        for values in (self._crc32, self._bytes):
            if values.shape != (len(self),):
                raise ValueError(f"{len(values)} checksums of {len(self)} records")
        self._cache = user_cache.home() / manifest["digest"][:16]
        self._init_readers()

    def _init_readers(self) -> None:
        self._readers: dict[int, Any] = {}
        self._locks = [threading.Lock() for _ in self._shards]

    # Open files and locks do not survive pickling: every process opens its own.
    def __getstate__(self):
        state = self.__dict__.copy()
        del state["_readers"], state["_locks"]
        return state

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._init_readers()

    def __len__(self) -> int:
        return self.first[-1]

    def read(self, number: int) -> bytes:
        """The image file of a record.

        Raises:
          DamagedRecord: its bytes are not those that were packed.
          InputError: its shard cannot be downloaded.
        """
        shard = bisect.bisect_right(self.first, number) - 1
        position = number - self.first[shard]
        content = read_record(self._reader(shard), position)
        if not self.is_intact(number, content):
            name = self._shards[shard]["name"]
            raise DamagedRecord(f"record {position} of {name} is damaged")
        return content

    def stamp(self, number: int) -> str:
        """Size and checksum of a record from the manifest."""
        return f"{self._bytes[number]} {self._crc32[number]:08x}"

    def is_intact(self, number: int, content: bytes | None) -> bool:
        """Whether these bytes are what was packed as record `number`."""
        return (
            content is not None
            and len(content) == self._bytes[number]
            and zlib.crc32(content) == self._crc32[number]
        )

    def _reader(self, shard: int):
        # Checked without the lock first, because this is on the path of every image.
        if shard not in self._readers:
            with self._locks[shard]:
                if shard not in self._readers:
                    self._readers[shard] = open_shard(self._local_file(shard))
        return self._readers[shard]

    def _local_file(self, shard: int) -> Path:
        """The file of a shard; one in a bucket is downloaded to the cache once.

        Processes may do so at the same time: each downloads to its own temporary name.
        """
        name, size = self._shards[shard]["name"], self._shards[shard]["bytes"]
        if local_path(self._storage.root) is not None:
            return self._storage.fetch(name, self._cache)
        cached = self._cache / name
        if cached.is_file() and cached.stat().st_size == size:
            return cached
        try:
            self._cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"The cache directory {self._cache} cannot be created ({error}): set "
                "XDG_CACHE_HOME to a directory with room for the images."
            ) from error
        self._storage.fetch(name, self._cache)
        if cached.stat().st_size != size:
            raise InputError(
                f"{self._storage.root}/{name} has {cached.stat().st_size:,} bytes, "
                f"not {size:,}: pack the images again."
            )
        return cached


def open_shard(path: Path):
    """A reader of an ArrayRecord file; a damaged file fails when it is read."""
    from array_record.python.array_record_module import ArrayRecordReader

    return ArrayRecordReader(
        str(path), options=_OPTIONS, file_reader_buffer_size=_BUFFER
    )


def read_record(reader, position: int) -> bytes | None:
    """A record of an open shard, or None if it cannot be read.

    Records of a file truncated after it was opened may come out empty.
    """
    try:
        return reader.read([position])[0]
    except RuntimeError:
        return None


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
