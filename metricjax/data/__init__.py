"""Images with labels: data sets, samplers, transforms and the input pipeline."""

from metricjax.data.datasets import (
    Dataset,
    Split,
    UnreadableImage,
    holdout,
    open_dataset,
)

__all__ = ["Dataset", "Split", "UnreadableImage", "holdout", "open_dataset"]
