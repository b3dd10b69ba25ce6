"""Devices and hosts: meshes, global batches in, host values out."""

import os
import platform
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import xla_flags

from metricjax.runtime import mesh

LOCAL = {
    "images": np.arange(8 * 2 * 2 * 1, dtype=np.uint8).reshape(8, 2, 2, 1),
    "labels": np.arange(8, dtype=np.int32),
}


def test_mesh_is_of_all_devices_by_default():
    assert mesh.make_mesh().shape == {mesh.AXIS: len(jax.devices())}
    some = jax.devices()[2:5]
    assert list(mesh.make_mesh(some).devices.flat) == some


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_global_batch_is_split_in_order(count):
    devices = mesh.make_mesh(jax.devices()[:count])
    batch = mesh.global_batch(devices, LOCAL)
    assert batch.keys() == LOCAL.keys()
    for name, array in batch.items():
        assert array.shape == LOCAL[name].shape
        assert array.dtype == LOCAL[name].dtype
        assert array.sharding == mesh.split(devices)
        np.testing.assert_array_equal(array, LOCAL[name])
        share = 8 // count
        for shard in array.addressable_shards:
            first = shard.index[0].start or 0
            assert shard.device == devices.devices[first // share]
            rows = LOCAL[name][first : first + share]
            np.testing.assert_array_equal(shard.data, rows)


def test_batch_that_the_devices_cannot_share_is_refused():
    devices = mesh.make_mesh(jax.devices()[:3])
    with pytest.raises(ValueError):
        mesh.global_batch(devices, LOCAL)


def test_reductions_see_the_whole_batch():
    devices = mesh.make_mesh()
    batch = mesh.global_batch(devices, LOCAL)
    mean = jax.jit(lambda labels: jnp.mean(labels.astype(jnp.float32)))(batch["labels"])
    assert mesh.to_host(mean) == 3.5


def test_replicated_is_whole_on_every_device():
    devices = mesh.make_mesh()
    array = jax.device_put(np.arange(6.0), mesh.replicated(devices))
    assert len(array.addressable_shards) == len(jax.devices())
    for shard in array.addressable_shards:
        np.testing.assert_array_equal(shard.data, np.arange(6.0))


def test_to_host_gives_numpy_of_the_same_tree():
    devices = mesh.make_mesh()
    tree = {"a": (np.float32(2.5), np.arange(3)), "b": {"c": np.ones((2, 2), np.int8)}}
    placed = jax.device_put(tree, mesh.replicated(devices))
    back = mesh.to_host(placed)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    for got, expected in zip(
        jax.tree.leaves(back), jax.tree.leaves(placed), strict=True
    ):
        assert isinstance(got, np.ndarray) and got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)
    assert isinstance(mesh.to_host(jnp.float32(1.0)), np.ndarray)


def test_same_everywhere_is_replicated():
    devices = mesh.make_mesh()
    tree = mesh.same_everywhere(devices, {"a": np.arange(3), "b": np.bool_(True)})
    for array in tree.values():
        assert array.sharding == mesh.replicated(devices)
    np.testing.assert_array_equal(tree["a"], np.arange(3))


TWO_HOSTS = """
import jax, numpy as np
from metricjax.runtime import connection, mesh
connection.connect()
own = np.arange(3) + 10 * jax.process_index()
tree = mesh.same_everywhere(mesh.make_mesh(), {"a": own, "b": np.bool_(own[0] > 0)})
print(jax.process_count(), mesh.to_host(tree)["a"].tolist(), bool(tree["b"]))
"""


def test_same_everywhere_is_what_the_first_host_has():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_HOSTS],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ
            | {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(number),
                "XLA_FLAGS": xla_flags(2),
            },
        )
        for number in range(2)
    ]
    try:
        said = [host.communicate(timeout=120)[0] for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    # Before it the hosts' transport may tell of its connections.
    last = [text.splitlines()[-1] for text in said]
    assert last == ["2 [0, 1, 2] False"] * 2


def test_programs_on_cpu_are_compiled_without_ynnpack():
    square = jnp.ones((256, 256))

    def compiled(options):
        program = jax.jit(jnp.matmul, compiler_options=options)
        return program.lower(square, square).compile().as_text()

    options = mesh.compiler_options()
    assert "ynn_fusion" not in compiled(options)
    # The option does something where there is one.
    assert not options or "ynn_fusion" in compiled({})


def test_no_options_where_the_compiler_or_the_device_has_none(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert mesh.compiler_options.__wrapped__() == {}
    monkeypatch.undo()

    def refuse(function, compiler_options):
        raise jax.errors.JaxRuntimeError("No such compile option")

    monkeypatch.setattr(jax, "jit", refuse)
    assert mesh.compiler_options.__wrapped__() == {}


PAGE_FAULTS = """
import mmap, resource
from metricjax.runtime import mesh

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        b"x" * 2**26  # 64 MiB, taken, written and given back
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

pages = 2**26 // mmap.PAGESIZE
mesh.jax.default_backend()
assert faults() > 3 * pages
mesh.keep_freed_memory()
b"x" * 2**26
assert faults() < pages
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_kept_for_the_next_step():
    subprocess.run([sys.executable, "-c", PAGE_FAULTS], check=True)


def test_freed_memory_is_left_alone_without_glibc(monkeypatch):
    monkeypatch.setattr(mesh.ctypes, "CDLL", lambda name: object())
    mesh.keep_freed_memory()
