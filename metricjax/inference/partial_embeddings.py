"""Embeddings on disk as they come, so that a stop costs none that was made."""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8

from metricjax.data.datasets import Split, UnreadableImage
from metricjax.errors import InputError, disk_errors
from metricjax.evaluation.rows import LENGTH_TOLERANCE
from metricjax.inference.embedder import Embedded
from metricjax.inference.trained_model import TrainedModel
from metricjax.runtime import exchange
from metricjax.storage.atomic import write_atomically

_REQUEST, _KEYS = "request.json", "keys.bin"
_EMBEDDINGS, _VALID = "embeddings.bin", "valid.bin"
_KEY_BYTES = 16
_AT_ONCE = 1 << 16  # rows that are checked at a time
_NAMED = 5  # images that a sentence names


def keys_of(split: Split) -> UInt8[np.ndarray, "n 16"]:
    """For each image, 128 bits of the SHA-256 of its name and its stamp."""
    digests = bytearray()
    for number, name in enumerate(split.names):
        text = f"{name}\0{split.stamp(number)}".encode("utf-8", "surrogateescape")
        digests += hashlib.sha256(text).digest()[:_KEY_BYTES]
    return np.frombuffer(bytes(digests), np.uint8).reshape(-1, _KEY_BYTES)


@dataclass(eq=False)
class PartialEmbeddings:
    """The embeddings of the first `count` of some images, in a directory.

    Attributes:
      directory: where they lie; of no other use.
      model: the identity of the model.
      keys: [n, 16] of the images, see `keys_of`.
      width: numbers of an embedding.
      count: images that are embedded, the first of them.
    """

    directory: Path
    model: str
    keys: UInt8[np.ndarray, "n 16"]
    width: int
    count: int = 0

    @classmethod
    def found(cls, directory: Path) -> "PartialEmbeddings | None":
        """What an earlier process has left; None if there is nothing of use."""
        try:
            request = json.loads((directory / _REQUEST).read_bytes())
            keys = np.fromfile(directory / _KEYS, np.uint8).reshape(-1, _KEY_BYTES)
            growing = cls(directory, str(request["model"]), keys, int(request["width"]))
            if len(keys) != request["images"]:
                return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        growing.count = growing._whole()
        return growing

    @classmethod
    def begun(
        cls, directory: Path, model: str, keys, width: int
    ) -> "PartialEmbeddings":
        """An empty one, in the place of whatever there was.

        Raises:
          InputError: the disk is full.
        """
        growing = cls(directory, model, keys, width)
        growing.remove()
        request = {"model": model, "width": width, "images": len(keys)}
        with disk_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
            (directory / _KEYS).write_bytes(keys.tobytes())
            write_atomically(directory / _REQUEST, json.dumps(request))
        return growing

    def is_of(self, model: str, keys: UInt8[np.ndarray, "n 16"]) -> bool:
        return self.model == model and np.array_equal(self.keys, keys)

    def append(self, embedded: Embedded) -> None:
        """The embeddings of the next images; 0 where an image could not be read.

        Raises:
          InputError: the disk is full.
        """
        rows = np.where(embedded.valid[:, None], embedded.embeddings, np.float32(0))
        with disk_errors(self.directory):
            for name, values in ((_EMBEDDINGS, rows), (_VALID, embedded.valid)):
                with (self.directory / name).open("ab") as file:
                    file.write(np.ascontiguousarray(values).tobytes())
        self.count += len(rows)

    def cut(self, count: int) -> None:
        """Keep the first `count`, and nothing of what was half written after them."""
        for name, size in ((_EMBEDDINGS, 4 * self.width), (_VALID, 1)):
            with (self.directory / name).open("ab") as file:
                file.truncate(count * size)
        self.count = count

    @property
    def embedded(self) -> Embedded:
        """All that there are; read from disk as they are used."""
        shape = self.count, self.width
        if not self.count:
            return Embedded(np.zeros(shape, np.float32), np.zeros(0, bool))
        path = self.directory / _EMBEDDINGS
        rows = np.memmap(path, np.float32, mode="r", shape=shape)
        return Embedded(rows, self._valid()[: self.count])

    def remove(self) -> None:
        """Remove the files, the request first, and the directory if it is empty."""
        for name in (_REQUEST, _KEYS, _EMBEDDINGS, _VALID):
            (self.directory / name).unlink(missing_ok=True)
        with suppress(OSError):
            self.directory.rmdir()

    def _valid(self) -> Bool[np.ndarray, " n"]:
        return np.fromfile(self.directory / _VALID, np.uint8) == 1

    def _whole(self) -> int:
        """How many are there and as they were written, one after the other."""
        try:
            size = (self.directory / _EMBEDDINGS).stat().st_size
            valid = self._valid()
        except OSError:
            return 0
        self.count = min(size // (4 * self.width), len(valid), len(self.keys))
        rows = self.embedded.embeddings
        for start in range(0, self.count, _AT_ONCE):
            some = slice(start, min(start + _AT_ONCE, self.count))
            off = np.abs(_lengths(rows[some]) - valid[some]) > LENGTH_TOLERANCE
            if off.any():
                return start + int(off.argmax())
        return self.count


def _lengths(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """With what is not finite as far from 1."""
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    return np.where(np.isfinite(lengths), lengths, np.float32(-1))


def fill(
    growing: PartialEmbeddings | None,
    trained: TrainedModel,
    split: Split,
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Embed what is left of the images; on all hosts, of which the first writes.

    It goes on at a boundary of batches, so that on the same devices every image is
    embedded as it would have been without the stop.

    Args:
      growing: on the first host; None on all others.
      trained: the network.
      split: the images, those of the keys of `growing`.
      threads: that read images.
      progress: called with how many images are done and how many there are.

    Raises:
      InputError: the disk is full; what is embedded by then stays.
    """
    if growing is not None and growing.count < len(split):
        size = trained.embedder.batch_size
        growing.cut(growing.count // size * size)
    done = 0 if growing is None else growing.count
    first = exchange.gather("embedded", done)[0][1]
    progress(first, len(split))
    if first == len(split):
        return
    for rows, block in trained.blocks(split, first=first, threads=threads):
        if growing is not None:
            growing.append(block)
        progress(rows.stop, len(split))


def unreadable(split: Split, valid: Bool[np.ndarray, " n"]) -> str:
    """Which images cannot be decoded: the beginning of a sentence, "" if there is none.

    Raises:
      InputError: there are no others.
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
    others = [repr(split.names[number]) for number in bad[1:_NAMED]]
    more = len(bad) - 1 - len(others)
    named = ", ".join([f"{split.names[bad[0]]!r} ({reason})", *others])
    return (
        f"{len(bad):,} of {len(split):,} images cannot be decoded: {named}"
        f"{f' and {more:,} more' if more else ''}"
    )
