"""From the values of single queries to means: over queries, by class, over classes."""

from collections.abc import Mapping

import numpy as np

from metricjax.evaluation.intervals import bootstrap_over_classes

Averages = tuple[dict[str, float], dict[str, tuple[float, float]]]
"""Means and 95% intervals, both by the name of the metric."""


def over_queries(
    per_query: Mapping[str, np.ndarray], *, bootstrap: int, seed: int
) -> Averages:
    """The mean of each metric over queries ("micro"): large classes count more.

    Args:
        per_query: of q queries, `label` [q] and each metric [q], as `retrieval` returns
            them with `per_query=True`, and as a run keeps them in queries.npz.
        bootstrap: resamples of the classes for the intervals; 0 for none.
        seed: of the resampling.
    """
    return _averages(_metrics(per_query), per_query["label"], bootstrap, seed)


def by_class(per_query: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The mean of each metric over the queries of each class.

    Args:
        per_query: as for `over_queries`.

    Returns:
        Arrays of [c], classes in the order of their labels: `label`; `queries`, how
        many of the class count; and each metric.
    """
    label, dense = np.unique(per_query["label"], return_inverse=True)
    queries = np.bincount(dense, minlength=len(label))
    means = {
        name: np.bincount(dense, values, minlength=len(label)) / queries
        for name, values in _metrics(per_query).items()
    }
    return {"label": label, "queries": queries, **means}


def over_classes(
    per_class: Mapping[str, np.ndarray], *, bootstrap: int, seed: int
) -> Averages:
    """The mean of each metric over classes ("macro"): every class counts the same.

    Args:
        per_class: as `by_class` returns it.
        bootstrap, seed: as for `over_queries`.

    Returns:
        As `over_queries`, with `macro_` before each name.
    """
    metrics = {f"macro_{name}": row for name, row in _metrics(per_class).items()}
    return _averages(metrics, per_class["label"], bootstrap, seed)


def _metrics(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    others = ("query", "label", "queries", "class_names", "test_sha256")
    return {name: row for name, row in values.items() if name not in others}


def _averages(metrics, classes, bootstrap, seed) -> Averages:
    means = {name: float(np.mean(values)) for name, values in metrics.items()}
    if not bootstrap:
        return means, {}
    columns = np.stack(list(metrics.values()), axis=1)
    pairs = bootstrap_over_classes(columns, classes, resamples=bootstrap, seed=seed)
    return means, dict(zip(metrics, pairs, strict=True))
