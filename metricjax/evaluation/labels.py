"""Class labels as they come in: checked, and numbered densely."""

import numpy as np

from metricjax.errors import InputError


def checked_labels(labels, name: str, count: int) -> np.ndarray:
    """`labels` [count] as numpy integers; `name` is what to call them in a message.

    Raises:
        InputError: they are of another length, or no integers.
    """
    array = np.asarray(labels)
    if array.shape != (count,) or not np.issubdtype(array.dtype, np.integer):
        raise InputError(
            f"{name} is {array.dtype} of shape {array.shape}: give one whole number "
            f"for each of the {count} rows."
        )
    return array


def dense_labels(
    labels: np.ndarray, others: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Both as int32 numbers 0 .. classes-1, whatever integers they were."""
    both = np.concatenate([labels, others])
    dense = np.unique(both, return_inverse=True)[1].astype(np.int32)
    return dense[: len(labels)], dense[len(labels) :]
