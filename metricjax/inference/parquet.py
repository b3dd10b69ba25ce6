"""Embeddings as Parquet, as databases and data frames read it."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from metricjax.data.formats.labels_table import sorted_names
from metricjax.errors import InputError
from metricjax.inference.vectors import FORMAT, Vectors

_METADATA = b"metricjax"
_GROUP_BYTES = 1 << 26  # embeddings that are written at a time


def need() -> None:
    """Raises `InputError` unless pyarrow is installed."""
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise InputError(
            f".parquet needs pyarrow, which is not installed ({error}): pip install "
            "'metricjax[parquet]', or choose .npz."
        ) from error


def write(vectors: Vectors, path: Path) -> None:
    """One row an image, in order.

    Columns: `path`, `label` and `category` (strings, null where there is none), `valid`
    (bool) and `embedding` (a list of d float32, of fixed size; null where not valid).
    The metadata `metricjax` names the model.
    """
    need()
    import pyarrow
    from pyarrow import parquet

    width = vectors.embeddings.shape[1]
    fact = {"format": FORMAT, "model": vectors.model, "images": vectors.images}
    schema = pyarrow.schema(
        [
            ("path", pyarrow.string()),
            ("label", pyarrow.string()),
            ("category", pyarrow.string()),
            ("valid", pyarrow.bool_()),
            ("embedding", pyarrow.list_(pyarrow.float32(), width)),
        ],
        metadata={_METADATA: json.dumps(fact)},
    )
    step = max(1, _GROUP_BYTES // (4 * width))
    with parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, len(vectors), step):
            some = slice(start, min(start + step, len(vectors)))
            writer.write_table(_table(vectors, some, schema))


def _table(vectors: Vectors, some: slice, schema):
    import pyarrow

    values = np.ascontiguousarray(vectors.embeddings[some]).reshape(-1)
    embeddings = pyarrow.FixedSizeListArray.from_arrays(
        pyarrow.array(values),
        type=schema.field("embedding").type,
        mask=pyarrow.array(~vectors.valid[some]),
    )
    count = len(embeddings)
    categories = vectors.categories
    columns = [
        [_plain(name) for name in vectors.names[some]],
        [_plain(vectors.class_names[number]) for number in vectors.labels[some]],
        [None] * count
        if categories is None
        else [_plain(vectors.category_names[number]) for number in categories[some]],
        vectors.valid[some],
    ]
    kinds = schema.types
    arrays = [pyarrow.array(c, kind) for c, kind in zip(columns, kinds, strict=False)]
    return pyarrow.Table.from_arrays([*arrays, embeddings], schema=schema)


def _plain(text: str) -> str | None:
    """Text that UTF-8 can hold; None of an empty one."""
    raw = text.encode("utf-8", "surrogateescape")
    return raw.decode("utf-8", "replace") or None


def read(path: Path) -> dict[str, Any]:
    """What `write` has written, as an .npz of embeddings holds it.

    Raises:
      InputError: it cannot be read or has other columns.
    """
    need()
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
        facts = json.loads((table.schema.metadata or {}).get(_METADATA, b"{}"))
        embeddings = table["embedding"].combine_chunks()
        width = embeddings.type.list_size
        values = embeddings.values.to_numpy(zero_copy_only=False)
        found = {
            **facts,
            "names": np.array(table["path"].to_pylist(), str),
            "embeddings": np.array(values.reshape(-1, width)),
            "valid": table["valid"].to_numpy(),
        }
        columns = [("labels", "label", "class_names")]
        if table["category"].null_count == 0:
            columns.append(("categories", "category", "category_names"))
        for numbers, column, names in columns:
            words = [word or "" for word in table[column].to_pylist()]
            found[names] = np.array(sorted_names(set(words)), str)
            place = {name: number for number, name in enumerate(found[names].tolist())}
            found[numbers] = np.array([place[word] for word in words], np.int32)
    except (OSError, ValueError, KeyError, AttributeError, pyarrow.ArrowException) as e:
        what = str(e).split("\n")[0]
        raise InputError(
            f"{path} is no .parquet of embeddings or is damaged ({what}): make it with "
            "python -m metricjax.embed."
        ) from e
    return found
