"""Recall@K, R-precision and MAP@R, index-exact and with ties at expected value.

With R the number of gallery images of the query's class (the query itself apart),
rel(i) = 1 if the i-th neighbour is one of them and P(i) the precision of the first i
neighbours, each metric is the mean over queries of

    recall@K     1 if any of the first K neighbours is relevant, else 0
    r_precision  (1/R) sum_{i<=R} rel(i)
    map@r        (1/R) sum_{i<=R} P(i) rel(i)

A query is excluded from its own ranking by its index, never by its rank or similarity,
so a duplicate of it counts as the other image it is. Images of exactly equal similarity
have no order: each query counts with its expected value over random orders of ties
(derived in `_expected`). Queries without a relevant image (R = 0) have no value; they
are excluded from the means and counted. The result does not depend on the block size,
the number of devices or the order of the gallery.

R-precision and MAP@R: Musgrave, Belongie and Lim, A Metric Learning Reality Check
(ECCV 2020).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from metricjax.errors import InputError
from metricjax.evaluation.averages import by_class, over_classes, over_queries
from metricjax.evaluation.labels import checked_labels, dense_labels
from metricjax.evaluation.neighbors import PlacedGallery
from metricjax.evaluation.ranked import Ranked
from metricjax.evaluation.rows import is_integer, own_rows, unit_rows

DEPTH_RATIO = 8
"""Queries share a search if the depths they need differ by less than this factor."""


def retrieval(
    embeddings,
    labels,
    *,
    gallery=None,
    gallery_labels=None,
    own_index=None,
    recall_at: Sequence[int] = (1, 2, 4, 8),
    block_size: int = 1024,
    mesh=None,
    bootstrap: int = 1000,
    seed: int = 0,
    per_class: bool = False,
    per_query: bool = False,
) -> dict:
    """Recall@K, R-precision and MAP@R of unit-length rows, defined in this module.

    Args:
        embeddings: [n, d] floats, unit length within 1e-3; queries, and also the
            gallery if none is given. numpy or JAX.
        labels: [n] integers.
        gallery, gallery_labels: [g, d] and [g], another gallery to search, or None.
        own_index: [n] integers, only with `gallery`: the gallery row that is the query
            itself, -1 if there is none. None: no query is in the gallery (In-Shop).
        recall_at: the K of recall@K, each between 1 and the size of the gallery.
        block_size: queries per device at a time; affects memory, not results.
        mesh: `jax.sharding.Mesh` whose devices share the queries, or None.
        bootstrap, seed: resamples of the intervals, 0 for none, and their seed.
        per_class, per_query: also return the values of each class or query.

    Returns:
        `recall@K` for each K, `r_precision` and `map@r` in [0, 1]; `queries` (counted
        in the means), `lone_queries` (R = 0), `ties` (queries with a value that depends
        on the order of ties); `intervals`, {metric: (low, high)}, 95% over resampled
        classes. `per_class` adds `macro_` metrics, which weight classes equally, and
        `averages.by_class`; `per_query` adds arrays `query`, `label` and each metric.

    Raises:
        InputError: rows not finite or not of unit length, shapes that do not fit, K
            larger than the gallery, or no query with a relevant image.

    >>> rows = np.eye(2)[[0, 0, 1, 1]]
    >>> retrieval(rows, [0, 0, 1, 1], recall_at=(1,), bootstrap=0)["recall@1"]
    1.0
    """
    search = _checked(embeddings, labels, gallery, gallery_labels, own_index)
    recall_at = _checked_depths(recall_at, search.available)
    if not is_integer(bootstrap) or bootstrap < 0:
        raise InputError(
            f"bootstrap is {bootstrap}: give a number of resamples, 0 for none."
        )
    each, tied = _per_query_values(search, recall_at, block_size, mesh)
    return _summary(search, each, tied, bootstrap, seed, per_class, per_query)


class _Search(NamedTuple):
    """Checked queries and the gallery that they search.

    Attributes:
        queries: [q, d] float32, of unit length.
        given: [q] the labels of the queries as they were given.
        labels: [q] int32, these numbered densely.
        gallery: [g, d] float32, of unit length.
        gallery_labels: [g] int32, numbered as `labels`.
        own_index: [q] int32, the query's row in the gallery or -1.
    """

    queries: np.ndarray
    given: np.ndarray
    labels: np.ndarray
    gallery: np.ndarray
    gallery_labels: np.ndarray
    own_index: np.ndarray

    @property
    def available(self) -> int:
        """Gallery rows that every query can have as neighbours."""
        return len(self.gallery) - bool((self.own_index >= 0).any())


def _checked(embeddings, labels, gallery, gallery_labels, own_index) -> _Search:
    queries = unit_rows(embeddings, "embeddings")
    if gallery is None:
        if gallery_labels is not None or own_index is not None:
            raise InputError(
                "gallery_labels or own_index came without a gallery: give `gallery` as "
                "well, or neither to search the embeddings among themselves."
            )
        gallery, gallery_labels = queries, labels
        own_index = np.arange(len(queries))
    else:
        gallery = unit_rows(gallery, "gallery", width=queries.shape[1])
        if gallery_labels is None:
            raise InputError("gallery came without gallery_labels: give both.")
    given = checked_labels(labels, "labels", len(queries))
    labels, gallery_labels = dense_labels(
        given,
        checked_labels(gallery_labels, "gallery_labels", len(gallery)),
    )
    own_index = own_rows(own_index, len(queries), len(gallery))
    return _Search(queries, given, labels, gallery, gallery_labels, own_index)


def _per_query_values(
    search: _Search, recall_at: tuple[int, ...], block_size: int, mesh
) -> tuple[dict[str, np.ndarray], int]:
    """The values of each query with R > 0, and how many queries depend on ties."""
    queries, labels, own_index = search.queries, search.labels, search.own_index
    relevant = _relevant_counts(labels, search.gallery_labels, own_index)
    counted = np.flatnonzero(relevant > 0)
    if not counted.size:
        raise InputError(
            f"none of the {len(queries)} queries has another image of its class in the "
            "gallery: check the labels, retrieval needs two images of some class."
        )
    values = np.empty((len(queries), len(recall_at) + 2))
    tied = np.zeros(len(queries), bool)
    index = PlacedGallery(search.gallery, search.gallery_labels, mesh)
    for rows, depth in _by_depth(relevant, counted, max(recall_at, default=1)):
        # A slice of all rows is a view, which saves a copy of the queries.
        chosen = slice(None) if len(rows) == len(queries) else rows
        blocks = index.search(
            queries[chosen], labels[chosen], own_index[chosen], depth, block_size
        )
        for block, ranked in blocks:
            mine = rows[block]
            values[mine], tied[mine] = _expected(ranked, relevant[mine], recall_at)
    names = [*(f"recall@{depth}" for depth in recall_at), "r_precision", "map@r"]
    each = {"query": counted, "label": search.given[counted]}
    each |= dict(zip(names, values[counted].T, strict=True))
    return each, int(tied.sum())


def _summary(search, each, tied, bootstrap, seed, per_class, per_query) -> dict:
    """Means and intervals, and the values that were asked for."""
    means, intervals = over_queries(each, bootstrap=bootstrap, seed=seed)
    details = {"per_query": each} if per_query else {}
    if per_class:
        details["per_class"] = by_class(each)
        macro = over_classes(details["per_class"], bootstrap=bootstrap, seed=seed)
        means, intervals = means | macro[0], intervals | macro[1]
    return {
        **means,
        "queries": len(each["query"]),
        "lone_queries": len(search.queries) - len(each["query"]),
        "ties": tied,
        "intervals": intervals,
        **details,
    }


def _by_depth(
    relevant: np.ndarray, counted: np.ndarray, least: int
) -> Iterator[tuple[np.ndarray, int]]:
    """Groups of queries and the number of neighbours each group needs.

    A query needs max(R, largest K) neighbours. One huge class would make every query
    rank thousands, so queries of similar need are searched together.
    """
    needed = np.maximum(relevant[counted], least)
    while needed.size:
        depth = int(needed.max())
        together = needed * DEPTH_RATIO > depth
        yield counted[together], depth
        counted, needed = counted[~together], needed[~together]


class Ties(NamedTuple):
    """The group of tied images at each position of the ranking; [q, k], from 0.

    Attributes:
        start: position of the group's first member.
        size: members in the whole gallery, also those beyond the ranking.
        positives: number of relevant members.
        above: number of relevant images before the group.
    """

    start: np.ndarray
    size: np.ndarray
    positives: np.ndarray
    above: np.ndarray


def _tie_groups(ranked: Ranked) -> Ties:
    count, depth = ranked.similarities.shape
    positions = np.broadcast_to(np.arange(depth), (count, depth))
    differs = ranked.similarities[:, 1:] != ranked.similarities[:, :-1]
    edge = np.ones((count, 1), bool)
    first = np.concatenate([edge, differs], axis=1)
    last = np.concatenate([differs, edge], axis=1)

    start = np.maximum.accumulate(np.where(first, positions, 0), axis=1)
    end = np.where(last, positions + 1, depth)
    end = np.minimum.accumulate(end[:, ::-1], axis=1)[:, ::-1]
    before = np.zeros((count, depth + 1), np.int64)
    np.cumsum(ranked.relevant, axis=1, out=before[:, 1:])
    above = np.take_along_axis(before, start, axis=1)
    positives = np.take_along_axis(before, end, axis=1) - above
    boundary = end == depth
    return Ties(
        start,
        np.where(boundary, ranked.boundary[:, None], end - start),
        np.where(boundary, ranked.boundary_relevant[:, None], positives),
        above,
    )


def _expected(
    ranked: Ranked, relevant: np.ndarray, recall_at: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Expected metrics of each query over the random orders of its ties.

    In a group of g members with p positives that starts after a images, c of them
    relevant, the member at place t = 0 .. g-1 is relevant with probability p/g, and
    given that it is, (p-1)/(g-1) of each earlier member is. So

        E[rel(i)]      = p/g
        E[rel(i) P(i)] = p/g (c + 1 + t (p-1)/(g-1)) / i,    i = a + t + 1,

    and the m first members hold no positive with probability C(g-p, m) / C(g, m).

    Args:
        ranked: at least max(R, K) neighbours of q queries.
        relevant: [q] int, R >= 1.
        recall_at: the K.

    Returns:
        ([q, len(recall_at) + 2] float64: each recall@K, r_precision, map@r;
        [q] bool: some value depends on the order of ties).
    """
    ties = _tie_groups(ranked)
    positions = np.arange(ranked.similarities.shape[1])
    inside = positions < relevant[:, None]
    mixed = (ties.positives > 0) & (ties.positives < ties.size)
    tied = (mixed & inside).any(axis=1)

    chance = ties.positives / ties.size * inside
    earlier = (positions - ties.start) * (ties.positives - 1)
    hits = ties.above + 1 + earlier / np.maximum(ties.size - 1, 1)
    columns = []
    for depth in recall_at:
        group = Ties(*(array[:, depth - 1] for array in ties))
        missed = _chance_of_none(group, depth - group.start)
        undecided = (missed > 0) & mixed[:, depth - 1]
        columns.append(1 - missed)
        tied |= undecided
    columns.append(chance.sum(axis=1) / relevant)
    columns.append((chance * hits / (positions + 1)).sum(axis=1) / relevant)
    return np.stack(columns, axis=1), tied


