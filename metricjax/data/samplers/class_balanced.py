"""P x K samplers: P classes with K images each, from all classes or few categories.

The batch of a step is a pure function of (seed, step). `random_images` has samplers
that draw images instead of classes, `registry` builds every sampler by name.
"""

import numpy as np

from metricjax.data.samplers.decks import ClassDecks, Deck
from metricjax.data.samplers.sampler import (
    check_step,
    left_out_notes,
    nearest_multiples,
)
from metricjax.errors import InputError


class PKSampler:
    """P classes with K images each; `sampler[step]` is a function of (seed, step).

    No class is twice in a batch, and no image either if its class has K images; a
    smaller class repeats its images as evenly as possible. Classes with one image form
    no positive pair and are left out, unless K = 1. With `distinct` no image is ever
    twice in a batch: all classes of fewer than K images are left out.

    Every class is drawn equally often, so images of small classes are seen more often
    than those of large ones. An *epoch* is `steps_per_epoch` = ceil(images /
    batch_size) steps, counting the images of classes that are not left out: the number
    of batches that draws every image once on average.

    Attributes:
      batch_size, steps_per_epoch, contents, notes: see `Sampler`.
      num_classes: number of classes that are drawn.
      left_out: number of classes that are left out for too few images.

    Args:
      labels: int [n], the class of each image.
      batch_size: P * K.
      instances_per_class: K.
      seed: of the shuffles.
      distinct: leave out classes of fewer than K images.

    Raises:
      InputError: K does not divide the batch size, or there are fewer than P classes.
    """

    def __init__(
        self,
        labels: np.ndarray,
        batch_size: int,
        instances_per_class: int,
        seed: int,
        *,
        distinct: bool = False,
    ):
        check_batch(batch_size, instances_per_class)
        self.batch_size = batch_size
        self.instances_per_class = instances_per_class
        self.classes_per_batch = batch_size // instances_per_class
        least = least_images(instances_per_class, distinct)
        self._images = ClassDecks(labels, instances_per_class, least, seed)
        self.num_classes, self.left_out = len(self._images), self._images.left_out
        if self.num_classes < self.classes_per_batch:
            raise InputError(self._too_few_classes(least))
        self.steps_per_epoch = -(-int(self._images.sizes.sum()) // batch_size)
        self._classes = Deck(self.num_classes, self.classes_per_batch, seed, 0)
        self.contents = f"{self.classes_per_batch} classes x {instances_per_class}"
        self.notes = left_out_notes(self.left_out, least)

    def __getitem__(self, step: int) -> np.ndarray:
        """The batch of a step: int64 [P * K] indices, those of a class side by side."""
        return self._images.fill(*self._classes.draw(check_step(step)))

    def _too_few_classes(self, least: int) -> str:
        per_class = self.instances_per_class
        count = "two" if least == 2 else least
        which = "" if least == 1 else f" with at least {count} images"
        advice = [f"the largest batch is {self.num_classes * per_class}"]
        if not self.num_classes:
            advice = [] if least > 2 else ["nothing can be learned from them"]
        if least > 2:
            advice.append("take fewer images a class")
        return (
            f"A batch of {self.batch_size} with {per_class} images a class needs "
            f"{self.classes_per_batch} classes, but there are {self.num_classes}"
            f"{which}: {', or '.join(advice)}."
        )


class CategorySampler:
    """P classes with K images each, from C categories, P / C classes from each.

    With C = 1 all classes of a batch share a category, which makes every negative a
    hard one; with C = P each class is from another category.

    Every category is drawn equally often, so classes of small categories are seen more
    often. Within a category, classes and images are drawn as by `PKSampler`. Categories
    of fewer than P / C classes are left out: a batch is never filled up from others.

    Attributes:
      batch_size, steps_per_epoch, contents, notes: see `Sampler`; an epoch as for
        `PKSampler`.

    Args:
      labels: int [n], the class of each image.
      categories: int [n], the category of each image.
      batch_size: P * K.
      instances_per_class: K.
      categories_per_batch: C, a divisor of P.
      seed: of the shuffles.

    Raises:
      InputError: K does not divide the batch size or C not P, a class has images of
        several categories, or there are fewer than C categories of P / C classes.
    """

    def __init__(
        self,
        labels: np.ndarray,
        categories: np.ndarray,
        batch_size: int,
        instances_per_class: int,
        categories_per_batch: int,
        seed: int,
    ):
        check_batch(batch_size, instances_per_class)
        self.batch_size = batch_size
        classes = batch_size // instances_per_class
        check_categories(classes, categories_per_batch)
        each = classes // categories_per_batch
        least = least_images(instances_per_class)
        images = ClassDecks(labels, instances_per_class, least, seed)
        of_class = _category_of_each(images, categories)
        members = [np.flatnonzero(of_class == c) for c in np.unique(of_class)]
        self._members = [classes for classes in members if len(classes) >= each]
        if len(self._members) < categories_per_batch:
            raise InputError(
                f"A batch of {classes} classes from {categories_per_batch} categories "
                f"needs {categories_per_batch} with at least {each} classes, but only "
                f"{len(self._members)} of {len(members)} have so many: take more "
                "categories a batch or a smaller batch."
            )
        self._images = images
        self._categories = Deck(len(self._members), categories_per_batch, seed, 0)
        self._decks = [
            Deck(len(classes), each, seed, 1 + len(images) + j)
            for j, classes in enumerate(self._members)
        ]
        dealt = np.concatenate(self._members)
        self.steps_per_epoch = -(-int(images.sizes[dealt].sum()) // batch_size)
        self.contents = (
            f"{classes} classes x {instances_per_class}, {each} of each of "
            f"{categories_per_batch} categories"
        )
        self.notes = left_out_notes(images.left_out, least)
        if len(self._members) < len(members):
            self.notes += (
                f"left out of the batches: {len(members) - len(self._members)} of "
                f"{len(members)} categories, of fewer than {each} classes",
            )

    def __getitem__(self, step: int) -> np.ndarray:
        """The batch of a step: int64 [P * K] indices, category by category."""
        categories, times = self._categories.draw(check_step(step))
        classes, times_dealt = [], []
        for j, time in zip(categories.tolist(), times.tolist(), strict=True):
            places, decks = self._decks[j].draw(time)
            classes.append(self._members[j][places])
            times_dealt.append(decks)
        return self._images.fill(np.concatenate(classes), np.concatenate(times_dealt))


def _category_of_each(images: ClassDecks, categories: np.ndarray) -> np.ndarray:
    """The category of each class that is drawn: int [classes]."""
    first = np.array([group[0] for group in images.images], np.int64)
    every = np.concatenate([first[:0], *images.images])
    of_first = np.repeat(first, images.sizes)
    differs = np.flatnonzero(categories[every] != categories[of_first])
    if differs.size:
        one, other = of_first[differs[0]], every[differs[0]]
        raise InputError(
            f"Images {one} and {other} are of one class, but of categories "
            f"{categories[one]} and {categories[other]}: give a class one category."
        )
    return categories[first]


def least_images(instances_per_class: int, distinct: bool = False) -> int:
    """How many images a class needs to be drawn."""
    return instances_per_class if distinct else min(instances_per_class, 2)


def check_batch(batch_size: int, instances_per_class: int) -> None:
    """Raise `InputError` unless the batch holds whole groups of K >= 1 images."""
    if instances_per_class < 1:
        raise InputError(
            f"instances_per_class is {instances_per_class}: it must be at least 1."
        )
    if batch_size < 1 or batch_size % instances_per_class:
        raise InputError(
            f"A batch of {batch_size} cannot hold whole groups of "
            f"{instances_per_class} images a class: the nearest batch_size that can is "
            f"{nearest_multiples(batch_size, instances_per_class)}."
        )


def check_categories(classes_per_batch: int, categories_per_batch: int) -> None:
    """Raise `InputError` unless C categories can share the P classes of a batch."""
    if categories_per_batch < 1 or classes_per_batch % categories_per_batch:
        legal = [
            c for c in range(1, classes_per_batch + 1) if not classes_per_batch % c
        ]
        raise InputError(
            f"categories_per_batch is {categories_per_batch}, which cannot share the "
            f"{classes_per_batch} classes of a batch equally: choose one of "
            f"{', '.join(map(str, legal))}."
        )
