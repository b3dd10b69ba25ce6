"""The explorer: one HTML file in which every image can be walked to.

Pictures are sprite sheets that the page decodes when it draws them, numbers are
base64 of their bytes. Its script stands in the file, named by its digest in the content
security policy; nothing else runs and nothing is loaded.
"""

import base64
import dataclasses
import hashlib
import importlib.resources
import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from markupsafe import Markup

from metricjax.reports.page import template

_SCRIPTS = (
    "data.js",
    "tiles.js",
    "rows.js",
    "walker.js",
    "queries.js",
    "classes.js",
    "confusions.js",
    "colours.js",
    "map.js",
    "similarities.js",
    "main.js",
)


@dataclasses.dataclass(frozen=True)
class Confusions:
    """Pairs of classes whose images are each other's nearest, most frequent first.

    Attributes:
        pairs: [m, 2] classes.
        counts: [m, 2] queries of the first whose nearest is of the second, and the
            other way round.
        examples: [m, e] some of these queries; -1 where there are no more.
        total: how many such pairs there are, listed here or not.
        queries: how many queries have a nearest neighbour of another class.
    """

    pairs: Int[np.ndarray, "m 2"]
    counts: Int[np.ndarray, "m 2"]
    examples: Int[np.ndarray, "m e"]
    total: int
    queries: int


@dataclasses.dataclass(frozen=True)
class Histogram:
    """Pairs of images by cosine similarity.

    Attributes:
        edges: [b + 1] of the bins, increasing.
        positive: [b] pairs of one class.
        negative: [b] pairs of two classes.
        means: mean similarity of those of one class, and of two.
        separation: how often a pair of one class is more alike than a pair of two.
        counted: of how many images all pairs with the gallery are counted.
        images: how many there are.
    """

    edges: Float[np.ndarray, " b+1"]
    positive: Int[np.ndarray, " b"]
    negative: Int[np.ndarray, " b"]
    means: tuple[float, float]
    separation: float
    counted: int
    images: int


@dataclasses.dataclass(frozen=True)
class Heat:
    """Mean cosine similarity between classes.

    Attributes:
        classes: [c], in the order of rows and columns.
        means: [c, c]; NaN where a class has no two images.
    """

    classes: Int[np.ndarray, " c"]
    means: Float[np.ndarray, "c c"]


@dataclasses.dataclass(frozen=True)
class Map:
    """A place in the plane for each image.

    Attributes:
        title: what the map is called.
        text: how to read it.
        points: [n, 2]; NaN for images that have none.
    """

    title: str
    text: str
    points: Float[np.ndarray, "n 2"]


@dataclasses.dataclass(frozen=True)
class Explored:
    """What there is to see of n images; arrays without remark are [n].

    Attributes:
        numbers: what the page calls each image in its address, increasing.
        labels: their classes.
        class_names: of the c classes.
        names: of the images.
        categories: coarser labels, or None.
        category_names: of the categories.
        valid: False for images that could not be read.
        is_gallery: whether an image may be found.
        queries: [q] the images whose values count.
        metrics: [q] values in 0..1 of these by name: recall@1, r_precision, map@r.
        neighbors: [n, k] the nearest images, -1 where there is none.
        similarities: [n, k] their cosine similarities.
        rank: where the first image of the own class stands, from 1; 0 if there is none.
        right: that image, or -1.
        right_similarity: its similarity.
        confusions: pairs of classes.
        histogram: pairs of images by similarity.
        heat: classes by mean similarity.
        maps: at least one.
    """

    numbers: Int[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]
    class_names: Sequence[str]
    names: Sequence[str]
    categories: Int[np.ndarray, " n"] | None
    category_names: Sequence[str]
    valid: Bool[np.ndarray, " n"]
    is_gallery: Bool[np.ndarray, " n"]
    queries: Int[np.ndarray, " q"]
    metrics: Mapping[str, Float[np.ndarray, " q"]]
    neighbors: Int[np.ndarray, "n k"]
    similarities: Float[np.ndarray, "n k"]
    rank: Int[np.ndarray, " n"]
    right: Int[np.ndarray, " n"]
    right_similarity: Float[np.ndarray, " n"]
    confusions: Confusions
    histogram: Histogram
    heat: Heat
    maps: Sequence[Map]


