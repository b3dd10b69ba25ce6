"""What every embedding model returns."""

from typing import NamedTuple

from jaxtyping import Array, Float


class Output(NamedTuple):
    """The result of applying a model to a batch of images.

    Attributes:
      embedding: [b, d] float32, unit length: what retrieval uses.
      learners: [b, m, d / m] float32, each unit length, where the model consists of
        learners that have a loss each; otherwise None.
      logits: [b, classes] float32, where a classifier is part of training and this is
        training; otherwise None.
      features: the backbone's feature map [b, h, w, c], in the backbone's type; where
        the learners have maps of their own, [b, m, h, w, c].
      unnormalized: [b, d] float32, the embedding as the last linear maps leave it, with
        nothing brought to unit length; where there are learners, theirs side by side.
        None where the model has no such thing.
    """

    embedding: Float[Array, "b d"]
    learners: Float[Array, "b m k"] | None
    logits: Float[Array, "b n"] | None
    features: Float[Array, "b h w c"]
    unnormalized: Float[Array, "b d"] | None = None
