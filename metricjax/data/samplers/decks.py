"""Shuffled decks with random access: draw number d without the draws before it.

Items are not drawn independently but dealt from consecutive shuffles of all items, so
at any time the counts of any two items differ by at most one. Draw one million costs as
much as draw one, which is what lets a run resume at any step.
"""

import math

import numpy as np

from metricjax.data import random_streams


class Deck:
    """Draws of k from consecutive shuffled decks of n, at random access.

    Lay decks 0, 1, 2, ... end to end, each a permutation of the n items; draw d takes
    positions dk ... dk + k - 1. A draw that spans two decks must not contain an item
    twice. How deck e is computed without its predecessors:

    - n >= 2k - 1: the items after the last draw boundary in deck e (its tail) come from
      a random stream of their own. The items before its first boundary (its head)
      complete the draw that the tail of deck e - 1 began, so they are drawn from the
      items in neither tail. The rest is shuffled between head and tail.
    - k <= n < 2k - 1: one permutation is repeated for the n / gcd(n, k) draws after
      which a deck and a draw end together; k consecutive positions of a cycle of length
      n never collide.
    - n < k: a draw contains every item floor(k / n) times, plus a draw of k mod n.

    Args:
      n: number of items, at least 1.
      k: items per draw, at least 1.
      seed, key: of the random streams; decks with different keys are independent.
    """

    __slots__ = ("n", "k", "seed", "key", "_last", "_last_tail")

    def __init__(self, n: int, k: int, seed: int, key: int):
        self.n, self.k, self.seed, self.key = n, k, seed, key
        # Cache of the last deck and the last tail, as (number, items). Threads share it
        # without a lock: each tuple is replaced as one object, so a reader sees a
        # matching pair, and a lost update costs time but changes no result.
        self._last = self._last_tail = (-1, None)

    def draw(self, d: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw number d.

        Returns:
          (items, decks): int64 [k] each; the items and the number of the deck that each
          came from, which for k <= n is how often the item was drawn before.
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
        """Only the items of draw number d: int64 [k], read-only by convention."""
        if self.k <= self.n:
            return self._places(d, self.k)
        whole, rest = divmod(self.k, self.n)
        return np.concatenate(
            [np.tile(np.arange(self.n), whole), self._places(d, rest)]
        )

    def _places(self, d: int, k: int) -> np.ndarray:
        """Positions dk ... dk + k - 1, from one deck or two (k <= n)."""
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
        """Deck e from its head, middle and tail (n >= 2k - 1)."""
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
        """The last items of deck e, of the draw that deck e + 1 completes."""
        size = (e + 1) * self.n % k
        if not size:
            return np.empty(0, np.int64)
        number, tail = self._last_tail
        if number != e:
            tail = self._stream(random_streams.DECK_TAIL, e).permutation(self.n)[:size]
            self._last_tail = (e, tail)
        return tail

    def _stream(self, purpose: int, e: int) -> np.random.Generator:
        return random_streams.reused_stream(self.seed, purpose, e, self.key)


class ClassDecks:
    """Draws K images at a time from each class.

    Attributes:
      images: int64 arrays, the images of each class that is not left out.
      sizes: int64 [len(images)], the number of images of each.
      left_out: number of classes with fewer images than `least`.

    Args:
      labels: int [n], the class of each image.
      instances: K.
      least: classes of fewer images are left out.
      seed: of the shuffles; the decks have keys 1 to `len(images)`.
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
        """K images of each class, the images of a class next to each other.

        Args:
          classes: int [p], indices into `images`.
          times: int [p], how often each class was drawn before.

        Returns:
          int64 [p K].
        """
        batch = np.empty((len(classes), self._instances), np.int64)
        for row, c, time in zip(batch, classes.tolist(), times.tolist(), strict=True):
            row[:] = self.images[c][self._decks[c].items(time)]
        return batch.reshape(-1)
