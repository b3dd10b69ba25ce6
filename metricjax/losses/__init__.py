"""Losses: pure functions of arrays, one file each, written as in their papers.

They keep no state, import no Flax and do not normalise embeddings. How they are
computed, in blocks, on many devices or faster on a CPU, is in `_kernels`.
"""

from metricjax.losses import embedding_expansion
from metricjax.losses._kernels.tiling import Tiling
from metricjax.losses.classification import softmax_cross_entropy
from metricjax.losses.contrastive import contrastive
from metricjax.losses.divergence import divergence
from metricjax.losses.hierarchical import Level, hierarchical_proxy
from metricjax.losses.lifted_structure import lifted_structure
from metricjax.losses.multi_similarity import multi_similarity
from metricjax.losses.n_pair import n_pair
from metricjax.losses.proxies import proxy_anchor, proxy_nca
from metricjax.losses.triplet import triplet

__all__ = [
    "Level",
    "Tiling",
    "contrastive",
    "divergence",
    "embedding_expansion",
    "hierarchical_proxy",
    "lifted_structure",
    "multi_similarity",
    "n_pair",
    "proxy_anchor",
    "proxy_nca",
    "softmax_cross_entropy",
    "triplet",
]
