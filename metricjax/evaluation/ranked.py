"""The k nearest neighbours of queries, with the size of the tie at the k-th place."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int


class Ranked(NamedTuple):
    """The k nearest gallery rows of each query, and the tie at the k-th place.

    Metrics take the expected value over random orders of ties, so they need to know how
    many rows tie with the k-th, also those beyond the k that are listed.

    Attributes:
        similarities: [q, k] float32, in descending order.
        indices: [q, k] int32 rows of the gallery; equal similarities by lowest row.
        relevant: [q, k] bool, whether the row has the query's label.
        boundary: [q] int32, rows of the whole gallery (own row apart) whose similarity
            equals the k-th; more than are listed means a tie across the boundary.
        boundary_relevant: [q] int32, how many of those have the query's label.
    """

    similarities: Float[Array, "q k"]
    indices: Int[Array, "q k"]
    relevant: Bool[Array, "q k"]
    boundary: Int[Array, " q"]
    boundary_relevant: Int[Array, " q"]


def cut_to_k(
    similarities: np.ndarray,
    rows: np.ndarray,
    relevant: np.ndarray,
    counts: np.ndarray,
    k: int,
) -> Ranked:
    """`Ranked` of queries for which k or more neighbours are known.

    Args:
        similarities: [p] query after query, each in descending order, including all
            that equal the k-th.
        rows: [p] of the gallery.
        relevant: [p] bool.
        counts: [q] number of neighbours known of each query, >= k.
        k: number of neighbours to list.
    """
    starts = np.cumsum(counts) - counts
    first = starts[:, None] + np.arange(k)
    listed = similarities[first]
    tied = similarities == np.repeat(listed[:, -1], counts)
    return Ranked(
        listed,
        rows[first].astype(np.int32),
        relevant[first],
        np.add.reduceat(tied, starts, dtype=np.int32),
        np.add.reduceat(tied & relevant, starts, dtype=np.int32),
    )
