"""Evaluation: exact neighbours and pairs, metrics with defined ties, intervals."""

from metricjax.evaluation.averages import by_class
from metricjax.evaluation.clustering import clustering
from metricjax.evaluation.neighbors import nearest
from metricjax.evaluation.retrieval import retrieval
from metricjax.evaluation.verification import calibrate, reached

__all__ = [
    "by_class",
    "calibrate",
    "clustering",
    "nearest",
    "reached",
    "retrieval",
]
