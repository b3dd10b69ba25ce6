"""Intervals: against a loop and scipy, coverage, determinism."""

import numpy as np
import pytest

from metricjax.evaluation import intervals
from metricjax.evaluation.intervals import (
    bootstrap_over_classes,
    t_interval,
    welch_interval,
)


def sample(classes=30, metrics=2, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), rng.integers(1, 9, size=classes))
    level = rng.uniform(0.2, 0.9, size=(classes, metrics))
    return (rng.random((len(labels), metrics)) < level[labels]).astype(float), labels


def test_equals_resampling_in_a_loop():
    """Another random stream, so equal within the noise of 20,000 resamples."""
    values, labels = sample()
    rng = np.random.default_rng(99)
    groups = [values[labels == c] for c in range(30)]
    means = []
    for _ in range(20_000):
        drawn = [groups[c] for c in rng.integers(30, size=30)]
        means.append(np.concatenate(drawn).mean(axis=0))
    expected = np.percentile(means, [2.5, 97.5], axis=0).T
    result = bootstrap_over_classes(values, labels, resamples=20_000)
    np.testing.assert_allclose(result, expected, atol=0.005)


def test_is_a_function_of_the_seed_alone():
    values, labels = sample()
    first = bootstrap_over_classes(values, labels, seed=1)
    assert first == bootstrap_over_classes(values, labels, seed=1)
    assert first != bootstrap_over_classes(values, labels, seed=2)
    names = np.random.default_rng(0).permutation(1000)[:30]
    renamed = bootstrap_over_classes(values, np.sort(names)[labels], seed=1)
    assert renamed == first


def test_wider_than_the_bootstrap_over_queries():
    """Queries of a class agree here, so there are 30 facts and not 600."""
    labels = np.repeat(np.arange(30), 20)
    values = (labels % 2).astype(float)[:, None]
    ((low, high),) = bootstrap_over_classes(values, labels)
    assert 0.3 < high - low < 0.4
    single = np.arange(600)
    ((low, high),) = bootstrap_over_classes(values, single)
    assert 0.06 < high - low < 0.1


def test_one_class_tells_nothing():
    values = np.ones((5, 2))
    assert bootstrap_over_classes(values, np.zeros(5)) == [(0.0, 1.0)] * 2


def test_chunks_do_not_change_the_statistic(monkeypatch):
    values, labels = sample()
    whole = bootstrap_over_classes(values, labels)
    monkeypatch.setattr(intervals, "COUNTS_PER_CHUNK", 300)
    np.testing.assert_allclose(bootstrap_over_classes(values, labels), whole)


def test_t_intervals_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(0.7, 0.01, size=5), rng.normal(0.68, 0.03, size=4)
    expected = stats.ttest_1samp(ours, 0).confidence_interval(0.95)
    np.testing.assert_allclose(t_interval(ours), expected)
    expected = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.9)
    np.testing.assert_allclose(welch_interval(ours, theirs, level=0.9), expected)
    assert t_interval([0.5, 0.5, 0.5]) == (0.5, 0.5)
    assert welch_interval([0.5, 0.5], [0.25, 0.25]) == (0.25, 0.25)


def test_t_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(1)
    found = [t_interval(row) for row in rng.normal(size=(2000, 4))]
    assert 0.93 < np.mean([low < 0 < high for low, high in found]) < 0.97