def _chance_of_none(group: Ties, drawn: np.ndarray) -> np.ndarray:
    """Probability that no image above the group or in the first `drawn` is relevant.

    C(g-p, m) / C(g, m) is the same with p and m exchanged; the shorter product

        prod_{i < min(p, m)} (g - max(p, m) - i) / (g - i)

    is used; it is exactly 0 where a positive must be drawn.
    """
    none = np.where(group.above > 0, 0.0, 1.0)
    fewer = np.minimum(group.positives, drawn)
    more = np.maximum(group.positives, drawn)
    for i in range(int(np.max(fewer * none, initial=0))):
        left = np.maximum(group.size - more - i, 0)
        factor = left / np.maximum(group.size - i, 1)
        none = np.where(i < fewer, none * factor, none)
    return none


def _relevant_counts(
    labels: np.ndarray, gallery_labels: np.ndarray, own_index: np.ndarray
) -> np.ndarray:
    """R of each query: gallery images of its label, itself apart; [q] int64."""
    size = max(labels.max(), gallery_labels.max()) + 1
    counts = np.bincount(gallery_labels, minlength=size)[labels]
    own = (own_index >= 0) & (gallery_labels[own_index] == labels)
    return counts - own


def _checked_depths(recall_at: Sequence[int], available: int) -> tuple[int, ...]:
    for depth in recall_at:
        if not is_integer(depth) or not 1 <= depth <= available:
            raise InputError(
                f"recall_at has {depth!r}, but a query has {available} images to find: "
                f"use whole numbers from 1 to {available}."
            )
    return tuple(int(depth) for depth in recall_at)
