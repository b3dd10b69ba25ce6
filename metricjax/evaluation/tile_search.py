"""The compiled program of exact search: one block of queries, the gallery in tiles.

`neighbors.PlacedGallery` calls it. Come here to change how a tile is compared and
merged into the running top k, and how ties at the k-th place are counted.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from metricjax.evaluation.ranked import Ranked


@partial(jax.jit, static_argnames=("k", "mesh", "exact_sums"))
def search_block(
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
    """`Ranked` of a block of queries, which the devices of a mesh share."""
    arguments = queries, labels, own_index, tiles, tile_labels, tile_indices
    program = partial(_search_rows, k=k, exact_sums=exact_sums)
    if mesh is None:
        return program(*arguments)
    mine, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
    ranked = jax.shard_map(
        program,
        mesh=mesh,
        in_specs=(mine, mine, mine, whole, whole, whole),
        out_specs=mine,
        check_vma=False,
    )(*arguments)
    # Gather, so that every host of a pod can read all rows.
    return jax.lax.with_sharding_constraint(ranked, NamedSharding(mesh, whole))


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
) -> Ranked:
    """Scan over the tiles of the gallery, merging each into the running top k."""

    def merge(ranked: Ranked, tile):
        rows, row_labels, indices = tile
        similarities = _similarities(queries, rows, exact_sums)
        allowed = (indices >= 0) & (indices != own_index[:, None])
        similarities = jnp.where(allowed, similarities, -jnp.inf)
        relevant = row_labels == labels[:, None]
        return _merge(ranked, similarities, relevant, indices), None

    count = len(queries)
    empty = Ranked(
        jnp.full((count, k), -jnp.inf, jnp.float32),
        jnp.full((count, k), -1, jnp.int32),
        jnp.zeros((count, k), bool),
        jnp.zeros(count, jnp.int32),
        jnp.zeros(count, jnp.int32),
    )
    return jax.lax.scan(merge, empty, (tiles, tile_labels, tile_indices))[0]


def _similarities(
    queries: Float[Array, "q d"], rows: Float[Array, "g d"], exact_sums: bool
) -> Float[Array, "q g"]:
    factors = jnp.float64 if exact_sums else jnp.float32
    similarities = jnp.matmul(
        queries.astype(factors),
        rows.T.astype(factors),
        precision=jax.lax.Precision.HIGHEST,
    ).astype(jnp.float32)
    # -0.0 and 0.0 are equal as floats, but a sort puts -0.0 lower: make them one.
    return jnp.where(similarities == 0, 0.0, similarities)


def _merge(
    ranked: Ranked,
    similarities: Float[Array, "q g"],
    relevant: Bool[Array, "q g"],
    indices: Int[Array, " g"],
) -> Ranked:
    """The top k of `ranked` and of one more tile, whose rows all come later."""
    k = ranked.similarities.shape[1]
    count_where = partial(jnp.sum, axis=1, dtype=jnp.int32)
    best, place = jax.lax.top_k(similarities, min(k, similarities.shape[1]))
    best_relevant = jnp.take_along_axis(relevant, place, axis=1)

    # Earlier rows are concatenated first: top_k is stable, so of equal similarities it
    # prefers the lower row, which is the order that top_k.py defines.
    merged, merged_place = jax.lax.top_k(
        jnp.concatenate([ranked.similarities, best], axis=1), k
    )
    merged_indices, merged_relevant = (
        jnp.take_along_axis(jnp.concatenate([old, new], axis=1), merged_place, axis=1)
        for old, new in (
            (ranked.indices, indices[place]),
            (ranked.relevant, best_relevant),
        )
    )
    # Count the rows that equal the k-th. If the k-th value is the old one, the earlier
    # count still holds. If it rose, all earlier rows equal to the new k-th value were
    # above the old one, so every one of them is listed in `ranked` and counted there.
    kth = merged[:, -1:]
    unchanged = (kth == ranked.similarities[:, -1:])[:, 0]
    tied, ranked_tied = similarities == kth, ranked.similarities == kth
    boundary = count_where(tied) + jnp.where(
        unchanged, ranked.boundary, count_where(ranked_tied)
    )
    boundary_relevant = count_where(tied & relevant) + jnp.where(
        unchanged,
        ranked.boundary_relevant,
        count_where(ranked_tied & ranked.relevant),
    )
    return Ranked(merged, merged_indices, merged_relevant, boundary, boundary_relevant)
