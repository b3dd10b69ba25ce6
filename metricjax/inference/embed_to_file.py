"""The embeddings of images written into a file, or the rest of them."""

import glob
import hashlib
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax

from metricjax.data.datasets import Split
from metricjax.errors import InputError, counted, disk_errors
from metricjax.inference import embedding_files, partial_embeddings, vectors
from metricjax.inference.partial_embeddings import PartialEmbeddings
from metricjax.inference.trained_model import TrainedModel
from metricjax.runtime import exchange
from metricjax.storage.atomic import locked


def write(
    trained: TrainedModel,
    split: Split,
    out: Path,
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the embeddings of all images into a file; on all hosts.

    Args:
      trained: the network.
      split: the images.
      out: .npz or .parquet.
      threads: that read images.
      progress: called with how many images are done and how many there are.

    Raises:
      InputError: `out` is there and holds something else, or cannot be written; no
        image can be decoded; or the disk is full, and what is done stays.
    """
    fill = partial(
        partial_embeddings.fill, trained=trained, split=split, threads=threads
    )
    if jax.process_index() > 0:
        if exchange.gather("embed", False)[0][1]:
            fill(None)
        return
    keys = partial_embeddings.keys_of(split)
    is_new = not _is_complete(out, trained, _digest(split, keys))
    exchange.gather("embed", is_new)
    if not is_new:
        say_once(f"{out} is complete: there is nothing to do.")
        return
    directory = out.with_name(f"{out.name}.unfinished")
    _make(directory)
    with locked(directory, f"Another process writes {out}: wait for it."):
        rows = _begun(directory, trained, keys)
        before, began = rows.count, time.perf_counter()
        fill(rows, progress=progress)
        seconds = time.perf_counter() - began
        _finish(trained, split, rows, _digest(split, keys), out)
    rate = (len(split) - before) / seconds
    say_once(
        f"{out}: {counted(len(split), 'embedding')} of {rows.width:,} numbers; "
        f"{counted(len(split) - before, 'image')} in {seconds:,.1f} s ({rate:,.0f}/s)."
    )


def _make(directory: Path) -> None:
    try:
        with disk_errors(directory):
            directory.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{directory} cannot be made ({error.strerror}): choose an --out in "
            "another place."
        ) from error


def _is_complete(out: Path, trained: TrainedModel, images: str) -> bool:
    """Whether the file holds already what is asked for; False if there is none.

    Raises:
      InputError: it holds something else.
    """
    if not out.exists():
        return False
    found = embedding_files.load(out)
    if (found.model, found.images) == (trained.identity, images):
        return True
    raise InputError(
        f"--out {out} holds embeddings of {_other(trained, found.model)}: choose "
        "another file, or delete it."
    )


def _other(trained: TrainedModel, model: str) -> str:
    return "other images" if model == trained.identity else "another model"


def _digest(split: Split, keys) -> str:
    """Of which images these are, of which classes."""
    names = [*split.class_names, *split.category_names]
    categories = b"" if split.categories is None else split.categories.tobytes()
    parts = (keys.tobytes(), split.labels.tobytes(), categories)
    return hashlib.sha256(b"".join(parts) + json.dumps(names).encode()).hexdigest()


def _begun(directory: Path, trained: TrainedModel, keys) -> PartialEmbeddings:
    """What an earlier start has left of the same images, or an empty beginning."""
    rows = PartialEmbeddings.found(directory)
    if rows is None:
        return PartialEmbeddings.begun(directory, trained.identity, keys, trained.width)
    if not rows.is_of(trained.identity, keys):
        raise InputError(
            f"{directory} holds {rows.count:,} embeddings of "
            f"{_other(trained, rows.model)}: choose another --out, or delete the "
            "directory."
        )
    say_once(f"Going on after {counted(rows.count, 'image')}.")
    return rows


def _finish(
    trained: TrainedModel, split: Split, rows: PartialEmbeddings, images: str, out: Path
) -> None:
    embedded = rows.embedded
    try:
        unreadable = partial_embeddings.unreadable(split, embedded.valid)
    except InputError:
        rows.remove()
        raise
    made = vectors.Vectors(
        embeddings=embedded.embeddings,
        valid=embedded.valid,
        names=split.names,
        labels=split.labels,
        class_names=split.class_names,
        model=trained.identity,
        images=images,
        categories=split.categories,
        category_names=split.category_names,
    )
    embedding_files.save(made, out)
    for left in out.parent.glob(f".{glob.escape(out.name)}.*.tmp"):
        left.unlink()  # Of an earlier start that was killed while it wrote.
    rows.remove()
    if unreadable:
        say_once(f"{unreadable}; their rows are marked as not valid.")


def say_once(note: str) -> None:
    """Print a sentence, on the first host."""
    if jax.process_index() == 0:
        print(note, flush=True)
