"""The positives of every image of a batch, as a short list of indices."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


class Positives(NamedTuple):
    """Who is of the class of whom.

    Attributes:
      index: [b, most], an image's positives in some order; anything where not `valid`.
      valid: [b, most].
      largest: how many the image with most positives has, which may be above `most`.
    """

    index: Int[Array, "b m"]
    valid: Bool[Array, "b m"]
    largest: Int[Array, ""]


def positives_of(labels: Int[Array, " b"], most: int) -> Positives:
    """Up to `most` positives of every image; itself is none of them."""
    order = jnp.argsort(labels)
    ordered = labels[order]
    first = jnp.searchsorted(ordered, labels, side="left")
    beyond = jnp.searchsorted(ordered, labels, side="right")
    own = jnp.zeros_like(order).at[order].set(jnp.arange(len(order)))
    place = first[:, None] + jnp.arange(most)
    place += place >= own[:, None]
    valid = place < beyond[:, None]
    index = order[jnp.minimum(place, len(order) - 1)]
    return Positives(index, valid, jnp.max(beyond - first, initial=1) - 1)
