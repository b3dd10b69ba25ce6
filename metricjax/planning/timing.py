"""A few steps, and a search, tried on random data: how long, how much memory."""

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
from metricjax.planning.hardware import least
from metricjax.runtime import mesh as meshes
from metricjax.training.run import Run

# A first step longer than this many seconds is followed by one alone.
_LONG = 20.0
# Of a search that is tried.
_QUERIES, _GALLERY = 1024, 4096


@dataclass(frozen=True)
class Timing:
    """What was measured.

    Attributes:
      seconds: of a step, the mean of those that count.
      steps: how many that are; one before them does not count.
      memory: bytes of one device, at most, beyond what was in use before; None where
        nobody tells. On CPU it is the growth of this process, shared by its devices.
    """

    seconds: float
    steps: int
    memory: float | None


def run_steps(run: Run, program: Any) -> Timing:
    """Run some steps of the training step on random images.

    Args:
      run: opened on devices that are here.
      program: as `TrainPrograms.lower_train_step` and `compile` make it.
    """
    rng = np.random.default_rng(0)
    mine = run.config.batch_size // jax.process_count()
    batch = {
        "images": rng.integers(
            0, 256, (mine, *run.config.data.transform.shape), np.uint8
        ),
        "labels": run.train.labels[run.sampler[0]][:mine],
    }
    jax.block_until_ready(run.init_state())  # compiles, which is not to be measured
    peak = _watch_memory(run.programs.mesh)
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
    for _ in range(3 if least(first) < _LONG else 1):
        state, taken = step(state)
        seconds.append(taken)
    return Timing(sum(seconds) / len(seconds), len(seconds), peak())


def search_seconds(dim: int, queries: int, gallery: int) -> float:
    """How long it takes to find neighbours, from a small part of them.

    Args:
      dim: numbers of an embedding.
      queries, gallery: how many there are.
    """
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(_GALLERY, dim)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    for _ in range(2):  # the first time compiles
        began = time.perf_counter()
        neighbors.nearest(rows[:_QUERIES], rows, 10)
        taken = time.perf_counter() - began
    return taken * (queries / _QUERIES) * (gallery / _GALLERY)


def _watch_memory(mesh: jax.sharding.Mesh) -> Callable[[], float | None]:
    """What one device uses at most from now on, when asked."""
    device = mesh.local_devices[0]
    if device.platform != "cpu":
        before = device.memory_stats() or {}

        def peak():
            # Nothing makes it forget an earlier peak, such as that of a search for
            # the fastest kernels.
            found = (device.memory_stats() or {}).get("peak_bytes_in_use", 0)
            if found <= before.get("peak_bytes_in_use", 0):
                return None
            return found - before.get("bytes_in_use", 0)

        return peak
    with suppress(AttributeError, OSError, TypeError):
        # What compiling left behind would be used again and seem to cost nothing.
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _resident("VmRSS")

    def growth():
        after = _resident("VmHWM")
        if before is None or after is None:
            return None
        return (after - before) / mesh.local_mesh.size

    return growth


def _resident(name: str) -> int | None:
    """Bytes of this process: now ("VmRSS") or at most ("VmHWM")."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(rf"{name}:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else None
