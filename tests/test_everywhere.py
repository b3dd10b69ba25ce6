"""The same numbers on any number of devices and hosts, for every objective.

One device is the reference. What is compared: loss and metrics of ten steps, the
gradient of the first, parameters, batch statistics and memory after the last, what the
sampler gave, and how test images that no device count divides are found.
"""

import functools
import os
import socket
import subprocess
import sys
from pathlib import Path

import compiled
import everywhere
import jax
import numpy as np
import pytest
from devices import xla_flags

from metricjax.objectives.registry import LOSSES

HOSTS, DEVICES = 2, 2


@pytest.fixture(autouse=True)
def quickly(quick):
    """Every program is compiled in a third of the time."""


@functools.cache
def on_one_device(variant):
    return everywhere.trained(variant, jax.devices()[:1])


def assert_same(found, expected):
    """Whole numbers equal, others within 1e-5 of the largest of their array."""
    assert found.keys() == expected.keys()
    for name, theirs in expected.items():
        mine = found[name]
        assert mine.shape == theirs.shape and mine.dtype == theirs.dtype, name
        if np.issubdtype(theirs.dtype, np.floating):
            bound = 1e-5 * float(np.abs(theirs).max(initial=0))
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=bound, err_msg=name)
        else:
            np.testing.assert_array_equal(mine, theirs, err_msg=name)


def test_every_loss_is_among_the_variants():
    named = {name for losses, _ in everywhere.VARIANTS.values() for name in losses}
    assert named == set(LOSSES)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4, 8])
@pytest.mark.parametrize("variant", everywhere.VARIANTS)
def test_devices(variant, count):
    found = everywhere.trained(variant, jax.devices()[:count])
    assert_same(found, on_one_device(variant))


@pytest.fixture(scope="module")
def of_hosts(tmp_path_factory):
    """What two processes with two devices each saw, by host."""
    out = tmp_path_factory.mktemp("hosts") / "found"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    hosts = [
        subprocess.Popen(
            [sys.executable, everywhere.__file__, str(out), *everywhere.VARIANTS],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ
            | {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": str(HOSTS),
                "JAX_PROCESS_ID": str(number),
                "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
                **compiled.environment(),
                "XLA_FLAGS": xla_flags(DEVICES),
            },
        )
        for number in range(HOSTS)
    ]
    try:
        said = [host.communicate(timeout=1800)[1] for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    assert [host.returncode for host in hosts] == [0] * HOSTS, said
    return [np.load(Path(f"{out}.{number}.npz")) for number in range(HOSTS)]


@pytest.mark.slow
@pytest.mark.parametrize("variant", everywhere.VARIANTS)
def test_hosts(variant, of_hosts):
    first, second = (
        {
            name.partition("|")[2]: host[name]
            for name in host.files
            if name.partition("|")[0] == variant
        }
        for host in of_hosts
    )
    for step in range(everywhere.STEPS):
        rows = first.pop(f"sampler/{step}"), second.pop(f"sampler/{step}")
        whole = on_one_device(variant)[f"sampler/{step}"]
        np.testing.assert_array_equal(np.concatenate(rows), whole)
        first[f"sampler/{step}"] = second[f"sampler/{step}"] = whole
    for found in (first, second):
        assert_same(found, on_one_device(variant))
