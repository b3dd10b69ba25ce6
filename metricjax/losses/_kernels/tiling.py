"""`Tiling`: the settings that bound memory, spread work over devices, set precision."""

from dataclasses import dataclass

import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from metricjax.errors import InputError


@dataclass(frozen=True)
class Tiling:
    """How a loss is computed: memory, devices and precision, not its definition.

    Attributes:
      block_size: anchors per block, 1 or more. `None` computes all rows at once, O(b n)
        memory; a number bounds memory to O(block_size n) and computes the value and the
        gradient of a block in the same pass. It need not divide the batch.
      mesh: devices that share the anchors, each looping over its own blocks; their
        number need not divide the batch. `None` lets the compiler partition rows that
        are computed all at once, and does not partition blocks.
      dtype: of the operands of the Gram matrix. float32 is exact; bfloat16 is faster on
        matrix units and changes squared distances of unit vectors by up to about 1e-3.

    Raises:
      InputError: a block size below 1.
    """

    block_size: int | None = None
    mesh: Mesh | None = None
    dtype: DTypeLike = jnp.float32

    def __post_init__(self):
        if self.block_size is not None and self.block_size < 1:
            raise InputError(
                f"block_size is {self.block_size}: it must be 1 or more, or None for "
                "all rows at once."
            )

    def in_blocks(self, anchors: int) -> bool:
        """Whether so many anchors take more than one block."""
        return self.block_size is not None and self.block_size < anchors
