"""Devices and hosts: the mesh, global batches in, host values out.

The program is written from the global view. A step is `jax.jit` over a one-axis mesh of
all devices; the batch is split along its first axis, everything else is the same on
every device, and one device is the case n = 1 of the same code.
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
# How far the host runs ahead of the devices, in steps.
AHEAD = 2


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A one-axis mesh of the devices, by default of all that there are."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh(
        (len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices
    )


@functools.cache
def compiler_options() -> dict[str, Any]:
    """What the programs of a run are compiled with on the devices that there are.

    On CPU without YNNPACK, with which most networks' steps take longer
    (`benchmarks/train_step.py` measures both). Nothing on other devices, and where the
    compiler has no such option.
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
    """On CPU, keep the memory that programs give back for the next step.

    A program asks for its temporaries anew at every step. glibc's allocator returns
    large ones to the system, which must then zero each page again. Nothing on other
    devices and with other C libraries.
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
    """The same on every device: parameters, scalars."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """Split over the devices along the first axis: batches."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def global_batch(mesh: Mesh, local: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This host's rows of a batch become the whole batch, split over the devices."""
    sharding = split(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in local.items()
    }


def to_host(tree: Any) -> Any:
    """Values that are the same on every device, as numpy arrays."""
    return jax.tree.map(lambda array: np.asarray(array.addressable_data(0)), tree)


def same_everywhere(mesh: Mesh, tree: Any) -> Any:
    """The first host's arrays, the same on every device; to be called on all hosts."""
    if jax.process_count() > 1:
        tree = multihost_utils.broadcast_one_to_all(tree)
    return jax.device_put(tree, replicated(mesh))


class StopVotes:
    """Whether any host was asked to stop, known to all hosts after the same step.

    Where there is one host it is known at once. Where there are several, a sum over the
    devices goes along with every step and is read when that step's metrics are, so that
    no host waits for it.
    """

    def __init__(self, mesh: Mesh):
        self._pending: deque[jax.Array] = deque()
        self._mesh, self._several = mesh, jax.process_count() > 1
        if self._several:
            votes = jax.ShapeDtypeStruct((mesh.size,), np.int32, sharding=split(mesh))
            count = jax.jit(jnp.sum, out_shardings=replicated(mesh))
            self._count = count.lower(votes).compile()

    def stop(self, asked: bool) -> bool:
        """To be called after each step on all hosts: whether to stop there.

        Args:
          asked: whether this host was asked to.
        """
        if not self._several:
            return asked
        mine = np.full(len(self._mesh.local_devices), asked, np.int32)
        everyone = jax.make_array_from_process_local_data(split(self._mesh), mine)
        self._pending.append(self._count(everyone))
        if len(self._pending) <= AHEAD:
            return False
        return bool(to_host(self._pending.popleft()))
