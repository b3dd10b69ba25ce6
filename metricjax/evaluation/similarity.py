"""The similarity of two unit rows on CPU, reproducible to the last bit.

Rows are rounded to a grid: each coordinate to the nearest multiple of 2^-26, which
moves it by at most 2^-27. Products of two such coordinates and all their partial sums
are multiples of 2^-52 below 2, which float64 represents exactly. So the sum has no
rounding error and is the same in any order, block or library. Rounded once to float32
it is the similarity: a function of the two rows alone, symmetric, and bit-equal for
exact duplicates.
"""

import numpy as np

GRID = 2.0**26


def on_grid(rows: np.ndarray) -> np.ndarray:
    """`rows` [n, d] float32, up to 2 in magnitude, rounded to multiples of 2^-26."""
    gridded = rows * np.float32(GRID)
    np.rint(gridded, out=gridded)
    gridded /= np.float32(GRID)
    return gridded


def of_pairs(
    queries: np.ndarray, gallery: np.ndarray, counts: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """Similarities of selected pairs.

    Args:
        queries: [q, d] float32 on the grid.
        gallery: [n, d] float32 on the grid.
        counts: [q] number of gallery rows for each query.
        rows: [sum of counts] these rows, query after query.

    Returns:
        [sum of counts] float32.
    """
    similarities = np.empty(len(rows), np.float32)
    most = int(counts.max(initial=0))
    gathered = np.empty((most, gallery.shape[1]), np.float32)
    factors = np.empty(gathered.shape, np.float64)
    start = 0
    for query, count in zip(queries.astype(np.float64), counts.tolist(), strict=True):
        stop = start + count
        np.take(gallery, rows[start:stop], axis=0, out=gathered[:count], mode="clip")
        factors[:count] = gathered[:count]
        similarities[start:stop] = factors[:count] @ query
        start = stop
    return similarities + np.float32(0)  # Turns -0.0 into 0.0.
