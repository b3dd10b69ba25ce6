"""Screening for exact search on CPU: coarse products exclude most gallery rows.

Where the processor multiplies bfloat16 matrices (Intel's AMX) it does so several times
faster than float32 ones. Let q' and g' be the rows q and g minus their common mean m,
rounded to bfloat16, with residuals r = (q - m) - q' and s = (g - m) - g'. Then

    <q, g> = <q', g'> + <r, g'> + <q - m, s> + <m, g - m> + a term of q alone,

and by Cauchy-Schwarz the second and third terms are at most |r| |g'| + |q - m| |s|,
whose lengths are all known. With the rounding errors of float32 sums this bounds, per
query, the error of the coarse similarity <q', g'> + <m, g - m>. Rows whose coarse
similarity is more than twice the bound below the k-th best cannot be among the k
nearest. The rest, a few rows more than k, are compared exactly (`similarity.py`).

Coarse similarities are neither sorted nor stored: gallery row n belongs to group
n mod G, and for each group only the best similarity, its row and the second best are
carried along. If the second best of a group cannot be excluded, the whole group is
compared. If that would be too many rows, the query stays `open` and the caller searches
the whole gallery. So a loose bound costs time, never a neighbour.
"""

from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from metricjax.evaluation import similarity

MOST_GROUPS = 4096
"""The gallery is padded to a multiple of this; the number of groups is a power of two
up to it."""

LEAST_GROUPS = 1024

GROUPS_PER_PLACE = 8
"""Groups per inspected place, so that few of the best rows share a group."""

LEAST_QUERIES = 256
"""Fewer queries do not pay for rounding the gallery."""

MOST_SLOTS = 2**12
"""Rows per group: their numbers replace the lowest bits of float32 similarities."""

ROWS_PER_QUERY = 1024
"""Rows compared exactly at most; beyond, searching the whole gallery is faster."""

# Twice the unit roundoff of float32, since matrix units may truncate their sums.
_ROUNDOFF = 2.0**-23
# A coarse similarity far below every true one, for padding. Finite, because replacing
# the last bits of an infinity would make it NaN. (The bits of negative numbers are in
# the opposite order, but still below those of all positive ones.)
_NOWHERE = -1e30


class Coarse(NamedTuple):
    """The best groups of each query.

    Attributes:
        best: [q, c] the best coarse similarity in each of c groups, in descending
            order; its lowest bits are the row's place in its group.
        second: [q, c] the second best of these groups, likewise.
        groups: [q, c] which groups they are.
        lengths: [q] |q'|.
        residuals: [q] at least |r|.
    """

    best: Float[Array, "q c"]
    second: Float[Array, "q c"]
    groups: Int[Array, "q c"]
    lengths: Float[Array, " q"]
    residuals: Float[Array, " q"]


class Candidates(NamedTuple):
    """Gallery rows that each query was compared with exactly, the best first.

    They include every row as near as the k-th, except for queries that are open.

    Attributes:
        similarities: [p] float32, exact, query after query, in descending order.
        rows: [p] int64; of equal similarities the lowest row first.
        counts: [q] number of rows per query; 0 if it is open.
    """

    similarities: np.ndarray
    rows: np.ndarray
    counts: np.ndarray


