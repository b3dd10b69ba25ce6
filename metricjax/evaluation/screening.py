"""Which gallery rows can be among the k nearest, found with coarse products on CPU.

Where the processor multiplies bfloat16 matrices (Intel's AMX) it does so several times
faster than float32 ones. Rows q and g less their common mean m, rounded to bfloat16,
are q' and g', with residuals r = (q - m) - q' and s = (g - m) - g'; then

    <q, g> = <q', g'> + <r, g'> + <q - m, s> + <m, g - m> + a number of q alone,

and by Cauchy and Schwarz the second and third terms are at most |r| |g'| + |q - m| |s|,
of which all lengths are known. With the errors of float32 sums that bounds how far the
coarse similarity <q', g'> + <m, g - m> can be off, for each query. Whatever lies lower
than the k-th best by more than twice the bound cannot be among the k nearest; what is
left, a few rows more than k, is compared exactly (`similarity.py`).

Coarse similarities are never sorted nor kept: gallery rows are dealt to groups, row n
to group n mod G, and of a group the best similarity, its row and the second best are
carried along. Where the second best of a group cannot be excluded, all of the group is
compared; where too much would be, the query is left `open`, for the caller to search
exactly. So a bad bound costs time and never a neighbour.
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
"""The gallery is padded to a multiple; groups are a power of two up to it."""

LEAST_GROUPS = 1024

GROUPS_PER_PLACE = 8
"""Groups for each of the best that are looked at: few of them share a group."""

LEAST_QUERIES = 256
"""For fewer it is not worth making the gallery ready."""

MOST_SLOTS = 2**12
"""Rows of a group: their numbers take the lowest bits of float32 numbers."""

ROWS_PER_QUERY = 1024
"""Compared exactly at most; beyond, searching the whole gallery is faster."""

# Twice the unit roundoff of float32, for adders that do not round to nearest.
_ROUNDOFF = 2.0**-23
# A coarse similarity far below every true one; finite, as its last bits are replaced.
# (Of negative numbers the bits are in the opposite order, still below all others'.)
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


class Found(NamedTuple):
    """Gallery rows that each query was compared with, the best first.

    All that is as near as the k-th, or nearer, is there, but for queries that are open.

    Attributes:
        similarities: [p] float32, exact, query after query, in descending order.
        rows: [p] int64; of equal similarities the lowest row first.
        counts: [q] how many there are of each query; 0 where it is open.
    """

    similarities: np.ndarray
    rows: np.ndarray
    counts: np.ndarray


class Screen:
    """A gallery made ready for coarse products."""

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
            # As whole numbers: in a loop over bfloat16 arrays XLA makes them float32.
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

    def find(
        self, queries: np.ndarray, own_index: np.ndarray, k: int, coarse: Coarse
    ) -> Found:
        """Compares queries [q, d] exactly with all that can be among their k nearest.

        Args:
            queries: rows on the grid, those that `coarse` came of.
            own_index: [q] gallery row that is left out, or -1.
            k: how many are wanted.
            coarse: what `launch` gave, in numpy, of these queries.
        """
        groups, _ = layout(k)
        slots = len(self._factors) // groups
        rows = (coarse.best.view(np.int32) & _lowest_bits(slots)) * groups
        rows += coarse.groups
        bound = self._bound(coarse, slots)

        # The own row is no neighbour, so the k-th best of the others is asked for.
        others = np.where(rows == own_index[:, None], -np.inf, coarse.best)
        kth = -np.partition(-others, k - 1, axis=1)[:, k - 1]
        least = (kth - 2 * bound)[:, None]
        among = coarse.best >= least
        whole = among & (coarse.second >= least)
        most = among.sum(axis=1) + slots * whole.sum(axis=1)
        closed = (coarse.best[:, -1] < least[:, 0]) & (most <= ROWS_PER_QUERY)

        query, place = np.nonzero(among & ~whole & closed[:, None])
        single = query, rows[query, place]
        query, place = np.nonzero(whole & closed[:, None])
        members = coarse.groups[query, place][:, None] + groups * np.arange(slots)
        expanded = np.repeat(query, slots), members.ravel()
        query = np.concatenate([single[0], expanded[0]])
        row = np.concatenate([single[1], expanded[1]])
        kept = (row < len(self.rows)) & (row != own_index[query])
        key = np.sort(query[kept] * np.int64(len(self.rows)) + row[kept])
        query, row = np.divmod(key, len(self.rows))
        counts = np.bincount(query, minlength=len(queries))
        scores = similarity.of_pairs(queries, self.rows, counts, row)
        order = np.lexsort((-scores, query))
        return Found(scores[order], row[order], counts)

    def _bound(self, coarse: Coarse, slots: int) -> np.ndarray:
        """[q] how far a coarse similarity is off at most, but for a number of q."""
        width = self.rows.shape[1]
        # All are moved up by `largest` to be positive, so that is added twice.
        lengths = coarse.lengths.astype(np.float64)
        residuals = coarse.residuals.astype(np.float64)
        largest = lengths * self._length + self._largest_bias
        sums = width * _ROUNDOFF * lengths * self._length
        rounded = residuals * self._length + (lengths + residuals) * self._residual
        packed = (_lowest_bits(slots) + 4) * _ROUNDOFF * (3 * largest + 1e-5)
        # The last factor is for lengths, which are float32 sums too.
        return (rounded + sums + packed + _ROUNDOFF) * (1 + 4 * width * _ROUNDOFF)


def layout(k: int) -> tuple[int, int]:
    """How many groups there are and how many of the best are looked at, for k."""
    places = -(-(k + k // 2 + 33) // 32) * 32
    groups = max(LEAST_GROUPS, 1 << (GROUPS_PER_PLACE * places - 1).bit_length())
    return groups, places


def worthwhile(queries: int, gallery: int, k: int) -> bool:
    """Whether so many queries pay for a gallery of so many rows being made ready."""
    groups, _ = layout(k)
    fits = groups <= MOST_GROUPS and 2 * groups <= gallery <= MOST_SLOTS * groups
    return fits and queries >= LEAST_QUERIES


@cache
def dtype() -> jnp.dtype:
    """Of coarse factors: bfloat16 where the processor has matrix units for it."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        flags = ()
    return jnp.dtype(jnp.bfloat16 if "amx_bf16" in flags else jnp.float32)


