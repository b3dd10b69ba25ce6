"""The positives of every image of a batch, as a short list of indices."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Positives(NamedTuple):
    """The other images of each image's class, in the order of the batch.

    Attributes:
      index: [b, most], an image's positives; anything where not `valid`.
      valid: [b, most].
      rank: [b], how many images of its class come before the image.
      largest: how many the image with most positives has, which may be above `most`.
    """

    index: Int[Array, "b m"]
    valid: Bool[Array, "b m"]
    rank: Int[Array, " b"]
    largest: Int[Array, ""]

    def mirrored(self, values: Float[Array, "b m"]) -> Float[Array, "b m"]:
        """Value of (j, i) where `values` has (i, j); anything where not `valid`."""
        # j's list has its class without j: i is at its rank, less one if after j.
        own = self.rank[:, None]
        place = own - (own > self.rank[self.index])
        place = jnp.clip(place, 0, values.shape[1] - 1)
        return values[self.index, place]


def positives_of(labels: Int[Array, " b"], most: int) -> Positives:
    """Up to `most` positives of every image, itself left out."""
    # Sorted by class, an image's positives are its neighbours: looking `most` places
    # back and ahead is enough to list them, or to see that there are more.
    order = jnp.argsort(labels)
    own = jnp.zeros_like(order).at[order].set(jnp.arange(len(order)))
    steps = jnp.arange(1, most + 1)

    def same(place):
        inside = (place >= 0) & (place < len(order))
        return inside & (labels[order[place]] == labels[:, None])

    before = jnp.sum(same(own[:, None] - steps), axis=1)
    after = jnp.sum(same(own[:, None] + steps), axis=1)
    place = (own - before)[:, None] + jnp.arange(most)
    place += place >= own[:, None]
    valid = jnp.arange(most) < (before + after)[:, None]
    index = order[jnp.minimum(place, len(order) - 1)]
    return Positives(index, valid, before, jnp.max(before + after, initial=0))
