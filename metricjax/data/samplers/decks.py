"""Dealing from shuffled decks, at random access.

Nothing is drawn independently at random: items are dealt from consecutive shuffled
decks, each holding every item once. At any time, therefore, the numbers of times that
any two items were dealt differ by at most one; and yet draw one million costs what draw
one costs.
"""

import math

import numpy as np

from metricjax.data import random_streams


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

    __slots__ = ("n", "k", "seed", "key", "_last", "_last_tail")

    def __init__(self, n: int, k: int, seed: int, key: int):
        self.n, self.k, self.seed, self.key = n, k, seed, key
        # (number, items) of the deck and the tail made last, each replaced as one
        # object: whatever thread reads it, it is right. They save work and change no
        # result.
        self._last = self._last_tail = (-1, None)

    def draw(self, d: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw number d.

        Returns:
          (items, decks): int64 [k] each; the item and the number of the deck it came
          from, which is how often that item was dealt before this draw (when k <= n).
        """
        whole, rest = divmod(self.k, self.n)
        k = self.k if self.k <= self.n else rest
        e, start = divmod(d * k, self.n)
        decks = e + (np.arange(start, start + k) >= self.n)
        if self.k > self.n:
            of_whole = np.repeat(d * whole + np.arange(whole), self.n)
            decks = np.concatenate([of_whole, decks])
        return self.items(d).copy(), decks

    def items(self, d: int) -> np.ndarray:
        """The items of draw number d alone: int64 [k], not to be written to."""
        if self.k <= self.n:
            return self._places(d, self.k)
        whole, rest = divmod(self.k, self.n)
        return np.concatenate(
            [np.tile(np.arange(self.n), whole), self._places(d, rest)]
        )

    def _places(self, d: int, k: int) -> np.ndarray:
        """Places dk ... dk + k - 1 of the decks for draws of k <= n: at most two."""
        e, start = divmod(d * k, self.n)
        first = self._deck(e, k)[start : start + k] if k else np.empty(0, np.int64)
        if len(first) == k:
            return first
        return np.concatenate([first, self._deck(e + 1, k)[: k - len(first)]])

    def _deck(self, e: int, k: int) -> np.ndarray:
        number, items = self._last
        if number == e:
            return items
        if self.n >= 2 * k - 1:
            items = self._chained(e, k)
        else:
            period = k // math.gcd(self.n, k)  # in decks
            items = self._stream(random_streams.DECK_BODY, e // period).permutation(
                self.n
            )
        self._last = (e, items)
        return items

    def _chained(self, e: int, k: int) -> np.ndarray:
        """Deck e as head, middle and tail."""
        tail_before, tail = self._tail(e - 1, k), self._tail(e, k)
        body = self._stream(random_streams.DECK_BODY, e)
        free = np.ones(self.n, bool)
        free[tail] = False
        if not len(tail_before):
            return np.concatenate([body.permutation(free.nonzero()[0]), tail])
        candidates = free.copy()
        candidates[tail_before] = False
        head = body.permutation(candidates.nonzero()[0])[: k - len(tail_before)]
        free[head] = False
        middle = body.permutation(free.nonzero()[0])
        return np.concatenate([head, middle, tail])

    def _tail(self, e: int, k: int) -> np.ndarray:
        """The items of deck e that begin a draw which deck e + 1 completes."""
        size = (e + 1) * self.n % k
        if not size:
            return np.empty(0, np.int64)
        number, tail = self._last_tail
        if number != e:
            tail = self._stream(random_streams.DECK_TAIL, e).permutation(self.n)[:size]
            self._last_tail = (e, tail)
        return tail

    def _stream(self, purpose: int, e: int) -> np.random.Generator:
        return random_streams.passing_stream(self.seed, purpose, e, self.key)


class ClassDecks:
    """The images of each class, dealt K at a time.

    Attributes:
      images: list of int64 arrays, the images of each class that is dealt.
      sizes: int64 [len(images)], how many each has.
      left_out: how many classes have fewer images than `least`.

    Args:
      labels: int [n], the class of each image.
      instances: K.
      least: classes of fewer images are left out.
      seed: which decks; theirs have the keys 1 to `len(images)`.
    """

    def __init__(self, labels: np.ndarray, instances: int, least: int, seed: int):
        labels = np.asarray(labels)
        order = np.argsort(labels, kind="stable")
        cuts = np.flatnonzero(np.diff(labels[order])) + 1
        groups = np.split(order, cuts) if len(labels) else []
        self.images = [group for group in groups if len(group) >= least]
        self.sizes = np.array([len(group) for group in self.images], np.int64)
        self.left_out = len(groups) - len(self.images)
        self._instances = instances
        self._decks = [
            Deck(len(group), instances, seed, 1 + c)
            for c, group in enumerate(self.images)
        ]

    def __len__(self) -> int:
        return len(self.images)

    def fill(self, classes: np.ndarray, times: np.ndarray) -> np.ndarray:
        """K images of each class, those of a class side by side.

        Args:
          classes: int [p], places in `images`.
          times: int [p], how often each class was dealt before.

        Returns:
          int64 [p K].
        """
        batch = np.empty((len(classes), self._instances), np.int64)
        for row, c, time in zip(batch, classes.tolist(), times.tolist(), strict=True):
            row[:] = self.images[c][self._decks[c].items(time)]
        return batch.reshape(-1)
