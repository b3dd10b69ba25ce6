"""Queries and their nearest neighbours, prepared for the report page."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Bool, Float, Int

from metricjax.reports import thumbnails

GALLERY_TITLES = {"before": "Before training", "after": "After training"}
STRIP_COLUMNS = 5


@dataclasses.dataclass(frozen=True)
class QueryNeighbors:
    """Some queries and their nearest neighbours, most similar first.

    Attributes:
        queries: [q] index of each query image.
        neighbors: [q, k] index of each neighbour; below 0 where there is none.
        similarities: [q, k] cosine similarity, in -1..1.
        correct: [q, k] whether the neighbour is of the query's class.
    """

    queries: Int[np.ndarray, "q"]
    neighbors: Int[np.ndarray, "q k"]
    similarities: Float[np.ndarray, "q k"]
    correct: Bool[np.ndarray, "q k"]

    def __post_init__(self):
        shape = np.shape(self.neighbors)
        same = np.shape(self.similarities) == np.shape(self.correct) == shape
        if len(shape) != 2 or not same or np.shape(self.queries) != shape[:1]:
            raise ValueError(
                "QueryNeighbors needs queries [q] and neighbors, similarities and "
                f"correct [q, k], not {list(np.shape(self.queries))}, {list(shape)}, "
                f"{list(np.shape(self.similarities))}, {list(np.shape(self.correct))}."
            )


def rows(
    galleries: Mapping[str, QueryNeighbors],
    image: Callable[[int], np.ndarray],
    name: Callable[[int], str],
) -> list[dict]:
    """One row a query, for the template: the query, its neighbours at each moment.

    Args:
        galleries: by moment; a query that occurs in several has one row.
        image: index to uint8 [h, w, c], c = 1 or 3; asked once for each index.
        name: index to what the image is called.
    """

    @functools.cache
    def picture(index: int) -> dict:
        return {"name": str(name(index)), "image": thumbnails.thumbnail(image(index))}

    by_query: dict[int, dict] = {}
    for moment, gallery in galleries.items():
        for at, query in enumerate(np.asarray(gallery.queries).tolist()):
            row = by_query.setdefault(query, {**picture(query), "strips": []})
            row["strips"].append(_strip(moment, gallery, at, picture))
    return list(by_query.values())


def _strip(moment: str, gallery: QueryNeighbors, at: int, picture) -> dict:
    neighbors = [
        {
            **picture(int(index)),
            "similarity": f"{gallery.similarities[at, rank]:.3f}",
            "correct": bool(gallery.correct[at, rank]),
        }
        for rank, index in enumerate(gallery.neighbors[at])
        if index >= 0
    ]
    lines = max(math.ceil(len(neighbors) / STRIP_COLUMNS), 1)
    return {
        "title": GALLERY_TITLES.get(moment, moment),
        "neighbors": neighbors,
        "right": sum(neighbor["correct"] for neighbor in neighbors),
        "columns": max(math.ceil(len(neighbors) / lines), 1),
    }
