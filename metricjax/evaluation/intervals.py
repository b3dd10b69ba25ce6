"""Confidence intervals: the bootstrap over classes, t-intervals over runs."""

from collections.abc import Iterator

import numpy as np
from scipy import special

COUNTS_PER_CHUNK = 2**22


def bootstrap_over_classes(
    values: np.ndarray,
    classes: np.ndarray,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> list[tuple[float, float]]:
    """Percentile intervals of means over queries, resampling whole classes.

    Queries of one class are dependent, so the class is the unit: each resample draws
    as many classes as there are, with replacement, and its statistic is

        sum of the queries' values / number of queries     in the drawn classes.

    It speaks of the choice of test classes, not of the noise between training seeds.

    Args:
        values: [q, m] float, m metrics of each query.
        classes: [q] int, the class of each query.
        resamples: how many resamples, >= 1.
        seed: the intervals are a function of it.
        level: coverage in (0, 1); 0.95 takes the 2.5th and the 97.5th percentile.

    Returns:
        m pairs (low, high). With a single class nothing is known of how classes
        differ, and the pair is (0.0, 1.0), the range of the metrics.

    Source:
        Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13
        (percentile interval), with classes as the sampled units.
    """
    values = np.asarray(values, np.float64)
    _, dense = np.unique(classes, return_inverse=True)
    sizes = np.bincount(dense)
    if len(sizes) < 2:
        return [(0.0, 1.0)] * values.shape[1]
    sums = np.stack([np.bincount(dense, column) for column in values.T], axis=1)
    return bootstrap_of_ratios(sums, sizes, resamples=resamples, seed=seed, level=level)


def bootstrap_of_ratios(
    sums: np.ndarray,
    sizes: np.ndarray,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> list[tuple[float, float]]:
    """Percentile intervals of `sum_c sums_c / sum_c sizes_c`, classes resampled.

    Args:
        sums: [c, m], m numbers of each class.
        sizes: [c], what each class counts, above 0.
        resamples, seed, level: see `bootstrap_over_classes`.

    Returns:
        m pairs (low, high); (0.0, 1.0) where there is a single class.
    """
    if len(sizes) < 2:
        return [(0.0, 1.0)] * sums.shape[1]
    statistics = [
        (times @ sums) / (times @ sizes)[:, None]
        for times in _resampled(len(sizes), resamples, seed)
    ]
    return _percentiles(np.concatenate(statistics), level)


def bootstrap_of_pairs(
    sums: np.ndarray,
    sizes: np.ndarray,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> list[tuple[float, float]]:
    """Intervals of a share of pairs of two classes, classes resampled.

    With `p` the share of all pairs and N their number, each resample draws as many
    classes as there are, with replacement, and its statistic is linear in how often,
    w_c, it drew class c:

        p + sum_c (w_c - 1) (sums_c - p sizes_c) / N,     within 0 and 1.

    A pair depends on two classes; this is the part of the share that each class alone
    explains, which is nearly all where there are many classes.

    Args:
        sums: [c, m], the pairs of interest that class c takes part in; a pair counts in
            both of its classes.
        sizes: [c], all pairs that it takes part in.
        resamples, seed, level: see `bootstrap_over_classes`.

    Returns:
        m pairs (low, high); (0.0, 1.0) where there are fewer than three classes.

    Source:
        Hajek projection of a statistic of pairs: van der Vaart, Asymptotic Statistics
        (1998), chapters 11 and 12.
    """
    if len(sizes) < 3:
        return [(0.0, 1.0)] * sums.shape[1]
    pairs = sizes.sum() / 2
    share = sums.sum(axis=0) / 2 / pairs
    parts = (sums - share * sizes[:, None]) / pairs
    statistics = [
        share + (times - 1) @ parts for times in _resampled(len(sizes), resamples, seed)
    ]
    return _percentiles(np.clip(np.concatenate(statistics), 0, 1), level)


def t_interval(values: np.ndarray, *, level: float = 0.95) -> tuple[float, float]:
    """Interval of the mean of independent runs: mean -+ t s / sqrt(r), r - 1 degrees.

    Of differences between runs that belong together two by two it is the paired
    interval.

    Args:
        values: [r] a value of each run, of the same settings but the seed; r >= 2.
        level: coverage in (0, 1).

    Source:
        Student, The Probable Error of a Mean (1908).
    """
    values = np.asarray(values, np.float64)
    error = values.std(ddof=1) / np.sqrt(len(values))
    return _around(values.mean(), error, len(values) - 1, level)


def welch_interval(
    values: np.ndarray, others: np.ndarray, *, level: float = 0.95
) -> tuple[float, float]:
    """Interval of mean(values) - mean(others), runs of two settings that do not pair.

    Args:
        values, others: [r], [s] a value of each run; r, s >= 2.
        level: coverage in (0, 1).

    Source:
        Welch, The Generalization of "Student's" Problem (1947).
    """
    squares = [np.var(v, ddof=1) / len(v) for v in (values, others)]
    weights = [
        s**2 / (len(v) - 1) for s, v in zip(squares, (values, others), strict=True)
    ]
    freedom = sum(squares) ** 2 / sum(weights) if any(weights) else 1.0
    difference = np.mean(values) - np.mean(others)
    return _around(difference, np.sqrt(sum(squares)), freedom, level)


def _around(middle, error, freedom, level) -> tuple[float, float]:
    width = error * float(special.stdtrit(freedom, (1 + level) / 2))
    return float(middle - width), float(middle + width)


def _resampled(count: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of some classes is drawn, [r, count] float64, in chunks."""
    rng = np.random.default_rng(seed)
    chunk = max(COUNTS_PER_CHUNK // count, 1)
    for start in range(0, resamples, chunk):
        drawn = min(chunk, resamples - start)
        picks = rng.integers(count, size=(drawn, count))
        picks += count * np.arange(drawn)[:, None]
        times = np.bincount(picks.ravel(), minlength=drawn * count)
        yield times.reshape(drawn, count).astype(np.float64)


def _percentiles(statistics: np.ndarray, level: float) -> list[tuple[float, float]]:
    tail = 50 * (1 - level)
    low, high = np.percentile(statistics, [tail, 100 - tail], axis=0)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]
