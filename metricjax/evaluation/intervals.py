"""Confidence intervals for retrieval metrics: the bootstrap over classes."""

import numpy as np

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
    count = len(sizes)
    if count < 2:
        return [(0.0, 1.0)] * values.shape[1]
    sums = np.stack([np.bincount(dense, column) for column in values.T], axis=1)

    rng = np.random.default_rng(seed)
    chunk = max(COUNTS_PER_CHUNK // count, 1)
    statistics = []
    for start in range(0, resamples, chunk):
        drawn = min(chunk, resamples - start)
        picks = rng.integers(count, size=(drawn, count))
        picks += count * np.arange(drawn)[:, None]
        times = np.bincount(picks.ravel(), minlength=drawn * count)
        times = times.reshape(drawn, count).astype(np.float64)
        statistics.append((times @ sums) / (times @ sizes)[:, None])
    tail = 50 * (1 - level)
    low, high = np.percentile(np.concatenate(statistics), [tail, 100 - tail], axis=0)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]
