"""Training steps on paper: what they need on more chips, and how long they should take.

`python benchmarks/pod.py --scaling` and `--alone`. Programs are compiled for chips that
are not there; times are what published figures of the chips lead to expect.
"""

import importlib.util
import time
from pathlib import Path

import jax

from metricjax.config.parsing import from_config_dict
from metricjax.objectives import objective
from metricjax.objectives.hierarchical_proxies import Classes
from metricjax.planning import hardware
from metricjax.runtime import mesh as meshes
from metricjax.runtime import program_costs
from metricjax.training.programs import TrainPrograms

CLASSES = Classes(100)
# Topology, batch, settings: the same images a chip on more chips, and the reverse.
CELLS = (
    ("v5e:4x4", 4096, {}),
    ("v5e:16x16", 65536, {"block_size": 512}),
    ("v5e:8x8", 65536, {"block_size": 512, "micro_batch_size": 16384}),
    ("v5e:16x16", 4096, {}),
    ("v5e:8x8", 16384, {}),
    ("v4:4x4x4", 16384, {}),
    ("v4:2x2x4", 4096, {}),
    ("v5e:4x4", 16384, {"micro_batch_size": 4096}),
    ("v4:4x4x4", 65536, {"block_size": 512, "remat": True}),
)
# Topology, batch, anchors of a block.
ALONE = (
    ("v5e:16x16", 4096, None),
    ("v5e:16x16", 65536, None),
    ("v5e:16x16", 65536, 512),
    ("v5e:4x4", 65536, 512),
    ("v5e:16x16", 262144, 512),
    ("v5e:4x4", 65536, None),
    ("v5e:16x16", 16384, None),
    ("v5e:4x4", 4096, None),
)


def settings(batch, **changes):
    """CGD on ResNet-50 as its config has it, in bfloat16, with another batch."""
    path = Path(__file__).parents[1] / "configs" / "cgd_resnet50.py"
    spec = importlib.util.spec_from_file_location("cgd_resnet50", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.batch_size, config.model.dtype = batch, "bfloat16"
    for name, value in changes.items():
        group = {"remat": config.model, "block_size": config.objective}
        setattr(group.get(name, config), name, value)
    return from_config_dict(config)


def steps(cells=None):
    """Lines of the table of steps at several batches on several numbers of chips."""
    yield (
        f"CGD on ResNet-50, 224 x 224, bfloat16, 1536 numbers an embedding; jax "
        f"{jax.__version__}, compiled without a TPU. Times are expected, not measured."
    )
    yield ""
    yield (
        "| batch | chips | of a chip | settings | memory of a chip | TFLOP of a chip | "
        "MiB it sends (the losses') | products, s | memory, s | between chips, s | "
        "step, s | the losses' share | the losses alone: memory of a chip | compiling |"
    )
    yield "|" + "---|" * 14
    for number in range(len(CELLS)) if cells is None else cells:
        topology, batch, changes = CELLS[number]
        yield step_row(hardware.topology(topology), settings(batch, **changes), changes)


def step_row(place, config, changes):
    """A line of that table."""
    mesh, programs = place.mesh, TrainPrograms(config, CLASSES, place.mesh)
    count = mesh.size
    began = time.perf_counter()
    program = programs.lower_train_step().compile()
    seconds = time.perf_counter() - began
    flops, loss_flops = programs.step_flops() / count, programs.loss_flops() / count
    sent = program_costs.traffic(program.as_text(), count)
    alone = objective_alone(programs)
    of_losses = program_costs.traffic(alone.as_text(), count)
    found = hardware.estimate_step(
        place.spec,
        config.plan.utilization,
        flops=flops,
        loss_flops=loss_flops,
        moved=program_costs.moved(program, flops),
        sent=sent.total,
    )
    gathering = of_losses.total / place.spec.interconnect
    share = (found.losses + gathering) / found.total
    how = ", ".join(f"{name}={value}" for name, value in changes.items())
    columns = (
        config.batch_size,
        f"{count} {place.title.partition(':')[0]}",
        config.batch_size // count,
        how or "-",
        f"{program_costs.memory(program).total / 2**30:.2f} GiB",
        f"{flops / 1e12:.3g}",
        f"{sent.total / 2**20:.0f} ({of_losses.total / 2**20:.1f})",
        f"{found.products:.3g}",
        f"{found.memory:.3g}",
        f"{found.between:.2g}",
        f"{found.total:.3g}",
        f"{share:.1%} ({gathering / found.total:.1%} between chips)",
        f"{program_costs.memory(alone).total / 2**20:.0f} MiB",
        f"{seconds:.0f} s",
    )
    return "| " + " | ".join(map(str, columns)) + " |"


def losses_alone(cells=None):
    """Lines of the table of the losses of these steps without the steps."""
    yield (
        "The losses of the same step alone (batch-hard triplet, cross-entropy, "
        "statistics of pairs; value and gradient by what the network makes)."
    )
    yield ""
    yield (
        "| batch | chips | rows | memory of a chip | it gathers at most | it sends | "
        "products, s | between chips, s | share of the step | compiling |"
    )
    yield "|" + "---|" * 10
    for number in range(len(ALONE)) if cells is None else cells:
        yield loss_row(*ALONE[number])


def loss_row(topology, batch, block):
    """A line of that table; the step around it is taken at its products' time."""
    place = hardware.topology(topology)
    programs = TrainPrograms(settings(batch, block_size=block), CLASSES, place.mesh)
    count, began = place.mesh.size, time.perf_counter()
    program = objective_alone(programs)
    seconds = time.perf_counter() - began
    sent = program_costs.traffic(program.as_text(), count)
    found = hardware.estimate_step(
        place.spec,
        programs.config.plan.utilization,
        flops=programs.step_flops() / count,
        loss_flops=programs.loss_flops() / count,
        moved=0.0,
        sent=sent.total,
    )
    columns = (
        batch,
        f"{count} {topology.partition(':')[0]}",
        "all at once" if block is None else f"blocks of {block}",
        f"{program_costs.memory(program).total / 2**20:.3g} MiB",
        f"{sent.gathered / 2**20:.3g} MiB",
        f"{sent.total / 2**20:.3g} MiB",
        f"{found.losses:.2g}",
        f"{found.between:.2g}",
        f"{(found.losses + found.between) / found.total:.1%} "
        f"({found.between / found.total:.1%} between chips)",
        f"{seconds:.0f} s",
    )
    return "| " + " | ".join(map(str, columns)) + " |"


def objective_alone(programs):
    """The losses and their gradient by what the model makes, as a program."""
    config, mesh = programs.config.objective, programs.mesh
    everywhere, split = meshes.replicated(mesh), meshes.split(mesh)

    def value(output, labels):
        return objective.objective(config, output, labels, mesh=mesh)

    program = jax.jit(
        jax.value_and_grad(value, has_aux=True),
        in_shardings=(split, split),
        out_shardings=((everywhere, everywhere), split),
    )
    output = programs.losses.output._replace(features=None)
    return program.lower(output, programs.abstract_batch["labels"]).compile()
