"""What the similarity of two unit rows is, to the last bit, on CPU.

Rows are brought onto a grid: each number becomes the nearest multiple of 2^-26, which
float32 holds exactly and which moves a number by at most 2^-27. Products of two such
rows and all their partial sums are multiples of 2^-52 below 2, which float64 holds
exactly, so the sum comes out without any rounding and the same in whatever order,
block, library or thread it is made. Rounded to float32 it is the similarity: a function
of the two rows alone, the same both ways, bit-equal for exact duplicates.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

GRID = 2.0**26

NUMBERS_PER_PART = 2**18
"""Gallery numbers gathered at a time by a thread: they stay in its cache."""


def on_grid(rows: np.ndarray) -> np.ndarray:
    """`rows` [n, d] float32, of numbers up to 2, as multiples of 2^-26."""
    gridded = rows * np.float32(GRID)
    np.rint(gridded, out=gridded)
    gridded /= np.float32(GRID)
    return gridded


def of_pairs(
    queries: np.ndarray, gallery: np.ndarray, counts: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """Similarities of some pairs.

    Args:
        queries: [q, d] float32 on the grid.
        gallery: [n, d] float32 on the grid.
        counts: [q] how many gallery rows are asked for of each query.
        rows: [sum of counts] these, query after query.

    Returns:
        [sum of counts] float32.
    """
    similarities = np.empty(len(rows), np.float32)
    starts = np.cumsum(counts) - counts
    # Queries of like counts together: their rows make one array with little padding.
    order = np.argsort(counts, kind="stable")
    order = order[counts[order] > 0]

    def compute(some):
        most = counts[some[-1]]
        inside = np.arange(most) < counts[some][:, None]
        places = (starts[some][:, None] + np.arange(most))[inside]
        wanted = np.zeros(inside.shape, np.int64)
        wanted[inside] = rows[places]
        found = np.matmul(
            gallery[wanted].astype(np.float64),
            queries[some].astype(np.float64)[:, :, None],
        )
        similarities[places] = found[:, :, 0][inside]

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(compute, _parts(order, counts, queries.shape[1])))
    return similarities + np.float32(0)  # of -0.0 makes 0.0


def _parts(order, counts, width):
    """`order` cut so that a part's longest row times its length stays small."""
    start = 0
    while start < len(order):
        stop = start + 1
        room = NUMBERS_PER_PART // width
        while stop < len(order) and counts[order[stop]] * (stop + 1 - start) <= room:
            stop += 1
        yield order[start:stop]
        start = stop
