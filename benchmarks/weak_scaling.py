"""The same work for each core: one device, two, and two processes of one each.

    python benchmarks/weak_scaling.py [--batch 64] [--rounds 5] [--out FILE.md]

Whole training steps of the quickstart's network under batch-hard triplets, on random
images, `--batch` of them for each core. Each setting's processes are bound to as many
cores as they have devices. Perfect scaling would take the time of one device on one
core; what is above that is communication, and what the cores share. The settings take
turns, and what is told is the median over the rounds.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

SETTINGS = {
    "one device, one core": (1, 1),
    "two devices, two cores": (1, 2),
    "two processes of one device": (2, 1),
}
STEPS = 20


def work(batch):
    """Time some steps on all devices of all hosts; the first host prints the median."""
    import jax
    import numpy as np

    from metricjax.config import default_config, terms
    from metricjax.config.parsing import from_config_dict
    from metricjax.objectives.hierarchical_proxies import Classes
    from metricjax.runtime import connection, mesh
    from metricjax.training.programs import TrainPrograms

    connection.connect()
    mesh.keep_freed_memory()
    devices = mesh.make_mesh()
    config = default_config()
    config.batch_size = batch * devices.size
    config.data.transform.recipe = "affine"
    config.data.transform.image_size = 32
    config.data.transform.channels = 1
    config.model.backbone = "convnet"
    config.model.widths = (32, 64, 128)
    config.model.descriptors = "S"
    config.model.dim = 128
    config.objective.terms = terms(triplet={"margin": 0.2})
    programs = TrainPrograms(from_config_dict(config), Classes(100), devices)
    program = programs.lower_train_step().compile()
    everywhere = mesh.replicated(devices)
    state = jax.jit(programs.init_state, out_shardings=everywhere)(jax.random.key(0))
    rng = np.random.default_rng(jax.process_index())
    mine = batch * len(devices.local_devices)
    local = {
        "images": rng.integers(0, 256, (mine, 32, 32, 1), dtype=np.uint8),
        "labels": (np.arange(mine) // 4).astype(np.int32),
    }
    data, times = mesh.global_batch(devices, local), []
    for _ in range(STEPS + 3):
        began = time.perf_counter()
        state, metrics = program(state, data, jax.random.key(0))
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - began)
    if jax.process_index() == 0:
        print(json.dumps(statistics.median(times[3:])))


def measured(processes, devices, batch):
    """Seconds of a step."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = []
    for number in range(processes):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        }
        if processes > 1:
            environment |= {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(number),
            }
        cores = range(number * devices, (number + 1) * devices)
        running.append(
            subprocess.Popen(
                [
                    *("taskset", "-c", ",".join(map(str, cores))),
                    *(sys.executable, __file__, "--work", "--batch", str(batch)),
                ],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    said = [process.communicate()[0] for process in running]
    return json.loads(said[0].splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64, help="images for each core")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.batch)
        return
    import harness

    found = {name: [] for name in SETTINGS}
    for _ in range(options.rounds):
        for name, (processes, devices) in SETTINGS.items():
            found[name].append(measured(processes, devices, options.batch))
    machine = harness.machine("")
    one = statistics.median(found["one device, one core"])
    lines = [
        f"{machine['cpu']}, jax {machine['jax']}, commit {machine['commit']}; "
        f"{options.batch} images of 32 x 32 for each device, {options.rounds} rounds.",
        "",
        "| | batch | ms a step | images/s | of perfect scaling |",
        "|---|---|---|---|---|",
    ]
    for name, (processes, devices) in SETTINGS.items():
        seconds, batch = statistics.median(found[name]), options.batch
        batch *= processes * devices
        lines.append(
            f"| {name} | {batch} | {seconds * 1000:.1f} | {batch / seconds:,.0f} | "
            f"{one / seconds:.2f} |"
        )
    print("\n".join(lines))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
