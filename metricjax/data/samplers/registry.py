"""Every sampler by its name in `config.sampler`.

Come here to add one: its name in `SAMPLERS` and a line in `build`.
"""

from metricjax.data.datasets import Split
from metricjax.data.samplers.class_balanced import CategorySampler, PKSampler
from metricjax.data.samplers.random_images import ImageSampler, PairSampler
from metricjax.data.samplers.sampler import Sampler
from metricjax.errors import InputError

SAMPLERS = ("classes", "distinct", "categories", "pairs", "images")
# Those with K images of each class in a batch.
OF_CLASSES = ("classes", "distinct", "categories")


def build(
    name: str,
    split: Split,
    batch_size: int,
    *,
    instances_per_class: int,
    categories_per_batch: int,
    seed: int,
) -> Sampler:
    """Build a sampler by name.

    Args:
      name: "classes" (`PKSampler`), "distinct" (the same without classes of fewer than
        K images), "categories" (`CategorySampler`), "pairs" (`PairSampler`) or "images"
        (`ImageSampler`).
      split: what to draw from.
      batch_size: images of the global batch.
      instances_per_class: K of the first three.
      categories_per_batch: C of "categories".
      seed: of the shuffles.

    Raises:
      InputError: an unknown name, categories that the data set does not have, or
        settings that the sampler rejects.
    """
    if name == "images":
        return ImageSampler(len(split), batch_size, seed)
    if name == "pairs":
        return PairSampler(split.labels, batch_size, seed)
    if name == "categories":
        if split.categories is None:
            raise InputError(
                "The sampler 'categories' draws classes by category, but this data set "
                "has none: choose another sampler, or give each image a category in "
                "labels.csv."
            )
        return CategorySampler(
            split.labels,
            split.categories,
            batch_size,
            instances_per_class,
            categories_per_batch,
            seed,
        )
    if name not in SAMPLERS:
        raise InputError(
            f"There is no sampler {name!r}: choose one of {', '.join(SAMPLERS)}."
        )
    return PKSampler(
        split.labels,
        batch_size,
        instances_per_class,
        seed,
        distinct=name == "distinct",
    )
