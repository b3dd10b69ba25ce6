"""The input pipeline on the host: read, prepare, cache and augment images in threads.

The content of batch `step` depends on (seed, step) and the files alone. The number of
threads or hosts, or the step at which a run was resumed, changes no byte of it.
"""

import os
import threading
from collections.abc import Callable, Iterator

import numpy as np

from metricjax.data import random_streams
from metricjax.data.datasets import Split, UnreadableImage
from metricjax.data.transforms import Transform
from metricjax.errors import InputError

Batch = dict[str, np.ndarray]


class SkipLog:
    """Images that could not be read, each once; thread-safe."""

    def __init__(self):
        self._lock = threading.Lock()
        self._reasons: dict[str, str] = {}

    def add(self, name: str, reason: str) -> None:
        with self._lock:
            self._reasons.setdefault(name, reason)

    def items(self) -> tuple[tuple[str, str], ...]:
        """(name, reason) of each image, sorted by name."""
        with self._lock:
            return tuple(sorted(self._reasons.items()))

    def __len__(self) -> int:
        return len(self._reasons)


class Batches(Iterator[Batch]):
    """An iterator of prefetched batches; close it, or use it as a context manager.

    Attributes:
      skipped: the log of images that could not be read.
    """

    def __init__(self, iterator: Iterator[Batch], skipped: SkipLog):
        self._iterator = iterator
        self.skipped = skipped

    def __next__(self) -> Batch:
        return next(self._iterator)

    def close(self) -> None:
        """Stop the threads and drop prefetched batches."""
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def train_batches(
    split: Split,
    sampler,
    transform: Transform,
    *,
    seed: int,
    start_step: int,
    num_steps: int,
    process_index: int = 0,
    process_count: int = 1,
    threads: int | None = None,
    cache_bytes: int = 1 << 30,
    skipped: SkipLog | None = None,
) -> Batches:
    """This host's rows of the training batches start_step, ..., num_steps - 1.

    Augmentation draws from a random stream of (seed, step, row of the global batch). An
    unreadable image is replaced by the next readable one of its class; `indices` has
    the image that is really shown.

    Args:
      split: the images.
      sampler: `sampler[step] -> int [batch_size]` indices into the split, such as
        `PKSampler`; thread-safe.
      transform: the host's part of the recipe.
      seed: of the augmentation.
      start_step, num_steps: the first step and the length of the whole run.
      process_index, process_count: this host and the number of hosts. Each takes
        consecutive rows of the global batch; if the count divides P, whole classes.
      threads: each prepares whole batches; 0: `next` does all the work. None: one per
        processor, at most 16.
      cache_bytes: memory for prepared images; 0: no cache.
      skipped: where to record unreadable images; None: a new log.

    Yields:
      `images` uint8 [b, s, s, c], `labels` int32 [b], `indices` int64 [b], with
      b = batch_size / process_count.

    Raises:
      InputError: the hosts do not divide the batch; later, a class is unreadable.
    """
    skipped = SkipLog() if skipped is None else skipped
    rows = host_rows(sampler.batch_size, process_index, process_count)
    prepare, enough = transform.prepare_train, transform.enough
    images = _ImageCache(split, prepare, enough, cache_bytes, skipped)

    def load(step: int) -> Batch:
        wanted = sampler[step][rows]
        batch = np.empty((len(wanted), *transform.config.shape), np.uint8)
        shown = np.empty(len(wanted), np.int64)
        for row, index in enumerate(wanted.tolist()):
            shown[row], prepared = images.read_or_replace(index)
            rng = random_streams.reused_stream(
                seed, random_streams.AUGMENT, rows.start + row, step
            )
            batch[row] = transform.augment(prepared, rng)
        return {"images": batch, "labels": split.labels[shown], "indices": shown}

    steps = range(start_step, num_steps)
    return Batches(_in_order(load, steps, threads), skipped)


