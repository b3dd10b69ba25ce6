"""Backbones, global descriptors and heads: images to embeddings."""

from metricjax.models.embedder import BACKBONES, HEADS, ModelConfig, build
from metricjax.models.output import Output

__all__ = ["BACKBONES", "HEADS", "ModelConfig", "Output", "build"]
