"""What is searched, as clients see it: entries, filters, thumbnails."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from metricjax.data import decoding
from metricjax.data.datasets import Split, UnreadableImage
from metricjax.errors import suggestion
from metricjax.reports import thumbnails
from metricjax.serving.refusals import Refused

# Side of a thumbnail in pixels, and how many are kept.
_SIDE = 320
_KEPT = 1000
# Of pairs of different classes, the share that may be called the same.
_FALSE_MATCHES = 1e-3
# Filters whose masks are kept.
_MASKS = 64


class Searchable(Protocol):
    """What is needed of `index.Index`."""

    split: Split
    embeddings: Float[np.ndarray, "n d"]
    valid: Bool[np.ndarray, " n"]

    def nearest(
        self,
        queries: Float[np.ndarray, "q d"],
        top: int,
        *,
        among: Bool[np.ndarray, " n"] | None = None,
    ) -> tuple[Float[np.ndarray, "q top"], Int[np.ndarray, "q top"]]: ...


@dataclasses.dataclass(frozen=True)
class Threshold:
    """From where on two images count as the same.

    Attributes:
      similarity: of theirs, at least.
      false_match_rate: share of pairs of different classes that reach it.
    """

    similarity: float
    false_match_rate: float

    @classmethod
    def of(cls, results: Mapping[str, Any]) -> "Threshold | None":
        """That of a run's results for the rate nearest to one in a thousand, if any."""
        found = results.get("thresholds") or ()
        known = [cls(one["similarity"], one["false_match_rate"]) for one in found]
        return min(
            known,
            key=lambda one: abs(math.log(one.false_match_rate / _FALSE_MATCHES)),
            default=None,
        )


@dataclasses.dataclass(frozen=True)
class Filter:
    """Which images may be found: of any of these classes and any of these categories.

    Attributes:
      classes: their numbers; empty: all.
      categories: their numbers; empty: all.
    """

    classes: frozenset[int] = frozenset()
    categories: frozenset[int] = frozenset()


class Catalog:
    """The images of an index, by their number in it.

    Args:
      index: what is searched.
      threshold: from where on two images count as the same, if it is known.
      explored: whether the run's explorer shows the same images by the same numbers.
    """

    def __init__(
        self,
        index: Searchable,
        threshold: Threshold | None = None,
        explored: bool = False,
    ):
        self.index = index
        self.split = index.split
        self.threshold = threshold
        self.explored = explored
        self.findable = np.asarray(index.valid, bool) & self.split.is_gallery
        # Without folders all images are of one class that has no name.
        self.has_classes = any(self.split.class_names)
        self._classes = _numbers(self.split.class_names)
        self._categories = _numbers(self.split.category_names)
        self.thumbnail = functools.lru_cache(_KEPT)(self._thumbnail)
        self.mask = functools.lru_cache(_MASKS)(self._mask)

    def __len__(self) -> int:
        return int(self.findable.sum())

    def entry(self, image: int) -> dict[str, Any]:
        """An image in words."""
        split = self.split
        category = None
        if split.categories is not None:
            category = split.category_names[split.categories[image]]
        entry = {
            "image": image,
            "path": _text(split.names[image]),
            "class": _text(split.class_names[split.labels[image]]),
            "category": category and _text(category),
            "thumbnail": f"/images/{image}",
        }
        if self.explored:
            entry["explorer"] = f"/explorer.html#image={image}"
        return entry

    def neighbor(self, image: int, similarity: float) -> dict[str, Any]:
        """The same of an image that was found."""
        found = self.entry(image) | {"similarity": round(similarity, 6)}
        if self.threshold is not None:
            found["same"] = bool(similarity >= self.threshold.similarity)
        return found

    def check(self, image: int) -> int:
        """The number of an image that can be searched by.

        Raises:
          Refused: there is none, or it could not be read.
        """
        if not 0 <= image < len(self.split):
            raise Refused(
                404,
                f"There is no image {image}: the gallery has those from 0 to "
                f"{len(self.split) - 1}.",
            )
        if not self.index.valid[image]:
            raise Refused(
                404,
                f"Image {image} could not be read when the gallery was embedded: "
                "choose another one.",
            )
        return image

    def filter(self, classes: Sequence[str], categories: Sequence[str]) -> Filter:
        """Names as a filter.

        Raises:
          Refused: a name is unknown.
        """
        return Filter(
            frozenset(_number(name, self._classes, "class") for name in classes),
            frozenset(
                _number(name, self._categories, "category") for name in categories
            ),
        )

    def _mask(self, wanted: Filter) -> Bool[np.ndarray, " n"]:
        """bool [n], the images that may be found."""
        mask = self.findable
        if wanted.classes:
            mask = mask & np.isin(self.split.labels, sorted(wanted.classes))
        if wanted.categories:
            mask = mask & np.isin(self.split.categories, sorted(wanted.categories))
        return mask

    def classes_like(self, text: str, count: int) -> list[str]:
        """Names of classes that contain a text, those that begin with it first."""
        text = text.casefold()
        names = [_text(name) for name in self.split.class_names]
        found = [name for name in names if name and text in name.casefold()]
        found.sort(key=lambda name: not name.casefold().startswith(text))
        return found[:count]

    def samples(self, seed: int, count: int, among: Filter) -> list[int]:
        """Some images, of different classes as far as there are."""
        found = np.flatnonzero(self.mask(among))
        rows = np.random.default_rng(seed).permutation(found)
        _, first = np.unique(self.split.labels[rows], return_index=True)
        first = np.sort(first)
        rest = np.setdiff1d(np.arange(min(len(rows), 2 * count)), first)
        return rows[np.concatenate([first, rest])][:count].tolist()

    def _thumbnail(self, image: int) -> thumbnails.Encoded:
        """A small picture of an image, in colour where its file is.

        Raises:
          Refused: its file cannot be read any more.
        """
        try:
            content = self.split.encoded(image)
            if content is None:
                pixels = self.split.read(image)
            else:
                pixels = decoding.decode(content, 3, least=2 * _SIDE)
        except (UnreadableImage, ValueError) as error:
            raise Refused(404, f"Image {image} cannot be read any more.") from error
        return thumbnails.encoded(pixels, _SIDE)


def _numbers(names: Sequence[str]) -> dict[str, int]:
    return {_text(name): number for number, name in enumerate(names)}


def _number(name: str, known: dict[str, int], what: str) -> int:
    if name not in known:
        raise Refused(
            400,
            f"No image of the gallery is of the {what} {name[:80]!r}"
            f"{suggestion(name[:80], list(known)[:20_000])}.",
        )
    return known[name]


def _text(name: str) -> str:
    """A name that JSON can carry: paths may hold bytes that are no UTF-8."""
    return name.encode("utf-8", "replace").decode()
