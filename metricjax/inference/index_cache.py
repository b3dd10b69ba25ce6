"""Where the embeddings of galleries are kept, and what of them is made anew."""

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

_LIMIT = 8 * 2**30  # bytes of all indexes; what was not used for longest goes first
_NAME = "[0-9a-f]{16}-[0-9a-f]{16}"  # of the directory of an index


@dataclass(frozen=True)
class CachedGallery:
    """Embeds a gallery into a directory, or finds there what is embedded already."""

    trained: TrainedModel
    split: Split
    threads: int | None
    say: Callable[[str], None]
    progress: Callable[[int, int], None]

    def embedded(self, directory: Path) -> Embedded:
        keys = partial_embeddings.keys_of(self.split)
        known = CachedEmbeddings.read(directory / "index.npz", self.trained.identity)
        if not known.has_all(keys):
            with disk_errors(directory):
                directory.mkdir(parents=True, exist_ok=True)
            other = "Another process embeds this gallery just now: wait until it ends."
            with locked(directory, other):
                known = self._extended(known, keys, directory)
        with suppress(OSError):
            os.utime(directory / "index.npz")
        return known.of(keys)

    def _extended(
        self, known: "CachedEmbeddings", keys: np.ndarray, directory: Path
    ) -> "CachedEmbeddings":
        """What is known, and the embeddings of all images that were not."""
        unfinished, model = directory / "unfinished", self.trained.identity
        left = PartialEmbeddings.found(unfinished)
        fresh = known.lacking(keys)
        if left is not None and left.is_of(model, keys[fresh]):
            self.say(f"Going on after {counted(left.count, 'image')}.")
        elif left is not None and left.model == model:
            # The gallery has changed since: keep what was made for what it was.
            known = known.joined(left.keys[: left.count], left.embedded)
            known.write(directory / "index.npz")
            left, fresh = None, known.lacking(keys)
        else:
            left = None
        if len(fresh):
            of = "" if len(fresh) == len(keys) else f" of {len(keys):,} that are new"
            self.say(f"Embedding {counted(len(fresh), 'image')}{of}.")
            width = self.trained.width
            left = left or PartialEmbeddings.begun(
                unfinished, model, keys[fresh], width
            )
            partial_embeddings.fill(
                left,
                self.trained,
                self.split.subset(fresh),
                threads=self.threads,
                progress=self.progress,
            )
            known = known.joined(left.keys, left.embedded)
        known = CachedEmbeddings(model, keys, known.of(keys))
        known.write(directory / "index.npz")
        PartialEmbeddings(unfinished, model, keys, self.trained.width).remove()
        return known


@dataclass(frozen=True)
class CachedEmbeddings:
    """Embeddings by the keys of their images, of one model."""

    model: str
    keys: np.ndarray
    embedded: Embedded | None

    @classmethod
    def read(cls, path: Path, model: str) -> "CachedEmbeddings":
        """What a file has of a model; nothing where there is none, or it is damaged."""
        nothing = cls(model, np.zeros((0, 16), np.uint8), None)
        try:
            with np.load(path, allow_pickle=False) as file:
                if str(file["model"]) != model:
                    return nothing
                found = Embedded(file["embeddings"], file["valid"])
                return cls(model, file["keys"], found)
        except Exception:  # On a damaged file nearly anything: then it is made anew.
            return nothing

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
        return np.array_equal(self.keys, keys) or not len(self.lacking(keys))

    def lacking(self, keys: np.ndarray) -> np.ndarray:
        """The rows of `keys` that are not known, those of equal keys once."""
        known, rows = self._rows, {}
        for row, key in enumerate(map(bytes, keys)):
            if key not in known:
                rows.setdefault(key, row)
        return np.array(list(rows.values()), np.int64)

    def of(self, keys: np.ndarray) -> Embedded:
        """The embeddings of images that are all known, in the order of their keys."""
        if np.array_equal(self.keys, keys):
            return self.embedded
        known = self._rows
        rows = np.array([known[key] for key in map(bytes, keys)])
        return Embedded(self.embedded.embeddings[rows], self.embedded.valid[rows])

    def joined(self, keys: np.ndarray, embedded: Embedded) -> "CachedEmbeddings":
        parts = [embedded] if self.embedded is None else [self.embedded, embedded]
        both = Embedded(
            np.concatenate([part.embeddings for part in parts]),
            np.concatenate([part.valid for part in parts]),
        )
        return CachedEmbeddings(self.model, np.concatenate([self.keys, keys]), both)

    @property
    def _rows(self) -> dict[bytes, int]:
        return {key: row for row, key in enumerate(map(bytes, self.keys))}


def home() -> Path | None:
    """Where indexes are kept by default; None where nothing can be written."""
    try:
        directory = user_cache.home() / "indexes"
        directory.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # The latter where there is no home.
        return None
    return directory if os.access(directory, os.W_OK) else None


def name_of(model: str, place: list) -> str:
    """The name of the directory of an index of a model, of the images in a place."""
    where = hashlib.sha256(json.dumps(place).encode()).hexdigest()
    return f"{model[:16]}-{where[:16]}"


def prune(directory: Path) -> None:
    """Remove the indexes that were not used for longest while all take too much."""
    found = []
    for own in directory.iterdir():
        if not re.fullmatch(_NAME, own.name):
            continue
        with suppress(OSError):
            files = [path.stat() for path in own.iterdir()]
            last = max(status.st_mtime for status in files)
            found.append((last, sum(status.st_size for status in files), own))
    total = 0
    for _, size, own in sorted(found, reverse=True):
        total += size
        if total > _LIMIT and total > size:
            shutil.rmtree(own, ignore_errors=True)
