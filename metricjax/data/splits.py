"""Dividing the classes of a split: held out, in folds; and turned copies of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from metricjax.data import random_streams
from metricjax.data.datasets import Split
from metricjax.errors import InputError


def holdout(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Cuts off whole classes for validation.

    `max(2, round(fraction * c))` of the c classes go to validation, drawn without
    replacement as a function of the seed alone. There every image is both query and
    gallery.

    Args:
      split: the split to cut, usually the training half.
      fraction: the share of classes to hold out, in (0, 1).
      seed: which classes.

    Returns:
      (train, validation), classes disjoint, labels of each dense.

    Raises:
      InputError: the fraction is outside (0, 1), fewer than two classes would remain
        on either side, or no held-out class has two images.
    """
    if not 0.0 < fraction < 1.0:
        raise InputError(
            f"The share of classes held out for validation is {fraction}: it must lie "
            "between 0 and 1, both excluded."
        )
    count = max(2, round(fraction * split.num_classes))
    if split.num_classes - count < 2:
        raise InputError(
            f"Holding out {count} of {split.num_classes} training classes for "
            "validation leaves fewer than two to train on: hold out a smaller share or "
            "add classes."
        )
    order = random_streams.stream(seed, random_streams.HOLDOUT).permutation(
        split.num_classes
    )
    return _without(split, order[:count])


def fold(split: Split, folds: int, number: int) -> tuple[Split, Split]:
    """Cuts off one of several equal parts of the classes for validation.

    The parts are stretches of the classes in their order, the larger ones first where
    they cannot be equal; so they are the same for every seed. There every image is both
    query and gallery.

    Args:
      split: the split to cut, usually the training half.
      folds: how many parts, 2 or more.
      number: which of them, 0 to folds - 1.

    Returns:
      (train, validation), classes disjoint, labels of each dense.

    Raises:
      InputError: fewer than two classes in a part, or none with two images.

    Source:
      Musgrave, Belongie and Lim, A Metric Learning Reality Check (ECCV 2020), section
      3: cross validation over the training half, the folds disjoint by class.
    """
    if split.num_classes < 2 * folds:
        raise InputError(
            f"config.data.folds is {folds}, but {split.num_classes} training classes "
            "do not fill so many parts with two classes each: ask for fewer."
        )
    return _without(split, np.array_split(np.arange(split.num_classes), folds)[number])


def _without(split: Split, classes: np.ndarray) -> tuple[Split, Split]:
    """The images of other classes, and those of `classes`, for validation."""
    held = np.zeros(split.num_classes, bool)
    held[classes] = True
    if np.bincount(split.labels)[held].max() < 2:
        raise InputError(
            f"None of the {len(classes)} classes held out for validation has two "
            "images, so no query has anything to find: hold out more of the classes."
        )
    is_held = held[split.labels]
    validation = split.subset(is_held)
    everything = np.ones(len(validation), bool)
    validation = replace(validation, is_query=everything, is_gallery=everything)
    return split.subset(~is_held), validation


def with_turns(split: Split, turns: int) -> Split:
    """The split and copies of it turned by quarter turns, as classes of their own.

    For images without an upright pose that classes share, such as characters: a letter
    on its side is another sign to learn from (Santoro et al., 2016, did so with
    Omniglot). Classes of turn t are numbered from t c on and named `CLASS, turned 90`.

    Args:
      split: n images of c classes; training images usually.
      turns: 1 (the split itself) to 4.

    Raises:
      InputError: another number of turns.
    """
    if turns not in (1, 2, 3, 4):
        raise InputError(f"data.turns is {turns}: it must be 1, 2, 3 or 4.")
    if turns == 1:
        return split
    suffixes = ["", *(f", turned {90 * t}" for t in range(1, turns))]

    def repeat(names):
        return tuple(name + suffix for suffix in suffixes for name in names)

    first = np.repeat(np.arange(turns, dtype=np.int32) * split.num_classes, len(split))
    categories = split.categories
    return replace(
        split,
        labels=np.tile(split.labels, turns) + first,
        class_names=repeat(split.class_names),
        names=repeat(split.names),
        reader=_Turned(split.reader, len(split)),
        categories=None if categories is None else np.tile(categories, turns),
        is_query=np.tile(split.is_query, turns),
        is_gallery=np.tile(split.is_gallery, turns),
    )


@dataclass(frozen=True)
class _Turned:
    """A reader of n images and of their copies turned by quarter turns."""

    reader: Callable[[int], np.ndarray]
    count: int

    def __call__(self, index: int) -> np.ndarray:
        turn, original = divmod(index, self.count)
        return np.ascontiguousarray(np.rot90(self.reader(original), turn))
