"""A search of a million images among themselves on paper: `pod.py --retrieval`.

The program of a block of queries is compiled for chips that are not there; times are
what published figures of the chips lead to expect.
"""

import time

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from metricjax.config import schema
from metricjax.evaluation import neighbors, tile_search
from metricjax.planning import hardware
from metricjax.runtime import mesh as meshes
from metricjax.runtime import program_costs

DIM, BLOCK = 512, 1024
# Topology, images, neighbours of each.
CELLS = (
    ("v5e:4x4", 2**20, 11),
    ("v5e:4x4", 2**20, 100),
    ("v5e:16x16", 2**20, 11),
    ("v4:4x4x4", 2**20, 11),
)


def table(cells=None):
    """Lines of the table."""
    share = schema.PlanConfig.utilization
    yield (
        f"Embeddings of {DIM} float32 numbers, every image against all others; each "
        f"chip holds the gallery and takes {BLOCK} queries at a time; jax "
        f"{jax.__version__}, compiled without a TPU. Memory, bytes and collectives are "
        "the compiler's, FLOPs are counted. Times are expected, not measured: max("
        f"products at {share:.0%} of the published peak, six passes of bfloat16 for "
        "float32; bytes to and from memory / bandwidth) + bytes sent / interconnect. "
        "What choosing the nearest takes beyond its bytes is in none of them."
    )
    yield ""
    yield (
        "| images | neighbours | chips | published: bfloat16 TFLOP/s, GB/s of memory, "
        "GB/s between | memory of a chip | PFLOP | products, s | memory, s | "
        "between chips, s | all queries, s | compiling |"
    )
    yield "|" + "---|" * 11
    for number in range(len(CELLS)) if cells is None else cells:
        yield row(*CELLS[number])


def row(topology, images, k):
    """A line of that table."""
    place = hardware.topology(topology)
    mesh, spec = place.mesh, place.spec
    block = BLOCK * mesh.size
    began = time.perf_counter()
    program = lowered(mesh, images, k).compile()
    seconds = time.perf_counter() - began
    flops = 2.0 * BLOCK * images * DIM
    found = hardware.estimate_step(
        spec,
        schema.PlanConfig.utilization,
        flops=flops,
        loss_flops=flops,
        moved=program_costs.moved(program, flops),
        sent=program_costs.traffic(program.as_text(), mesh.size).total,
    )
    blocks = images / block
    published = (
        f"{spec.flops / 1e12:.0f}, {spec.bandwidth / 1e9:.0f}, "
        f"{spec.interconnect / 1e9:.0f}"
    )
    columns = (
        f"{images:,}",
        k,
        f"{mesh.size} {topology.partition(':')[0]}",
        published,
        f"{program_costs.memory(program).total / 2**30:.2f} GiB",
        f"{2.0 * images**2 * DIM / 1e15:.3g}",
        f"{blocks * found.products:.3g}",
        f"{blocks * found.memory:.3g}",
        f"{blocks * found.between:.2g}",
        f"{blocks * found.total:.3g}",
        f"{seconds:.0f} s",
    )
    return "| " + " | ".join(map(str, columns)) + " |"


def lowered(mesh, images, k):
    """The search of a block of queries for each chip, not compiled yet."""
    split, everywhere = meshes.split(mesh), meshes.replicated(mesh)
    block, tiles = BLOCK * mesh.size, images // neighbors.TILE

    def array(shape, dtype, sharding: NamedSharding):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    return tile_search.search_block.lower(
        array((block, DIM), jnp.float32, split),
        array((block,), jnp.int32, split),
        array((block,), jnp.int32, split),
        array((tiles, neighbors.TILE, DIM), jnp.float32, everywhere),
        array((tiles, neighbors.TILE), jnp.int32, everywhere),
        array((tiles, neighbors.TILE), jnp.int32, everywhere),
        k=k,
        mesh=mesh,
    )
