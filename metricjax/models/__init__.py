"""Backbones, global descriptors and heads: images to embeddings."""

from metricjax.models.embedder import BACKBONES, ModelConfig, build
from metricjax.models.output import Output

__all__ = ["BACKBONES", "ModelConfig", "Output", "build"]