class Screen:
    """A gallery prepared for coarse products."""

    def __init__(self, rows: np.ndarray, dtype, place):
        """Rounds `rows` [n, d], which lie on the grid, to `dtype`.

        Args:
            rows: the gallery.
            dtype: bfloat16 or float32, that of the factors; sums are float32.
            place: `(array, replicated=bool) -> jax.Array`, puts it on the devices.
        """
        self.rows = rows
        count, width = rows.shape
        padded = -(-count // MOST_GROUPS) * MOST_GROUPS
        factors = np.zeros((padded, width), dtype)
        bias = np.full(padded, _NOWHERE, np.float32)
        mean = rows.mean(axis=0)
        exact_mean = mean.astype(np.float64)
        self._length = self._residual = 0.0
        for start in range(0, count, MOST_GROUPS):
            some = slice(start, min(start + MOST_GROUPS, count))
            factors[some], lengths, residuals = map(
                np.asarray, _rounded(rows[some], mean, dtype=dtype)
            )
            bias[some] = (rows[some].astype(np.float64) - exact_mean) @ exact_mean
            self._length = max(self._length, float(lengths.max()))
            self._residual = max(self._residual, float(residuals.max()))
        self._largest_bias = float(np.abs(bias[:count]).max())
        if dtype == jnp.bfloat16:
            # As integers: XLA hoists the conversion of bfloat16 arrays to float32 out
            # of the loop, which would undo the saving.
            factors = factors.view(np.uint16)
        self._mean = place(mean, replicated=True)
        self._factors = place(factors, replicated=True)
        self._bias = place(bias, replicated=True)

    def launch(self, queries: Array, k: int, mesh) -> Coarse:
        """Starts on a block of queries [q, d] on the devices of `mesh`, if any."""
        groups, places = layout(k)
        return _coarse(
            queries,
            self._mean,
            self._factors,
            self._bias,
            np.float32(self._length),
            np.float32(self._largest_bias),
            groups=groups,
            places=places,
            mesh=mesh,
        )

    def compare(
        self, queries: np.ndarray, own_index: np.ndarray, k: int, coarse: Coarse
    ) -> Candidates:
        """Compare queries exactly with every row that can be among their k nearest.

        Args:
            queries: [q, d] rows on the grid, those of `coarse`.
            own_index: [q] gallery row to exclude, or -1.
            k: number of neighbours.
            coarse: the result of `launch` for these queries, in numpy.
        """
        groups, _ = layout(k)
        slots = len(self._factors) // groups
        rows = (coarse.best.view(np.int32) & _lowest_bits(slots)) * groups
        rows += coarse.groups
        bound = self._bound(coarse, slots)

        # The own row is no neighbour, so take the k-th best of the others. Its true
        # similarity is at least kth - bound, and a row's is at most coarse + bound.
        others = np.where(rows == own_index[:, None], -np.inf, coarse.best)
        kth = -np.partition(-others, k - 1, axis=1)[:, k - 1]
        least = (kth - 2 * bound)[:, None]
        # `among`: the best row of the group may be a neighbour. `whole`: so may others
        # of the group, of which only an upper bound (the second best) is known.
        among = coarse.best >= least
        whole = among & (coarse.second >= least)
        most = among.sum(axis=1) + slots * whole.sum(axis=1)
        # If even the last group inspected could hold a neighbour, groups that were not
        # inspected could too, and the query stays open.
        closed = (coarse.best[:, -1] < least[:, 0]) & (most <= ROWS_PER_QUERY)

        query, place = np.nonzero(among & ~whole & closed[:, None])
        single = query, rows[query, place]
        query, place = np.nonzero(whole & closed[:, None])
        members = coarse.groups[query, place][:, None] + groups * np.arange(slots)
        expanded = np.repeat(query, slots), members.ravel()
        query = np.concatenate([single[0], expanded[0]])
        row = np.concatenate([single[1], expanded[1]])
        allowed = (row < len(self.rows)) & (row != own_index[query])  # No padding.
        key = np.sort(query[allowed] * np.int64(len(self.rows)) + row[allowed])
        query, row = np.divmod(key, len(self.rows))
        counts = np.bincount(query, minlength=len(queries))
        scores = similarity.of_pairs(queries, self.rows, counts, row)
        # Stable, and rows ascend within a query: ties are in the order of top_k.py.
        order = np.lexsort((-scores, query))
        return Candidates(scores[order], row[order], counts)

    def _bound(self, coarse: Coarse, slots: int) -> np.ndarray:
        """[q] largest error of a coarse similarity, up to the term of q alone."""
        width = self.rows.shape[1]
        # `_coarse_rows` adds about `largest` to make all similarities positive, so
        # they are at most 2 `largest`, and 3 with the rounding of the shift itself.
        lengths = coarse.lengths.astype(np.float64)
        residuals = coarse.residuals.astype(np.float64)
        largest = lengths * self._length + self._largest_bias
        sums = width * _ROUNDOFF * lengths * self._length
        rounded = residuals * self._length + (lengths + residuals) * self._residual
        packed = (_lowest_bits(slots) + 4) * _ROUNDOFF * (3 * largest + 1e-5)
        # The last factor covers the lengths, which are float32 sums themselves.
        return (rounded + sums + packed + _ROUNDOFF) * (1 + 4 * width * _ROUNDOFF)


def layout(k: int) -> tuple[int, int]:
    """(number of groups, how many of the best groups to inspect), for k."""
    places = -(-(k + k // 2 + 33) // 32) * 32
    groups = max(LEAST_GROUPS, 1 << (GROUPS_PER_PLACE * places - 1).bit_length())
    return groups, places


def worthwhile(queries: int, gallery: int, k: int) -> bool:
    """Whether screening pays for this many queries and gallery rows."""
    groups, _ = layout(k)
    fits = groups <= MOST_GROUPS and 2 * groups <= gallery <= MOST_SLOTS * groups
    return fits and queries >= LEAST_QUERIES


@cache
def dtype() -> jnp.dtype:
    """dtype of coarse factors: bfloat16 if the processor has matrix units for it."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        flags = ()
    return jnp.dtype(jnp.bfloat16 if "amx_bf16" in flags else jnp.float32)


def _lowest_bits(slots: int) -> int:
    """A mask of the lowest bits, which number the rows of a group."""
    return (1 << max(slots - 1, 1).bit_length()) - 1


@partial(jax.jit, static_argnames="dtype")
def _rounded(rows, mean, *, dtype):
    """Rows minus the mean in `dtype`, their lengths, and bounds on the residuals."""
    rows = rows - mean
    if dtype == jnp.bfloat16:
        # A conversion to bfloat16 and back might be optimised away; this is not.
        rounded = lax.reduce_precision(rows, exponent_bits=8, mantissa_bits=7)
    else:
        rounded = rows
    lengths = jnp.linalg.norm(rounded, axis=-1)
    residuals = jnp.linalg.norm(rows - rounded, axis=-1) + _ROUNDOFF * lengths
    return rounded.astype(dtype), lengths, residuals


@partial(jax.jit, static_argnames=("groups", "places", "mesh"))
def _coarse(queries, *gallery, groups, places, mesh):
    """`Coarse` of a block of queries, which the devices of a mesh share."""
    program = partial(_coarse_rows, groups=groups, places=places)
    if mesh is None:
        return program(queries, *gallery)
    mine, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
    coarse = jax.shard_map(
        program,
        mesh=mesh,
        in_specs=(mine, *(whole for _ in gallery)),
        out_specs=mine,
        check_vma=False,
    )(queries, *gallery)
    # Gather, so that every host can read all rows.
    return lax.with_sharding_constraint(coarse, NamedSharding(mesh, whole))


def _coarse_rows(
    queries: Float[Array, "q d"],
    mean: Float[Array, " d"],
    factors: Array,
    bias: Float[Array, " n"],
    length: Float[Array, ""],
    largest_bias: Float[Array, ""],
    *,
    groups: int,
    places: int,
) -> Coarse:
    """Scan over the slots: step s takes row s * groups + j of every group j."""
    narrow = factors.dtype == jnp.uint16
    dtype = jnp.bfloat16 if narrow else jnp.float32
    rounded, lengths, residuals = _rounded(queries, mean, dtype=dtype)
    # Positive float32 numbers have the order of their bits, and integer maxima take
    # fewer instructions. So shift all similarities up until they are positive.
    up = (1.01 * (lengths * length + largest_bias) + 1e-6)[:, None]
    slots = len(factors) // groups
    mask = _lowest_bits(slots)

    def fold(carried, part):
        slot, rows, add = part
        products = lax.dot_general(
            rounded,
            lax.bitcast_convert_type(rows, dtype),
            (((1,), (1,)), ((), ())),
            precision=None if narrow else lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )
        best, second = carried
        # The slot replaces the lowest bits, so one maximum tracks value and row.
        bits = lax.bitcast_convert_type(products + add + up, jnp.int32)
        bits = (bits & ~mask) | slot
        second = jnp.maximum(second, jnp.minimum(best, bits))
        return (jnp.maximum(best, bits), second), None

    parts = (
        jnp.arange(slots, dtype=jnp.int32),
        factors.reshape(slots, groups, -1),
        bias.reshape(slots, groups),
    )
    nothing = lax.bitcast_convert_type(
        jnp.full((len(queries), groups), 2 * _NOWHERE, jnp.float32), jnp.int32
    )
    (best, second), _ = lax.scan(fold, (nothing, nothing), parts)
    best, second = (
        lax.bitcast_convert_type(bits, jnp.float32) for bits in (best, second)
    )
    best, where = lax.top_k(best, places)
    second = jnp.take_along_axis(second, where, axis=1)
    return Coarse(best, second, where, lengths, residuals)
