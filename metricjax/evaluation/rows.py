"""What arrays of embeddings and of their own rows must be, said in sentences."""

import jax.numpy as jnp
import numpy as np

from metricjax.errors import InputError

LENGTH_TOLERANCE = 1e-3


def is_integer(value) -> bool:
    """Whether `value` is an integer, and not a truth value."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def unit_rows(embeddings, name: str, *, width: int | None = None) -> np.ndarray:
    """`embeddings` [n, d] as float32 numpy, checked to be finite, of unit length.

    Args:
        embeddings: numpy or JAX array of floats.
        name: what to call it in a message.
        width: d that is asked for, or None.

    Raises:
        InputError: naming the first row that is at fault.
    """
    array = np.asarray(embeddings)
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(
            f"{name} has shape {array.shape}: give one row of numbers for each image, "
            "[n, d]."
        )
    if width is not None and array.shape[1] != width:
        raise InputError(
            f"{name} has {array.shape[1]} numbers a row where the queries have {width}:"
            " embed both with the same model."
        )
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise InputError(f"{name} has dtype {array.dtype}: give floats.")
    array = np.ascontiguousarray(array, np.float32)
    lengths = np.sqrt(np.einsum("nd,nd->n", array, array))
    broken = np.flatnonzero(~np.isfinite(lengths))
    if broken.size:
        raise InputError(
            f"{name} has NaN or Inf in {broken.size} of {len(array)} rows, the first "
            f"is row {broken[0]}: look for a diverged model or a bad image there."
        )
    wrong = np.flatnonzero(np.abs(lengths - 1) > LENGTH_TOLERANCE)
    if wrong.size:
        raise InputError(
            f"{name} row {wrong[0]} has length {lengths[wrong[0]]:.4g} (as have "
            f"{wrong.size - 1} other rows a length other than 1): divide each row by "
            "its Euclidean norm first."
        )
    return array


def own_rows(own_index, queries: int, gallery: int) -> np.ndarray:
    """`own_index` checked, as [q] int32; None becomes -1, nothing excluded."""
    if own_index is None:
        return np.full(queries, -1, np.int32)
    array = np.asarray(own_index)
    if array.shape != (queries,) or not np.issubdtype(array.dtype, np.integer):
        raise InputError(
            f"own_index is {array.dtype} of shape {array.shape}: give one whole number "
            f"for each of the {queries} queries, -1 where the gallery lacks it."
        )
    outside = np.flatnonzero((array < -1) | (array >= gallery))
    if outside.size:
        raise InputError(
            f"own_index of query {outside[0]} is {array[outside[0]]}: give a gallery "
            f"row from 0 to {gallery - 1}, or -1."
        )
    return array.astype(np.int32)
