"""A gallery embedded once, kept, and asked for the images nearest to others.

What is kept is found by content: an image is embedded again if its name, size, time of
change or checksum is another one, and all are if the model is.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from metricjax import growing, program_cache, vectors
from metricjax.data.collections import open_collection
from metricjax.data.datasets import Split, UnreadableImage
from metricjax.data.places import locked
from metricjax.embedding import Embedded
from metricjax.errors import InputError, disk_errors, suggestion
from metricjax.evaluation.neighbors import unit_rows
from metricjax.growing import Growing
from metricjax.trained import Trained
from metricjax.workdir import written_whole

_LIMIT = 8 * 2**30  # bytes of all indexes; what was not used for longest goes first
_BLOCK = 1 << 26  # similarities that are held at a time


def open_images(
    trained: Trained,
    source: str | os.PathLike | None,
    *,
    name: str | None = None,
    part: str | None = None,
    cropped: bool = False,
    say: Callable[[str], None] | None = None,
) -> Split:
    """Images as the network wants them; see `collections.open_collection`.

    Without a source and a name, those of the data set that the run was made with.
    """
    data = trained.config.data
    if source is None and name is None:
        source, name, cropped = data.root, data.name, data.cropped
    return open_collection(
        source,
        name=name,
        part=part,
        channels=data.transform.channels,
        cropped=cropped,
        size=data.transform.image_size,
        seed=trained.config.seed,
        say=say,
    )


@dataclass(frozen=True, eq=False)
class Index:
    """A gallery of n images and their embeddings.

    Attributes:
      split: the images, with names, labels and categories.
      embeddings: float32 [n, d], of unit length; 0 where not valid.
      valid: bool [n], False for images that cannot be decoded; no search finds them.
      directory: where what belongs to it may be kept; None: nowhere.
    """

    split: Split
    embeddings: Float[np.ndarray, "n d"]
    valid: Bool[np.ndarray, " n"]
    directory: Path | None = None

    @classmethod
    def open(
        cls,
        trained: Trained,
        source: str | os.PathLike | None,
        *,
        name: str | None = None,
        part: str | None = None,
        cropped: bool = False,
        directory: Path | None = None,
        threads: int | None = None,
        say: Callable[[str], None] = lambda note: None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> "Index":
        """The index of a gallery, of which only what is new is embedded.

        Args:
          trained: the network.
          source, name, part, cropped: which images, see `open_images`; or a file that
            `python -m metricjax.embed` has written.
          directory: where to keep the index; None: in the user's cache directory.
          threads: that read images.
          say: called with each sentence worth printing.
          progress: called with how many of the new images are embedded, and how many
            there are.

        Raises:
          InputError: there is no image that can be decoded, the file was made by
            another model, or the disk is full.
        """
        home = _home() if directory is None else directory
        place = [os.path.realpath(source) if source else None, name, part, cropped]
        own = None if home is None else home / _name(trained.identity, place)
        if name is None and str(source).lower().endswith(vectors.SUFFIXES):
            return cls._of_file(trained, Path(source).expanduser(), own)
        split = open_images(
            trained, source, name=name, part=part, cropped=cropped, say=say
        )
        keeper = _Keeper(trained, split, threads, say, progress)
        if own is None:
            say("The cache directory cannot be written, so the index is not kept.")
            with tempfile.TemporaryDirectory(prefix="metricjax-") as scratch:
                embedded = keeper.embedded(Path(scratch))
        else:
            embedded = keeper.embedded(own)
            _prune(home)
        unreadable = growing.unreadable(split, embedded.valid)
        if unreadable:
            say(f"{unreadable}; they are never found.")
        return cls(split, embedded.embeddings, embedded.valid, own)

    @classmethod
    def _of_file(cls, trained: Trained, path: Path, own: Path | None) -> "Index":
        found = vectors.load(path)
        if found.model != trained.identity:
            raise InputError(
                f"{path} was made by another model ({found.model[:12]!r}, and this run "
                f"is {trained.identity[:12]!r}): embed the images with this run by "
                "python -m metricjax.embed, or name the run that made it."
            )
        return cls(found.split, found.embeddings, found.valid, own)

    def __len__(self) -> int:
        return len(self.split)

    def with_images(self, pictures: Split) -> "Index":
        """The same index, its images read from a collection that has their names."""
        places = {name: place for place, name in enumerate(pictures.names)}

        def reader(row: int) -> np.ndarray:
            name = self.split.names[row]
            if name not in places:
                raise UnreadableImage(name, "it is not among the images given")
            return pictures.read(places[name])

        return replace(self, split=replace(self.split, reader=reader))

    def of_category(self, name: str) -> Bool[np.ndarray, " n"]:
        """Which images are of a category.

        Raises:
          InputError: there is no such category.
        """
        names = list(self.split.category_names)
        if name not in names:
            there = f"only {', '.join(names[:8])}" if names else "nor any other"
            raise InputError(
                f"The gallery has no category {name!r}{suggestion(name, names)}, "
                f"{there}: choose one that it has."
            )
        return self.split.categories == names.index(name)

    def nearest(
        self,
        queries: Float[np.ndarray, "q d"],
        top: int,
        *,
        among: Bool[np.ndarray, " n"] | None = None,
    ) -> tuple[Float[np.ndarray, "q k"], Int[np.ndarray, "q k"]]:
        """The images most similar to each query, exactly, the most similar first.

        The products are those of `evaluation.nearest`, taken by numpy where the gallery
        lies: for a few queries that is done before the gallery is on a device.

        Args:
          queries: float [q, d], of unit length.
          top: how many to find, at least 1.
          among: bool [n], which images may be found; None: all that are valid.

        Returns:
          (similarities float32 [q, k], rows int64 [q, k]), where k is `top`, or fewer
          if there are fewer images; equal similarities by their rows.

        Raises:
          InputError: queries that are not finite, not of unit length or of another
            width, or a `top` below 1.
        """
        queries = unit_rows(queries, "queries", width=self.embeddings.shape[1])
        if top < 1:
            raise InputError(f"top is {top}: ask for 1 neighbour or more.")
        hidden = ~self.valid if among is None else ~(self.valid & among)
        found = min(int(top), len(self) - int(hidden.sum()))
        similarities = np.empty((len(queries), found), np.float32)
        rows = np.empty((len(queries), found), np.int64)
        if found == 0:
            return similarities, rows
        step = max(1, _BLOCK // len(self))
        for start in range(0, len(queries), step):
            some = slice(start, start + step)
            products = queries[some] @ self.embeddings.T
            products[:, hidden] = -np.inf
            for at, row in enumerate(products, start):
                rows[at] = _largest(row, found)
                similarities[at] = row[rows[at]]
        return similarities, rows


def _largest(values: Float[np.ndarray, " n"], count: int) -> Int[np.ndarray, " k"]:
    """Where the largest values are, the first of equal ones first."""
    least = np.partition(values, len(values) - count)[len(values) - count]
    above = np.flatnonzero(values > least)
    equal = np.flatnonzero(values == least)[: count - len(above)]
    places = np.concatenate([above, equal])
    return places[np.lexsort((places, -values[places]))]


@dataclass(frozen=True)
class _Keeper:
    """Embeds a gallery into a directory, or finds there what is embedded already."""

    trained: Trained
    split: Split
    threads: int | None
    say: Callable[[str], None]
    progress: Callable[[int, int], None]

    def embedded(self, directory: Path) -> Embedded:
        keys = growing.keys_of(self.split)
        known = _Known.read(directory / "index.npz", self.trained.identity)
        if not known.has_all(keys):
            with disk_errors(directory):
                directory.mkdir(parents=True, exist_ok=True)
            other = "Another process embeds this gallery just now: wait until it ends."
            with locked(directory, other):
                known = self._extended(known, keys, directory)
        with suppress(OSError):
            os.utime(directory / "index.npz")
        return known.of(keys)

    def _extended(self, known: "_Known", keys: np.ndarray, directory: Path) -> "_Known":
        """What is known, and the embeddings of all images that were not."""
        unfinished, model = directory / "unfinished", self.trained.identity
        left = Growing.found(unfinished)
        fresh = known.lacking(keys)
        if left is not None and left.is_of(model, keys[fresh]):
            self.say(f"Going on after {left.count:,} images.")
        elif left is not None and left.model == model:
            # The gallery has changed since: keep what was made for what it was.
            known = known.joined(left.keys[: left.count], left.embedded)
            known.write(directory / "index.npz")
            left, fresh = None, known.lacking(keys)
        else:
            left = None
        if len(fresh):
            of = "" if len(fresh) == len(keys) else f" of {len(keys):,} that are new"
            self.say(f"Embedding {len(fresh):,} images{of}.")
            width = self.trained.width
            left = left or Growing.begun(unfinished, model, keys[fresh], width)
            growing.fill(
                left,
                self.trained,
                self.split.subset(fresh),
                threads=self.threads,
                progress=self.progress,
            )
            known = known.joined(left.keys, left.embedded)
        known = _Known(model, keys, known.of(keys))
        known.write(directory / "index.npz")
        Growing(unfinished, model, keys, self.trained.width).remove()
        return known


@dataclass(frozen=True)
class _Known:
    """Embeddings by the keys of their images, of one model."""

    model: str
    keys: np.ndarray
    embedded: Embedded | None

    @classmethod
    def read(cls, path: Path, model: str) -> "_Known":
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
        with written_whole(path) as temporary, temporary.open("wb") as file:
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

    def joined(self, keys: np.ndarray, embedded: Embedded) -> "_Known":
        parts = [embedded] if self.embedded is None else [self.embedded, embedded]
        both = Embedded(
            np.concatenate([part.embeddings for part in parts]),
            np.concatenate([part.valid for part in parts]),
        )
        return _Known(self.model, np.concatenate([self.keys, keys]), both)

    @property
    def _rows(self) -> dict[bytes, int]:
        return {key: row for row, key in enumerate(map(bytes, self.keys))}


def _home() -> Path | None:
    """Where indexes are kept by default; None where nothing can be written."""
    try:
        directory = program_cache.home() / "indexes"
        directory.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # The latter where there is no home.
        return None
    return directory if os.access(directory, os.W_OK) else None


def _name(model: str, place: list) -> str:
    where = hashlib.sha256(json.dumps(place).encode()).hexdigest()
    return f"{model[:16]}-{where[:16]}"


def _prune(directory: Path) -> None:
    """Remove the indexes that were not used for longest while all take too much."""
    found = []
    for own in directory.iterdir():
        with suppress(OSError):
            files = [path.stat() for path in own.iterdir()]
            last = max(status.st_mtime for status in files)
            found.append((last, sum(status.st_size for status in files), own))
    total = 0
    for _, size, own in sorted(found, reverse=True):
        total += size
        if total > _LIMIT and total > size:
            shutil.rmtree(own, ignore_errors=True)
