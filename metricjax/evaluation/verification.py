"""Same or different? Thresholds of similarity over all pairs, exact and in blocks.

Every pair of images is looked at, in tiles of `TILE` x `TILE` products, so the memory
in use is O(n) and never O(n^2). A first pass counts the pairs in bins of similarity; a
second looks only into the bins in which an answer lies, and finds it to the last bit.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from metricjax.errors import InputError
from metricjax.evaluation.intervals import bootstrap_of_pairs, bootstrap_of_ratios
from metricjax.evaluation.labels import checked_labels
from metricjax.evaluation.neighbors import unit_rows

FALSE_MATCH_RATES = (0.1, 0.01, 1e-3, 1e-4)

TILE = 1024
"""Rows and columns of the pairs that are compared at a time."""

LEAST_FALSE_MATCHES = 30
"""False matches that a rate must stand on: with 30 it is known within about 30%, 9
times of 10 (Doddington et al., The NIST speaker recognition evaluation, 2000)."""

POINTS = 60
"""Points of a curve."""

_LEVELS = 2**15
_BINS = 2 * _LEVELS + 1  # of -1..1; what rounding leaves outside is in the outermost
_DIFFERENT, _SAME = 0, 1


def calibrate(
    embeddings,
    labels,
    *,
    false_match_rates: Sequence[float] = FALSE_MATCH_RATES,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict:
    """The similarity from which two images are called the same, for wanted error rates.

    The pairs are all {i, j} of two different rows, each once. A pair is of the same
    class where the labels are equal, otherwise of different ones, and is called the
    same where its similarity, the dot product in float32, is at least the threshold t
    (inclusive). With S and D all pairs of the same and of different classes,

        false match rate  FMR(t) = |{p in D: s(p) >= t}| / |D|
        true match rate   TMR(t) = |{p in S: s(p) >= t}| / |S|.

    The threshold of a wanted rate r is the smallest float32 t with FMR(t) <= r: no pair
    of equal similarity is split, so FMR(t) may be below r. A rate is left out where
    fewer than `LEAST_FALSE_MATCHES` pairs of D may lie above its threshold, r |D| < 30.
    The equal error rate is where the line through all points (FMR, 1 - TMR) of the
    distinct similarities crosses FMR = 1 - TMR. Every pair counts the same, so a class
    of many images has much of S. Nothing depends on the order of the rows.

    There are no queries and no gallery here: "same or different" is asked of two images
    and has no direction. Rows that are not to be compared are left out by the caller.

    Args:
        embeddings: [n, d] floats, rows of unit length within 1e-3; numpy or JAX.
        labels: [n] integers.
        false_match_rates: the rates r, each in (0, 1).
        bootstrap: resamples of the intervals; 0 leaves them out.
        seed: of the resampling.

    Returns:
        A dict of `pairs` ({"same": |S|, "different": |D|}), `equal_error_rate`,
        `thresholds`, a dict for each rate that there are pairs for, from the largest:
        `false_match_rate` (r), `similarity` (t), `true_match_rate` (TMR(t)), `interval`
        of it (95%, over resampled classes, at this t), `pairs`; `too_few`, the rates
        that were left out; and `curve`, lists of `similarity`, `false_match_rate` and
        `true_match_rate` at up to `POINTS` similarities.

    Raises:
        InputError: rows that are not finite or not of unit length, labels that do not
            fit, no pair of one of the two kinds, or a rate outside (0, 1).
    """
    rates = _checked_rates(false_match_rates)
    pairs = _Pairs(embeddings, labels)
    enough = [rate for rate in rates if pairs.allowed(rate) >= LEAST_FALSE_MATCHES]
    counts = pairs.histogram()
    above = _above(counts)
    ranks = [pairs.allowed(rate) for rate in enough]
    # The first bin from above with more pairs than allowed holds the one too many.
    bins = [int(np.flatnonzero(above[_DIFFERENT] > rank)[-1]) for rank in ranks]
    crossing = _crossing(above)
    found = pairs.values({*bins, crossing})
    thresholds = []
    for rank, one in zip(ranks, bins, strict=True):
        values = found[one]
        left = rank - int(above[_DIFFERENT][one + 1])
        excluded = values.similarities[values.above()[_DIFFERENT] > left][-1]
        thresholds.append(float(np.nextafter(excluded, np.float32(np.inf))))
    reached = _rates_at(pairs, thresholds, pairs.matches(thresholds), bootstrap, seed)
    wanted = ("true_match_rate", "interval")
    return {
        "pairs": pairs.sizes,
        "equal_error_rate": _equal_error(above, crossing, found[crossing]),
        "thresholds": [
            {"false_match_rate": rate, "similarity": one["similarity"]}
            | {name: one[name] for name in wanted if name in one}
            | {"pairs": pairs.sizes}
            for rate, one in zip(enough, reached, strict=True)
        ],
        "too_few": [rate for rate in rates if rate not in enough],
        "curve": _curve(above),
    }


def reached(
    embeddings,
    labels,
    similarities: Sequence[float],
    *,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict:
    """What given thresholds reach on other images, pairs and rates as in `calibrate`.

    Args:
        embeddings, labels, bootstrap, seed: see `calibrate`.
        similarities: the thresholds.

    Returns:
        `pairs`, `equal_error_rate` and `curve` as `calibrate` has them, and `reached`,
        a dict for each threshold: `similarity`, `false_match_rate`, its
        `false_match_interval`, `true_match_rate` and its `interval`, 95% over resampled
        classes.

    Raises:
        InputError: as for `calibrate`.
    """
    pairs = _Pairs(embeddings, labels)
    above = _above(pairs.histogram())
    crossing = _crossing(above)
    found = pairs.values({crossing})[crossing]
    matches = pairs.matches(similarities)
    return {
        "pairs": pairs.sizes,
        "equal_error_rate": _equal_error(above, crossing, found),
        "reached": _rates_at(pairs, similarities, matches, bootstrap, seed),
        "curve": _curve(above),
    }


class _Values(NamedTuple):
    """Distinct similarities, ascending, and how many pairs of each kind have them."""

    similarities: Float[np.ndarray, " v"]
    counts: Int[np.ndarray, "2 v"]

    def above(self) -> Int[np.ndarray, "2 v"]:
        """Pairs of at least each similarity."""
        return np.cumsum(self.counts[:, ::-1], axis=1)[:, ::-1]


class _Pairs:
    """All pairs of some rows, compared tile by tile.

    Every tile is a product of one shape, padding included, so that the similarity of
    two rows is the same to the bit wherever they stand and in every pass.
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

    def allowed(self, rate: float) -> int:
        """How many pairs of different classes are that share, rounded down."""
        return math.floor(rate * self.sizes["different"] * (1 + 1e-12))

    def histogram(self) -> Int[np.ndarray, "2 bins"]:
        """Pairs by kind and bin."""
        counts = np.zeros(2 * _BINS + 1, np.int64)
        for _, _, (_, codes) in self._compared():
            counts += np.bincount(np.asarray(codes).ravel(), minlength=len(counts))
        return counts[:-1].reshape(2, _BINS)

    def values(self, bins: set[int]) -> dict[int, _Values]:
        """The distinct similarities within some bins."""
        wanted = np.zeros(2 * _BINS + 1, bool)
        for kind in (_DIFFERENT, _SAME):
            wanted[[kind * _BINS + one for one in bins]] = True
        found = np.zeros(0, np.float32), np.zeros((2, 0), np.int64)
        for _, _, (similarities, codes) in self._compared():
            codes = np.asarray(codes)
            chosen = wanted[codes]
            some = np.asarray(similarities)[chosen]
            kinds = np.stack([codes[chosen] < _BINS, codes[chosen] >= _BINS])
            found = _merged(found, (some, kinds.astype(np.int64)))
        similarities, counts = found
        of = np.asarray(_bin_of(similarities))
        return {
            one: _Values(similarities[of == one], counts[:, of == one]) for one in bins
        }

    def matches(self, thresholds: Sequence[float]) -> Int[np.ndarray, "2 t c"]:
        """Pairs that are called the same, by kind, threshold and class.

        A pair of different classes counts in both of them.
        """
        at = jnp.asarray(np.asarray(thresholds, np.float32))
        total = np.zeros((2, len(at), len(self._tiles) * TILE), np.int64)
        for left, right, compared in self._compared() if len(at) else ():
            down, across = (np.asarray(part) for part in _count(*compared, at))
            total[:, :, left * TILE :][:, :, :TILE] += down
            total[_DIFFERENT, :, right * TILE :][:, :TILE] += across
        of_classes = np.zeros((2, len(at), len(self.class_sizes)), np.int64)
        rows = total[:, :, : len(self.labels)]
        np.add.at(of_classes, (slice(None), slice(None), self.labels), rows)
        return of_classes

    def _compared(self) -> Iterator[tuple[int, int, tuple[Array, Array]]]:
        """(row tile, column tile, `_compare` of them), above the diagonal and on it.

        The next tile is already computing while the caller works on this one.
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
    """Similarities [t, t], and for each pair its bin, plus `_BINS` for the same class.

    What is no pair (padding, or not the earlier row first) has the code 2 `_BINS`.
    """
    similarities = jnp.matmul(left, right.T, precision=jax.lax.Precision.HIGHEST)
    pair = (left_order[:, None] < right_order) & (left_order >= 0)[:, None]
    same = left_labels[:, None] == right_labels
    codes = _bin_of(similarities) + jnp.where(same, _BINS, 0)
    return similarities, jnp.where(pair, codes, 2 * _BINS)


def _bin_of(similarities) -> Int[Array, "..."]:
    """Of -1..1; monotone, and exact, for `_LEVELS` is a power of two."""
    scaled = jnp.floor(jnp.clip(similarities, -1.0, 1.0) * _LEVELS)
    return scaled.astype(jnp.int32) + _LEVELS


@jax.jit
def _count(similarities, codes, thresholds):
    """Pairs called the same in each row, [2, k, t] by kind; the different by column."""

    def at(threshold):
        match = similarities >= threshold
        different, same = match & (codes < _BINS), match & (codes >= _BINS)
        same &= codes < 2 * _BINS
        rows = jnp.stack([different.sum(1), same.sum(1)])
        return rows, different.sum(0)

    rows, columns = jax.lax.map(at, thresholds)
    return rows.swapaxes(0, 1), columns


def _merged(found, more):
    """Distinct values of both and the sums of their counts [2, v]."""
    values = np.concatenate([found[0], more[0]])
    distinct, place = np.unique(values, return_inverse=True)
    counts = np.concatenate([found[1], more[1]], axis=1)
    sums = [np.bincount(place, kind, minlength=len(distinct)) for kind in counts]
    return distinct, np.stack(sums).astype(np.int64)


def _above(counts: Int[np.ndarray, "2 bins"]) -> Int[np.ndarray, "2 bins+1"]:
    """Pairs of each kind in a bin and all above it; 0 above the last."""
    sums = np.cumsum(counts[:, ::-1], axis=1)[:, ::-1]
    return np.pad(sums, ((0, 0), (0, 1)))


def _errors(above, total):
    """FMR and 1 - TMR."""
    return above[_DIFFERENT] / total[_DIFFERENT], 1 - above[_SAME] / total[_SAME]


def _crossing(above: Int[np.ndarray, "2 bins+1"]) -> int:
    """The bin in which the two errors become equal."""
    false_matches, misses = _errors(above, above[:, 0])
    return int(np.flatnonzero(false_matches >= misses)[-1])


def _equal_error(above, crossing: int, values: _Values) -> float:
    counts = above[:, crossing + 1][:, None] + values.above()
    before = np.concatenate([counts, above[:, crossing + 1][:, None]], axis=1)
    false_matches, misses = _errors(before, above[:, 0])
    last = np.flatnonzero(false_matches >= misses)[-1]
    short, over = ((misses - false_matches)[last + 1], (false_matches - misses)[last])
    part = short / (short + over)
    step = false_matches[last] - false_matches[last + 1]
    return float(false_matches[last + 1] + part * step)


def _curve(above: Int[np.ndarray, "2 bins+1"]) -> dict[str, list[float]]:
    """Rates at the bottoms of some bins, chosen by the false match rate.

    Half of the rates are even on a log scale, half on a plain one.
    """
    rates = above / above[:, :1]
    least = min(LEAST_FALSE_MATCHES / above[_DIFFERENT, 0], 1.0)
    half = POINTS // 2
    wanted = np.append(np.geomspace(least, 1.0, half), np.linspace(least, 1.0, half))
    # The highest bin of at least the wanted rate; the lowest has the rate 1.
    below = rates[_DIFFERENT][:, None] < wanted
    bins = np.unique(np.argmax(below, axis=0) - 1)
    return {
        "similarity": ((bins - _LEVELS) / _LEVELS).tolist(),
        "false_match_rate": rates[_DIFFERENT, bins].tolist(),
        "true_match_rate": rates[_SAME, bins].tolist(),
    }


def _rates_at(pairs: _Pairs, thresholds, matches, bootstrap, seed) -> list[dict]:
    """The rates that thresholds reach, with intervals."""
    resampling = {"resamples": bootstrap, "seed": seed}
    sums = matches[_SAME].T
    true_rates = sums.sum(axis=0) / pairs.sizes["same"]
    false_rates = matches[_DIFFERENT].sum(axis=1) / 2 / pairs.sizes["different"]
    rows = [
        {"similarity": float(np.float32(similarity)), "false_match_rate": float(false)}
        | {"true_match_rate": float(true)}
        for similarity, false, true in zip(
            thresholds, false_rates, true_rates, strict=True
        )
    ]
    if not bootstrap or not rows:
        return rows
    many = pairs.same > 0
    true = bootstrap_of_ratios(sums[many], pairs.same[many], **resampling)
    false = bootstrap_of_pairs(matches[_DIFFERENT].T, pairs.different, **resampling)
    for row, interval, false_interval in zip(rows, true, false, strict=True):
        row |= {"interval": interval, "false_match_interval": false_interval}
    return rows


def _checked_rates(rates: Sequence[float]) -> list[float]:
    wrong = [rate for rate in rates if not 0 < rate < 1]
    if wrong or not rates:
        raise InputError(
            f"false_match_rates has {wrong[0] if wrong else 'no rate'}: give shares "
            "above 0 and below 1, such as 0.01 for one pair in a hundred."
        )
    return sorted({float(rate) for rate in rates}, reverse=True)
