"""Doctor's check of the input pipeline: images decoded per second on this machine."""

import io
import os
import time

import numpy as np
from PIL import Image

from metricjax.data import pipeline, transforms
from metricjax.data.datasets import Split
from metricjax.data.decoding import decode
from metricjax.data.samplers.class_balanced import PKSampler
from metricjax.diagnostics.host_checks import OK, Check


def check(seconds: float = 1.0) -> Check:
    """Measure the rate of a run's own input pipeline on generated JPEGs."""
    cores = _cores()
    rate = _rate(seconds)
    return Check(
        "decoding",
        OK,
        f"{rate:,.0f} images/s from JPEGs of 500 x 375 to crops of 224, "
        f"{rate / cores:,.0f} for each of {cores} cores: feeds {rate / 128:.1f} "
        "steps/s of 128 images",
    )


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _rate(seconds: float) -> float:
    count, batch_size = 8, 8
    files = [_photograph(number) for number in range(count)]
    split = Split(
        labels=np.arange(count) // 2,
        class_names=[str(label) for label in range(count // 2)],
        names=[str(number) for number in range(count)],
        reader=lambda index: decode(files[index], 3),
    )
    batches = pipeline.train_batches(
        split,
        PKSampler(split.labels, batch_size, 2, seed=0),
        transforms.build(transforms.TransformConfig("random_resized_crop")),
        seed=0,
        start_step=0,
        num_steps=1_000_000,
        cache_bytes=0,
    )
    with batches:
        for _ in range(2 * _cores()):  # Prefetched batches would inflate the rate.
            next(batches)
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            next(batches)
            done += batch_size
        return done / (time.perf_counter() - began)


def _photograph(number: int) -> bytes:
    """A generated JPEG of 500 x 375 pixels, about as hard to decode as a photograph."""
    rng = np.random.default_rng(number)
    picture = rng.normal(128, 5, (375, 500, 3))
    for cells, strength in ((3, 60), (9, 40), (30, 24), (100, 12)):
        coarse = rng.normal(0, strength, (cells, cells)).astype(np.float32)
        layer = Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)
        picture += np.asarray(layer)[:, :, None] * rng.uniform(0.5, 1, 3)
    file = io.BytesIO()
    pixels = np.clip(picture, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()
