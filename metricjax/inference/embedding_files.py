"""Embeddings of named images in one file: .npz, or .parquet for other programs."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from metricjax.errors import InputError
from metricjax.evaluation.rows import unit_rows
from metricjax.inference import parquet
from metricjax.inference.vectors import FORMAT, Vectors
from metricjax.storage.atomic import atomic_file

SUFFIXES = (".npz", ".parquet")
_MADE_BY = "make it with python -m metricjax.embed."


def suffix_of(path: Path | str) -> str:
    """`.npz` or `.parquet`.

    Raises:
      InputError: it ends in something else.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(
            f"{path} ends in neither {' nor '.join(SUFFIXES)}: choose one of them."
        )
    return suffix


def save(vectors: Vectors, path: Path) -> None:
    """Writes the file, whole or not at all.

    The same vectors give the same bytes.

    Raises:
      InputError: the disk is full, the place cannot be written, or pyarrow is missing.
    """
    suffix = suffix_of(path)
    try:
        with atomic_file(path) as temporary:
            if suffix == ".parquet":
                parquet.write(vectors, temporary)
            else:
                with temporary.open("wb") as file:
                    np.savez(file, **_arrays(vectors))
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}): choose another "
            "place."
        ) from error


def _arrays(vectors: Vectors) -> dict[str, np.ndarray]:
    arrays = {
        "format": FORMAT,
        "model": vectors.model,
        "images": vectors.images,
        "embeddings": vectors.embeddings,
        "valid": vectors.valid,
        "names": list(vectors.names),
        "labels": vectors.labels,
        "class_names": list(vectors.class_names),
    }
    if vectors.categories is not None:
        arrays["categories"] = vectors.categories
        arrays["category_names"] = list(vectors.category_names)
    return {name: np.asarray(value) for name, value in arrays.items()}


def load(path: Path) -> Vectors:
    """Reads a file of embeddings and checks it.

    Of an .npz, `embeddings`, `names` and `model` must be there.

    Raises:
      InputError: it is damaged or no such file, counts differ, or rows are not finite
        or not of unit length.
    """
    if suffix_of(path) == ".parquet":
        columns = parquet.read(path)
    else:
        columns = _read(path)
    return _checked(path, columns)


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: np.asarray(file[name]) for name in file.files}
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: {_MADE_BY}") from error
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        what = str(error).split("\n")[0]
        if "allow_pickle" in what:
            what = "it holds Python objects, which are not read"
        raise InputError(
            f"{path} is no .npz of embeddings or is damaged ({what}): {_MADE_BY}"
        ) from error


def _checked(path: Path, columns: Mapping[str, Any]) -> Vectors:
    for name in ("embeddings", "names", "model"):
        if name not in columns:
            raise InputError(f"{path} does not hold {name!r}: {_MADE_BY}")
    embeddings, names = columns["embeddings"], columns["names"]
    if np.ndim(embeddings) != 2 or not np.issubdtype(embeddings.dtype, np.floating):
        raise InputError(
            f"{path}: its embeddings are {embeddings.dtype} of shape "
            f"{np.shape(embeddings)}: floats [images, numbers] are wanted."
        )
    count = len(embeddings)
    given = {
        "valid": np.ones(count, bool),
        "labels": np.zeros(count, np.int32),
        "class_names": np.array([""]),
        **columns,
    }
    for name in ("names", "labels", "valid", "categories"):
        if name in given and np.shape(given[name]) != (count,):
            raise InputError(
                f"{path}: there are {count:,} embeddings, but {name!r} has the shape "
                f"{np.shape(given[name])}: one value for each image is wanted."
            )
    valid = np.asarray(given["valid"]).astype(bool)
    if not valid.any():
        raise InputError(f"{path} holds no embedding of an image: embed some.")
    # A row that is not valid is not looked at; any unit row can stand for it.
    rows = embeddings if valid.all() else embeddings.copy()
    rows[~valid] = rows[valid][0]
    rows = unit_rows(rows, str(path))
    rows[~valid] = 0
    labels, class_names = _used(path, "labels", given["labels"], given["class_names"])
    categories, category_names = None, ()
    if "categories" in given:
        categories, category_names = _used(
            path, "categories", given["categories"], given.get("category_names", ())
        )
    return Vectors(
        embeddings=rows,
        valid=valid,
        names=tuple(map(str, names.tolist())),
        labels=labels,
        class_names=class_names,
        model=str(columns["model"]),
        images=str(columns.get("images", "")),
        categories=categories,
        category_names=category_names,
    )


def _used(path: Path, what: str, numbers, names) -> tuple[np.ndarray, tuple[str, ...]]:
    """(numbers, their names), those names apart that no image has."""
    numbers, names = np.asarray(numbers), [str(name) for name in np.asarray(names)]
    is_whole = np.issubdtype(numbers.dtype, np.integer)
    if not is_whole or numbers.min() < 0 or numbers.max() >= len(names):
        raise InputError(
            f"{path}: its {what} must be whole numbers from 0 to {len(names) - 1}, one "
            f"for each of the {len(names)} names."
        )
    used, numbers = np.unique(numbers, return_inverse=True)
    return numbers.astype(np.int32), tuple(names[number] for number in used)
