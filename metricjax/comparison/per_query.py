"""What a run keeps of single queries: queries.npz, from which runs are compared.

An npz file without pickles: of the q test images that were asked for and count,
`query` [q] int32, which image of the test split; `label` [q] int32; a float32 array [q]
for each metric; besides, `class_names` [c] of the labels and `test_sha256`, a digest
of the images, classes and roles that they were judged on.
"""

import hashlib
import io
import zipfile
from collections.abc import Mapping

import numpy as np

from metricjax.data.datasets import Split
from metricjax.errors import InputError

FILE = "queries.npz"
_WHOLE = ("query", "label")
_ABOUT = ("class_names", "test_sha256")


def pack(per_query: Mapping[str, np.ndarray], test: Split) -> bytes:
    """The content of the file.

    Args:
      per_query: as `evaluate_split.evaluate` returns it: `query` counts in the split.
      test: the images that were judged.
    """
    arrays = {
        name: np.asarray(values, np.int32 if name in _WHOLE else np.float32)
        for name, values in per_query.items()
    }
    arrays["class_names"] = np.array([str(name) for name in test.class_names])
    arrays["test_sha256"] = np.array(digest_of_images(test))
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def unpack(content: bytes, where: str) -> dict[str, np.ndarray]:
    """The arrays of the file, checked.

    Args:
      content: of the file.
      where: what to call the file in a message.

    Raises:
      InputError: it is damaged or something else.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        count = len(arrays["query"])
        missing = {*_WHOLE, *_ABOUT, "recall@1"} - set(arrays)
        if missing or any(len(v) != count for v in metrics(arrays).values()):
            raise ValueError("it holds other arrays than a run writes")
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{where} cannot be read ({error}): run its command again after removing "
            "it and report.html, which judges the run anew."
        ) from error
    return arrays


def metrics(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The values [q] of each metric."""
    return {k: v for k, v in arrays.items() if k not in (*_WHOLE, *_ABOUT)}


def digest_of_images(split: Split) -> str:
    """SHA-256 of the images of a split in their order, their classes and roles.

    Of an image the last folder and the name count, as in `image_rows.fingerprint`.
    """
    sha = hashlib.sha256()
    roles = split.is_query * 2 + split.is_gallery
    for name, label, role in zip(split.names, split.labels, roles, strict=True):
        short = "/".join(str(name).split("/")[-2:])
        line = f"{short}\t{split.class_names[label]}\t{role}\n"
        sha.update(line.encode("utf-8", "surrogateescape"))
    return sha.hexdigest()
