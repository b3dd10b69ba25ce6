"""Evaluation: exact neighbours and pairs, metrics with defined ties, intervals."""

from metricjax.evaluation.neighbors import nearest
from metricjax.evaluation.retrieval import retrieval
from metricjax.evaluation.verification import calibrate, reached

__all__ = ["calibrate", "nearest", "reached", "retrieval"]
