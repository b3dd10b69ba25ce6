"""Samplers that draw images rather than classes: random pairs and random images.

Come here for ABE's pairs or Proxy-Anchor's batches; `class_balanced` has P x K.
"""

import numpy as np

from metricjax.data import random_streams
from metricjax.data.samplers.decks import Deck
from metricjax.data.samplers.sampler import (
    check_step,
    left_out_notes,
    nearest_multiples,
)
from metricjax.errors import InputError


class PairSampler:
    """b / 2 random images, each followed by a partner, as ABE is trained.

    The images come from shuffles of the whole set. The partners of the first b / 4 are
    other images of the same class, the others are images of different classes, each
    equally likely. Rows 2t and 2t + 1 of the batch are a pair, which is what
    `losses.contrastive` compares with `among="adjacent"`. Classes with one image are
    left out.

    Attributes:
      batch_size, contents, notes: see `Sampler`.
      steps_per_epoch: ceil(images / (b / 2)): each image gets a partner once on
        average.

    Args:
      labels: int [n], the class of each image.
      batch_size: b, a multiple of 4.
      seed: of the shuffles and partners.

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
                "two: the nearest batch_size that can is "
                f"{nearest_multiples(batch_size, 4)}."
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
        # The images are sorted by class. For each: where its class begins in that
        # order, and the size of its class.
        self._first = np.repeat(np.cumsum(sizes) - sizes, sizes)
        self._size = np.repeat(sizes, sizes)
        self._deck = Deck(len(self._images), batch_size // 2, seed, 0)
        self._seed = seed
        self.batch_size = batch_size
        self.steps_per_epoch = -(-2 * len(self._images) // batch_size)
        half = batch_size // 4
        self.contents = f"{half} pairs of one class + {half} of two"
        self.notes = left_out_notes(len(counts) - len(sizes), 2)

    def __getitem__(self, step: int) -> np.ndarray:
        """The batch of a step: int64 [b], the positive pairs first."""
        step = check_step(step)
        places, _ = self._deck.draw(step)
        first, size = self._first[places], self._size[places]
        rng = random_streams.stream(self._seed, random_streams.PARTNERS, step)
        # Uniform over the class without the image itself: one less, then skip it.
        same = first + rng.integers(size - 1)
        same += same >= places
        # Uniform over all other classes: draw as if the own class were cut out.
        other = rng.integers(len(self._images) - size)
        other += np.where(other >= first, size, 0)
        is_positive = np.arange(len(places)) < len(places) // 2
        partners = np.where(is_positive, same, other)
        return self._images[np.stack([places, partners], axis=1).reshape(-1)]


class ImageSampler:
    """Random images regardless of class, as Proxy-Anchor is trained.

    They come from shuffles of the whole set: each image once per epoch, none twice in a
    batch.

    Attributes:
      batch_size, contents, notes: see `Sampler`.
      steps_per_epoch: ceil(n / batch_size).

    Args:
      count: n, the number of images.
      batch_size: at most n.
      seed: of the shuffles.

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
        return self._deck.draw(check_step(step))[0]
