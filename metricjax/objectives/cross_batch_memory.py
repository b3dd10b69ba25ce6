"""Cross-batch memory: a queue of past embeddings that pair losses compare with too."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from metricjax.errors import InputError


@dataclass(frozen=True)
class MemoryConfig:
    """How far back a batch looks.

    Attributes:
      size: images remembered, at least a batch of them; 0 for no memory.
      start_step: steps before the memory counts. It fills from the first step on, so
        that by then it holds what the latest steps saw.
      weight: of a pair loss of the batch against the memory, beside the loss within the
        batch.
    """

    size: int = 0
    start_step: int = 0
    weight: float = 1.0

    def __post_init__(self):
        for name in ("size", "start_step"):
            if getattr(self, name) < 0:
                raise InputError(
                    f"objective.memory.{name} is {getattr(self, name)}: it must be 0 "
                    "or more."
                )
        if self.weight <= 0:
            raise InputError(
                f"objective.memory.weight is {self.weight}: it must be above 0; "
                "objective.memory.size=0 turns the memory off."
            )


class Memory(NamedTuple):
    """The last images that a run saw: a ring, written over from its oldest on.

    Attributes:
      rows: tree of arrays [size, ...], what the model made of each image.
      labels: int32 [size], their classes.
      filled: int32 scalar, how many places hold an image; always the first ones.
      position: int32 scalar, the place that is written next.
    """

    rows: Any
    labels: Int[Array, " n"]
    filled: Int[Array, ""]
    position: Int[Array, ""]

    @property
    def mask(self) -> Bool[Array, " n"]:
        """Which places hold an image."""
        return jnp.arange(len(self.labels)) < self.filled


def empty(size: int, rows: Any) -> Memory:
    """A memory of nothing yet.

    Args:
      size: how many images it will hold.
      rows: tree of arrays [b, ...], or their shapes, of the kind to be remembered.
    """
    return Memory(
        jax.tree.map(lambda row: jnp.zeros((size, *row.shape[1:]), row.dtype), rows),
        jnp.zeros(size, jnp.int32),
        jnp.int32(0),
        jnp.int32(0),
    )


def remember(memory: Memory, rows: Any, labels: Int[Array, " b"]) -> Memory:
    """The memory with a batch in the place of its oldest images.

    Args:
      memory: of `size` images.
      rows: tree of arrays [b, ...] with b <= size; no gradient goes through them.
      labels: their classes [b].

    Returns:
      A new memory. Ours does not hold the batch while the batch's own loss is taken, so
      that no image is compared with itself; the source puts the batch in first.

    Source: Wang et al., "Cross-Batch Memory for Embedding Learning" (arXiv 1912.06798).
    """
    size, count = len(memory.labels), len(labels)
    places = (memory.position + jnp.arange(count)) % size

    def written(old, new):
        return old.at[places].set(jax.lax.stop_gradient(new).astype(old.dtype))

    return Memory(
        jax.tree.map(written, memory.rows, rows),
        written(memory.labels, labels),
        jnp.minimum(memory.filled + count, size),
        (memory.position + count) % size,
    )
