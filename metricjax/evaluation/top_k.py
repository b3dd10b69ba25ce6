"""Exact top-k on the host, and the one definition of the order of neighbours.

The order, everywhere in this package: descending similarity, and rows of equal
similarity by their number, the lowest first. -0.0 and 0.0 are equal.
`neighbors.nearest` finds neighbours in this order with a compiled program over blocks,
`screening` with coarse products first, and `search` here with numpy alone.

Come here for few queries at a time (serving, `Index.nearest`): numpy answers one query
in 10,000 rows in under a millisecond, where starting the compiled program and copying
the gallery to a device takes tens of milliseconds.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

SIMILARITIES_PER_BLOCK = 2**26
"""Similarities held at a time (256 MiB)."""


def search(
    queries: Float[np.ndarray, "q d"],
    gallery: Float[np.ndarray, "n d"],
    k: int,
    *,
    allowed: Bool[np.ndarray, " n"],
) -> tuple[Float[np.ndarray, "q k"], Int[np.ndarray, "q k"]]:
    """The k allowed gallery rows most similar to each query, exactly, by numpy.

    Similarities are float32 matrix products; unlike those of `neighbors.nearest` on CPU
    they may differ in the last bit between machines and block sizes.

    Args:
        queries: [q, d] float32 rows.
        gallery: [n, d] float32 rows.
        k: neighbours to return, 0 to the number of allowed rows.
        allowed: [n] bool, the gallery rows that may be returned.

    Returns:
        (similarities [q, k] float32, rows [q, k] int64), in the order of this module.

    >>> gallery = np.eye(3, dtype=np.float32)[[0, 1, 0, 2]]
    >>> search(gallery[:1], gallery, 3, allowed=np.ones(4, bool))[1].tolist()
    [[0, 2, 1]]
    """
    similarities = np.empty((len(queries), k), np.float32)
    rows = np.empty((len(queries), k), np.int64)
    if k == 0:
        return similarities, rows
    excluded = ~allowed
    block = max(1, SIMILARITIES_PER_BLOCK // len(gallery))
    for start in range(0, len(queries), block):
        products = queries[start : start + block] @ gallery.T
        products[:, excluded] = -np.inf
        for query, values in enumerate(products, start):
            rows[query] = largest(values, k)
            similarities[query] = values[rows[query]]
    return similarities, rows


def largest(values: Float[np.ndarray, " n"], k: int) -> Int[np.ndarray, " k"]:
    """Where the k largest of n values are, in the order of this module; 1 <= k <= n.

    >>> largest(np.array([0.0, 2.0, -0.0, 2.0]), 3).tolist()
    [1, 3, 0]
    """
    # Partition is linear in n; only the k chosen are sorted. It puts ties at the k-th
    # value in any order, so those are chosen separately, by lowest row.
    kth = np.partition(values, len(values) - k)[len(values) - k]
    above = np.flatnonzero(values > kth)
    tied = np.flatnonzero(values == kth)[: k - len(above)]
    rows = np.concatenate([above, tied])
    return rows[np.lexsort((rows, -values[rows]))]
