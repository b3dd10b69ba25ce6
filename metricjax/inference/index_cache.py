"""The cache of gallery embeddings: look up by content, embed what is missing, prune.

An index is one directory for a model and a source of images. `index.npz` holds the
embeddings by the keys of their images (`partial_embeddings.keys_of`), `unfinished/`
what an interrupted process has embedded so far.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metricjax.data.datasets import Split
from metricjax.errors import counted, disk_errors
from metricjax.inference import partial_embeddings
from metricjax.inference.embedder import Embedded
from metricjax.inference.partial_embeddings import PartialEmbeddings
from metricjax.inference.trained_model import TrainedModel
from metricjax.storage import user_cache
from metricjax.storage.atomic import atomic_file, locked

_LIMIT = 8 * 2**30  # bytes of all indexes; the least recently used are removed first
_DIRECTORY_NAME = "[0-9a-f]{16}-[0-9a-f]{16}"  # see `directory_name`


@dataclass(frozen=True)
class CachedGallery:
    """A gallery whose embeddings are cached in a directory."""

    trained: TrainedModel
    split: Split
    threads: int | None
    say: Callable[[str], None]
    progress: Callable[[int, int], None]

    def embedded(self, directory: Path) -> Embedded:
        """The embeddings of all images; only those not yet cached are computed."""
        keys = partial_embeddings.keys_of(self.split)
        cached = CachedEmbeddings.read(directory / "index.npz", self.trained.identity)
        if not cached.has_all(keys):
            with disk_errors(directory):
                directory.mkdir(parents=True, exist_ok=True)
            busy = "Another process embeds this gallery just now: wait until it ends."
            with locked(directory, busy):
                cached = self._extended(cached, keys, directory)
        with suppress(OSError):
            os.utime(directory / "index.npz")  # Last use, by which `prune` orders.
        return cached.select(keys)

    def _extended(
        self, cached: "CachedEmbeddings", keys: np.ndarray, directory: Path
    ) -> "CachedEmbeddings":
        """What is cached, and the embeddings of all images that were not."""
        unfinished, index = directory / "unfinished", directory / "index.npz"
        model, width = self.trained.identity, self.trained.width
        missing = cached.missing(keys)
        partial = PartialEmbeddings.load(unfinished)
        if partial is not None and partial.model == model:
            if not partial.matches(model, keys[missing]):
                # The gallery has changed since the interruption, but what was embedded
                # is still right for its images: keep it, then start on the rest.
                rescued = partial.keys[: partial.count]
                cached = cached.joined(rescued, partial.embedded)
                cached.write(index)
                missing = cached.missing(keys)
        if len(missing):
            cached = self._embed_missing(cached, keys, missing, unfinished)
        cached = CachedEmbeddings(model, keys, cached.select(keys))
        cached.write(index)
        PartialEmbeddings(unfinished, model, keys, width).remove()
        return cached

    def _embed_missing(
        self,
        cached: "CachedEmbeddings",
        keys: np.ndarray,
        missing: np.ndarray,
        unfinished: Path,
    ) -> "CachedEmbeddings":
        """`cached` with the embeddings of the rows `missing` of `keys`."""
        partial = partial_embeddings.resume_or_begin(
            unfinished,
            self.trained.identity,
            keys[missing],
            self.trained.width,
            say=self.say,
        )
        new = len(missing) < len(keys)
        share = f" of {len(keys):,} that are new" if new else ""
        self.say(f"Embedding {counted(len(missing), 'image')}{share}.")
        partial_embeddings.fill(
            partial,
            self.trained,
            self.split.subset(missing),
            threads=self.threads,
            progress=self.progress,
        )
        return cached.joined(partial.keys, partial.embedded)


@dataclass(frozen=True)
class CachedEmbeddings:
    """Embeddings of one model, looked up by the keys of their images."""

    model: str
    keys: np.ndarray
    embedded: Embedded | None

    @classmethod
    def read(cls, path: Path, model: str) -> "CachedEmbeddings":
        """A model's embeddings in a file; empty if absent, damaged or another's."""
        empty = cls(model, np.zeros((0, 16), np.uint8), None)
        try:
            with np.load(path, allow_pickle=False) as file:
                if str(file["model"]) != model:
                    return empty
                embedded = Embedded(file["embeddings"], file["valid"])
                return cls(model, file["keys"], embedded)
        except Exception:  # A damaged file raises nearly anything: embed again.
            return empty

    def write(self, path: Path) -> None:
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                model=self.model,
                keys=self.keys,
                embeddings=self.embedded.embeddings,
                valid=self.embedded.valid,
            )

    def has_all(self, keys: np.ndarray) -> bool:
        return np.array_equal(self.keys, keys) or not len(self.missing(keys))

    def missing(self, keys: np.ndarray) -> np.ndarray:
        """The rows of `keys` that are not cached; of equal keys the first row only."""
        cached, rows = self._row_by_key, {}
        for row, key in enumerate(map(bytes, keys)):
            if key not in cached:
                rows.setdefault(key, row)
        return np.array(list(rows.values()), np.int64)

    def select(self, keys: np.ndarray) -> Embedded:
        """The embeddings for `keys`, in their order; all must be cached."""
        if np.array_equal(self.keys, keys):
            return self.embedded
        row_by_key = self._row_by_key
        rows = np.array([row_by_key[key] for key in map(bytes, keys)])
        return Embedded(self.embedded.embeddings[rows], self.embedded.valid[rows])

    def joined(self, keys: np.ndarray, embedded: Embedded) -> "CachedEmbeddings":
        parts = [embedded] if self.embedded is None else [self.embedded, embedded]
        both = Embedded(
            np.concatenate([part.embeddings for part in parts]),
            np.concatenate([part.valid for part in parts]),
        )
        return CachedEmbeddings(self.model, np.concatenate([self.keys, keys]), both)

    @property
    def _row_by_key(self) -> dict[bytes, int]:
        return {key: row for row, key in enumerate(map(bytes, self.keys))}


def home() -> Path | None:
    """The default directory of indexes; None if it cannot be written."""
    try:
        directory = user_cache.home() / "indexes"
        directory.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: the user has no home.
        return None
    return directory if os.access(directory, os.W_OK) else None


def directory_name(model: str, source: list) -> str:
    """The directory of an index: the model's identity and a hash of the source."""
    digest = hashlib.sha256(json.dumps(source).encode()).hexdigest()
    return f"{model[:16]}-{digest[:16]}"


def prune(directory: Path) -> None:
    """Remove the least recently used indexes until the rest fit in `_LIMIT` bytes."""
    indexes = []
    for own in directory.iterdir():
        if not re.fullmatch(_DIRECTORY_NAME, own.name):
            continue
        with suppress(OSError):
            files = [path.stat() for path in own.iterdir()]
            last = max(status.st_mtime for status in files)
            indexes.append((last, sum(status.st_size for status in files), own))
    total = 0
    for _, size, own in sorted(indexes, reverse=True):
        total += size
        if total > _LIMIT and total > size:
            shutil.rmtree(own, ignore_errors=True)