def test_batches(
    split: Split,
    transform: Transform,
    batch_size: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
    threads: int | None = None,
    skipped: SkipLog | None = None,
) -> Batches:
    """This host's rows of batches with every image of a split once, in order.

    Args:
      split: the images.
      transform: the host's part of the recipe; only `prepare_test` is used.
      batch_size: of the global batch.
      process_index, process_count, threads, skipped: as in `train_batches`.

    Yields:
      dict of `images` uint8 [b, s, s, c], `labels` int32 [b], `indices` int64 [b],
      `valid` bool [b], with b = batch_size / process_count. Unreadable images are black
      and not valid. The last batch is padded with black images that are not valid and
      have label and index -1: all batches have one shape, all hosts as many batches.

    Raises:
      InputError: the hosts do not divide the batch.
    """
    skipped = SkipLog() if skipped is None else skipped
    rows = host_rows(batch_size, process_index, process_count)
    images = _ImageCache(split, transform.prepare_test, transform.enough, 0, skipped)

    def load(number: int) -> Batch:
        first = number * batch_size
        indices = np.arange(first + rows.start, first + rows.stop)
        indices[indices >= len(split)] = -1
        batch = np.zeros((len(indices), *transform.config.shape), np.uint8)
        labels = np.full(len(indices), -1, np.int32)
        valid = np.zeros(len(indices), bool)
        for row, index in enumerate(indices.tolist()):
            if index < 0:
                continue
            labels[row] = split.labels[index]
            prepared = images.read(index)
            if prepared is not None:
                batch[row], valid[row] = prepared, True
        return {"images": batch, "labels": labels, "indices": indices, "valid": valid}

    count = -(-len(split) // batch_size)
    return Batches(_in_order(load, range(count), threads), skipped)


def host_rows(batch_size: int, process_index: int, process_count: int) -> slice:
    """This host's rows of the global batch: consecutive, the same number on each.

    Raises:
      InputError: the hosts do not divide the batch.
    """
    if batch_size < 1 or batch_size % process_count:
        below = batch_size // process_count * process_count
        legal = [n for n in (below, below + process_count) if n > 0]
        raise InputError(
            f"A batch of {batch_size} cannot be divided among {process_count} hosts: "
            f"the nearest batch_size that can is {' or '.join(map(str, legal))}."
        )
    share = batch_size // process_count
    return slice(process_index * share, (process_index + 1) * share)


def _in_order(
    load: Callable[[int], Batch], steps: range, threads: int | None
) -> Iterator[Batch]:
    """load(step) for each step, in order, prefetched in threads."""
    import grain

    if threads is None:
        threads = min(16, os.cpu_count() or 1)
    # At least two batches ahead. More than one per thread only delays the first batch.
    options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=max(2, threads) if threads else 0
    )
    dataset = grain.MapDataset.source(steps).map(load)
    return iter(dataset.to_iter_dataset(options))


class _ImageCache:
    """Reads and prepares images; keeps the first ones that fit into memory.

    Samplers draw from shuffled decks, so all images are read equally often and evicting
    one for another would gain nothing.
    """

    def __init__(
        self,
        split: Split,
        prepare: Callable[[np.ndarray], np.ndarray],
        enough: int,
        cache_bytes: int,
        skipped: SkipLog,
    ):
        self._split, self._prepare, self._skipped = split, prepare, skipped
        self._enough = enough
        self._lock = threading.Lock()
        self._cached: dict[int, np.ndarray | None] = {}
        self._bytes_left = cache_bytes

    def read(self, index: int) -> np.ndarray | None:
        """The prepared image, or None if it cannot be read."""
        # Reading a dictionary needs no lock; two threads may prepare an image twice.
        if index in self._cached:
            return self._cached[index]
        try:
            prepared = self._prepare(self._split.read(index, self._enough))
        except UnreadableImage as error:
            self._skipped.add(error.name, error.reason)
            self._cached[index] = None
            return None
        with self._lock:
            if index not in self._cached and prepared.nbytes <= self._bytes_left:
                # A copy, because a view would keep the whole decoded image alive.
                self._cached[index] = np.array(prepared)
                self._bytes_left -= prepared.nbytes
        return prepared

    def read_or_replace(self, index: int) -> tuple[int, np.ndarray]:
        """(i, image i), where i is `index` or the next readable one of its class."""
        prepared = self.read(index)
        if prepared is not None:
            return index, prepared
        label = self._split.labels[index]
        same_class = np.flatnonzero(self._split.labels == label)
        start = int(np.searchsorted(same_class, index))
        for other in np.roll(same_class, -start)[1:].tolist():
            prepared = self.read(other)
            if prepared is not None:
                return other, prepared
        raise InputError(
            f"None of the {len(same_class)} images of class "
            f"{self._split.class_names[label]!r} can be read, the first being "
            f"{self._split.names[same_class[0]]}: remove the class or restore its "
            "files."
        )
