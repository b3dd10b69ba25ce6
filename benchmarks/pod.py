"""What pair losses cost on a TPU pod that is not there: compiled, not guessed.

    pip install -e '.[tpu]'
    python benchmarks/pod.py [--topology v5e:4x4] [--batch 65536] [--out FILE.md]

XLA's TPU compiler runs without a TPU. Each loss is compiled, value and gradient, for a
batch split over all chips of the topology, once in blocks (each chip loops over its own
anchors) and once all at once (the compiler divides the rows), and asked for the memory
of one chip, its collectives and its largest array. A minute a row on two cores.
"""

import argparse
import os
import re
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from metricjax import losses
from metricjax.losses import Tiling

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute")
LOSSES = {
    "triplet, batch-hard": losses.triplet,
    "multi-similarity": losses.multi_similarity,
}


def compiled(loss, tiling, mesh, batch, dim):
    """The program for `batch` embeddings [batch, dim] split over the mesh."""
    split = NamedSharding(mesh, PartitionSpec("data"))
    step = jax.jit(
        jax.value_and_grad(lambda e, y: loss(e, y, tiling=tiling)),
        in_shardings=(split, split),
        out_shardings=(NamedSharding(mesh, PartitionSpec()), split),
    )
    embeddings = jax.ShapeDtypeStruct((batch, dim), jnp.float32)
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32)
    return step.lower(embeddings, labels).compile()


def row(name, loss, block, mesh, batch, dim):
    """A line of the table."""
    tiling = Tiling() if block is None else Tiling(block, mesh)
    began = time.perf_counter()
    program = compiled(loss, tiling, mesh, batch, dim)
    seconds = time.perf_counter() - began
    memory, text = program.memory_analysis(), program.as_text()
    shapes = {
        tuple(int(side) for side in shape.split(","))
        for shape in re.findall(r"f32\[([\d,]+)\]", text)
    }
    largest = max(shapes, key=lambda shape: np.prod(shape, dtype=float))
    used = ", ".join(
        f"{len(found)} {kind}"
        for kind in COLLECTIVES
        if (found := re.findall(rf"= [^=]*? {kind}(?:-start)?\(", text))
    )
    parts = memory.temp_size_in_bytes, memory.argument_size_in_bytes
    mebibytes = (sum(parts) + memory.output_size_in_bytes) / 2**20
    how = "all at once" if block is None else f"blocks of {block}"
    shape = " x ".join(str(side) for side in largest)
    return (
        f"| {name} | {how} | {mebibytes:.0f} MiB | {used} | {shape} | {seconds:.0f} s |"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="v5e:4x4")
    parser.add_argument("--batch", type=int, default=65536)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--block", type=int, default=512)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    chips = topologies.get_topology_desc(
        platform="tpu", topology_name=options.topology
    ).devices
    mesh = Mesh(np.array(chips).reshape(-1), ("data",))
    full = options.batch**2 * 4 / 2**30
    lines = [
        f"Embeddings {options.batch} x {options.dim}, float32, over {mesh.size} chips "
        f"({options.topology}), value and gradient; jax {jax.__version__}, compiled "
        f"without a TPU. The whole pair matrix would take {full:.0f} GiB.",
        "",
        "| loss | rows | memory of a chip | collectives | largest array | compiling |",
        "|---|---|---|---|---|---|",
    ]
    for name, loss in LOSSES.items():
        for block in (options.block, None):
            lines.append(row(name, loss, block, mesh, options.batch, options.dim))
            print(lines[-1], flush=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
