"""The training steps that `train_step.py` measures, and their inputs."""

from dataclasses import dataclass

import numpy as np

CLASSES, PER_CLASS, LEARNING_RATE, MOMENTUM = 100, 4, 0.01, 0.9


@dataclass(frozen=True)
class Case:
    """A model under its loss.

    Attributes:
      shape: [h, w, c] of the images.
      batch: images of a step on two cores.
      model: settings of ours, see `models.ModelConfig`.
      classifies: cross-entropy of 100 classes beside the triplet loss.
    """

    shape: tuple[int, int, int]
    batch: int
    model: dict
    classifies: bool = False


_PHOTO = (224, 224, 3)
_PLAIN = {"descriptors": "S", "last_stride": 2, "use_bias": True}
CASES = {
    "resnet50_cgd": Case(
        _PHOTO, 8, {"backbone": "resnet50", "descriptors": "MG", "dim": 1536}, True
    ),
    "bn_inception": Case(
        _PHOTO, 8, {"backbone": "bn_inception", "dim": 512, **_PLAIN}
    ),
    "abe8": Case(
        _PHOTO, 8,
        {"backbone": "googlenet", "head": "abe", "dim": 512, "last_stride": 2},
    ),
    "vit_small": Case(_PHOTO, 8, {"backbone": "vit_small", "dim": 384, **_PLAIN}),
    "convnet64": Case(
        (64, 64, 3), 128,
        {"backbone": "convnet", "widths": (32, 64, 128), "dim": 128, **_PLAIN},
    ),
    "convnet28": Case(
        (28, 28, 1), 128,
        {"backbone": "convnet", "widths": (32, 64, 128), "dim": 128, **_PLAIN},
    ),
}  # fmt: skip


def inputs(case, batch):
    """Images [b, h, w, c] float32 and labels [b], 4 images of a class."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch, *case.shape)).astype(np.float32)
    return images, (np.arange(batch) // PER_CLASS).astype(np.int32) % CLASSES
