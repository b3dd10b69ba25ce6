"""Which images stand in which batch: a pure function of (seed, step).

Nothing is drawn independently at random: classes are dealt from consecutive shuffled
decks, each holding every class once, and the images of a class likewise. At any step,
therefore, the numbers of times that any two classes were dealt differ by at most one,
and so do those of any two images of one class; and yet step one million costs what step
one costs.
"""

import math

import numpy as np

from metricjax.data import streams
from metricjax.errors import InputError


class Deck:
    """Draws of k from consecutive shuffled decks of n, at random access.

    Think of all decks 0, 1, 2, ... laid end to end, each a permutation of n items; draw
    d takes places dk ... dk + k - 1. A draw that straddles two decks must not hold an
    item twice. To know deck e without its predecessors:

    - n >= 2k - 1: the items of deck e after the last draw boundary in it (its tail) are
      drawn from a stream of its own; those before the first boundary (its head)
      complete the draw that the tail of deck e - 1 began, and are drawn from what is in
      neither tail; the rest is shuffled between them.
    - k <= n < 2k - 1: one permutation serves the n / gcd(n, k) draws after which deck
      and draw end together, over and over; k consecutive places of a cycle of n never
      collide.
    - n < k: a draw holds every item floor(k / n) times and k mod n of a deck of those.

    Args:
      n: how many items, at least 1.
      k: how many a draw takes, at least 1.
      seed, key: name the random streams; decks of different keys are independent.
    """

    __slots__ = ("n", "k", "seed", "key", "_last")

    def __init__(self, n: int, k: int, seed: int, key: int):
        self.n, self.k, self.seed, self.key = n, k, seed, key
        # (number, items) of the deck used last, replaced as one object: whatever
        # thread reads it, it is right. It saves work and changes no result.
        self._last = (-1, None)

    def draw(self, d: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw number d.

        Returns:
          (items, decks): int64 [k] each; the item and the number of the deck it came
          from, which is how often that item was dealt before this draw (when k <= n).
        """
        whole, k = divmod(self.k, self.n) if self.k > self.n else (0, self.k)
        places = np.arange(d * k, (d + 1) * k)
        decks = places // self.n
        items = np.empty(k, np.int64)
        for e in range(d * k // self.n, -(-(d + 1) * k // self.n)):
            here = decks == e
            items[here] = self._deck(e, k)[places[here] - e * self.n]
        if whole:
            items = np.concatenate([np.tile(np.arange(self.n), whole), items])
            decks = np.concatenate(
                [np.repeat(d * whole + np.arange(whole), self.n), decks]
            )
        return items, decks

    def _deck(self, e: int, k: int) -> np.ndarray:
        number, items = self._last
        if number == e:
            return items
        if self.n >= 2 * k - 1:
            items = self._chained(e, k)
        else:
            period = k // math.gcd(self.n, k)  # in decks
            items = self._stream(streams.DECK_BODY, e // period).permutation(self.n)
        self._last = (e, items)
        return items

    def _chained(self, e: int, k: int) -> np.ndarray:
        """Deck e as head, middle and tail."""
        tail_before, tail = self._tail(e - 1, k), self._tail(e, k)
        body = self._stream(streams.DECK_BODY, e)
        free = np.ones(self.n, bool)
        free[tail] = False
        if not len(tail_before):
            return np.concatenate([body.permutation(np.flatnonzero(free)), tail])
        candidates = free.copy()
        candidates[tail_before] = False
        head = body.permutation(np.flatnonzero(candidates))[: k - len(tail_before)]
        free[head] = False
        middle = body.permutation(np.flatnonzero(free))
        return np.concatenate([head, middle, tail])

    def _tail(self, e: int, k: int) -> np.ndarray:
        """The items of deck e that begin a draw which deck e + 1 completes."""
        size = (e + 1) * self.n % k
        if not size:
            return np.empty(0, np.int64)
        return self._stream(streams.DECK_TAIL, e).permutation(self.n)[:size]

    def _stream(self, purpose: int, e: int) -> np.random.Generator:
        return streams.stream(self.seed, purpose, e, self.key)


class PKSampler:
    """P classes of K images a batch; `sampler[step]` is a function of (seed, step).

    No class is twice in a batch, and no image either as long as its class has K images;
    a class of fewer repeats each of its images as evenly as can be. Classes with one
    image form no positive pair and are left out, unless K = 1.

    Every class is dealt equally often, so with classes of unequal size an image of a
    small class is seen more often than one of a large class. An *epoch* is
    `steps_per_epoch` = ceil(images / batch_size) steps, counting the images of the
    classes not left out: the number of batches that deals every image once on average.

    Attributes:
      steps_per_epoch: see above.
      num_classes: how many classes are dealt.
      left_out: how many classes are left out because they have one image.

    Args:
      labels: int [n], the class of each image.
      batch_size: P * K.
      instances_per_class: K.
      seed: which decks.

    Raises:
      InputError: K does not divide the batch size, or there are fewer than P classes.
    """

    def __init__(
        self,
        labels: np.ndarray,
        batch_size: int,
        instances_per_class: int,
        seed: int,
    ):
        labels = np.asarray(labels)
        self.batch_size = batch_size
        self.instances_per_class = instances_per_class
        _check_batch(batch_size, instances_per_class)
        self.classes_per_batch = batch_size // instances_per_class
        order = np.argsort(labels, kind="stable")
        cuts = np.flatnonzero(np.diff(labels[order])) + 1
        images = np.split(order, cuts) if len(labels) else []
        least = 1 if instances_per_class == 1 else 2
        self._images = [group for group in images if len(group) >= least]
        self.num_classes = len(self._images)
        self.left_out = len(images) - self.num_classes
        if self.num_classes < self.classes_per_batch:
            raise InputError(self._too_few_classes())
        dealt = sum(len(group) for group in self._images)
        self.steps_per_epoch = -(-dealt // batch_size)
        self._classes = Deck(self.num_classes, self.classes_per_batch, seed, 0)
        self._decks = [
            Deck(len(group), instances_per_class, seed, 1 + c)
            for c, group in enumerate(self._images)
        ]

    def __getitem__(self, step: int) -> np.ndarray:
        """The batch of a step: int64 [P * K] indices, those of a class side by side."""
        if step < 0:
            raise IndexError(f"There is no step {step}: steps count from 0.")
        batch = np.empty((self.classes_per_batch, self.instances_per_class), np.int64)
        classes, times_dealt = self._classes.draw(int(step))
        for row, c, times in zip(
            batch, classes.tolist(), times_dealt.tolist(), strict=True
        ):
            row[:] = self._images[c][self._decks[c].draw(times)[0]]
        return batch.reshape(-1)

    def _too_few_classes(self) -> str:
        per_class = self.instances_per_class
        which = "" if per_class == 1 else " with at least two images"
        advice = (
            f"the largest batch is {self.num_classes * per_class}"
            if self.num_classes
            else "nothing can be learned from them"
        )
        return (
            f"A batch of {self.batch_size} with {per_class} images a class needs "
            f"{self.classes_per_batch} classes, but there are {self.num_classes}"
            f"{which}: {advice}."
        )


def _check_batch(batch_size: int, instances_per_class: int) -> None:
    if instances_per_class < 1:
        raise InputError(
            f"instances_per_class is {instances_per_class}: it must be at least 1."
        )
    below, rest = divmod(batch_size, instances_per_class)
    if batch_size < 1 or rest:
        legal = [m * instances_per_class for m in (below, below + 1) if m > 0]
        raise InputError(
            f"A batch of {batch_size} cannot hold whole groups of "
            f"{instances_per_class} images a class: the nearest batch_size that can is "
            f"{' or '.join(map(str, legal))}."
        )
