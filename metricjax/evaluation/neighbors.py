"""Exact nearest neighbours by cosine similarity, in blocks, on one device or many.

One program is compiled for a shape: it takes a block of queries, walks over the
gallery in tiles of `TILE` rows and merges each tile into the running top k, so the
memory in use is O(block x (tile + k)) and never O(queries x gallery).

On TPU and GPU similarities are float32 products. Each comes out of a matrix product of
one fixed shape, padding included, so it does not depend on where in the gallery a row
stands: exact duplicates get bit-equal similarities. On CPU a similarity is the exact
sum rounded once, whatever the shape (`similarity.py`), and large galleries are screened
with coarse products first (`screening.py`), which finds the same neighbours sooner.
"""

import contextlib
from collections.abc import Iterator
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from metricjax.errors import InputError
from metricjax.evaluation import screening, similarity
from metricjax.evaluation.kept import Kept, of_found
from metricjax.evaluation.rows import is_whole, own_rows, unit_rows
from metricjax.evaluation.screening import Coarse

TILE = 2048
"""Gallery rows multiplied at a time: tile and similarities stay near the cache."""

ROW_MULTIPLE = 64
"""Query blocks are padded to a multiple of this, so no row meets a kernel's edge."""

ELEMENTS_PER_BLOCK = 2**22
"""Bound on block x (tile + k): a block shrinks when very many neighbours are kept."""

MOSTLY_OPEN = 0.5
"""Screening is given up after a block that leaves so large a share of queries open."""


def nearest(queries, gallery, k, *, own_index=None, block_size=1024, mesh=None):
    """The k nearest gallery rows of every query: largest `queries @ gallery.T`.

    Args:
        queries: [q, d] unit-length rows, float; numpy or JAX.
        gallery: [n, d] unit-length rows of the same width.
        k: neighbours to return, 1 <= k <= n (n - 1 where a query excludes itself).
        own_index: [q] int or None; the gallery row that *is* the query and is left
            out, -1 where the gallery does not hold it. None: nothing is left out.
        block_size: queries held at a time on each device; memory, not results.
        mesh: `jax.sharding.Mesh` over whose devices the queries are spread, or None.

    Returns:
        (similarities [q, k] float32 descending, indices [q, k] int64), numpy. Equal
        similarities come in the order of their gallery rows.

    Raises:
        InputError: rows that are not finite or not of unit length, shapes or indices
            that do not fit, k larger than the gallery.
    """
    queries = unit_rows(queries, "queries")
    gallery = unit_rows(gallery, "gallery", width=queries.shape[1])
    own_index = own_rows(own_index, len(queries), len(gallery))
    available = len(gallery) - bool((own_index >= 0).any())
    if not is_whole(k) or not 1 <= k <= available:
        raise InputError(
            f"k is {k}, but a query has {available} gallery rows to find: "
            f"choose k between 1 and {available}."
        )
    k = int(k)
    similarities = np.empty((len(queries), k), np.float32)
    indices = np.empty((len(queries), k), np.int64)
    index = Gallery(gallery, np.zeros(len(gallery), np.int32), mesh)
    labels = np.zeros(len(queries), np.int32)
    for rows, kept in index.search(queries, labels, own_index, k, block_size):
        similarities[rows], indices[rows] = kept.similarities, kept.indices
    return similarities, indices


class Gallery:
    """A gallery placed on the devices, ready to be searched."""

    def __init__(self, embeddings: np.ndarray, labels: np.ndarray, mesh: Mesh | None):
        """Takes `embeddings` [n, d] float32 and `labels` [n] int32."""
        self.mesh, self.labels = mesh, labels
        device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
        self.exact_sums = device.platform == "cpu"
        self.rows = self._ready(embeddings)

    @cached_property
    def tiles(self) -> tuple[Array, Array, Array]:
        """Rows [t, TILE, d], their labels and numbers [t, TILE]; -1 is padding."""
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
    ) -> Iterator[tuple[slice | np.ndarray, Kept]]:
        """Yields (some rows of `queries`, their `Kept` in numpy), each row once.

        The next block is already computing while the caller works on this one.
        """
        rest = np.arange(len(queries))
        sizes = len(queries), len(self.rows)
        if self.exact_sums and screening.worthwhile(*sizes, k):
            rest = yield from self._screened(queries, labels, own_index, k, block_size)
        found = self._compared(
            queries[rest], labels[rest], own_index[rest], k, block_size
        )
        for rows, kept in found:
            yield (rows if len(rest) == len(queries) else rest[rows]), kept

    def _compared(self, queries, labels, own_index, k, block_size):
        """Every query with every row of the gallery; yields (slice, `Kept`)."""
        inputs = (queries, 0), (labels, 0), (own_index, -1)

        def launch(blocks):
            # Sums are of float64, see similarity.py.
            with jax.enable_x64(True) if self.exact_sums else contextlib.nullcontext():
                return _search(
                    *blocks,
                    *self.tiles,
                    k=k,
                    mesh=self.mesh,
                    exact_sums=self.exact_sums,
                )

        for rows, kept in self._blocks(inputs, launch, k, block_size):
            yield rows, Kept(*kept)

    def _screened(self, queries, labels, own_index, k, block_size):
        """Yields (rows, `Kept`) of most queries, and returns the rows of the others."""
        rest = []

        def launch(blocks):
            return self.screen.launch(*blocks, k, self.mesh)

        for rows, coarse in self._blocks([(queries, 0)], launch, k, block_size):
            found = self.screen.find(
                self._ready(queries[rows]), own_index[rows], k, Coarse(*coarse)
            )
            closed = np.flatnonzero(found.counts)
            rest.append(rows.start + np.flatnonzero(found.counts == 0))
            if len(closed):
                same = np.repeat(labels[rows], found.counts) == self.labels[found.rows]
                counts = found.counts[closed]
                yield (
                    rows.start + closed,
                    of_found(found.similarities, found.rows, same, counts, k),
                )
            if len(rest[-1]) > MOSTLY_OPEN * (rows.stop - rows.start):
                rest.append(np.arange(rows.stop, len(queries)))
                break
        return np.concatenate(rest)

    def _ready(self, rows: np.ndarray) -> np.ndarray:
        return similarity.on_grid(rows) if self.exact_sums else rows

    def _blocks(self, inputs, launch, k, block_size):
        """Yields (slice, what `launch` made of that block of `inputs`, in numpy).

        Args:
            inputs: pairs of an array [q, ...] and what pads it, the queries first.
            launch: starts a program on arrays [block, ...], one for each input.
        """
        count = len(inputs[0][0])
        devices = 1 if self.mesh is None else self.mesh.size
        block = devices * _block_rows(count, devices, k, block_size)
        waiting = None
        for start in range(0, count, block):
            rows = slice(start, min(start + block, count))
            padding = block - (rows.stop - rows.start)
            parts = [_padded(array[rows], padding, value) for array, value in inputs]
            parts[0] = self._ready(parts[0])
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


