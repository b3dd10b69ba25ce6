"""k-means in blocks, on one device or many, repeatable from its seed.

Nearest centroids are found on the devices, a block of rows at a time; the means are
taken on the host in float64 and in the order of the rows. So neither blocks nor devices
change the result, and nothing of rows x clusters or rows x rows is ever held.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

ELEMENTS_PER_BLOCK = 2**22
"""Bound on rows x clusters of a block."""

ROW_MULTIPLE = 64
"""Blocks are of a multiple of so many rows, so no row meets a kernel's edge."""

TOLERANCE = 1e-5
"""It has converged when the sum of squares falls by less than this part of itself."""


class Clusters(NamedTuple):
    """What k-means found.

    Attributes:
        assigned: [n] int64, the cluster of each row.
        inertia: sum over rows of the squared distance to the mean of its cluster.
        iterations: how often the rows were assigned to their nearest centroid.
        converged: whether it ended by itself.
    """

    assigned: np.ndarray
    inertia: float
    iterations: int
    converged: bool


def k_means(
    rows: np.ndarray,
    count: int,
    *,
    seed: int,
    restarts: int = 1,
    iterations: int = 100,
    unit: bool = True,
    mesh: Mesh | None = None,
) -> Clusters:
    """The best of several k-means, each from a first guess of its own.

    The first guess is k-means++: each centroid is a row drawn with probability in
    proportion to its squared distance from the nearest centroid so far; of 2 + log k
    that are drawn, the one that leaves the least sum of squares. Then rows go to
    the nearest centroid and centroids to the mean of their rows, in turns (Lloyd). A
    cluster that has become empty starts again at a row that is farthest from its own.

    Args:
        rows: [n, d] float32.
        count: of clusters, 1 to n.
        seed: of the first guesses.
        restarts: how many first guesses; the least sum of squares wins.
        iterations: of each, at most.
        unit: whether the rows have unit length, as embeddings do.
        mesh: `jax.sharding.Mesh` over whose devices the rows are spread, or None.

    Source:
        Arthur and Vassilvitskii, k-means++: The Advantages of Careful Seeding (2007).
    """
    placed, whole = _place(rows, count, mesh), jnp.asarray(rows)
    found = []
    for restart in range(restarts):
        key = jax.random.fold_in(jax.random.key(seed), restart)
        first = np.asarray(_first_guess(whole, key, count=count, unit=unit))
        found.append(_lloyd(rows, placed, rows[first], iterations, mesh))
    return min(found, key=lambda clusters: clusters.inertia)


def _lloyd(rows, placed, centroids, iterations, mesh) -> Clusters:
    """k-means from given centroids [k, d]."""
    squares = float(np.einsum("nd,nd->", rows, rows, dtype=np.float64))
    before, done = np.inf, 0
    while True:
        assigned = _nearest(placed, jnp.asarray(centroids, jnp.float32), mesh=mesh)
        assigned = np.asarray(assigned)[: len(rows)].astype(np.int64)
        sums, sizes = _sums(rows, assigned, len(centroids))
        means = sums / np.maximum(sizes, 1)[:, None]
        inertia, done = squares - float(np.einsum("kd,kd->", sums, means)), done + 1
        converged = before - inertia <= TOLERANCE * inertia
        if converged or done == iterations:
            return Clusters(assigned, inertia, done, converged)
        centroids, before = _refilled(rows, assigned, means, sizes), inertia


