"""Embeddings of named images: what embedding files hold, whatever their format."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from metricjax.data.datasets import Split, UnreadableImage

FORMAT = "metricjax embeddings 1"


@dataclass(frozen=True, eq=False)
class Vectors:
    """Embeddings of n images of c classes.

    Attributes:
      embeddings: float32 [n, d], of unit length; 0 where not valid.
      valid: bool [n], False for images that cannot be decoded.
      names: n paths, in the order in which the images were given.
      labels: int32 [n], the class of each image.
      class_names: c names.
      model: the identity of the model, see `TrainedModel.identity`.
      images: a digest of which images they are; "" where it is not known.
      categories, category_names: a coarser label; None and nothing if there is none.
    """

    embeddings: Float[np.ndarray, "n d"]
    valid: Bool[np.ndarray, " n"]
    names: Sequence[str]
    labels: Int[np.ndarray, " n"]
    class_names: Sequence[str]
    model: str
    images: str = ""
    categories: Int[np.ndarray, " n"] | None = None
    category_names: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def split(self) -> Split:
        """The images, of which none can be read."""

        def reader(index: int) -> np.ndarray:
            raise UnreadableImage(self.names[index], "only its embedding is at hand")

        return Split(
            labels=self.labels,
            class_names=self.class_names,
            names=self.names,
            reader=reader,
            categories=self.categories,
            category_names=self.category_names,
        )
