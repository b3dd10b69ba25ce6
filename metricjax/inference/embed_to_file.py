"""Embed images into one file (`python -m metricjax.embed`), resumably.

Until the file is complete the embeddings are in `FILE.unfinished/`, see
`partial_embeddings`.
"""

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
    """Write the embeddings of all images to a file. To be called on all hosts.

    Args:
      trained: the network.
      split: the images.
      out: .npz or .parquet.
      threads: number of threads that read images.
      progress: called with the numbers of images done and in total.

    Raises:
      InputError: `out` exists with other embeddings, or cannot be written; no image
        can be decoded; or the disk is full, and what is done stays.
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
    _create(directory)
    with locked(directory, f"Another process writes {out}: wait for it."):
        partial_rows = partial_embeddings.resume_or_begin(
            directory,
            trained.identity,
            keys,
            trained.width,
            say=say_once,
            on_mismatch=partial(_refuse_other, trained=trained),
        )
        before, began = partial_rows.count, time.perf_counter()
        fill(partial_rows, progress=progress)
        seconds = time.perf_counter() - began
        _finish(trained, split, partial_rows, _digest(split, keys), out)
    rate = (len(split) - before) / seconds
    say_once(
        f"{out}: {counted(len(split), 'embedding')} of {partial_rows.width:,} "
        f"numbers; "
        f"{counted(len(split) - before, 'image')} in {seconds:,.1f} s ({rate:,.0f}/s)."
    )


def _create(directory: Path) -> None:
    try:
        with disk_errors(directory):
            directory.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{directory} cannot be made ({error.strerror}): choose an --out in "
            "another place."
        ) from error


def _is_complete(out: Path, trained: TrainedModel, images: str) -> bool:
    """Whether the file already holds these embeddings; False if there is no file.

    Raises:
      InputError: it holds other embeddings.
    """
    if not out.exists():
        return False
    existing = embedding_files.load(out)
    if (existing.model, existing.images) == (trained.identity, images):
        return True
    raise InputError(
        f"--out {out} holds embeddings of {_difference(trained, existing.model)}: "
        "choose another file, or delete it."
    )


def _difference(trained: TrainedModel, model: str) -> str:
    return "other images" if model == trained.identity else "another model"


def _digest(split: Split, keys) -> str:
    """A SHA-256 of the images, their classes and their categories."""
    names = [*split.class_names, *split.category_names]
    categories = b"" if split.categories is None else split.categories.tobytes()
    parts = (keys.tobytes(), split.labels.tobytes(), categories)
    return hashlib.sha256(b"".join(parts) + json.dumps(names).encode()).hexdigest()


def _refuse_other(partial_rows: PartialEmbeddings, trained: TrainedModel) -> None:
    """Embeddings of something else may be wanted: never replace them unasked."""
    raise InputError(
        f"{partial_rows.directory} holds {partial_rows.count:,} embeddings of "
        f"{_difference(trained, partial_rows.model)}: choose another --out, or delete "
        "the directory."
    )


def _finish(
    trained: TrainedModel,
    split: Split,
    partial_rows: PartialEmbeddings,
    images: str,
    out: Path,
) -> None:
    """Write the complete file, then remove the unfinished one."""
    embedded = partial_rows.embedded
    try:
        unreadable = partial_embeddings.unreadable(split, embedded.valid)
    except InputError:
        partial_rows.remove()
        raise
    complete = vectors.Vectors(
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
    embedding_files.save(complete, out)
    for leftover in out.parent.glob(f".{glob.escape(out.name)}.*.tmp"):
        leftover.unlink()  # Of an earlier process that was killed while writing.
    partial_rows.remove()
    if unreadable:
        say_once(f"{unreadable}; their rows are marked as not valid.")


def say_once(note: str) -> None:
    """Print a sentence, on the first host only."""
    if jax.process_index() == 0:
        print(note, flush=True)
