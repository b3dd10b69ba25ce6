"""Cross-batch memory (XBM): a queue of past embeddings as references of losses."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from metricjax.errors import InputError


@dataclass(frozen=True)
class MemoryConfig:
    """Settings of the memory.

    Attributes:
      size: number of images in the memory, at least one batch; 0: no memory.
      start_step: steps before the memory is used. It is filled from the first step, so
        that it then holds the latest batches.
      weight: weight of a pair loss of the batch against the memory, relative to the
        loss within the batch.
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
    """The latest images of a run, in a ring buffer that overwrites its oldest rows.

    Attributes:
      rows: tree of arrays [size, ...], the embeddings of each image.
      labels: int32 [size], their classes.
      filled: int32 scalar, number of slots in use; always the first ones.
      position: int32 scalar, the slot that is written next.
    """

    rows: Any
    labels: Int[Array, " n"]
    filled: Int[Array, ""]
    position: Int[Array, ""]

    @property
    def mask(self) -> Bool[Array, " n"]:
        """Which slots are in use."""
        return jnp.arange(len(self.labels)) < self.filled


def empty(size: int, rows: Any) -> Memory:
    """An empty memory.

    Args:
      size: its number of slots.
      rows: tree of arrays [b, ...], or their shapes, like those to be stored.
    """
    return Memory(
        jax.tree.map(lambda row: jnp.zeros((size, *row.shape[1:]), row.dtype), rows),
        jnp.zeros(size, jnp.int32),
        jnp.int32(0),
        jnp.int32(0),
    )


def remember(memory: Memory, rows: Any, labels: Int[Array, " b"]) -> Memory:
    """Replace the oldest images of the memory by a batch.

    Call it after the loss of the batch, so that no image is compared with itself; the
    source enqueues the batch first.

    Args:
      memory: with `size` slots.
      rows: tree of arrays [b, ...] with b <= size; gradients are stopped.
      labels: their classes [b].

    Returns:
      The new memory.

    Source: Wang et al., "Cross-Batch Memory for Embedding Learning" (arXiv 1912.06798).
    """
    size, count = len(memory.labels), len(labels)
    slots = (memory.position + jnp.arange(count)) % size

    def write(old, new):
        return old.at[slots].set(jax.lax.stop_gradient(new).astype(old.dtype))

    return Memory(
        jax.tree.map(write, memory.rows, rows),
        write(memory.labels, labels),
        jnp.minimum(memory.filled + count, size),
        (memory.position + count) % size,
    )
