"""Images to embeddings: one program over all devices, used in training and after it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, UInt8

from metricjax.data import pipeline, transforms
from metricjax.data.datasets import Split
from metricjax.runtime import mesh


def make_embed_step(
    model: nn.Module, transform: transforms.TransformConfig
) -> Callable[[Any, Array], Float[Array, "b d"]]:
    """`embed_step(variables, images uint8 [b, s, s, c]) -> embeddings [b, d]`."""

    def embed_step(variables, images):
        images = transforms.normalize(images, transform)
        return model.apply(variables, images, train=False).embedding

    return embed_step


@dataclass(frozen=True)
class Embedded:
    """Embeddings of images.

    Attributes:
      embeddings: float32 [n, d], unit length.
      valid: bool [n], False for images that could not be read.
    """

    embeddings: Float[np.ndarray, "n d"]
    valid: Bool[np.ndarray, " n"]


@dataclass(frozen=True, eq=False)
class Embedder:
    """A network that embeds images, split over the devices of a mesh.

    Attributes:
      model: the network.
      transform: how images are prepared for it.
      devices: the mesh.
      batch_size: images at a time, all devices together; they share it equally.
    """

    model: nn.Module
    transform: transforms.Transform
    devices: jax.sharding.Mesh
    batch_size: int

    @cached_property
    def _program(self):
        function = make_embed_step(self.model, self.transform.config)
        everywhere, split = mesh.replicated(self.devices), mesh.split(self.devices)
        return jax.jit(
            lambda variables, batch: (
                function(variables, batch["images"]),
                batch["valid"],
            ),
            in_shardings=(everywhere, split),
            out_shardings=everywhere,
            compiler_options=mesh.compiler_options(),
        )

    def _run(self, variables: Any, batch: dict[str, np.ndarray]):
        """Embeddings of a whole batch and its `valid`, on every host."""
        return mesh.to_host(
            self._program(variables, mesh.global_batch(self.devices, batch))
        )

    def blocks(
        self,
        variables: Any,
        split: Split,
        *,
        threads: int | None = None,
        skipped: pipeline.SkipLog | None = None,
    ) -> Iterator[tuple[slice, Embedded]]:
        """The images of a split in order, a batch at a time; on all hosts.

        Args:
          variables: of the model.
          split: the images.
          threads: that read them; None: one per processor.
          skipped: where to record images that cannot be read; None: nowhere.

        Yields:
          (which images, their embeddings).
        """
        with pipeline.test_batches(
            split,
            self.transform,
            self.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            threads=threads,
            skipped=skipped,
        ) as batches:
            for start, batch in zip(
                range(0, len(split), self.batch_size), batches, strict=True
            ):
                wanted = {name: batch[name] for name in ("images", "valid")}
                embeddings, valid = self._run(variables, wanted)
                rows = slice(start, min(start + self.batch_size, len(split)))
                count = rows.stop - rows.start
                yield rows, Embedded(embeddings[:count], valid[:count])

    def embed(self, variables: Any, split: Split, **options) -> Embedded:
        """All images of a split; see `blocks`."""
        found = [block for _, block in self.blocks(variables, split, **options)]
        return Embedded(
            np.concatenate([block.embeddings for block in found]),
            np.concatenate([block.valid for block in found]),
        )

    def embed_images(
        self, variables: Any, images: Sequence[UInt8[np.ndarray, "h w c"]]
    ) -> Float[np.ndarray, "n d"]:
        """Decoded images of any sizes, on one host.

        They go in batches as `embed_prepared` takes them.
        """
        return np.concatenate(
            [
                self.embed_prepared(
                    variables,
                    [
                        self.transform.prepare_test(image)
                        for image in images[start : start + self.batch_size]
                    ],
                )
                for start in range(0, len(images), self.batch_size)
            ]
        )

    def embed_prepared(
        self, variables: Any, images: Sequence[UInt8[np.ndarray, "s s c"]]
    ) -> Float[np.ndarray, "n d"]:
        """1 to `batch_size` images that `transform.prepare_test` has made, on one host.

        The batch is filled up to a power of two times the devices, so that few programs
        are compiled, whatever number of images comes.
        """
        size = self.devices.size
        while size < len(images):
            size *= 2
        size = min(size, self.batch_size)
        batch = np.zeros((size, *self.transform.config.shape), np.uint8)
        batch[: len(images)] = images
        embeddings, _ = self._run(
            variables, {"images": batch, "valid": np.ones(size, bool)}
        )
        return embeddings[: len(images)]
