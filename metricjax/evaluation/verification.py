"""Verification (same or different?): similarity thresholds, exact over all pairs.

The pairs are all {i, j} of two different rows, each once. A pair is of the same class
if its labels are equal, otherwise of different classes, and is called the same if its
similarity, the dot product in float32, is at least the threshold t (inclusive). With S
and D all pairs of the same and of different classes,

    false match rate  FMR(t) = |{p in D: s(p) >= t}| / |D|
    true match rate   TMR(t) = |{p in S: s(p) >= t}| / |S|.

The threshold of a rate r is the smallest float32 t with FMR(t) <= r: pairs of equal
similarity are never split, so FMR(t) may be below r. A rate is left out if fewer than
`LEAST_FALSE_MATCHES` pairs of D may be above its threshold, r |D| < 30. The equal error
rate is where the line through all points (FMR, 1 - TMR) of the distinct similarities
crosses FMR = 1 - TMR. Every pair counts the same, so a large class has a large share of
S. Nothing depends on the order of the rows. There are no queries and no gallery here:
"same or different" has no direction. The caller leaves out rows not to be compared.

A first pass counts the pairs in bins of similarity. A second pass sorts only the bins
that contain an answer, and finds it to the last bit.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from metricjax.errors import InputError
from metricjax.evaluation.intervals import bootstrap_of_pairs, bootstrap_of_ratios
from metricjax.evaluation.pairs import DIFFERENT, LEVELS, SAME, Pairs, Values

FALSE_MATCH_RATES = (0.1, 0.01, 1e-3, 1e-4)

LEAST_FALSE_MATCHES = 30
"""False matches that a rate must stand on: with 30 it is known within about 30%, 9
times of 10 (Doddington et al., The NIST speaker recognition evaluation, 2000)."""

POINTS = 60
"""Points of a curve."""


def calibrate(
    embeddings,
    labels,
    *,
    false_match_rates: Sequence[float] = FALSE_MATCH_RATES,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict:
    """Similarity thresholds for given false match rates, defined in this module.

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

    >>> rows, labels = np.eye(8)[np.arange(40) % 8], np.arange(40) % 8
    >>> calibrate(rows, labels, bootstrap=0)["pairs"]
    {'same': 80, 'different': 700}
    """
    rates = _checked_rates(false_match_rates)
    pairs = Pairs(embeddings, labels)
    enough = [rate for rate in rates if _allowed(pairs, rate) >= LEAST_FALSE_MATCHES]
    counts = pairs.histogram()
    above = _above(counts)
    ranks = [_allowed(pairs, rate) for rate in enough]
    # The first bin from above with more pairs than allowed holds the one too many.
    bins = [int(np.flatnonzero(above[DIFFERENT] > rank)[-1]) for rank in ranks]
    crossing = _crossing(above)
    values = pairs.values({*bins, crossing})
    thresholds = _thresholds(above, ranks, [values[one] for one in bins], bins)
    rates_at = _rates_at(pairs, thresholds, pairs.matches(thresholds), bootstrap, seed)
    names = ("similarity", "true_match_rate", "interval")
    return {
        "pairs": pairs.sizes,
        "equal_error_rate": _equal_error(above, crossing, values[crossing]),
        "thresholds": [
            {"false_match_rate": rate}
            | {name: one[name] for name in names if name in one}
            | {"pairs": pairs.sizes}
            for rate, one in zip(enough, rates_at, strict=True)
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
    """The error rates of given thresholds on other images; rates as in `calibrate`.

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
    pairs = Pairs(embeddings, labels)
    above = _above(pairs.histogram())
    crossing = _crossing(above)
    values = pairs.values({crossing})[crossing]
    matches = pairs.matches(similarities)
    return {
        "pairs": pairs.sizes,
        "equal_error_rate": _equal_error(above, crossing, values),
        "reached": _rates_at(pairs, similarities, matches, bootstrap, seed),
        "curve": _curve(above),
    }


def _thresholds(above, ranks, values: Sequence[Values], bins) -> list[float]:
    """The smallest float32 with at most `rank` pairs of different classes above it.

    It is the float after the similarity of the one pair too many, which is in the bin
    of the same position and has the exact `values`.
    """
    thresholds = []
    for rank, exact, one in zip(ranks, values, bins, strict=True):
        left = rank - int(above[DIFFERENT][one + 1])
        excluded = exact.similarities[exact.above()[DIFFERENT] > left][-1]
        thresholds.append(float(np.nextafter(excluded, np.float32(np.inf))))
    return thresholds


def _allowed(pairs: Pairs, rate: float) -> int:
    """The number of different-class pairs at that rate, rounded down."""
    return math.floor(rate * pairs.sizes["different"] * (1 + 1e-12))


def _above(counts: Int[np.ndarray, "2 bins"]) -> Int[np.ndarray, "2 bins+1"]:
    """Pairs of each kind in a bin and all above it; 0 above the last."""
    sums = np.cumsum(counts[:, ::-1], axis=1)[:, ::-1]
    return np.pad(sums, ((0, 0), (0, 1)))


def _errors(above, total):
    """FMR and 1 - TMR."""
    return above[DIFFERENT] / total[DIFFERENT], 1 - above[SAME] / total[SAME]


def _crossing(above: Int[np.ndarray, "2 bins+1"]) -> int:
    """The bin in which the two errors become equal."""
    false_matches, misses = _errors(above, above[:, 0])
    return int(np.flatnonzero(false_matches >= misses)[-1])


def _equal_error(above, crossing: int, values: Values) -> float:
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
    least = min(LEAST_FALSE_MATCHES / above[DIFFERENT, 0], 1.0)
    half = POINTS // 2
    wanted = np.append(np.geomspace(least, 1.0, half), np.linspace(least, 1.0, half))
    # The highest bin of at least the wanted rate; the lowest has the rate 1.
    below = rates[DIFFERENT][:, None] < wanted
    bins = np.unique(np.argmax(below, axis=0) - 1)
    return {
        "similarity": ((bins - LEVELS) / LEVELS).tolist(),
        "false_match_rate": rates[DIFFERENT, bins].tolist(),
        "true_match_rate": rates[SAME, bins].tolist(),
    }


def _rates_at(pairs: Pairs, thresholds, matches, bootstrap, seed) -> list[dict]:
    """The false and true match rates at thresholds, with intervals."""
    resampling = {"resamples": bootstrap, "seed": seed}
    sums = matches[SAME].T
    true_rates = sums.sum(axis=0) / pairs.sizes["same"]
    false_rates = matches[DIFFERENT].sum(axis=1) / 2 / pairs.sizes["different"]
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
    false = bootstrap_of_pairs(matches[DIFFERENT].T, pairs.different, **resampling)
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
