"""Retrieval and clustering shared by the devices of two processes."""

import json
import os
import socket
import subprocess
import sys

import numpy as np

from metricjax.evaluation import clustering, retrieval

ON_A_HOST = """
import json, sys
import jax
sys.path.insert(0, sys.argv[1])
import test_retrieval_on_hosts
jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[3]))
auto = (jax.sharding.AxisType.Auto,)
mesh = jax.make_mesh((4,), ("data",), axis_types=auto, devices=jax.devices())
print(json.dumps(test_retrieval_on_hosts.evaluated(mesh)))
"""


def evaluated(mesh):
    """Metrics of 211 images, a prime number, many of them twice."""
    rng = np.random.default_rng(0)
    labels = rng.integers(17, size=211)
    rows = rng.normal(size=(17, 8))[labels] + rng.normal(size=(211, 8))
    rows[150:] = rows[:61]
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    found = retrieval(rows, labels, mesh=mesh, block_size=32, per_class=True)
    found.pop("per_class")
    return {**found, **clustering(rows, labels, mesh=mesh, restarts=2)}


def test_two_processes_find_what_one_device_finds():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, "-c", ON_A_HOST, os.path.dirname(__file__), address]
    hosts = [
        subprocess.Popen(
            [*command, str(number)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | flags,
        )
        for number in range(2)
    ]
    try:
        for host in hosts:
            out, err = host.communicate(timeout=300)
            assert host.returncode == 0, err
            expected = json.loads(json.dumps(evaluated(None)))
            assert json.loads(out.splitlines()[-1]) == expected
            assert expected["ties"] > 0
    finally:
        for host in hosts:
            host.kill()
