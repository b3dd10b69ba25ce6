"""Nearest neighbours in large galleries by usearch, which looks at some of the images.

It walks a graph of neighbours (HNSW; Malkov and Yashunin, 2016) over the embeddings in
float16. What it finds is scored again in float32: similarities are exact, only that a
neighbour may be missing.
"""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from metricjax.errors import InputError, disk_errors
from metricjax.evaluation.rows import unit_rows
from metricjax.inference.gallery_index import Index
from metricjax.storage.atomic import atomic_file

_SPARE = 2  # found for each that is asked for, as float16 may change the order
_STEP = 4096  # rows that are added at a time
_PREFIX, _SUFFIX = "approximate-", ".usearch"


@dataclass(frozen=True, eq=False)
class ApproximateIndex:
    """A graph over the images of an index that can be decoded."""

    index: Index
    graph: Any

    @classmethod
    def open(
        cls,
        index: Index,
        *,
        threads: int | None = None,
        say: Callable[[str], None] = lambda note: None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> "ApproximateIndex":
        """The graph that is kept beside the index; made, if there is none of it.

        Args:
          index: what is searched.
          threads: that make it; None: one per processor.
          say, progress: as of `Index.open`, of images in the graph.

        Raises:
          InputError: usearch is not installed, or the disk is full.
        """
        graph = _empty(index.embeddings.shape[1])
        path = None
        if index.directory is not None:
            digest = hashlib.sha256(np.ascontiguousarray(index.embeddings)).hexdigest()
            path = index.directory / f"{_PREFIX}{digest[:16]}{_SUFFIX}"
        rows = np.flatnonzero(index.valid)
        if path is not None and path.is_file():
            with suppress(Exception):  # A damaged one is made anew.
                graph.load(path)
                if len(graph) == len(rows):
                    return cls(index, graph)
            graph = _empty(index.embeddings.shape[1])
        say(f"Making a graph of {len(rows):,} images for approximate search.")
        for start in range(0, len(rows), _STEP):
            some = rows[start : start + _STEP]
            graph.add(some, index.embeddings[some], threads=threads or 0)
            progress(min(start + _STEP, len(rows)), len(rows))
        if path is not None:
            with disk_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as temporary:
                temporary.write_bytes(graph.save())
            for old in path.parent.glob(f"{_PREFIX}*{_SUFFIX}"):
                if old != path:
                    old.unlink()
        return cls(index, graph)

    def nearest(
        self, queries: Float[np.ndarray, "q d"], top: int
    ) -> tuple[Float[np.ndarray, "q k"], Int[np.ndarray, "q k"]]:
        """As `Index.nearest`, except that some of the nearest may be others.

        Where fewer are found at all, the rest are of similarity -inf and row -1.
        """
        queries = unit_rows(queries, "queries", width=self.index.embeddings.shape[1])
        if top < 1:
            raise InputError(f"top is {top}: ask for 1 neighbour or more.")
        count = min(int(top), len(self.graph))
        found = self.graph.search(queries, min(_SPARE * count, len(self.graph)))
        keys = np.asarray(found.keys).astype(np.int64).reshape(len(queries), -1)
        # Where the graph found fewer, its key is none of a row.
        keys = np.where((keys >= 0) & (keys < len(self.index)), keys, -1)
        similarities = np.einsum("qkd,qd->qk", self.index.embeddings[keys], queries)
        similarities[keys < 0] = -np.inf
        order = np.lexsort((keys, -similarities), axis=1)[:, :count]
        return (
            np.take_along_axis(similarities, order, axis=1),
            np.take_along_axis(keys, order, axis=1),
        )

    def recall(self, top: int, *, sample: int = 200, seed: int = 0) -> float:
        """The share of the exact `top` neighbours that are found, measured now.

        Images of the gallery are the queries, each of which is not to find itself.

        Args:
          top: how many neighbours.
          sample: how many queries, at most.
          seed: which.
        """
        rows = np.flatnonzero(self.index.valid)
        top = min(top, len(rows) - 1)
        if top < 1:
            return 1.0
        chosen = np.random.default_rng(seed).permutation(rows)[:sample]
        queries = self.index.embeddings[chosen]
        exact = self.index.nearest(queries, top + 1)[1].tolist()
        found = self.nearest(queries, top + 1)[1].tolist()
        hits = 0
        for own, right, near in zip(chosen.tolist(), exact, found, strict=True):
            others = ([row for row in rows if row != own] for rows in (right, near))
            hits += len(set.intersection(*(set(rows[:top]) for rows in others)))
        return hits / (top * len(chosen))


def _empty(width: int):
    try:
        from usearch.index import Index as Graph
    except ImportError as error:
        raise InputError(
            f"--approximate needs usearch, which is not installed ({error}): pip "
            "install 'metricjax[approximate]', or search exactly."
        ) from error
    return Graph(ndim=width, metric="cos", dtype="f16")
