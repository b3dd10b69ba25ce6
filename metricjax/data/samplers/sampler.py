"""What a sampler is, and what all samplers share.

Come here for the interface that the pipeline needs from a sampler of your own.
"""

from typing import Protocol

import numpy as np

from metricjax.errors import counted


class Sampler(Protocol):
    """Which images a batch contains; any thread may ask for any step.

    Attributes:
      batch_size: images per batch.
      steps_per_epoch: what counts as an epoch, see each sampler.
      contents: what a batch contains, in a few words.
      notes: sentences worth printing, such as which classes are left out.
    """

    batch_size: int
    steps_per_epoch: int
    contents: str
    notes: tuple[str, ...]

    def __getitem__(self, step: int) -> np.ndarray:
        """The batch of a step: int64 [batch_size] indices into the split."""
        ...


def check_step(step: int) -> int:
    """The step as an int.

    Raises:
      IndexError: it is negative. There is no last step to count back from.
    """
    if step < 0:
        raise IndexError(f"There is no step {step}: steps count from 0.")
    return int(step)


def left_out_notes(left_out: int, least: int) -> tuple[str, ...]:
    """The note on classes that are left out because they have too few images."""
    if not left_out:
        return ()
    classes = counted(left_out, "class", "classes")
    return (
        f"left out of the batches: {classes} of fewer than {least} images to train on",
    )


def nearest_multiples(batch_size: int, multiple: int) -> str:
    """The positive multiples next to a batch size, for messages: "8 or 12"."""
    below = batch_size // multiple
    legal = [m * multiple for m in (below, below + 1) if m > 0]
    return " or ".join(map(str, legal))
