"""The k nearest of each query, with what is needed to treat ties fairly."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int


class Kept(NamedTuple):
    """The k nearest gallery rows of each query, and what lies on the boundary.

    Attributes:
        similarities: [q, k] float32, in descending order.
        indices: [q, k] int32 rows of the gallery; equal similarities by lowest row.
        relevant: [q, k] bool, the row carries the query's label.
        boundary: [q] int32, rows of the whole gallery (own row apart) whose similarity
            equals the k-th; more of them than are kept means a tie across the boundary.
        boundary_relevant: [q] int32, how many of those carry the query's label.
    """

    similarities: Float[Array, "q k"]
    indices: Int[Array, "q k"]
    relevant: Bool[Array, "q k"]
    boundary: Int[Array, " q"]
    boundary_relevant: Int[Array, " q"]


def of_found(
    similarities: np.ndarray,
    rows: np.ndarray,
    relevant: np.ndarray,
    counts: np.ndarray,
    k: int,
) -> Kept:
    """`Kept` of queries of which more than k neighbours may be known.

    Args:
        similarities: [p] query after query, each in descending order, down to all that
            equal the k-th.
        rows: [p] of the gallery.
        relevant: [p] bool.
        counts: [q] how many are known of each query, >= k.
        k: how many are kept.
    """
    starts = np.cumsum(counts) - counts
    first = starts[:, None] + np.arange(k)
    kept = similarities[first]
    tied = similarities == np.repeat(kept[:, -1], counts)
    return Kept(
        kept,
        rows[first].astype(np.int32),
        relevant[first],
        np.add.reduceat(tied, starts, dtype=np.int32),
        np.add.reduceat(tied & relevant, starts, dtype=np.int32),
    )
