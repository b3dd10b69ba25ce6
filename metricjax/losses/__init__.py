"""Losses: pure functions of arrays. No Flax, no state, no normalising of embeddings."""

from metricjax.losses.classification import softmax_cross_entropy
from metricjax.losses.pairwise import Tiling
from metricjax.losses.triplet import triplet

__all__ = ["Tiling", "softmax_cross_entropy", "triplet"]
