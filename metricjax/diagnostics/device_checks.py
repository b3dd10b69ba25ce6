"""Doctor's checks that need JAX: hosts, devices, all-reduce, compilation."""

import json
import os
import platform
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from metricjax.diagnostics.host_checks import (
    FAILED,
    OK,
    PACKAGES,
    WARNING,
    Check,
    brief,
    existing_parent,
    version,
)
from metricjax.errors import InputError
from metricjax.planning import hardware
from metricjax.runtime import compilation_cache, exchange
from metricjax.runtime import mesh as meshes
from metricjax.storage.directories import local_path
from metricjax.training import host_checks

# Device files by which an accelerator shows even if JAX does not use it, by extra.
_DEVICE_FILES = {
    "cuda": ("a GPU", ("dev/nvidia0", "dev/nvidiactl", "dev/dxg")),
    "tpu": ("a TPU", ("dev/accel0",)),
}
_PLUGINS = {"cuda": ("jax-cuda13-plugin", "jax-cuda12-plugin"), "tpu": ("libtpu",)}
# PCI vendor id of Google and device ids of its TPUs, from jax's hardware_utils.py.
_GOOGLE = "0x1ae0"
_TPUS = {"0x0027", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076"}


def devices() -> Check:
    """Check the devices that JAX uses, and whether it ignores an accelerator."""
    try:
        title = hardware.present_devices().title
        backend = jax.default_backend()
    except (RuntimeError, AssertionError) as error:
        asked = os.environ.get("JAX_PLATFORMS")
        remedy = "reinstall metricjax with the extra tpu or cuda that fits this machine"
        if asked:
            remedy = f"JAX_PLATFORMS is {asked}: install its extra, or unset it"
        reason = str(error) and f" ({brief(error)})"
        return Check("devices", FAILED, f"JAX finds no device{reason}; {remedy}")
    here = len(jax.local_devices())
    if here != len(jax.devices()):
        title += f", {here} of them on this host"
    extra = unused_accelerator() if backend == "cpu" else None
    if extra is None:
        return Check("devices", OK, title)
    name = _DEVICE_FILES[extra][0]
    if os.environ.get("JAX_PLATFORMS", "") == "cpu":
        remedy = "unset JAX_PLATFORMS, which says cpu"
    elif any(map(version, _PLUGINS[extra])):
        remedy = "its plugin is installed but does not start; see what JAX says above"
    else:
        remedy = f"pip install 'metricjax[{extra}]'"
    sentence = f"{title}, although the system shows {name}: {remedy}"
    return Check("devices", WARNING, sentence)


def unused_accelerator(root: Path = Path("/")) -> str | None:
    """The extra for a GPU or TPU of this machine; None if there is none."""
    for extra, (_, files) in _DEVICE_FILES.items():
        if any((root / file).exists() for file in files):
            return extra
    for vendor in root.glob("sys/bus/pci/devices/*/vendor"):
        try:
            is_google = vendor.read_text().strip() == _GOOGLE
            if is_google and (vendor.parent / "device").read_text().strip() in _TPUS:
                return "tpu"
        except OSError:
            continue
    return None


def hosts() -> Check:
    """Check that all hosts run the same code and versions; all hosts must call it."""
    own = {"python": ".".join(platform.python_version_tuple()[:2])}
    own |= {name: version(name) for name in PACKAGES}
    own |= {f"metricjax/{k}": v for k, v in host_checks.digest_of_code().items()}
    gathered = exchange.gather("programs", own)
    names = [name for name, _ in gathered]
    if len(gathered) == 1:
        return Check("hosts", OK, f"one, {platform.node()}")
    texts = Counter(json.dumps(facts, sort_keys=True) for _, facts in gathered)
    common = json.loads(texts.most_common(1)[0][0])
    different = []
    for name, facts in gathered:
        odd = [k for k in sorted({*facts, *common}) if facts.get(k) != common.get(k)]
        if odd and odd[0].startswith("metricjax/"):
            different.append(f"{name} has another {odd[0]}")
        elif odd:
            different.append(f"{name} has {odd[0]} {facts.get(odd[0])}")
    if different:
        return Check(
            "hosts",
            FAILED,
            f"{len(gathered)}, but {'; '.join(different)}: install the same on every "
            "host",
        )
    return Check(
        "hosts", OK, f"{len(gathered)} with the same programs: {', '.join(names)}"
    )


def sharing(workdir: str) -> Check | None:
    """Check that all hosts share the workdir; None if it does not exist yet."""
    path = local_path(workdir)
    is_there = path is None or path.is_dir()  # A bucket needs no directories.
    gathered = exchange.gather("workdir", is_there)
    lacking = [host for host, has in gathered if not has]
    if len(gathered) == 1 or len(lacking) == len(gathered):
        return None
    if not lacking:
        try:
            host_checks.check_shared(workdir)
            return Check("sharing", OK, f"all hosts see what is in {workdir}")
        except InputError as error:
            return Check("sharing", FAILED, brief(error))
    return Check(
        "sharing",
        FAILED,
        f"{', '.join(lacking)} has no {workdir}, which others have: name a directory "
        "that all hosts share, or gs://bucket/dir",
    )


def all_reduce(seconds: float = 2.0) -> Check:
    """Measure a small and a large all-reduce; all hosts must call it."""
    mesh = meshes.make_mesh()
    if mesh.size == 1:
        return Check("all-reduce", OK, "one device: there is nothing to reduce over")
    floats = 2**20 if mesh.devices.flat[0].platform == "cpu" else 2**24
    try:
        latency = _time_sum(mesh, 1, seconds / 2)
        large = _time_sum(mesh, floats, seconds / 2)
    except Exception as error:  # Every interconnect has errors of its own.
        return Check(
            "all-reduce",
            FAILED,
            f"the devices cannot compute together ({brief(error)}): see that the hosts "
            "reach each other on all ports",
        )
    # What each device sends in a ring all-reduce, the least of any algorithm.
    moved = 4 * floats * 2 * (mesh.size - 1) / mesh.size
    return Check(
        "all-reduce",
        OK,
        f"over {mesh.size} devices {latency * 1e6:,.0f} us for 4 bytes; "
        f"{moved / large / 1e9:.2f} GB/s a device for {4 * floats >> 20} MiB",
    )


def _time_sum(mesh: jax.sharding.Mesh, floats: int, seconds: float) -> float:
    """Mean time of an all-reduce of one array for each device, in seconds."""
    program = jax.jit(
        lambda parts: jnp.sum(parts, axis=0), out_shardings=meshes.replicated(mesh)
    )
    rows = len(mesh.local_devices)
    own = np.ones((rows, floats), np.float32)
    parts = meshes.global_batch(mesh, {"parts": own})["parts"]

    def repeat(times):
        began = time.perf_counter()
        for _ in range(times):
            total = program(parts).block_until_ready()
        return (time.perf_counter() - began) / times, total

    repeat(1)
    each, total = repeat(3)
    if not np.all(np.asarray(total.addressable_data(0)) == mesh.size):
        raise RuntimeError("the sum came out wrong")
    # All hosts must run it equally often, or one would wait for the others: the
    # number of the first host is used.
    times = max(1, min(100_000, int(seconds / each)))
    times = exchange.gather("times", times)[0][1]
    return repeat(times)[0]


@contextmanager
def cache_set_aside() -> Iterator[str | None]:
    """Disable the compilation cache inside; yields its directory, None if it is off."""
    directory = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        yield _cache_directory(directory)
    finally:
        jax.config.update("jax_compilation_cache_dir", directory)


def _cache_directory(chosen: str | None) -> str | None:
    if not jax.config.jax_enable_compilation_cache:
        return None
    try:
        return chosen or str(compilation_cache.default_directory())
    except RuntimeError:  # There is no home directory.
        return None


def compilation(directory: str | None) -> Check:
    """Time a compilation, and check that compiled programs can be cached."""
    began = time.perf_counter()
    image, kernel = jnp.ones((8, 32, 32, 3)), jnp.ones((3, 3, 3, 16))
    gradient = jax.grad(lambda kernel: jnp.sum(_convolve(image, kernel) ** 2))
    jax.jit(gradient).lower(kernel).compile()
    result = f"the gradient of a convolution in {time.perf_counter() - began:.1f} s"
    if not directory:
        return Check(
            "compilation",
            WARNING,
            f"{result}; compiled programs are not kept for the next start: set "
            "JAX_COMPILATION_CACHE_DIR to a directory, and do not set "
            "JAX_ENABLE_COMPILATION_CACHE",
        )
    if "://" not in directory and not _is_writable(Path(directory)):
        return Check(
            "compilation",
            WARNING,
            f"{result}; compiled programs cannot be kept in {directory}: set "
            "JAX_COMPILATION_CACHE_DIR to a directory that can be written",
        )
    return Check("compilation", OK, f"{result}; compiled programs go to {directory}")


def _convolve(image, kernel):
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        image, kernel, (1, 1), "SAME", dimension_numbers=layout
    )


def _is_writable(directory: Path) -> bool:
    existing = existing_parent(directory)
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
