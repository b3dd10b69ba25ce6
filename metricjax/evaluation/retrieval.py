"""Recall@K, R-precision and MAP@R, index-exact and with ties at expected value."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from metricjax.errors import InputError
from metricjax.evaluation.averages import by_class, over_classes, over_queries
from metricjax.evaluation.labels import checked_labels, dense_labels
from metricjax.evaluation.neighbors import (
    Gallery,
    Kept,
    is_whole,
    own_rows,
    unit_rows,
)

DEPTH_RATIO = 8
"""Queries share one search while the depths they need differ by less than this."""


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
    """Retrieval metrics of unit-length embeddings, ranked by their dot product.

    With R the number of gallery images of the query's class (the query itself apart),
    rel(i) = 1 where the i-th neighbour is one of them and P(i) the precision of the
    first i neighbours, each metric is the mean over queries of

        recall@K     1 if any of the first K neighbours is relevant, else 0
        r_precision  (1/R) sum_{i<=R} rel(i)
        map@r        (1/R) sum_{i<=R} P(i) rel(i)

    A query is left out of its own ranking by its index, never by its rank or its
    similarity, so a duplicate of it counts as the other image it is. Images of exactly
    equal similarity are in no order: each query counts with its expected value when
    ties are put in random order. Queries without a relevant image (R = 0) have no
    value; they are left out of the means and counted. The result does not depend on
    the block size, the number of devices or the order of the gallery.

    Args:
        embeddings: [n, d] floats, rows of unit length within 1e-3: the queries, and
            the gallery too when none is given. numpy or JAX.
        labels: [n] integers.
        gallery: [g, d] unit-length rows to search instead, or None.
        gallery_labels: [g] integers, with `gallery` and only then.
        own_index: [n] integers, with `gallery` only: the gallery row that is the query
            itself, -1 where there is none. None: the gallery holds no query (In-Shop).
        recall_at: the K of recall@K, each between 1 and the images to be found.
        block_size: queries held at a time on each device; memory, not results.
        mesh: `jax.sharding.Mesh` over whose devices the queries are spread, or None.
        bootstrap: resamples of the intervals; 0 leaves `intervals` empty.
        seed: of the resampling.
        per_class: also return each class's values, and their averages over classes.
        per_query: also return each query's values.

    Returns:
        A dict of floats in [0, 1], `recall@K` for each K, `r_precision`, `map@r`; of
        ints, `queries` (that count in the means), `lone_queries` (R = 0, left out),
        `ties` (queries of which some value depends on the order of ties); and
        `intervals`, {metric: (low, high)}, 95% over resampled classes
        (`intervals.bootstrap_over_classes`).

        With `per_class` also `macro_recall@K`, `macro_r_precision` and `macro_map@r`,
        in which every class counts the same, with their intervals; and `per_class`,
        arrays of [classes], see `averages.by_class`. With `per_query` also `per_query`,
        arrays of [queries]: `query`, the row of `embeddings`; `label`; each metric.

    Raises:
        InputError: rows that are not finite or not of unit length, shapes that do not
            fit, a K larger than the gallery, or no query with a relevant image.

    Source:
        R-precision and MAP@R: Musgrave, Belongie and Lim, A Metric Learning Reality
        Check (ECCV 2020). The expectations under ties are derived in `_expected`.
    """
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
    available = len(gallery) - bool((own_index >= 0).any())
    recall_at = _checked_depths(recall_at, available)
    if not is_whole(bootstrap) or bootstrap < 0:
        raise InputError(
            f"bootstrap is {bootstrap}: give a number of resamples, 0 for none."
        )

    relevant = _relevant_counts(labels, gallery_labels, own_index)
    counted = np.flatnonzero(relevant > 0)
    if not counted.size:
        raise InputError(
            f"none of the {len(queries)} queries has another image of its class in the "
            "gallery: check the labels, retrieval needs two images of some class."
        )

    values = np.empty((len(queries), len(recall_at) + 2))
    tied = np.zeros(len(queries), bool)
    index = Gallery(gallery, gallery_labels, mesh)
    for rows, depth in _by_depth(relevant, counted, max(recall_at, default=1)):
        some = slice(None) if len(rows) == len(queries) else rows  # a copy the less
        found = index.search(
            queries[some], labels[some], own_index[some], depth, block_size
        )
        for block, kept in found:
            mine = rows[block]
            values[mine], tied[mine] = _expected(kept, relevant[mine], recall_at)

    names = [*(f"recall@{depth}" for depth in recall_at), "r_precision", "map@r"]
    each = {"query": counted, "label": given[counted]}
    each |= dict(zip(names, values[counted].T, strict=True))
    means, intervals = over_queries(each, bootstrap=bootstrap, seed=seed)
    asked = {"per_query": each} if per_query else {}
    if per_class:
        asked["per_class"] = by_class(each)
        macro = over_classes(asked["per_class"], bootstrap=bootstrap, seed=seed)
        means, intervals = means | macro[0], intervals | macro[1]
    return {
        **means,
        "queries": len(counted),
        "lone_queries": len(queries) - len(counted),
        "ties": int(tied.sum()),
        "intervals": intervals,
        **asked,
    }


def _by_depth(
    relevant: np.ndarray, counted: np.ndarray, least: int
) -> Iterator[tuple[np.ndarray, int]]:
    """Groups of queries and the number of neighbours each group must keep.

    A query needs max(R, largest K) neighbours. One huge class would make every query
    keep thousands, so queries are searched in groups of like need.
    """
    needed = np.maximum(relevant[counted], least)
    while needed.size:
        depth = int(needed.max())
        together = needed * DEPTH_RATIO > depth
        yield counted[together], depth
        counted, needed = counted[~together], needed[~together]


class Ties(NamedTuple):
    """The tie group at each kept position; arrays of [q, k], counted from 0.

    Attributes:
        start: position of the group's first member.
        size: members in the whole gallery, which may reach beyond the kept.
        positives: how many of the members are relevant.
        above: relevant images strictly before the group.
    """

    start: np.ndarray
    size: np.ndarray
    positives: np.ndarray
    above: np.ndarray


def _tie_groups(kept: Kept) -> Ties:
    count, depth = kept.similarities.shape
    positions = np.broadcast_to(np.arange(depth), (count, depth))
    differs = kept.similarities[:, 1:] != kept.similarities[:, :-1]
    edge = np.ones((count, 1), bool)
    first = np.concatenate([edge, differs], axis=1)
    last = np.concatenate([differs, edge], axis=1)

    start = np.maximum.accumulate(np.where(first, positions, 0), axis=1)
    end = np.where(last, positions + 1, depth)
    end = np.minimum.accumulate(end[:, ::-1], axis=1)[:, ::-1]
    before = np.zeros((count, depth + 1), np.int64)
    np.cumsum(kept.relevant, axis=1, out=before[:, 1:])
    above = np.take_along_axis(before, start, axis=1)
    positives = np.take_along_axis(before, end, axis=1) - above
    boundary = end == depth
    return Ties(
        start,
        np.where(boundary, kept.boundary[:, None], end - start),
        np.where(boundary, kept.boundary_relevant[:, None], positives),
        above,
    )


def _expected(
    kept: Kept, relevant: np.ndarray, recall_at: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Expected metrics of each query over the random orders of its ties.

    In a group of g members with p positives that starts after a images, c of them
    relevant, the member at place t = 0 .. g-1 is relevant with probability p/g, and
    given that it is, (p-1)/(g-1) of each earlier member is. So

        E[rel(i)]      = p/g
        E[rel(i) P(i)] = p/g (c + 1 + t (p-1)/(g-1)) / i,    i = a + t + 1,

    and the m first members hold no positive with probability C(g-p, m) / C(g, m).

    Args:
        kept: neighbours of q queries, at least max(R, K) of them.
        relevant: [q] int, R >= 1.
        recall_at: the K.

    Returns:
        ([q, len(recall_at) + 2] float64: each recall@K, r_precision, map@r;
        [q] bool: some value depends on the order of ties).
    """
    ties = _tie_groups(kept)
    positions = np.arange(kept.similarities.shape[1])
    inside = positions < relevant[:, None]
    mixed = (ties.positives > 0) & (ties.positives < ties.size)
    tied = (mixed & inside).any(axis=1)

    chance = ties.positives / ties.size * inside
    earlier = (positions - ties.start) * (ties.positives - 1)
    found = ties.above + 1 + earlier / np.maximum(ties.size - 1, 1)
    columns = []
    for depth in recall_at:
        group = Ties(*(array[:, depth - 1] for array in ties))
        missed = _chance_of_none(group, depth - group.start)
        undecided = (missed > 0) & mixed[:, depth - 1]
        columns.append(1 - missed)
        tied |= undecided
    columns.append(chance.sum(axis=1) / relevant)
    columns.append((chance * found / (positions + 1)).sum(axis=1) / relevant)
    return np.stack(columns, axis=1), tied


def _chance_of_none(group: Ties, drawn: np.ndarray) -> np.ndarray:
    """Probability of no relevant image above the group nor in `drawn` [q] of it.

    C(g-p, m) / C(g, m) is the same with p and m exchanged; the shorter product

        prod_{i < min(p, m)} (g - max(p, m) - i) / (g - i)

    is taken, and is exactly 0 where a positive must be drawn.
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
        if not is_whole(depth) or not 1 <= depth <= available:
            raise InputError(
                f"recall_at has {depth!r}, but a query has {available} images to find: "
                f"use whole numbers from 1 to {available}."
            )
    return tuple(int(depth) for depth in recall_at)
