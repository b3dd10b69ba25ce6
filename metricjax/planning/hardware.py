"""The devices to plan for: present ones or a TPU topology, with published figures."""

import importlib.util
import math
import os
from dataclasses import dataclass

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh

from metricjax.errors import InputError
from metricjax.runtime import mesh as meshes

EXAMPLES = "v5e:4x4, v5e:16x16, v6e:8x8, v4:2x2x4, v5p:4x4x4"


@dataclass(frozen=True)
class ChipSpec:
    """Published figures of one chip.

    Attributes:
      flops: peak FLOP/s in bfloat16.
      memory: bytes.
      bandwidth: bytes/s to and from the memory.
      interconnect: bytes/s sent to other chips, all links together.
    """

    flops: float
    memory: float
    bandwidth: float
    interconnect: float


# cloud.google.com/tpu/docs/v4, v5e, v5p and v6e ("key chip specifications"); the
# interconnect as these pages first gave it, in one direction: 2400, 1600, 4800 and 3200
# Gbit/s. Where both directions are added up the same pages say twice that.
PUBLISHED = {
    "v4": ChipSpec(275e12, 32 * 2**30, 1228e9, 300e9),
    "v5e": ChipSpec(197e12, 16 * 2**30, 819e9, 200e9),
    "v5p": ChipSpec(459e12, 95 * 2**30, 2765e9, 600e9),
    "v6e": ChipSpec(918e12, 32 * 2**30, 1640e9, 400e9),
}


# A TPU computes a float32 product at the highest precision as six bfloat16 products.
PASSES = 6


@dataclass(frozen=True)
class StepEstimate:
    """Estimated time of a step from published figures, in seconds.

    Attributes:
      products: all matrix products at the assumed utilization.
      losses: the part of `products` in the losses.
      memory: reading and writing device memory.
      between: collectives between chips.
    """

    products: float
    losses: float
    memory: float
    between: float

    @property
    def total(self) -> float:
        return max(self.products, self.memory) + self.between


def estimate_step(
    spec: ChipSpec,
    utilization: float,
    *,
    flops: float,
    loss_flops: float,
    moved: float,
    sent: float,
) -> StepEstimate:
    """Estimate the time of a step; all arguments are for one chip.

    Args:
      spec: the chip.
      utilization: share of the peak that products reach.
      flops: FLOPs of all products.
      loss_flops: those of them that the losses compute in float32.
      moved: bytes to and from memory.
      sent: bytes to other chips.
    """
    rate = spec.flops * utilization
    losses = PASSES * loss_flops / rate
    return StepEstimate(
        products=(flops - loss_flops) / rate + losses,
        losses=losses,
        memory=moved / spec.bandwidth,
        between=sent / spec.interconnect,
    )


# For libtpu when it only compiles: do not query the metadata server, do not warn about
# that, and do not lock other processes out.
_WITHOUT_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclass(frozen=True)
class Target:
    """Devices to plan for.

    Attributes:
      mesh: the devices.
      memory: bytes of one device that programs may use; None if unknown.
      title: a description of the devices.
      spec: published figures of absent chips; None for present devices.
    """

    mesh: Mesh
    memory: float | None
    title: str
    spec: ChipSpec | None = None


def present_devices() -> Target:
    """The devices that JAX sees, on all hosts."""
    mesh = meshes.make_mesh()
    device = mesh.local_devices[0]
    if device.platform == "cpu":
        memory, sharing = free_memory(), mesh.local_mesh.size
        description = f"{amount(memory)} free" if memory else "memory unknown"
        description += f", shared by {sharing}" if sharing > 1 else ""
        memory = memory and minimum_over_hosts(memory / sharing)
    else:
        memory = (device.memory_stats() or {}).get("bytes_limit")
        description = f"{amount(memory)} each" if memory else "memory unknown"
    return Target(mesh, memory, f"{mesh.size} x {device.device_kind}, {description}")


def topology(name: str) -> Target:
    """Absent TPU chips, for which programs can be compiled ahead of time.

    Must be called before the first use of a device; it sets JAX's platform to CPU.

    Raises:
      InputError: libtpu is missing, or the topology does not exist.
    """
    spec = PUBLISHED.get(name.partition(":")[0])
    if spec is None:
        raise InputError(_unknown(name, f"chips are {', '.join(PUBLISHED)}"))
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            f"config.plan.topology is {name!r}, but TPU's compiler, libtpu, is not "
            "installed: pip install 'metricjax[plan]'."
        )
    jax.config.update("jax_platforms", "cpu")
    for variable, value in _WITHOUT_TPU.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    # The two cores of a v4 or v5p chip as one device, as Cloud TPU sets them up.
    cores = {"chip_config_name": "megacore"} if name.startswith(("v4", "v5p")) else {}
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=name, **cores
        )
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(_unknown(name, reason)) from error
    devices = np.array(description.devices).reshape(-1)
    mesh = Mesh(devices, (meshes.AXIS,), axis_types=(AxisType.Auto,))
    title = f"{name}, {len(devices)} chips of {amount(spec.memory)} each, not here"
    return Target(mesh, spec.memory, title, spec)


def _unknown(name: str, reason: str) -> str:
    return (
        f"config.plan.topology is {name!r}, which is no TPU topology ({reason}): name "
        f"one as CHIP:SHAPE, such as {EXAMPLES}."
    )


def free_memory() -> int | None:
    """Bytes of free memory on this machine; None if the system does not report it."""
    try:
        with open("/proc/meminfo") as lines:
            free = dict(line.split(":", 1) for line in lines)["MemAvailable"]
        return int(free.split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def minimum_over_hosts(value: float) -> float:
    """The smallest of all hosts' values, so that all continue alike; all must call."""
    if jax.process_count() == 1:
        return value
    return float(multihost_utils.process_allgather(np.float32(value)).min())


def amount(size: float) -> str:
    """Bytes as text: `1.5 GiB`."""
    if not math.isfinite(size):
        return "too much"
    if size < 2**30:
        return f"{size / 2**20:.3g} MiB"
    return f"{size / 2**30:.3g} GiB"
