"""All pairs of n embeddings, compared tile by tile and counted, for `verification`.

Memory is O(n) and a few tiles, never O(n^2).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from metricjax.errors import InputError
from metricjax.evaluation.labels import checked_labels
from metricjax.evaluation.rows import unit_rows

TILE = 1024
"""Rows and columns of a tile of pairs."""

LEVELS = 2**15
BINS = 2 * LEVELS + 1
"""Bins of the similarities -1..1; rounding errors beyond go to the outermost bins."""

DIFFERENT, SAME = 0, 1
"""The kinds of pairs: of different classes, of the same class."""


class Values(NamedTuple):
    """Distinct similarities, ascending, and how many pairs of each kind have them."""

    similarities: Float[np.ndarray, " v"]
    counts: Int[np.ndarray, "2 v"]

    def above(self) -> Int[np.ndarray, "2 v"]:
        """Number of pairs at or above each similarity, by kind."""
        return np.cumsum(self.counts[:, ::-1], axis=1)[:, ::-1]


class Pairs:
    """All pairs of some rows, compared tile by tile.

    Every tile is a matrix product of one shape, padding included, so the similarity of
    two rows is bit-equal in every pass and wherever they are. The passes must agree:
    the first finds the bin of an answer, the second the value in it.
    """

    def __init__(self, embeddings, labels):
        rows = unit_rows(embeddings, "embeddings")
        labels = checked_labels(labels, "labels", len(rows))
        self.labels = np.unique(labels, return_inverse=True)[1]
        self.class_sizes = np.bincount(self.labels)
        count = len(rows)
        self.same = self.class_sizes * (self.class_sizes - 1) // 2
        self.different = self.class_sizes * (count - self.class_sizes)
        self.sizes = {
            "same": int(self.same.sum()),
            "different": int(self.different.sum()) // 2,
        }
        if not self.sizes["different"]:
            raise InputError(
                f"all {count} images are of one class: thresholds need pairs of "
                "different classes, so give images of two classes or more."
            )
        if not self.sizes["same"]:
            raise InputError(
                f"none of the {count} images has another of its class: thresholds need "
                "pairs of the same class, so give two images of some class."
            )
        padding = -count % TILE
        sides = (
            np.pad(rows, ((0, padding), (0, 0))),
            np.pad(self.labels, (0, padding)).astype(np.int32),
            np.pad(np.arange(count), (0, padding), constant_values=-1).astype(np.int32),
        )
        self._tiles = [
            tuple(jnp.asarray(side[start : start + TILE]) for side in sides)
            for start in range(0, count, TILE)
        ]

    def histogram(self) -> Int[np.ndarray, "2 bins"]:
        """Number of pairs by kind and bin."""
        counts = np.zeros(2 * BINS + 1, np.int64)
        for _, _, (_, codes) in self._compared():
            counts += np.bincount(np.asarray(codes).ravel(), minlength=len(counts))
        return counts[:-1].reshape(2, BINS)

    def values(self, bins: set[int]) -> dict[int, Values]:
        """The distinct similarities in some bins."""
        wanted = np.zeros(2 * BINS + 1, bool)
        for kind in (DIFFERENT, SAME):
            wanted[[kind * BINS + one for one in bins]] = True
        merged = np.zeros(0, np.float32), np.zeros((2, 0), np.int64)
        for _, _, (similarities, codes) in self._compared():
            codes = np.asarray(codes)
            chosen = wanted[codes]
            some = np.asarray(similarities)[chosen]
            kinds = np.stack([codes[chosen] < BINS, codes[chosen] >= BINS])
            merged = _merged(merged, (some, kinds.astype(np.int64)))
        similarities, counts = merged
        bin_of = np.asarray(_bin_of(similarities))
        return {
            one: Values(similarities[bin_of == one], counts[:, bin_of == one])
            for one in bins
        }

    def matches(self, thresholds: Sequence[float]) -> Int[np.ndarray, "2 t c"]:
        """Number of pairs called the same, by kind, threshold and class.

        A pair of different classes counts for both classes.
        """
        at = jnp.asarray(np.asarray(thresholds, np.float32))
        total = np.zeros((2, len(at), len(self._tiles) * TILE), np.int64)
        for left, right, compared in self._compared() if len(at) else ():
            down, across = (np.asarray(part) for part in _count(*compared, at))
            total[:, :, left * TILE :][:, :, :TILE] += down
            total[DIFFERENT, :, right * TILE :][:, :TILE] += across
        of_classes = np.zeros((2, len(at), len(self.class_sizes)), np.int64)
        rows = total[:, :, : len(self.labels)]
        np.add.at(of_classes, (slice(None), slice(None), self.labels), rows)
        return of_classes

    def _compared(self) -> Iterator[tuple[int, int, tuple[Array, Array]]]:
        """(row tile, column tile, `_compare` of them), on and above the diagonal.

        The next tile computes while the caller works on this one.
        """
        waiting = None
        for left in range(len(self._tiles)):
            for right in range(left, len(self._tiles)):
                running = _compare(*self._tiles[left], *self._tiles[right])
                if waiting is not None:
                    yield waiting
                waiting = left, right, running
        yield waiting


@jax.jit
def _compare(left, left_labels, left_order, right, right_labels, right_order):
    """Similarities [t, t], and for each pair its bin, plus `BINS` for the same class.

    Entries that are no pair (padding, or the later row first) get the code 2 `BINS`.
    """
    similarities = jnp.matmul(left, right.T, precision=jax.lax.Precision.HIGHEST)
    pair = (left_order[:, None] < right_order) & (left_order >= 0)[:, None]
    same = left_labels[:, None] == right_labels
    codes = _bin_of(similarities) + jnp.where(same, BINS, 0)
    return similarities, jnp.where(pair, codes, 2 * BINS)


def _bin_of(similarities) -> Int[Array, "..."]:
    """The bin of a similarity; exact and monotone, as `LEVELS` is a power of two."""
    scaled = jnp.floor(jnp.clip(similarities, -1.0, 1.0) * LEVELS)
    return scaled.astype(jnp.int32) + LEVELS


@jax.jit
def _count(similarities, codes, thresholds):
    """Pairs called the same per row, [2, k, t] by kind; those of different classes also
    per column, since they count for both of their classes."""

    def at(threshold):
        match = similarities >= threshold
        different, same = match & (codes < BINS), match & (codes >= BINS)
        same &= codes < 2 * BINS
        rows = jnp.stack([different.sum(1), same.sum(1)])
        return rows, different.sum(0)

    rows, columns = jax.lax.map(at, thresholds)
    return rows.swapaxes(0, 1), columns


def _merged(first, second):
    """The distinct values of both, and the sums of their counts [2, v]."""
    values = np.concatenate([first[0], second[0]])
    distinct, place = np.unique(values, return_inverse=True)
    counts = np.concatenate([first[1], second[1]], axis=1)
    sums = [np.bincount(place, kind, minlength=len(distinct)) for kind in counts]
    return distinct, np.stack(sums).astype(np.int64)