def render(
    explored: Explored,
    sheets: Iterable[tuple[bytes, np.ndarray]],
    *,
    title: str,
    side: int,
    report: str | None = None,
    notes: Sequence[str] = (),
) -> str:
    """The page as a string.

    Args:
        explored: what there is to see.
        sheets: the pictures of its images, see `sprites.sheets`.
        side: the largest that a picture on them may have, in pixels.
        title: what the images are, such as the name of the data set.
        report: address of the run's report, relative to the page; None without one.
        notes: sentences that the page begins with.
    """
    encoded, sizes = zip(*((_base64(file), size) for file, size in sheets), strict=True)
    facts = {
        "title": _printable(title),
        "total": len(explored.labels),
        "side": side,
        "classes": [_printable(name) or "(none)" for name in explored.class_names],
        "names": [_printable(name) for name in explored.names],
        "categories": [_printable(name) for name in explored.category_names],
        "confusions": {
            "total": explored.confusions.total,
            "queries": explored.confusions.queries,
        },
        "histogram": {
            "means": explored.histogram.means,
            "separation": explored.histogram.separation,
            "counted": explored.histogram.counted,
            "images": explored.histogram.images,
        },
        "maps": [{"title": one.title, "text": one.text} for one in explored.maps],
        "arrays": {
            name: _packed(array)
            for name, array in _arrays(explored, np.concatenate(sizes)).items()
        },
    }
    script = Markup("\n".join(_file(name) for name in _SCRIPTS))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return template("explorer_page/page.html").render(
        title=_printable(title),
        images=len(explored.labels),
        classes=len(explored.class_names),
        queries=len(explored.queries),
        recall=np.mean(explored.metrics["recall@1"]) if len(explored.queries) else None,
        report=report,
        notes=notes,
        style=Markup(_file("style.css")),
        script=script,
        digest=digest,
        facts=Markup(json.dumps(facts, ensure_ascii=False).replace("<", "\\u003c")),
        sheets=encoded,
    )


def _arrays(explored: Explored, sizes: np.ndarray) -> dict[str, np.ndarray]:
    """Everything that is numbers, in types that are small; no image is the largest."""
    count = len(explored.labels)
    index = np.uint16 if count < 2**16 - 1 else np.uint32
    none = np.iinfo(index).max
    found = {
        "numbers": explored.numbers.astype(np.uint32),
        "labels": explored.labels.astype(np.uint32),
        "sizes": sizes,
        "valid": explored.valid.astype(np.uint8),
        "gallery": explored.is_gallery.astype(np.uint8),
        "queries": explored.queries.astype(index),
        "neighbors": np.where(explored.neighbors < 0, none, explored.neighbors),
        "right": np.where(explored.right < 0, none, explored.right),
        "rank": explored.rank.astype(np.uint32),
        "similarities": _thirty_thousandths(explored.similarities),
        "rightSimilarity": _thirty_thousandths(explored.right_similarity),
        "recall": explored.metrics["recall@1"].astype(np.float32),
        "precision": explored.metrics["r_precision"].astype(np.float32),
        "map": explored.metrics["map@r"].astype(np.float32),
        "pairs": explored.confusions.pairs.astype(np.uint32),
        "pairCounts": explored.confusions.counts.astype(np.uint32),
        "examples": np.where(
            explored.confusions.examples < 0, none, explored.confusions.examples
        ),
        "edges": explored.histogram.edges.astype(np.float64),
        "positive": explored.histogram.positive.astype(np.float64),
        "negative": explored.histogram.negative.astype(np.float64),
        "heatClasses": explored.heat.classes.astype(np.uint32),
        "heat": explored.heat.means.astype(np.float32),
    }
    for name in ("neighbors", "right", "examples"):
        found[name] = found[name].astype(index)
    if explored.categories is not None:
        found["categories"] = explored.categories.astype(np.uint32)
    for number, one in enumerate(explored.maps):
        found[f"map{number}"] = one.points.astype(np.float32)
    return found


def _thirty_thousandths(similarities: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(similarities, -1, 1) * 32767).astype(np.int16)


def _packed(array: np.ndarray) -> dict:
    """An array as the page reads it: the name of its type and its bytes."""
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    width = array.shape[1] if array.ndim > 1 else 1
    return {
        "type": array.dtype.name,
        "width": width,
        "bytes": _base64(array.tobytes()),
    }


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _printable(text: str) -> str:
    """Without what a file name may hold that is not Unicode."""
    return str(text).encode("utf-8", "replace").decode("utf-8")


def _file(name: str) -> str:
    folder = importlib.resources.files(__package__) / "explorer_page"
    return (folder / name).read_text(encoding="utf-8")
