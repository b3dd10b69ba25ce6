"""Entry checks of the losses, and the arrays that they compute with."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from metricjax.errors import InputError
from metricjax.losses._kernels.blocks import Anchors, References
from metricjax.losses._kernels.measures import (
    Measure,
    centre_of,
    distances,
    squared_distances,
)


def labelled_pairs(
    embeddings: Array,
    labels: Array,
    references: Array | None = None,
    reference_labels: Array | None = None,
    reference_mask: Array | None = None,
    *,
    measure: Measure,
) -> tuple[Anchors, References, bool]:
    """Checked anchors and references in float32, and whether they are the same batch.

    For distances, both are moved to the centre of the references.

    Raises:
      InputError: a wrong rank, integer embeddings, numbers of labels or widths that
        differ, one of `references` and `reference_labels` without the other.
    """
    own = references is None
    if own != (reference_labels is None):
        raise InputError("references and reference_labels are given together or not.")
    check_labelled("embeddings", embeddings, labels)
    labels = jnp.asarray(labels)
    if own:
        references, reference_labels = embeddings, labels
    else:
        check_labelled("references", references, reference_labels)
        _check_widths(embeddings, references)
        reference_labels = jnp.asarray(reference_labels)
    if reference_mask is None:
        reference_mask = jnp.ones(len(reference_labels), bool)
    elif reference_mask.shape != reference_labels.shape:
        raise InputError(
            f"reference_mask must have one value for each of the "
            f"{len(reference_labels)} references, but its shape is "
            f"{list(reference_mask.shape)}."
        )
    # Blocks accumulate gradients in the type of their inputs.
    embeddings, references = (x.astype(jnp.float32) for x in (embeddings, references))
    if measure in (distances, squared_distances):
        centre = centre_of(references, reference_mask)
        # Without the barrier XLA fuses the subtraction into every reader, and repeats
        # it in each of them.
        barrier = jax.lax.optimization_barrier
        references = barrier(references - centre)
        embeddings = references if own else barrier(embeddings - centre)
    numbers = jnp.arange(1, len(labels) + 1)
    anchors = Anchors(embeddings, labels, numbers)
    return anchors, References(references, reference_labels, reference_mask), own


def check_labelled(name: str, embeddings: Array, labels: Array) -> None:
    """Raise `InputError` unless these are [b, d] floating and [b] integer."""
    if embeddings.ndim != 2 or not jnp.issubdtype(embeddings.dtype, jnp.floating):
        raise InputError(
            f"{name} must be floating point of shape [b, d], but they are "
            f"{embeddings.dtype} of shape {list(embeddings.shape)}."
        )
    if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise InputError(
            f"the labels of the {name} must be integers of shape [b], but they are "
            f"{labels.dtype} of shape {list(labels.shape)}."
        )
    if len(embeddings) != len(labels):
        raise InputError(
            f"there are {len(embeddings)} {name} but {len(labels)} labels for them."
        )
    if isinstance(labels, np.ndarray) and labels.size:
        largest = max(int(labels.max()), -int(labels.min()))
        if largest >= 2**31 and not jax.config.jax_enable_x64:
            raise InputError(
                f"the labels of the {name} reach {largest}, which JAX would cut to 32 "
                "bits: number the classes from 0, such as with numpy.unique."
            )


def _check_widths(embeddings: Array, references: Array) -> None:
    if embeddings.shape[1] != references.shape[1]:
        raise InputError(
            f"embeddings and references must have the same dimension, but they have "
            f"{embeddings.shape[1]} and {references.shape[1]}."
        )
