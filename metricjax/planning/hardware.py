"""The devices that a plan is made for: those that are here, or a TPU topology's."""

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
class Figures:
    """What is published of one chip, per second where it is a rate.

    Attributes:
      flops: peak of bfloat16 products.
      memory: bytes.
      bandwidth: bytes to and from the memory.
      interconnect: bytes that it sends to its neighbours, all links together.
    """

    flops: float
    memory: float
    bandwidth: float
    interconnect: float


# cloud.google.com/tpu/docs/v4, v5e, v5p and v6e ("key chip specifications"); the
# interconnect as these pages first gave it, in one direction: 2400, 1600, 4800 and 3200
# Gbit/s. Where both directions are added up the same pages say twice that.
PUBLISHED = {
    "v4": Figures(275e12, 32 * 2**30, 1228e9, 300e9),
    "v5e": Figures(197e12, 16 * 2**30, 819e9, 200e9),
    "v5p": Figures(459e12, 95 * 2**30, 2765e9, 600e9),
    "v6e": Figures(918e12, 32 * 2**30, 1640e9, 400e9),
}


# TPU makes a float32 product at the highest precision of six bfloat16 ones.
PASSES = 6


@dataclass(frozen=True)
class Expected:
    """A step's time by published figures, in seconds.

    Attributes:
      products: of all products at the assumed utilization.
      losses: the share of them that is the losses'.
      memory: to move what the compiler says is read and written.
      between: to send what collectives send.
    """

    products: float
    losses: float
    memory: float
    between: float

    @property
    def total(self) -> float:
        return max(self.products, self.memory) + self.between


def expected(
    figures: Figures,
    utilization: float,
    *,
    flops: float,
    loss_flops: float,
    moved: float,
    sent: float,
) -> Expected:
    """The time of a step on one chip; all arguments are of one chip too.

    Args:
      figures: of the chip.
      utilization: share of its peak that products reach.
      flops: of all products.
      loss_flops: those of them that are the losses', in float32.
      moved: bytes to and from its memory.
      sent: bytes to other chips.
    """
    rate = figures.flops * utilization
    losses = PASSES * loss_flops / rate
    return Expected(
        products=(flops - loss_flops) / rate + losses,
        losses=losses,
        memory=moved / figures.bandwidth,
        between=sent / figures.interconnect,
    )


# What libtpu is told where it only compiles: to ask no machine what it is, not to
# complain of that, and not to keep other processes away.
_WITHOUT_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclass(frozen=True)
class Target:
    """Devices to plan for.

    Attributes:
      mesh: of them.
      memory: bytes of one of them that programs may use; None where nobody tells.
      title: what they are, in words.
      figures: of chips that are not here; None of those that are.
    """

    mesh: Mesh
    memory: float | None
    title: str
    figures: Figures | None = None


def here() -> Target:
    """The devices of this run, all hosts together."""
    mesh = meshes.make_mesh()
    device = mesh.local_devices[0]
    if device.platform == "cpu":
        memory, sharing = free_memory(), mesh.local_mesh.size
        said = f"{amount(memory)} free" if memory else "memory unknown"
        said += f", shared by {sharing}" if sharing > 1 else ""
        memory = memory and least(memory / sharing)
    else:
        memory = (device.memory_stats() or {}).get("bytes_limit")
        said = f"{amount(memory)} each" if memory else "memory unknown"
    return Target(mesh, memory, f"{mesh.size} x {device.device_kind}, {said}")


def topology(name: str) -> Target:
    """TPU chips that need not be here; programs can be compiled for them.

    Must be called before the first use of a device, which it takes to be a CPU.

    Raises:
      InputError: libtpu is missing, or there are no such chips.
    """
    figures = PUBLISHED.get(name.partition(":")[0])
    if figures is None:
        raise InputError(_unknown(name, f"chips are {', '.join(PUBLISHED)}"))
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            f"config.plan.topology is {name!r}, but TPU's compiler, libtpu, is not "
            "installed: pip install 'metricjax[plan]'."
        )
    jax.config.update("jax_platforms", "cpu")
    for name_of, value in _WITHOUT_TPU.items():
        os.environ.setdefault(name_of, value)
    from jax.experimental import topologies

    # The two cores of a v4 or v5p chip as one device, as Cloud TPU sets them up.
    cores = {"chip_config_name": "megacore"} if name.startswith(("v4", "v5p")) else {}
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=name, **cores
        )
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(_unknown(name, reason)) from error
    devices = np.array(found.devices).reshape(-1)
    mesh = Mesh(devices, (meshes.AXIS,), axis_types=(AxisType.Auto,))
    title = f"{name}, {len(devices)} chips of {amount(figures.memory)} each, not here"
    return Target(mesh, figures.memory, title, figures)


def _unknown(name: str, reason: str) -> str:
    return (
        f"config.plan.topology is {name!r}, which is no TPU topology ({reason}): name "
        f"one as CHIP:SHAPE, such as {EXAMPLES}."
    )


def free_memory() -> int | None:
    """Bytes that this machine could still give to programs; None where it hides it."""
    try:
        with open("/proc/meminfo") as lines:
            free = dict(line.split(":", 1) for line in lines)["MemAvailable"]
        return int(free.split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def least(value: float) -> float:
    """The least of all hosts' values, so that they go on alike; all must ask."""
    if jax.process_count() == 1:
        return value
    return float(multihost_utils.process_allgather(np.float32(value)).min())


def amount(size: float) -> str:
    """Bytes in words."""
    if not math.isfinite(size):
        return "too much"
    if size < 2**30:
        return f"{size / 2**20:.3g} MiB"
    return f"{size / 2**30:.3g} GiB"
