"""What losses and steps cost on a TPU pod that is not there: compiled, not guessed.

    pip install -e '.[tpu]'
    python benchmarks/pod.py [--topology v5e:4x4] [--batch 65536] [--out FILE.md]
    python benchmarks/pod.py --steps [--topology v5e:4x4] [--batch 1024] [--out FILE.md]

XLA's TPU compiler runs without a TPU. Each loss is compiled, value and gradient, for a
batch split over all chips of the topology, once in blocks (each chip loops over its own
anchors) and once all at once (the compiler divides the rows), and asked for the memory
of one chip, its collectives and its largest array. With `--steps` it is whole training
steps of CGD on ResNet-50, with and without rematerialisation. On two cores a row of
losses takes a minute, one of steps several.
"""

import argparse
import importlib.util
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

from metricjax import losses, models, objectives, optimizers, step
from metricjax import mesh as meshes
from metricjax.config import from_config_dict
from metricjax.levels import Classes
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
    parts = memory.temp_size_in_bytes, memory.argument_size_in_bytes
    mebibytes = (sum(parts) + memory.output_size_in_bytes) / 2**20
    how = "all at once" if block is None else f"blocks of {block}"
    shape = " x ".join(str(side) for side in largest)
    used = f"{mebibytes:.0f} MiB | {collectives(text)}"
    return f"| {name} | {how} | {used} | {shape} | {seconds:.0f} s |"


def compiled_step(config, mesh):
    """The training step of a run's settings, its batch split over the mesh."""
    shape = config.data.transform.shape
    classes = 100 if config.objective.classifies else None
    model = models.build(config.model, classes)
    output = step.output_shapes(model, shape, config.batch_size)
    held = objectives.Losses(config.objective, Classes(100), output)
    params, _ = jax.eval_shape(
        lambda: step.init_params(model, shape, jax.random.key(0), held)
    )
    optimizer = optimizers.build(config.optimizer, config.steps, params)
    everywhere, split = meshes.replicated(mesh), meshes.split(mesh)
    state = jax.eval_shape(
        lambda key: step.init_state(model, optimizer, shape, key, held),
        jax.random.key(0),
    )
    batch = {
        "images": jax.ShapeDtypeStruct((config.batch_size, *shape), jnp.uint8),
        "labels": jax.ShapeDtypeStruct((config.batch_size,), jnp.int32),
    }
    function = step.make_train_step(
        model, optimizer, config.objective, config.data.transform, mesh
    )
    program = jax.jit(
        function,
        in_shardings=(everywhere, split, everywhere),
        out_shardings=everywhere,
        donate_argnums=0,
    )
    return program.lower(state, batch, jax.eval_shape(jax.random.key, 0)).compile()


def steps(options, mesh):
    """Lines of the table of training steps."""
    path = Path(__file__).parents[1] / "configs" / "cgd_resnet50.py"
    spec = importlib.util.spec_from_file_location("cgd_resnet50", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield (
        f"CGD on ResNet-50, 224 x 224, bfloat16, {options.batch} images over "
        f"{mesh.size} devices ({options.topology}), one whole training step; jax "
        f"{jax.__version__}, compiled without a TPU."
    )
    yield ""
    yield "| kept | memory of a device | GFLOP of a device | collectives | compiling |"
    yield "|---|---|---|---|---|"
    for remat in (False, True):
        settings = module.get_config()
        settings.batch_size = options.batch
        settings.model.dtype = "bfloat16"
        settings.model.remat = remat
        began = time.perf_counter()
        program = compiled_step(from_config_dict(settings), mesh)
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
    parser.add_argument("--batch", type=int, help="by default 65536, of steps 1024")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--block", type=int, default=512)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.batch = options.batch or (1024 if options.steps else 65536)

    chips = topologies.get_topology_desc(
        platform="tpu", topology_name=options.topology
    ).devices
    mesh = Mesh(np.array(chips).reshape(-1), ("data",))
    lines = []
    for line in steps(options, mesh) if options.steps else pair_losses(options, mesh):
        lines.append(line)
        print(line, flush=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


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
