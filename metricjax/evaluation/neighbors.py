"""Exact nearest neighbours by cosine similarity, in blocks, on one device or many.

One program is compiled per shape (`tile_search.py`). It takes a block of queries, walks
over the gallery in tiles of `TILE` rows and merges each tile into the running top k, so
memory is O(block x (tile + k)) and never O(queries x gallery).

On TPU and GPU similarities are float32 products. Each comes out of a matrix product of
one fixed shape, padding included, so it does not depend on where in the gallery a row
is: exact duplicates get bit-equal similarities. On CPU a similarity is the exact
sum rounded once, whatever the shape (`similarity.py`), and large galleries are screened
with coarse products first (`screening.py`), which finds the same neighbours faster.

The order of neighbours and of ties is defined in `top_k.py`, which also has the search
of few queries on the host.
"""

import contextlib
from collections.abc import Iterator
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from metricjax.errors import InputError
from metricjax.evaluation import screening, similarity
from metricjax.evaluation.ranked import Ranked, cut_to_k
from metricjax.evaluation.rows import is_integer, own_rows, unit_rows
from metricjax.evaluation.screening import Coarse
from metricjax.evaluation.tile_search import search_block

TILE = 2048
"""Gallery rows per matrix product, few enough that a tile stays in cache."""

ROW_MULTIPLE = 64
"""Query blocks are padded to a multiple of this. Matrix kernels may sum the rows left
over at an edge in another order; padding keeps every row off the edge."""

ELEMENTS_PER_BLOCK = 2**22
"""Bound on block x (tile + k): blocks shrink when k is very large."""

MOSTLY_OPEN = 0.5
"""Screening stops after a block that leaves more than this share of queries open."""


def nearest(queries, gallery, k, *, own_index=None, block_size=1024, mesh=None):
    """The k nearest gallery rows of every query: largest `queries @ gallery.T`.

    Args:
        queries: [q, d] unit-length rows, float; numpy or JAX.
        gallery: [n, d] unit-length rows of the same width.
        k: number of neighbours, 1 <= k <= n (n - 1 if a query excludes itself).
        own_index: [q] int or None; the gallery row that *is* the query and is excluded,
            -1 if the gallery does not contain it. None: nothing is excluded.
        block_size: queries per device at a time; affects memory, not results.
        mesh: `jax.sharding.Mesh` over whose devices the queries are spread, or None.

    Returns:
        (similarities [q, k] float32 descending, indices [q, k] int64), numpy. Rows of
        equal similarity come in ascending order.

    Raises:
        InputError: rows that are not finite or not of unit length, shapes or indices
            that do not fit, k larger than the gallery.

    >>> rows = np.eye(3)[[0, 1, 0, 2]]
    >>> nearest(rows[:1], rows, 2, own_index=[0])[1].tolist()
    [[2, 1]]
    """
    queries = unit_rows(queries, "queries")
    gallery = unit_rows(gallery, "gallery", width=queries.shape[1])
    own_index = own_rows(own_index, len(queries), len(gallery))
    available = len(gallery) - bool((own_index >= 0).any())
    if not is_integer(k) or not 1 <= k <= available:
        raise InputError(
            f"k is {k}, but a query has {available} gallery rows to find: "
            f"choose k between 1 and {available}."
        )
    k = int(k)
    similarities = np.empty((len(queries), k), np.float32)
    indices = np.empty((len(queries), k), np.int64)
    index = PlacedGallery(gallery, np.zeros(len(gallery), np.int32), mesh)
    labels = np.zeros(len(queries), np.int32)
    for rows, ranked in index.search(queries, labels, own_index, k, block_size):
        similarities[rows], indices[rows] = ranked.similarities, ranked.indices
    return similarities, indices


