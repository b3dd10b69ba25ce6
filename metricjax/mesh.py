"""Devices and hosts: the mesh, global batches in, host values out.

The program is written from the global view. A step is `jax.jit` over a one-axis mesh of
all devices; the batch is split along its first axis, everything else is the same on
every device, and one device is the case n = 1 of the same code.
"""

import ctypes
import functools
import os
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "data"


def connect_hosts() -> None:
    """Join the other hosts, where the environment says that there are some.

    Cloud TPU pods and SLURM announce themselves to `jax.distributed`; elsewhere
    `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` name the hosts.
    Must run before the first use of a device.
    """
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        jax.distributed.initialize(
            os.environ["JAX_COORDINATOR_ADDRESS"],
            num_processes=int(os.environ["JAX_NUM_PROCESSES"]),
            process_id=int(os.environ["JAX_PROCESS_ID"]),
        )
    elif os.environ.get("TPU_WORKER_HOSTNAMES", "").count(","):
        jax.distributed.initialize()


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
