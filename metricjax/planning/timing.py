"""Measures time and memory of a few training steps and a search, on random data."""

import ctypes
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from metricjax.evaluation import neighbors
from metricjax.planning.hardware import minimum_over_hosts
from metricjax.runtime import mesh as meshes
from metricjax.training.run import Run

# If the first step takes longer than this many seconds, only one more is run.
_LONG = 20.0
# Size of the search that is timed.
_QUERIES, _GALLERY = 1024, 4096


@dataclass(frozen=True)
class Timing:
    """Measured time and memory of training steps.

    Attributes:
      seconds: mean time of a step.
      steps: number of steps in the mean; one warm-up step is not among them.
      memory: peak bytes of one device beyond what was in use before; None if unknown.
        On CPU it is the growth of this process divided by its devices.
    """

    seconds: float
    steps: int
    memory: float | None


def run_steps(run: Run, program: Any) -> Timing:
    """Run some steps of the training step on random images.

    Args:
      run: opened on present devices.
      program: the compiled `TrainPrograms.lower_train_step`.
    """
    rng = np.random.default_rng(0)
    mine = run.config.batch_size // jax.process_count()
    batch = {
        "images": rng.integers(
            0, 256, (mine, *run.config.data.transform.shape), np.uint8
        ),
        "labels": run.train.labels[run.sampler[0]][:mine],
    }
    jax.block_until_ready(run.init_state())  # compiled before measuring starts
    peak = _start_memory_peak(run.programs.mesh)
    state = run.init_state()

    def step(state):
        began = time.perf_counter()
        state, metrics = program(
            state, meshes.global_batch(run.programs.mesh, batch), run.programs.root_key
        )
        jax.block_until_ready(metrics)
        return state, time.perf_counter() - began

    state, first = step(state)
    seconds = []
    for _ in range(3 if minimum_over_hosts(first) < _LONG else 1):
        state, taken = step(state)
        seconds.append(taken)
    return Timing(sum(seconds) / len(seconds), len(seconds), peak())


def search_seconds(dim: int, queries: int, gallery: int) -> float:
    """Estimated time of an exact nearest-neighbour search, from a small one.

    Args:
      dim: embedding dimension.
      queries: number of queries.
      gallery: number of gallery embeddings.
    """
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(_GALLERY, dim)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    for _ in range(2):  # the first time compiles
        began = time.perf_counter()
        neighbors.nearest(rows[:_QUERIES], rows, 10)
        taken = time.perf_counter() - began
    return taken * (queries / _QUERIES) * (gallery / _GALLERY)


def _start_memory_peak(mesh: jax.sharding.Mesh) -> Callable[[], float | None]:
    """A function that returns the peak memory of one device since this call."""
    device = mesh.local_devices[0]
    if device.platform != "cpu":
        before = device.memory_stats() or {}

        def peak():
            # The peak cannot be reset. If autotuning of kernels or the like has used
            # more than the steps, nothing is known about them.
            highest = (device.memory_stats() or {}).get("peak_bytes_in_use", 0)
            if highest <= before.get("peak_bytes_in_use", 0):
                return None
            return highest - before.get("bytes_in_use", 0)

        return peak
    with suppress(AttributeError, OSError, TypeError):
        # Memory left by the compiler would be reused and not count as growth.
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak, VmHWM
    before = _resident("VmRSS")

    def growth():
        after = _resident("VmHWM")
        if before is None or after is None:
            return None
        return (after - before) / mesh.local_mesh.size

    return growth


def _resident(name: str) -> int | None:
    """Resident bytes of this process: current ("VmRSS") or peak ("VmHWM")."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    match = re.search(rf"{name}:\s+(\d+) kB", status)
    return int(match[1]) * 1024 if match else None
