"""Retrieval evaluation: exact neighbours, metrics with defined ties, intervals."""

from metricjax.evaluation.neighbors import nearest
from metricjax.evaluation.retrieval import retrieval

__all__ = ["nearest", "retrieval"]
