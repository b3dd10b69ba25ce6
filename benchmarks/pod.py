"""What losses and steps cost on a TPU pod that is not there: compiled, not guessed.

    pip install -e '.[plan]'
    python benchmarks/pod.py [--topology v5e:4x4] [--batch 65536] [--out FILE.md]
    python benchmarks/pod.py --steps [--topology v5e:4x4] [--batch 1024] [--out FILE.md]
    python benchmarks/pod.py --scaling [--cells 0,3] [--out FILE.md]
    python benchmarks/pod.py --alone [--cells 0,3] [--out FILE.md]
    python benchmarks/pod.py --retrieval [--cells 0] [--out FILE.md]

XLA's TPU compiler runs without a TPU. Each loss is compiled, value and gradient, for a
batch split over all chips of the topology, once in blocks (each chip loops over its own
anchors) and once all at once (the compiler divides the rows), and asked for the memory
of one chip, its collectives and its largest array. With `--steps` it is whole training
steps of CGD on ResNet-50, with and without rematerialisation; for `--scaling` and
`--alone` see `pod_scaling.py`, for `--retrieval` `pod_retrieval.py`. On two cores a
row of losses takes a minute, one of steps several; each is appended to the file as it
comes.
"""

import argparse
import re
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pod_retrieval
import pod_scaling
from jax.sharding import NamedSharding, PartitionSpec

from metricjax import losses
from metricjax.losses import Tiling
from metricjax.planning import hardware
from metricjax.training.programs import TrainPrograms

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
    parts = memory.temp_size_in_bytes, memory.argument_size_in_bytes
    mebibytes = (sum(parts) + memory.output_size_in_bytes) / 2**20
    how = "all at once" if block is None else f"blocks of {block}"
    shape = " x ".join(str(side) for side in largest)
    used = f"{mebibytes:.0f} MiB | {collectives(text)}"
    return f"| {name} | {how} | {used} | {shape} | {seconds:.0f} s |"


def steps(options, mesh):
    """Lines of the table of training steps."""
    yield (
        f"CGD on ResNet-50, 224 x 224, bfloat16, {options.batch} images over "
        f"{mesh.size} devices ({options.topology}), one whole training step; jax "
        f"{jax.__version__}, compiled without a TPU."
    )
    yield ""
    yield "| kept | memory of a device | GFLOP of a device | collectives | compiling |"
    yield "|---|---|---|---|---|"
    for remat in (False, True):
        config = pod_scaling.settings(options.batch, remat=remat)
        began = time.perf_counter()
        programs = TrainPrograms(config, pod_scaling.CLASSES, mesh)
        program = programs.lower_train_step().compile()
        seconds = time.perf_counter() - began
        memory = program.memory_analysis()
        used = memory.temp_size_in_bytes + memory.argument_size_in_bytes
        gflop = program.cost_analysis()["flops"] / 1e9
        how = "inputs of blocks" if remat else "all"
        yield (
            f"| {how} | {used / 2**20:.0f} MiB | {gflop:.0f} | "
            f"{collectives(program.as_text())} | {seconds:.0f} s |"
        )


def collectives(text):
    """How many of each kind, and the largest array that one gathers."""
    found = {
        kind: re.findall(rf"= ([^=]*?) {kind}(?:-start)?\(", text)
        for kind in COLLECTIVES
    }
    counts = [f"{len(all_)} {kind}" for kind, all_ in found.items() if all_]
    gathered = [
        tuple(int(side) for side in shape.split(","))
        for shapes in found["all-gather"]
        for shape in re.findall(r"\[([\d,]+)\]", shapes)
    ]
    largest = max(gathered, key=lambda shape: np.prod(shape, dtype=float), default=())
    shape = " x ".join(map(str, largest))
    return ", ".join(counts) + (f" (largest {shape})" if shape else "")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", default="v5e:4x4")
    parser.add_argument("--steps", action="store_true", help="whole training steps")
    parser.add_argument("--scaling", action="store_true", help="batches and chips")
    parser.add_argument("--alone", action="store_true", help="their losses alone")
    parser.add_argument("--retrieval", action="store_true", help="a search")
    parser.add_argument("--cells", type=_numbers, help="which rows of a table")
    parser.add_argument("--batch", type=int, help="by default 65536, of steps 1024")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--block", type=int, default=512)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.batch = options.batch or (1024 if options.steps else 65536)

    for line in _table(options):
        print(line, flush=True)
        if options.out:
            with options.out.open("a") as file:
                file.write(line + "\n")


def _table(options):
    if options.scaling:
        return pod_scaling.steps(options.cells)
    if options.alone:
        return pod_scaling.losses_alone(options.cells)
    if options.retrieval:
        return pod_retrieval.table(options.cells)
    mesh = hardware.topology(options.topology).mesh
    return steps(options, mesh) if options.steps else pair_losses(options, mesh)


def _numbers(text):
    return [int(number) for number in text.split(",")]


def pair_losses(options, mesh):
    """Lines of the table of losses."""
    full = options.batch**2 * 4 / 2**30
    yield (
        f"Embeddings {options.batch} x {options.dim}, float32, over {mesh.size} chips "
        f"({options.topology}), value and gradient; jax {jax.__version__}, compiled "
        f"without a TPU. The whole pair matrix would take {full:.3g} GiB."
    )
    yield ""
    yield (
        "| loss | rows | memory of a chip | collectives | largest array | compiling |"
    )
    yield "|---|---|---|---|---|---|"
    for name, loss in LOSSES.items():
        for block in (options.block, None):
            yield row(name, loss, block, mesh, options.batch, options.dim)


if __name__ == "__main__":
    main()
