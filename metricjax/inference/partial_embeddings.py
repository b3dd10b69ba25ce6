"""Resumable storage of embeddings: a directory to which they are appended.

An interrupted run loses at most the batch in flight. `resume_or_begin` is the protocol
for all who embed into a directory (the index of a gallery, the file of `embed`): resume
if the directory holds embeddings of the same model and images, otherwise start empty.
`fill` then embeds the rest.
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8

from metricjax.data.datasets import Split, UnreadableImage
from metricjax.errors import InputError, counted, disk_errors
from metricjax.evaluation.rows import LENGTH_TOLERANCE
from metricjax.inference.embedder import Embedded
from metricjax.inference.trained_model import TrainedModel
from metricjax.runtime import exchange
from metricjax.storage.atomic import write_atomically

_REQUEST, _KEYS = "request.json", "keys.bin"
_EMBEDDINGS, _VALID = "embeddings.bin", "valid.bin"
_KEY_BYTES = 16
_ROWS_PER_CHECK = 1 << 16
_MOST_NAMED = 5  # unreadable images listed in a message


def keys_of(split: Split) -> UInt8[np.ndarray, "n 16"]:
    """A key for each image: 128 bits of the SHA-256 of its name and its stamp."""
    digests = bytearray()
    for number, name in enumerate(split.names):
        text = f"{name}\0{split.stamp(number)}".encode("utf-8", "surrogateescape")
        digests += hashlib.sha256(text).digest()[:_KEY_BYTES]
    return np.frombuffer(bytes(digests), np.uint8).reshape(-1, _KEY_BYTES)


@dataclass(eq=False)
class PartialEmbeddings:
    """The embeddings of the first `count` of n images, stored in a directory.

    Attributes:
      directory: holds these files and nothing else.
      model: the identity of the model.
      keys: [n, 16] keys of the images, see `keys_of`.
      width: embedding dimension.
      count: images embedded so far.
    """

    directory: Path
    model: str
    keys: UInt8[np.ndarray, "n 16"]
    width: int
    count: int = 0

    @classmethod
    def load(cls, directory: Path) -> "PartialEmbeddings | None":
        """What an interrupted process left; None if there is nothing usable."""
        try:
            request = json.loads((directory / _REQUEST).read_bytes())
            keys = np.fromfile(directory / _KEYS, np.uint8).reshape(-1, _KEY_BYTES)
            partial = cls(directory, str(request["model"]), keys, int(request["width"]))
            if len(keys) != request["images"]:
                return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        partial.count = partial._count_intact()
        return partial

    @classmethod
    def begin(
        cls, directory: Path, model: str, keys, width: int
    ) -> "PartialEmbeddings":
        """Start empty; replaces whatever the directory holds.

        Raises:
          InputError: the disk is full.
        """
        partial = cls(directory, model, keys, width)
        partial.remove()
        request = {"model": model, "width": width, "images": len(keys)}
        with disk_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
            (directory / _KEYS).write_bytes(keys.tobytes())
            # The request comes last: without it `load` ignores the other files.
            write_atomically(directory / _REQUEST, json.dumps(request))
        return partial

    def matches(self, model: str, keys: UInt8[np.ndarray, "n 16"]) -> bool:
        """Whether these are embeddings by this model of exactly these images."""
        return self.model == model and np.array_equal(self.keys, keys)

    def append(self, embedded: Embedded) -> None:
        """Append the embeddings of the next images; 0 where an image is unreadable.

        Raises:
          InputError: the disk is full.
        """
        rows = np.where(embedded.valid[:, None], embedded.embeddings, np.float32(0))
        with disk_errors(self.directory):
            for name, values in ((_EMBEDDINGS, rows), (_VALID, embedded.valid)):
                with (self.directory / name).open("ab") as file:
                    file.write(np.ascontiguousarray(values).tobytes())
        self.count += len(rows)

    def truncate(self, count: int) -> None:
        """Keep the first `count` rows and drop all after them, half-written or not."""
        for name, size in ((_EMBEDDINGS, 4 * self.width), (_VALID, 1)):
            with (self.directory / name).open("ab") as file:
                file.truncate(count * size)
        self.count = count

    @property
    def embedded(self) -> Embedded:
        """The first `count` embeddings, memory-mapped."""
        shape = self.count, self.width
        if not self.count:
            return Embedded(np.zeros(shape, np.float32), np.zeros(0, bool))
        path = self.directory / _EMBEDDINGS
        rows = np.memmap(path, np.float32, mode="r", shape=shape)
        return Embedded(rows, self._valid()[: self.count])

    def remove(self) -> None:
        """Remove the files, the request first, then the directory if it is empty."""
        for name in (_REQUEST, _KEYS, _EMBEDDINGS, _VALID):
            (self.directory / name).unlink(missing_ok=True)
        with suppress(OSError):
            self.directory.rmdir()

    def _valid(self) -> Bool[np.ndarray, " n"]:
        return np.fromfile(self.directory / _VALID, np.uint8) == 1

    def _count_intact(self) -> int:
        """How many leading rows are as they were written.

        A power failure can leave rows of zeros or garbage inside a file of the right
        size. A valid row has length 1 and an invalid one length 0; the first row that
        has neither ends what can be used.
        """
        try:
            size = (self.directory / _EMBEDDINGS).stat().st_size
            valid = self._valid()
        except OSError:
            return 0
        self.count = min(size // (4 * self.width), len(valid), len(self.keys))
        rows = self.embedded.embeddings
        for start in range(0, self.count, _ROWS_PER_CHECK):
            block = slice(start, min(start + _ROWS_PER_CHECK, self.count))
            damaged = np.abs(_lengths(rows[block]) - valid[block]) > LENGTH_TOLERANCE
            if damaged.any():
                return start + int(damaged.argmax())
        return self.count


def _lengths(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """Euclidean lengths; -1 for rows with non-finite values."""
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    return np.where(np.isfinite(lengths), lengths, np.float32(-1))


def resume_or_begin(
    directory: Path,
    model: str,
    keys: UInt8[np.ndarray, "n 16"],
    width: int,
    *,
    say: Callable[[str], None],
    on_mismatch: Callable[[PartialEmbeddings], None] = lambda partial: None,
) -> PartialEmbeddings:
    """Resume the embeddings in a directory, or start empty.

    The caller holds a lock, so that one process at a time writes there.

    Args:
      directory: where an interrupted process may have left embeddings.
      model: the identity of the model.
      keys: [n, 16] keys of the images to embed, in their order.
      width: embedding dimension.
      say: called with a sentence if it resumes.
      on_mismatch: called if the directory holds embeddings by another model or of other
        images; raises to keep them. If it returns, they are replaced.

    Raises:
      InputError: the disk is full.
    """
    partial = PartialEmbeddings.load(directory)
    if partial is not None:
        if partial.matches(model, keys):
            say(f"Resuming after {counted(partial.count, 'image')}.")
            return partial
        on_mismatch(partial)
    return PartialEmbeddings.begin(directory, model, keys, width)


def fill(
    partial: PartialEmbeddings | None,
    trained: TrainedModel,
    split: Split,
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Embed the remaining images. Runs on all hosts; the first one writes.

    It resumes at a batch boundary, so that on the same devices every image is in the
    same batch, and gets the same embedding, as without the interruption.

    Args:
      partial: on the first host; None on all others.
      trained: the network.
      split: the images, in the order of `partial.keys`.
      threads: number of threads that read images.
      progress: called with the numbers of images done and in total.

    Raises:
      InputError: the disk is full; what is embedded by then stays.
    """
    if partial is not None and partial.count < len(split):
        size = trained.embedder.batch_size
        partial.truncate(partial.count // size * size)
    # Only the first host knows where to resume; it tells the others.
    done = 0 if partial is None else partial.count
    first = exchange.gather("embedded", done)[0][1]
    progress(first, len(split))
    if first == len(split):
        return
    for rows, block in trained.blocks(split, first=first, threads=threads):
        if partial is not None:
            partial.append(block)
        progress(rows.stop, len(split))


def unreadable(split: Split, valid: Bool[np.ndarray, " n"]) -> str:
    """Which images cannot be decoded, as the beginning of a sentence; "" if none.

    Raises:
      InputError: no image can be decoded.
    """
    bad = np.flatnonzero(~valid)
    if not len(bad):
        return ""
    try:
        split.read(bad[0])
        reason = "it could not be read when it was embedded"
    except UnreadableImage as error:
        reason = error.reason
    if len(bad) == len(split):
        raise InputError(
            f"None of the {len(split):,} images can be decoded, the first is "
            f"{split.names[bad[0]]!r} ({reason}): name others, or restore the files."
        )
    others = [repr(split.names[number]) for number in bad[1:_MOST_NAMED]]
    more = len(bad) - 1 - len(others)
    named = ", ".join([f"{split.names[bad[0]]!r} ({reason})", *others])
    return (
        f"{len(bad):,} of {len(split):,} images cannot be decoded: {named}"
        f"{f' and {more:,} more' if more else ''}"
    )
