"""Batches made of images rather than of classes, and every sampler by its name."""

import numpy as np

from metricjax.data import random_streams
from metricjax.data.datasets import Split
from metricjax.data.samplers.class_balanced import (
    CategorySampler,
    PKSampler,
    Sampler,
    checked,
    few_images,
    nearest,
)
from metricjax.data.samplers.decks import Deck
from metricjax.errors import InputError

SAMPLERS = ("classes", "distinct", "categories", "pairs", "images")
# Those whose batches hold K images of each of their classes.
OF_CLASSES = ("classes", "distinct", "categories")


class PairSampler:
    """b / 2 images at random, each with a partner beside it, as ABE is trained.

    The images are dealt from decks of all. The partners of the first b / 4 are other
    images of their class, those of the rest are images of another class, each equally
    likely. Rows 2t and 2t + 1 of the batch are a pair, as `among="adjacent"` of
    `losses.contrastive` takes them. Classes with one image have no partner for it and
    are left out.

    Attributes:
      batch_size, contents, notes: see `Sampler`.
      steps_per_epoch: ceil(images / (b / 2)): each image gets a partner once on
        average.

    Args:
      labels: int [n], the class of each image.
      batch_size: b, a multiple of 4.
      seed: which decks and partners.

    Raises:
      InputError: a batch that is no multiple of 4, or for which there are too few
        images or classes.

    Source: Kim et al., "Attention-based Ensemble for Deep Metric Learning" (arXiv
    1804.00382): batches of 64 from 32 images at random.
    """

    def __init__(self, labels: np.ndarray, batch_size: int, seed: int):
        if batch_size < 4 or batch_size % 4:
            raise InputError(
                f"A batch of {batch_size} cannot hold as many pairs of one class as of "
                f"two: the nearest batch_size that can is {nearest(batch_size, 4)}."
            )
        labels = np.asarray(labels)
        _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
        order = np.argsort(classes, kind="stable")
        self._images = order[counts[classes[order]] > 1]
        sizes = counts[counts > 1]
        if len(sizes) < 2 or batch_size > 2 * len(self._images):
            raise InputError(
                f"A batch of {batch_size} needs {batch_size // 2} images, of at least "
                f"two classes with two images or more, but there are "
                f"{len(self._images)} of {len(sizes)} such classes: take a smaller "
                "batch, or more images."
            )
        # Of each of the images, which are sorted by class: where its class begins
        # among them, and how many it has.
        self._first = np.repeat(np.cumsum(sizes) - sizes, sizes)
        self._size = np.repeat(sizes, sizes)
        self._deck = Deck(len(self._images), batch_size // 2, seed, 0)
        self._seed = seed
        self.batch_size = batch_size
        self.steps_per_epoch = -(-2 * len(self._images) // batch_size)
        half = batch_size // 4
        self.contents = f"{half} pairs of one class + {half} of two"
        self.notes = few_images(len(counts) - len(sizes), 2)

    def __getitem__(self, step: int) -> np.ndarray:
        """The batch of a step: int64 [b], the pairs of one class first."""
        step = checked(step)
        places, _ = self._deck.draw(step)
        first, size = self._first[places], self._size[places]
        rng = random_streams.stream(self._seed, random_streams.PARTNERS, step)
        same = first + rng.integers(size - 1)
        same += same >= places
        other = rng.integers(len(self._images) - size)
        other += np.where(other >= first, size, 0)
        is_positive = np.arange(len(places)) < len(places) // 2
        partners = np.where(is_positive, same, other)
        return self._images[np.stack([places, partners], axis=1).reshape(-1)]


class ImageSampler:
    """Images at random, whatever their class, as Proxy-Anchor is trained.

    They are dealt from decks of all, so that each comes once an epoch; none is twice in
    a batch.

    Attributes:
      batch_size, contents, notes: see `Sampler`.
      steps_per_epoch: ceil(n / batch_size).

    Args:
      count: n, how many images there are.
      batch_size: at most n.
      seed: which decks.

    Raises:
      InputError: a batch of less than one image or more than there are.
    """

    notes = ()

    def __init__(self, count: int, batch_size: int, seed: int):
        if not 1 <= batch_size <= count:
            raise InputError(
                f"A batch of {batch_size} cannot be drawn from {count} images: "
                "batch_size must be 1 or more and at most that number."
            )
        self.batch_size = batch_size
        self.steps_per_epoch = -(-count // batch_size)
        self.contents = f"{batch_size} images of any class"
        self._deck = Deck(count, batch_size, seed, 0)

    def __getitem__(self, step: int) -> np.ndarray:
        """The batch of a step: int64 [batch_size]."""
        return self._deck.draw(checked(step))[0]


def build(
    name: str,
    split: Split,
    batch_size: int,
    *,
    instances_per_class: int,
    categories_per_batch: int,
    seed: int,
) -> Sampler:
    """A sampler by its name.

    Args:
      name: "classes" (`PKSampler`), "distinct" (the same without classes that would
        show an image twice), "categories" (`CategorySampler`), "pairs" (`PairSampler`)
        or "images" (`ImageSampler`).
      split: what to draw from.
      batch_size: images of the global batch.
      instances_per_class: K of the first three.
      categories_per_batch: C of "categories".
      seed: which decks.

    Raises:
      InputError: an unknown name, categories that the data set does not have, or
        whatever the sampler refuses.
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