@partial(jax.jit, static_argnames=("k", "mesh", "exact_sums"))
def _search(
    queries,
    labels,
    own_index,
    tiles,
    tile_labels,
    tile_indices,
    *,
    k,
    mesh,
    exact_sums=False,
):
    """`Kept` of a block of queries; over a mesh each device takes its own queries."""
    arguments = queries, labels, own_index, tiles, tile_labels, tile_indices
    program = partial(_search_rows, k=k, exact_sums=exact_sums)
    if mesh is None:
        return program(*arguments)
    mine, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
    kept = jax.shard_map(
        program,
        mesh=mesh,
        in_specs=(mine, mine, mine, whole, whole, whole),
        out_specs=mine,
        check_vma=False,
    )(*arguments)
    # Gathered, so that every host of a pod can read all rows.
    return jax.lax.with_sharding_constraint(kept, NamedSharding(mesh, whole))


def _search_rows(
    queries: Float[Array, "q d"],
    labels: Int[Array, " q"],
    own_index: Int[Array, " q"],
    tiles: Float[Array, "t g d"],
    tile_labels: Int[Array, "t g"],
    tile_indices: Int[Array, "t g"],
    *,
    k: int,
    exact_sums: bool,
) -> Kept:
    factors = jnp.float64 if exact_sums else jnp.float32
    count_where = partial(jnp.sum, axis=1, dtype=jnp.int32)

    def merge(kept: Kept, tile):
        rows, row_labels, indices = tile
        similarities = jnp.matmul(
            queries.astype(factors),
            rows.T.astype(factors),
            precision=jax.lax.Precision.HIGHEST,
        ).astype(jnp.float32)
        # -0.0 and 0.0 tie as floats but not in a sort: make them one.
        similarities = jnp.where(similarities == 0, 0.0, similarities)
        found = (indices >= 0) & (indices != own_index[:, None])
        similarities = jnp.where(found, similarities, -jnp.inf)
        relevant = row_labels == labels[:, None]
        best, place = jax.lax.top_k(similarities, min(k, TILE))
        best_relevant = jnp.take_along_axis(relevant, place, axis=1)

        # What was kept comes first: a stable sort then prefers the lower row.
        merged, place_merged = jax.lax.top_k(
            jnp.concatenate([kept.similarities, best], axis=1), k
        )
        merged_indices, merged_relevant = (
            jnp.take_along_axis(
                jnp.concatenate([old, new], axis=1), place_merged, axis=1
            )
            for old, new in (
                (kept.indices, indices[place]),
                (kept.relevant, best_relevant),
            )
        )
        # Rows equal to the k-th. Where the k-th value rose, all earlier rows equal to
        # the new one were above the old one, so they are among the kept.
        edge = merged[:, -1:]
        same = (edge == kept.similarities[:, -1:])[:, 0]
        tied, kept_tied = similarities == edge, kept.similarities == edge
        boundary = count_where(tied) + jnp.where(
            same, kept.boundary, count_where(kept_tied)
        )
        boundary_relevant = count_where(tied & relevant) + jnp.where(
            same, kept.boundary_relevant, count_where(kept_tied & kept.relevant)
        )
        return Kept(
            merged, merged_indices, merged_relevant, boundary, boundary_relevant
        ), None

    count = len(queries)
    nothing = Kept(
        jnp.full((count, k), -jnp.inf, jnp.float32),
        jnp.full((count, k), -1, jnp.int32),
        jnp.zeros((count, k), bool),
        jnp.zeros(count, jnp.int32),
        jnp.zeros(count, jnp.int32),
    )
    return jax.lax.scan(merge, nothing, (tiles, tile_labels, tile_indices))[0]


def _block_rows(queries: int, devices: int, k: int, block_size: int) -> int:
    """Queries of a block on one device: a multiple of ROW_MULTIPLE, within memory."""
    if not is_whole(block_size) or block_size < 1:
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
