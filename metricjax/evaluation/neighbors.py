"""Exact nearest neighbours by cosine similarity, in blocks, on one device or many.

One program is compiled for a shape: it takes a block of queries, walks over the
gallery in tiles of `TILE` rows and merges each tile into the running top k, so the
memory in use is O(block x (tile + k)) and never O(queries x gallery). Every product
of a query and a gallery row comes out of a matrix product of one fixed shape, padding
included, so a similarity does not depend on where in the gallery a row stands: exact
duplicates get bit-equal similarities.
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from metricjax.errors import InputError

TILE = 2048
"""Gallery rows multiplied at a time: tile and similarities stay near the cache."""

ROW_MULTIPLE = 64
"""Query blocks are padded to a multiple of this, so no row meets a kernel's edge."""

ELEMENTS_PER_BLOCK = 2**22
"""Bound on block x (tile + k): a block shrinks when very many neighbours are kept."""

LENGTH_TOLERANCE = 1e-3


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
    """A gallery cut into tiles and placed on the devices, ready to be searched."""

    def __init__(self, embeddings: np.ndarray, labels: np.ndarray, mesh: Mesh | None):
        """Pads and places `embeddings` [n, d] float32 and `labels` [n] int32."""
        count, width = embeddings.shape
        padding = -count % TILE
        indices = np.arange(count + padding, dtype=np.int32)
        indices[count:] = -1
        self.mesh = mesh
        self.tiles = tuple(
            self._place(array, replicated=True)
            for array in (
                np.pad(embeddings, ((0, padding), (0, 0))).reshape(-1, TILE, width),
                np.pad(labels, (0, padding)).reshape(-1, TILE),
                indices.reshape(-1, TILE),
            )
        )

    def search(
        self,
        queries: np.ndarray,
        labels: np.ndarray,
        own_index: np.ndarray,
        k: int,
        block_size: int,
    ) -> Iterator[tuple[slice, Kept]]:
        """Yields (rows of `queries`, their `Kept` in numpy), block after block.

        The next block is already computing while the caller works on this one.
        """
        devices = 1 if self.mesh is None else self.mesh.size
        block = devices * _block_rows(len(queries), devices, k, block_size)
        waiting = None
        for start in range(0, len(queries), block):
            rows = slice(start, min(start + block, len(queries)))
            padding = block - (rows.stop - rows.start)
            inputs = (
                np.pad(queries[rows], ((0, padding), (0, 0))),
                np.pad(labels[rows], (0, padding)),
                np.pad(own_index[rows], (0, padding), constant_values=-1),
            )
            placed = (self._place(array, replicated=False) for array in inputs)
            running = rows, _search(*placed, *self.tiles, k=k, mesh=self.mesh)
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


@partial(jax.jit, static_argnames=("k", "mesh"))
def _search(queries, labels, own_index, tiles, tile_labels, tile_indices, *, k, mesh):
    """`Kept` of a block of queries; over a mesh each device takes its own queries."""
    arguments = queries, labels, own_index, tiles, tile_labels, tile_indices
    if mesh is None:
        return _search_rows(*arguments, k=k)
    mine, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
    kept = jax.shard_map(
        partial(_search_rows, k=k),
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
) -> Kept:
    def merge(kept: Kept, tile):
        rows, row_labels, indices = tile
        similarities = jnp.matmul(queries, rows.T, precision=jax.lax.Precision.HIGHEST)
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
        boundary = jnp.where(same, kept.boundary, kept_tied.sum(1)) + tied.sum(1)
        boundary_relevant = (tied & relevant).sum(1) + jnp.where(
            same, kept.boundary_relevant, (kept_tied & kept.relevant).sum(1)
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


def is_whole(value) -> bool:
    """Whether `value` is an integer, and not a truth value."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _fetch(rows: slice, kept: Kept) -> tuple[slice, Kept]:
    count = rows.stop - rows.start
    return rows, Kept(*(np.asarray(array)[:count] for array in kept))


def unit_rows(embeddings, name: str, *, width: int | None = None) -> np.ndarray:
    """`embeddings` [n, d] as float32 numpy, checked to be finite, of unit length.

    Args:
        embeddings: numpy or JAX array of floats.
        name: what to call it in a message.
        width: d that is asked for, or None.

    Raises:
        InputError: naming the first row that is at fault.
    """
    array = np.asarray(embeddings)
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(
            f"{name} has shape {array.shape}: give one row of numbers for each image, "
            "[n, d]."
        )
    if width is not None and array.shape[1] != width:
        raise InputError(
            f"{name} has {array.shape[1]} numbers a row where the queries have {width}:"
            " embed both with the same model."
        )
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise InputError(f"{name} has dtype {array.dtype}: give floats.")
    array = np.ascontiguousarray(array, np.float32)
    lengths = np.sqrt(np.einsum("nd,nd->n", array, array))
    broken = np.flatnonzero(~np.isfinite(lengths))
    if broken.size:
        raise InputError(
            f"{name} has NaN or Inf in {broken.size} of {len(array)} rows, the first "
            f"is row {broken[0]}: look for a diverged model or a bad image there."
        )
    wrong = np.flatnonzero(np.abs(lengths - 1) > LENGTH_TOLERANCE)
    if wrong.size:
        raise InputError(
            f"{name} row {wrong[0]} has length {lengths[wrong[0]]:.4g} (as have "
            f"{wrong.size - 1} other rows a length other than 1): divide each row by "
            "its Euclidean norm first."
        )
    return array


def own_rows(own_index, queries: int, gallery: int) -> np.ndarray:
    """`own_index` checked, as [q] int32; None becomes -1, nothing excluded."""
    if own_index is None:
        return np.full(queries, -1, np.int32)
    array = np.asarray(own_index)
    if array.shape != (queries,) or not np.issubdtype(array.dtype, np.integer):
        raise InputError(
            f"own_index is {array.dtype} of shape {array.shape}: give one whole number "
            f"for each of the {queries} queries, -1 where the gallery lacks it."
        )
    outside = np.flatnonzero((array < -1) | (array >= gallery))
    if outside.size:
        raise InputError(
            f"own_index of query {outside[0]} is {array[outside[0]]}: give a gallery "
            f"row from 0 to {gallery - 1}, or -1."
        )
    return array.astype(np.int32)
