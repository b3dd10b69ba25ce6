"""Which images stand in which batch: a pure function of (seed, step).

Here are the batches of P classes with K images each; `registry.py` has those made
without regard to classes, and makes every sampler by its name.
"""

from typing import Protocol

import numpy as np

from metricjax.data.samplers.decks import ClassDecks, Deck
from metricjax.errors import InputError, counted


class Sampler(Protocol):
    """What the pipeline takes; any thread may ask for any step.

    Attributes:
      batch_size: images of a batch.
      steps_per_epoch: what counts as an epoch, see each sampler.
      contents: what a batch holds, in a few words.
      notes: sentences worth printing, such as what is left out.
    """

    batch_size: int
    steps_per_epoch: int
    contents: str
    notes: tuple[str, ...]

    def __getitem__(self, step: int) -> np.ndarray:
        """The batch of a step: int64 [batch_size] indices into the split."""
        ...


class PKSampler:
    """P classes of K images a batch; `sampler[step]` is a function of (seed, step).

    No class is twice in a batch, and no image either as long as its class has K images;
    a class of fewer repeats each of its images as evenly as can be. Classes with one
    image form no positive pair and are left out, unless K = 1. With `distinct` no image
    is ever twice in a batch: all classes of fewer than K images are left out.

    Every class is dealt equally often, so with classes of unequal size an image of a
    small class is seen more often than one of a large class. An *epoch* is
    `steps_per_epoch` = ceil(images / batch_size) steps, counting the images of the
    classes not left out: the number of batches that deals every image once on average.

    Attributes:
      batch_size, steps_per_epoch, contents, notes: see `Sampler`.
      num_classes: how many classes are dealt.
      left_out: how many classes are left out because they have too few images.

    Args:
      labels: int [n], the class of each image.
      batch_size: P * K.
      instances_per_class: K.
      seed: which decks.
      distinct: see above.

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
        self.notes = few_images(self.left_out, least)

    def __getitem__(self, step: int) -> np.ndarray:
        """The batch of a step: int64 [P * K] indices, those of a class side by side."""
        return self._images.fill(*self._classes.draw(checked(step)))

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
    """P classes of K images a batch, from C categories, P / C classes of each.

    With C = 1 all classes of a batch are of one category, so that every negative is a
    near one; with C = P each is of another category.

    Categories are dealt from decks, the classes of a category likewise, and the images
    of a class as by `PKSampler`. So every category is dealt equally often, and with
    categories of unequal size a class of a small one is seen more often. Categories of
    fewer than P / C classes are left out: the batch is never filled up from others.

    Attributes:
      batch_size, steps_per_epoch, contents, notes: see `Sampler`; an epoch is counted
        as by `PKSampler`.

    Args:
      labels: int [n], the class of each image.
      categories: int [n], the category of each image.
      batch_size: P * K.
      instances_per_class: K.
      categories_per_batch: C, a divisor of P.
      seed: which decks.

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
        self.notes = few_images(images.left_out, least)
        if len(self._members) < len(members):
            self.notes += (
                f"left out of the batches: {len(members) - len(self._members)} of "
                f"{len(members)} categories, of fewer than {each} classes",
            )

    def __getitem__(self, step: int) -> np.ndarray:
        """The batch of a step: int64 [P * K] indices, category by category."""
        categories, times = self._categories.draw(checked(step))
        classes, times_dealt = [], []
        for j, time in zip(categories.tolist(), times.tolist(), strict=True):
            places, decks = self._decks[j].draw(time)
            classes.append(self._members[j][places])
            times_dealt.append(decks)
        return self._images.fill(np.concatenate(classes), np.concatenate(times_dealt))


def _category_of_each(images: ClassDecks, categories: np.ndarray) -> np.ndarray:
    """The category of each class that is dealt."""
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
    """How many images a class must have to be dealt."""
    return instances_per_class if distinct else min(instances_per_class, 2)


def few_images(left_out: int, least: int) -> tuple[str, ...]:
    """The note on classes that are left out because they have too few images."""
    if not left_out:
        return ()
    classes = counted(left_out, "class", "classes")
    return (
        f"left out of the batches: {classes} of fewer than {least} images to train on",
    )


def checked(step: int) -> int:
    """The step, or IndexError, so that nobody counts from the end of no end."""
    if step < 0:
        raise IndexError(f"There is no step {step}: steps count from 0.")
    return int(step)


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
            f"{nearest(batch_size, instances_per_class)}."
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


def nearest(batch_size: int, multiple: int) -> str:
    """The multiples above 0 next to a batch size, in words."""
    below = batch_size // multiple
    legal = [m * multiple for m in (below, below + 1) if m > 0]
    return " or ".join(map(str, legal))