def _lowest_bits(slots: int) -> int:
    """A mask of the bits that number a group's rows."""
    return (1 << max(slots - 1, 1).bit_length()) - 1


@partial(jax.jit, static_argnames="dtype")
def _rounded(rows, mean, *, dtype):
    """Rows less the mean in `dtype`, their lengths, and bounds on what was lost."""
    rows = rows - mean
    if dtype == jnp.bfloat16:
        # Not a conversion there and back, which a compiler may leave out.
        kept = lax.reduce_precision(rows, exponent_bits=8, mantissa_bits=7)
    else:
        kept = rows
    lengths = jnp.linalg.norm(kept, axis=-1)
    residuals = jnp.linalg.norm(rows - kept, axis=-1) + _ROUNDOFF * lengths
    return kept.astype(dtype), lengths, residuals


@partial(jax.jit, static_argnames=("groups", "places", "mesh"))
def _coarse(queries, *gallery, groups, places, mesh):
    """`Coarse` of a block of queries; over a mesh each device takes its own."""
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
    # Gathered, so that every host can read all rows.
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
    narrow = factors.dtype == jnp.uint16
    dtype = jnp.bfloat16 if narrow else jnp.float32
    kept, lengths, residuals = _rounded(queries, mean, dtype=dtype)
    # Positive float32 numbers are in the order of their bits, and whole numbers are
    # compared in fewer instructions.
    up = (1.01 * (lengths * length + largest_bias) + 1e-6)[:, None]
    slots = len(factors) // groups
    mask = _lowest_bits(slots)

    def fold(carried, part):
        slot, rows, add = part
        products = lax.dot_general(
            kept,
            lax.bitcast_convert_type(rows, dtype),
            (((1,), (1,)), ((), ())),
            precision=None if narrow else lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )
        best, second = carried
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
