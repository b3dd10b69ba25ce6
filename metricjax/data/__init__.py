"""Images with labels: data sets, samplers, transforms and the input pipeline."""

from metricjax.data.datasets import Dataset, Split, UnreadableImage, open_dataset
from metricjax.data.splits import holdout

__all__ = ["Dataset", "Split", "UnreadableImage", "holdout", "open_dataset"]
