"""The index of a gallery: its images and embeddings, cached, and exact search in it.

The cache goes by content: an image is embedded again if its name, size, modification
time or checksum changes, and all images are if the model changes.
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
from metricjax.evaluation import top_k
from metricjax.evaluation.rows import unit_rows
from metricjax.inference import embedding_files, index_cache, partial_embeddings
from metricjax.inference.index_cache import CachedGallery
from metricjax.inference.trained_model import TrainedModel


def open_images(
    trained: TrainedModel,
    source: str | os.PathLike | None,
    *,
    name: str | None = None,
    part: str | None = None,
    cropped: bool = False,
    say: Callable[[str], None] | None = None,
) -> Split:
    """Open images with the channels and size that the model takes.

    Without a source and a name, the data set that the model was trained on; see
    `collections.open_collection` for the arguments.
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
      valid: bool [n], False for images that cannot be decoded; never returned.
      directory: where files that belong to the index may be stored; None: nowhere.
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
        """Open the index of a gallery; only images new to the cache are embedded.

        Args:
          trained: the network.
          source, name, part, cropped: which images, see `open_images`; or a file
            written by `python -m metricjax.embed`.
          directory: where to store the index; None: the user's cache directory.
          threads: number of threads that read images.
          say: called with each message for the user.
          progress: called with the numbers of new images embedded so far and in total.

        Raises:
          InputError: no image can be decoded, the file was made by another model, or
            the disk is full.
        """
        home = index_cache.home() if directory is None else directory
        location = [os.path.realpath(source) if source else None, name, part, cropped]
        own = (
            None
            if home is None
            else home / index_cache.directory_name(trained.identity, location)
        )
        if name is None and str(source).lower().endswith(embedding_files.SUFFIXES):
            return cls._from_file(trained, Path(source).expanduser(), own)
        split = open_images(
            trained, source, name=name, part=part, cropped=cropped, say=say
        )
        gallery = CachedGallery(trained, split, threads, say, progress)
        if own is None:
            say("The cache directory cannot be written, so the index is not kept.")
            with tempfile.TemporaryDirectory(prefix="metricjax-") as scratch:
                embedded = gallery.embedded(Path(scratch))
        else:
            embedded = gallery.embedded(own)
            if directory is None:  # A directory the user names is theirs to clear.
                index_cache.prune(home)
        unreadable = partial_embeddings.unreadable(split, embedded.valid)
        if unreadable:
            say(f"{unreadable}; they are never found.")
        return cls(split, embedded.embeddings, embedded.valid, own)

    @classmethod
    def _from_file(cls, trained: TrainedModel, path: Path, own: Path | None) -> "Index":
        stored = embedding_files.load(path)
        if stored.model != trained.identity:
            raise InputError(
                f"{path} was made by another model ({stored.model[:12]!r}, and this "
                f"run is {trained.identity[:12]!r}): embed the images with this run by "
                "python -m metricjax.embed, or name the run that made it."
            )
        return cls(stored.split, stored.embeddings, stored.valid, own)

    def __len__(self) -> int:
        return len(self.split)

    def with_images(self, pictures: Split) -> "Index":
        """The same index, its images read from a collection with the same names."""
        positions = {name: position for position, name in enumerate(pictures.names)}

        def reader(row: int) -> np.ndarray:
            name = self.split.names[row]
            if name not in positions:
                raise UnreadableImage(name, "it is not among the images given")
            return pictures.read(positions[name])

        return replace(self, split=replace(self.split, reader=reader))

    def of_category(self, name: str) -> Bool[np.ndarray, " n"]:
        """A mask of the images of a category.

        Raises:
          InputError: there is no such category.
        """
        names = list(self.split.category_names)
        if name not in names:
            others = f"only {', '.join(names[:8])}" if names else "nor any other"
            raise InputError(
                f"The gallery has no category {name!r}{suggestion(name, names)}, "
                f"{others}: choose one that it has."
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

        It searches on the host (`evaluation.top_k`), which for a few queries is done
        before the gallery would be on a device.

        Args:
          queries: float [q, d], of unit length.
          top: number of neighbours, at least 1.
          among: bool [n], which images may be returned; None: all that are valid.

        Returns:
          (similarities float32 [q, k], rows int64 [q, k]), where k is `top`, or fewer
          if there are fewer images; equal similarities by lowest row.

        Raises:
          InputError: queries that are not finite, not of unit length or of another
            width, or a `top` below 1.
        """
        queries = unit_rows(queries, "queries", width=self.embeddings.shape[1])
        if top < 1:
            raise InputError(f"top is {top}: ask for 1 neighbour or more.")
        allowed = self.valid if among is None else self.valid & among
        k = min(int(top), int(allowed.sum()))
        return top_k.search(queries, self.embeddings, k, allowed=allowed)