@partial(jax.jit, static_argnames=("count", "unit"))
def _first_guess(
    rows: Float[Array, "n d"], key: Array, *, count: int, unit: bool
) -> Int[Array, " k"]:
    """Rows drawn by greedy k-means++: of a few that are drawn, the best is taken."""
    candidates = 2 + int(np.log(count))
    # |x - y|^2 = |x|^2 + |y|^2 - 2 x.y; unit rows are exactly that, not nearly.
    squares = jnp.ones(len(rows)) if unit else jnp.sum(jnp.square(rows), axis=1)

    def draw(number, state):
        distances, chosen = state
        up_to = jnp.cumsum(distances)
        places = jax.random.uniform(jax.random.fold_in(key, number), (candidates,))
        drawn = jnp.searchsorted(up_to, places * up_to[-1], side="right")
        drawn = jnp.minimum(drawn, len(rows) - 1)
        products = jnp.matmul(rows, rows[drawn].T, precision=jax.lax.Precision.HIGHEST)
        apart = (squares[:, None] + squares[drawn]) - 2 * products
        after = jnp.minimum(distances[:, None], jnp.maximum(apart, 0))
        best = jnp.argmin(jnp.sum(after, axis=0))
        row = drawn[best]
        return after[:, best].at[row].set(0), chosen.at[number].set(row)

    # As far as rows can be from each other, so that the first is drawn evenly.
    farthest = jnp.full(len(rows), 4 * jnp.max(squares))
    state = farthest, jnp.zeros(count, jnp.int32)
    return jax.lax.fori_loop(0, count, draw, state)[1]


def _place(rows: np.ndarray, count: int, mesh: Mesh | None) -> Float[Array, "b m d"]:
    """The rows in blocks, padded with zeros, the blocks spread over the devices."""
    devices = 1 if mesh is None else mesh.size
    size = min(ELEMENTS_PER_BLOCK // count, -(-len(rows) // devices))
    size = max(-(-size // ROW_MULTIPLE), 1) * ROW_MULTIPLE
    blocks = np.pad(rows, ((0, -len(rows) % (size * devices)), (0, 0)))
    blocks = blocks.reshape(-1, size, rows.shape[1])
    if mesh is None:
        return jnp.asarray(blocks)
    return jax.make_array_from_callback(
        blocks.shape,
        NamedSharding(mesh, PartitionSpec(mesh.axis_names)),
        lambda index: blocks[index],
    )


@partial(jax.jit, static_argnames="mesh")
def _nearest(
    blocks: Float[Array, "b m d"], centroids: Float[Array, "k d"], *, mesh: Mesh | None
) -> Int[Array, " rows"]:
    """The nearest centroid of each row: the largest x.c - |c|^2 / 2."""

    def nearest(blocks, centroids):
        half_squares = jnp.sum(jnp.square(centroids), axis=1) / 2

        def of_block(rows):
            products = jnp.matmul(
                rows, centroids.T, precision=jax.lax.Precision.HIGHEST
            )
            return jnp.argmax(products - half_squares, axis=1)

        return jax.lax.map(of_block, blocks).reshape(-1)

    if mesh is None:
        return nearest(blocks, centroids)
    mine, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
    found = jax.shard_map(
        nearest, mesh=mesh, in_specs=(mine, whole), out_specs=mine, check_vma=False
    )(blocks, centroids)
    # Gathered, so that every host of a pod can read all rows.
    return jax.lax.with_sharding_constraint(found, NamedSharding(mesh, whole))


def _sums(rows, assigned, count) -> tuple[np.ndarray, np.ndarray]:
    """(sum [k, d] float64, number [k]) of the rows of each cluster."""
    sizes = np.bincount(assigned, minlength=count)
    sums = np.zeros((count, rows.shape[1]))
    filled = sizes > 0
    starts = (np.cumsum(sizes) - sizes)[filled]
    order = np.argsort(assigned, kind="stable")
    sums[filled] = np.add.reduceat(rows[order], starts, axis=0, dtype=np.float64)
    return sums, sizes


def _refilled(rows, assigned, means, sizes) -> np.ndarray:
    """The means, those of empty clusters at the rows that are farthest from theirs."""
    empty = np.flatnonzero(sizes == 0)
    if empty.size:
        products = np.einsum("nd,nd->n", rows, means[assigned])
        distances = np.square(means).sum(axis=1)[assigned] - 2 * products
        means[empty] = rows[np.argsort(-distances, kind="stable")[: empty.size]]
    return means
