"""Batches of ours, from files to the device."""

import harness
import jax
import numpy as np
from input_cases import BATCH, SIZE

from metricjax.data import open_dataset, pipeline, transforms
from metricjax.data.samplers.class_balanced import PKSampler


class Task:
    """A pass over as many images as there are, on their way to the device.

    Args:
      folder: a folder of images, or a packed one.
      recipe: how they are cropped.
      resizer: the library that does it.
      cached: whether decoded images stay in memory.
      workers: threads.
    """

    def __init__(self, folder, recipe, resizer, cached, workers):
        split = open_dataset("folder", folder).train
        config = transforms.TransformConfig(recipe, SIZE, resizer=resizer)
        self._batches = pipeline.train_batches(
            split,
            PKSampler(split.labels, BATCH, 2, seed=0),
            transforms.build(config),
            seed=0,
            start_step=0,
            num_steps=1_000_000,
            threads=workers,
            cache_bytes=8 << 30 if cached else 0,
        )
        self._count = len(split) // BATCH

    def step(self):
        for _ in range(self._count):
            self._last = jax.device_put(next(self._batches)["images"])
        jax.block_until_ready(self._last)

    def result(self):
        return {"shape": np.array(self._last.shape)}

    def device_peak(self):
        return None


if __name__ == "__main__":
    harness.serve(
        lambda spec: Task(
            *(
                spec[name]
                for name in ("folder", "recipe", "resizer", "cached", "workers")
            )
        )
    )
