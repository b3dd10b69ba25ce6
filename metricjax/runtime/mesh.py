"""The device mesh: shardings, global batches in, host values out.

Programs are written in the global view: a step is `jax.jit` over a one-axis mesh of all
devices. The batch is sharded along its first axis, everything else is replicated, and a
single device is the case n = 1 of the same code.
"""

import ctypes
import functools
from collections import deque
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "data"
# How many steps the host runs ahead of the devices. Enough to keep them busy, few
# enough to bound the memory of pending batches and the delay of metrics and stops.
AHEAD = 2


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A one-axis mesh of the given devices, by default of all devices of all hosts."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh(
        (len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices
    )


@functools.cache
def compiler_options() -> dict[str, Any]:
    """Compiler options of a run's programs on the present devices.

    On CPU they turn YNNPACK off, which makes the steps of most networks slower
    (`benchmarks/train_step.py` measures both). Empty on other devices, and if the
    compiler does not know the option.
    """
    options = {"xla_cpu_experimental_ynn_fusion_type": ""}
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options


def keep_freed_memory() -> None:
    """On CPU, let the process keep freed memory for the next step.

    A program allocates its temporaries anew at every step. By default glibc returns
    large blocks to the system, which has to zero every page again at the next step.
    Does nothing on other devices or with other C libraries.
    """
    trim_threshold, mmap_max = -1, -4  # the numbers of these options in malloc.h
    try:
        option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    if jax.default_backend() == "cpu":
        option(mmap_max, 0)
        option(trim_threshold, 2**31 - 1)


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of parameters and scalars: a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """Sharding of batches: the first axis is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def global_batch(mesh: Mesh, local: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Assemble the sharded global batch from the rows that each host has loaded."""
    sharding = split(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in local.items()
    }


def to_host(tree: Any) -> Any:
    """Copy replicated arrays to the host, as numpy arrays."""
    return jax.tree.map(lambda array: np.asarray(array.addressable_data(0)), tree)


def same_everywhere(mesh: Mesh, tree: Any) -> Any:
    """Broadcast host 0's arrays to all devices; all hosts must call it."""
    if jax.process_count() > 1:
        tree = multihost_utils.broadcast_one_to_all(tree)
    return jax.device_put(tree, replicated(mesh))


class StopVotes:
    """Lets all hosts stop after the same step when any of them was asked to.

    A single host stops at once. Several hosts add up their votes over the devices, one
    sum a step. It is read `AHEAD` steps later, when the step's metrics are read too, so
    that no host waits for it.
    """

    def __init__(self, mesh: Mesh):
        self._pending: deque[jax.Array] = deque()
        self._mesh, self._several = mesh, jax.process_count() > 1
        if self._several:
            votes = jax.ShapeDtypeStruct((mesh.size,), np.int32, sharding=split(mesh))
            count = jax.jit(jnp.sum, out_shardings=replicated(mesh))
            self._count = count.lower(votes).compile()

    def stop(self, asked: bool) -> bool:
        """Whether to stop after this step; all hosts must call it after each step.

        Args:
          asked: whether this host was asked to stop.
        """
        if not self._several:
            return asked
        mine = np.full(len(self._mesh.local_devices), asked, np.int32)
        everyone = jax.make_array_from_process_local_data(split(self._mesh), mine)
        self._pending.append(self._count(everyone))
        # All hosts read the same sum at the same step, so they stop together. One that
        # stopped by itself would leave the others hanging in the next collective.
        if len(self._pending) <= AHEAD:
            return False
        return bool(to_host(self._pending.popleft()))
