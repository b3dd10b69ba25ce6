"""A gallery embedded once, kept, and asked for the images nearest to others.

What is kept is found by content: an image is embedded again if its name, size, time of
change or checksum is another one, and all are if the model is.
"""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from metricjax.data.collections import open_collection
from metricjax.data.datasets import Split, UnreadableImage
from metricjax.errors import InputError, suggestion
from metricjax.evaluation.neighbors import unit_rows
from metricjax.inference import embedding_files, index_cache, partial_embeddings
from metricjax.inference.index_cache import CachedGallery
from metricjax.inference.trained_model import TrainedModel

_BLOCK = 1 << 26  # similarities that are held at a time


def open_images(
    trained: TrainedModel,
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
        trained: TrainedModel,
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
        home = index_cache.home() if directory is None else directory
        place = [os.path.realpath(source) if source else None, name, part, cropped]
        own = (
            None
            if home is None
            else home / index_cache.name_of(trained.identity, place)
        )
        if name is None and str(source).lower().endswith(embedding_files.SUFFIXES):
            return cls._of_file(trained, Path(source).expanduser(), own)
        split = open_images(
            trained, source, name=name, part=part, cropped=cropped, say=say
        )
        keeper = CachedGallery(trained, split, threads, say, progress)
        if own is None:
            say("The cache directory cannot be written, so the index is not kept.")
            with tempfile.TemporaryDirectory(prefix="metricjax-") as scratch:
                embedded = keeper.embedded(Path(scratch))
        else:
            embedded = keeper.embedded(own)
            if directory is None:  # A directory that was named is its owner's to clear.
                index_cache.prune(home)
        unreadable = partial_embeddings.unreadable(split, embedded.valid)
        if unreadable:
            say(f"{unreadable}; they are never found.")
        return cls(split, embedded.embeddings, embedded.valid, own)

    @classmethod
    def _of_file(cls, trained: TrainedModel, path: Path, own: Path | None) -> "Index":
        found = embedding_files.load(path)
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
