"""What a data set is: two splits of labelled images, each read one by one.

`open_dataset(name, root)` opens one by name. A new kind of data set is a function
`open(root, **options) -> Dataset` in a module of its own and a line in `_OPENERS`;
where one function opens several kinds, their `name` is its first parameter.
"""

import functools
import hashlib
import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from metricjax.errors import InputError, suggestion

_OPENERS = {
    "glyphs": "metricjax.data.benchmarks.glyphs",
    "folder": "metricjax.data.formats.folder",
    "cub": "metricjax.data.benchmarks.papers",
    "cars": "metricjax.data.benchmarks.papers",
    "sop": "metricjax.data.benchmarks.papers",
    "inshop": "metricjax.data.benchmarks.papers",
    "packed": "metricjax.data.formats.packed",
    "tfds": "metricjax.data.formats.tfds",
}


class UnreadableImage(Exception):
    """An image that was found but cannot be decoded.

    Attributes:
      name: what `Split.names` calls the image.
      reason: why it cannot be decoded, without the name.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name} cannot be read: {self.reason}"


@dataclass(frozen=True, eq=False)
class Split:
    """One side of a data set: n labelled images of c classes.

    Attributes:
      labels: int32 [n], the class of each image; every class of 0..c-1 occurs.
      class_names: c names.
      categories: int32 [n], a coarser label (script, product group), or None.
      category_names: names of the categories.
      is_query: bool [n], whether evaluation asks with the image.
      is_gallery: bool [n], whether evaluation may find the image.
      names: what to call image i in messages and reports: its path.
      reader: `reader(i) -> uint8 [h, w, channels]`; callable from many threads;
        raises `UnreadableImage`. One that reads files has `smaller(i, least)`,
        `encoded(i)` and `stamp(i)` too.
    """

    labels: np.ndarray
    class_names: Sequence[str]
    names: Sequence[str]
    reader: Callable[[int], np.ndarray] = field(repr=False)
    categories: np.ndarray | None = None
    category_names: Sequence[str] = ()
    is_query: np.ndarray | None = None
    is_gallery: np.ndarray | None = None

    def __post_init__(self):
        labels = np.asarray(self.labels, np.int32)
        everything = np.ones(len(labels), bool)
        query = everything if self.is_query is None else self.is_query
        gallery = everything if self.is_gallery is None else self.is_gallery
        categories = self.categories
        if categories is not None:
            categories = np.asarray(categories, np.int32)
        for name, value in (
            ("labels", labels),
            ("is_query", np.asarray(query, bool)),
            ("is_gallery", np.asarray(gallery, bool)),
            ("categories", categories),
        ):
            object.__setattr__(self, name, value)
            if value is not None and value.shape != (len(self.names),):
                raise ValueError(
                    f"Split.{name} has shape {value.shape}, but there are "
                    f"{len(self.names)} names: give one value per image."
                )
        if not np.array_equal(np.unique(labels), np.arange(self.num_classes)):
            raise ValueError(
                f"Split.labels must use each of 0..{self.num_classes - 1}, one for "
                "each of the class names."
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def read(self, index: int, least: int = 0) -> np.ndarray:
        """Image `index`, uint8 [h, w, channels]; raises `UnreadableImage`.

        A JPEG may come out smaller where sides of `least` pixels are enough, see
        `decoding.decode`; 0: all as they are.
        """
        return _smaller(self.reader, int(index), least)

    def encoded(self, index: int) -> bytes | None:
        """The image file that `read` decodes, as it is stored.

        Returns:
          The file's bytes; None where there is no file, or where the image is not all
          that the file shows because it is cropped or turned.

        Raises:
          UnreadableImage: the file cannot be read; whether it decodes is not looked at.
        """
        return _encoded(self.reader, int(index))

    def stamp(self, index: int) -> str:
        """A text that is another one where the image is: of its file's size and time of
        change or checksum; where there is no file, of its pixels."""
        return _stamp(self.reader, int(index))

    def subset(self, indices: np.ndarray) -> "Split":
        """The images `indices` in that order, their classes renumbered densely."""
        indices = np.asarray(indices)
        if indices.dtype == bool:
            indices = np.flatnonzero(indices)
        classes, labels = np.unique(self.labels[indices], return_inverse=True)
        categories, category_names = None, ()
        if self.categories is not None:
            kept, categories = np.unique(self.categories[indices], return_inverse=True)
            category_names = tuple(self.category_names[c] for c in kept)
        return Split(
            labels=labels,
            class_names=tuple(self.class_names[c] for c in classes),
            names=tuple(self.names[i] for i in indices),
            reader=_Renumbered.of(self.reader, indices),
            categories=categories,
            category_names=category_names,
            is_query=self.is_query[indices],
            is_gallery=self.is_gallery[indices],
        )


@dataclass(frozen=True)
class _Renumbered:
    """A reader seen through a list of indices."""

    reader: Callable[[int], np.ndarray]
    indices: np.ndarray

    @classmethod
    def of(cls, reader, indices: np.ndarray) -> "_Renumbered":
        if isinstance(reader, cls):
            return cls(reader.reader, reader.indices[indices])
        return cls(reader, indices)

    def __call__(self, index: int) -> np.ndarray:
        return self.reader(int(self.indices[index]))

    def smaller(self, index: int, least: int) -> np.ndarray:
        return _smaller(self.reader, int(self.indices[index]), least)

    def encoded(self, index: int) -> bytes | None:
        return _encoded(self.reader, int(self.indices[index]))

    def stamp(self, index: int) -> str:
        return _stamp(self.reader, int(self.indices[index]))


def _smaller(reader: Callable[[int], np.ndarray], index: int, least: int) -> np.ndarray:
    smaller = least and getattr(reader, "smaller", None)
    return smaller(index, least) if smaller else reader(index)


def _encoded(reader: Callable[[int], np.ndarray], index: int) -> bytes | None:
    return reader.encoded(index) if hasattr(reader, "encoded") else None


def _stamp(reader: Callable[[int], np.ndarray], index: int) -> str:
    if hasattr(reader, "stamp"):
        return reader.stamp(index)
    pixels = reader(index)
    return f"{pixels.shape} {hashlib.sha256(pixels.tobytes()).hexdigest()}"


@dataclass(frozen=True, eq=False)
class Dataset:
    """A train and a test split.

    Attributes:
      name: how it was asked for.
      train: the images to learn from.
      test: the images to be judged on; its classes are not in `train` unless the
        data set was opened as a closed set.
      skipped: (name, reason) of every file that was left out when opening.
      notes: sentences worth printing when the data set is opened.
      fingerprint: SHA-256 of the list of images and labels, where there are files; see
        `image_rows.fingerprint`.
    """

    name: str
    train: Split
    test: Split
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    fingerprint: str = ""


def open_dataset(name: str, root: str | None = None, **options) -> Dataset:
    """Opens a data set by name.

    Args:
      name: "glyphs" (drawn from typefaces, needs no files); "folder" (class folders or
        a labels.csv); "cub", "cars", "sop" or "inshop" (the benchmarks of the papers);
        "packed" (what `python -m metricjax.prepare` writes); "tfds:NAME" (what
        tensorflow-datasets has prepared).
      root: where its files are, a directory, a .zip or a .tar; None where it needs
        none.
      **options: those of the data set's own `open`, such as `seed` and `size` of
        glyphs, `channels` and `closed_set` of a folder, `cropped` of a benchmark; see
        `options_of`.

    Raises:
      InputError: unknown name or option, or whatever is wrong with the files.
    """
    opener, accepted = _opener(name), options_of(name)
    for option in options:
        if option not in accepted:
            raise InputError(
                f"Data set {name!r} has no option {option!r}"
                f"{suggestion(option, accepted)}; it takes {', '.join(accepted)}."
            )
    return replace(opener(root, **options), name=name)


def options_of(name: str) -> list[str]:
    """The options that `open_dataset` takes for a data set."""
    parameters = inspect.signature(_opener(name)).parameters
    return [parameter for parameter in parameters if parameter != "root"]


def _opener(name: str) -> Callable[..., Dataset]:
    kind, _, member = name.partition(":")
    if kind not in _OPENERS or (kind == "tfds") != (":" in name):
        known = sorted("tfds:NAME" if kind == "tfds" else kind for kind in _OPENERS)
        raise InputError(
            f"There is no data set called {name!r}{suggestion(name, known)}; "
            f"data.name is one of {', '.join(known)}."
        )
    opener = importlib.import_module(_OPENERS[kind]).open
    if "name" in inspect.signature(opener).parameters:
        return functools.partial(opener, member or kind)
    return opener