class PlacedGallery:
    """A gallery on the devices, ready to be searched."""

    def __init__(self, embeddings: np.ndarray, labels: np.ndarray, mesh: Mesh | None):
        """`embeddings` is [n, d] float32, `labels` [n] int32."""
        self.mesh, self.labels = mesh, labels
        device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
        self.exact_sums = device.platform == "cpu"
        self.rows = self._rounded(embeddings)

    @cached_property
    def tiles(self) -> tuple[Array, Array, Array]:
        """Rows [t, TILE, d], their labels and indices [t, TILE]; -1 is padding."""
        count, width = self.rows.shape
        padding = -count % TILE
        indices = np.arange(count + padding, dtype=np.int32)
        indices[count:] = -1
        return tuple(
            self._place(array, replicated=True)
            for array in (
                np.pad(self.rows, ((0, padding), (0, 0))).reshape(-1, TILE, width),
                np.pad(self.labels, (0, padding)).reshape(-1, TILE),
                indices.reshape(-1, TILE),
            )
        )

    @cached_property
    def screen(self) -> screening.Screen:
        return screening.Screen(self.rows, screening.dtype(), self._place)

    def search(
        self,
        queries: np.ndarray,
        labels: np.ndarray,
        own_index: np.ndarray,
        k: int,
        block_size: int,
    ) -> Iterator[tuple[slice | np.ndarray, Ranked]]:
        """Yields (rows of `queries`, their `Ranked` in numpy), each row once.

        Screening first, if it applies; queries that it leaves open are then compared
        with the whole gallery. The next block computes while the caller works on this.
        """
        rest = np.arange(len(queries))
        sizes = len(queries), len(self.rows)
        if self.exact_sums and screening.worthwhile(*sizes, k):
            rest = yield from self._screened(queries, labels, own_index, k, block_size)
        blocks = self._compared(
            queries[rest], labels[rest], own_index[rest], k, block_size
        )
        for rows, ranked in blocks:
            yield (rows if len(rest) == len(queries) else rest[rows]), ranked

    def _compared(self, queries, labels, own_index, k, block_size):
        """Compare all queries with the whole gallery; yields (slice, `Ranked`)."""
        inputs = (queries, 0), (labels, 0), (own_index, -1)

        def launch(blocks):
            # Exact similarities are sums in float64, see similarity.py.
            with jax.enable_x64(True) if self.exact_sums else contextlib.nullcontext():
                return search_block(
                    *blocks,
                    *self.tiles,
                    k=k,
                    mesh=self.mesh,
                    exact_sums=self.exact_sums,
                )

        for rows, arrays in self._blocks(inputs, launch, k, block_size):
            yield rows, Ranked(*arrays)

    def _screened(self, queries, labels, own_index, k, block_size):
        """Yields (rows, `Ranked`) of most queries; returns the rows left open."""
        rest = []

        def launch(blocks):
            return self.screen.launch(*blocks, k, self.mesh)

        for rows, coarse in self._blocks([(queries, 0)], launch, k, block_size):
            candidates = self.screen.compare(
                self._rounded(queries[rows]), own_index[rows], k, Coarse(*coarse)
            )
            closed = np.flatnonzero(candidates.counts)
            rest.append(rows.start + np.flatnonzero(candidates.counts == 0))
            if len(closed):
                same = (
                    np.repeat(labels[rows], candidates.counts)
                    == self.labels[candidates.rows]
                )
                counts = candidates.counts[closed]
                yield (
                    rows.start + closed,
                    cut_to_k(candidates.similarities, candidates.rows, same, counts, k),
                )
            if len(rest[-1]) > MOSTLY_OPEN * (rows.stop - rows.start):
                rest.append(np.arange(rows.stop, len(queries)))
                break
        return np.concatenate(rest)

    def _rounded(self, rows: np.ndarray) -> np.ndarray:
        return similarity.on_grid(rows) if self.exact_sums else rows

    def _blocks(self, inputs, launch, k, block_size):
        """Yields (slice, the result of `launch` for that block of `inputs`, in numpy).

        Args:
            inputs: pairs of an array [q, ...] and its padding value, queries first.
            launch: starts a program on arrays [block, ...], one per input.
        """
        count = len(inputs[0][0])
        devices = 1 if self.mesh is None else self.mesh.size
        block = devices * _block_rows(count, devices, k, block_size)
        # Dispatch is asynchronous: launch a block before fetching the one before it.
        waiting = None
        for start in range(0, count, block):
            rows = slice(start, min(start + block, count))
            padding = block - (rows.stop - rows.start)
            parts = [_padded(array[rows], padding, value) for array, value in inputs]
            parts[0] = self._rounded(parts[0])
            placed = [self._place(part, replicated=False) for part in parts]
            running = rows, launch(placed)
            if waiting is not None:
                yield _fetch(*waiting)
            waiting = running
        if waiting is not None:
            yield _fetch(*waiting)

    def _place(self, array: np.ndarray, *, replicated: bool) -> Array:
        if self.mesh is None:
            return jnp.asarray(array)
        spec = PartitionSpec() if replicated else PartitionSpec(self.mesh.axis_names)
        sharding = NamedSharding(self.mesh, spec)
        return jax.make_array_from_callback(
            array.shape, sharding, lambda index: array[index]
        )


def _block_rows(queries: int, devices: int, k: int, block_size: int) -> int:
    """Queries in a block on one device: a multiple of ROW_MULTIPLE, within memory."""
    if not is_integer(block_size) or block_size < 1:
        raise InputError(
            f"block_size is {block_size}: give a whole number of queries, 1 or more."
        )
    rows = min(block_size, -(-queries // devices), ELEMENTS_PER_BLOCK // (TILE + k))
    return int(max(-(-rows // ROW_MULTIPLE), 1) * ROW_MULTIPLE)


def _padded(array: np.ndarray, padding: int, value) -> np.ndarray:
    sides = [(0, padding)] + [(0, 0)] * (array.ndim - 1)
    return np.pad(array, sides, constant_values=value)


def _fetch(rows: slice, arrays: tuple) -> tuple[slice, list[np.ndarray]]:
    count = rows.stop - rows.start
    return rows, [np.asarray(array)[:count] for array in arrays]
