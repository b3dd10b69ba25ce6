"""The largest batch and what makes room, on compilers of which all is known."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from metricjax.cli import config_flags
from metricjax.objectives.hierarchical_proxies import Classes
from metricjax.planning import batch_size
from metricjax.planning.batch_size import MemoryFit
from metricjax.training.programs import TrainPrograms

MIB = 2**20


class Pretended(MemoryFit):
    """Memory of a program as a function of its settings; remembers what was asked."""

    def compile(self, config, what):
        self.asked.append(config)
        total = self.memory_of(config)
        return (object() if total <= self.limit else None), total


def pretend(tiny, limit, memory_of, devices=1, **settings):
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    config = config_flags.parse(["--config", str(tiny.config), *flags]).config
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    made = Pretended(TrainPrograms(config, Classes(4), mesh), limit, None)
    object.__setattr__(made, "asked", [])
    object.__setattr__(made, "memory_of", memory_of)
    return made


SHAPES = {
    "a line": lambda batch: 3 * MIB + 50_000 * batch,
    "steeper": lambda batch: 3 * MIB + 50_000 * batch + 30 * batch**2,
    "flatter": lambda batch: 3 * MIB + 2 * MIB * math.sqrt(batch),
    "in steps": lambda batch: 3 * MIB + 3_200_000 * math.ceil(batch / 64),
    "refused without a number": lambda batch: (
        3 * MIB + 50_000 * batch if batch <= 1200 else math.inf
    ),
}


@pytest.mark.parametrize("start", [8, 64, 4096])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("devices", [1, 8])
def test_the_largest_batch_fits_and_little_more_would(tiny, shape, start, devices):
    memory, limit = SHAPES[shape], 64 * MIB
    case = pretend(
        tiny,
        limit,
        lambda config: memory(config.batch_size),
        devices,
        batch_size=start,
    )
    best, total = case.largest_batch(memory(start), most=100_000, tries=12)
    assert total == memory(best) <= limit
    multiple = 2 * devices  # two images of a class on each device
    assert best % multiple == 0
    assert memory(best * 1.03 + multiple) > limit
    sizes = [config.batch_size for config in case.asked]
    assert len(sizes) == len(set(sizes)) <= 12
    if shape == "a line":
        assert len(sizes) <= 2


def test_no_larger_than_the_data_and_no_more_programs_than_allowed(tiny):
    memory = SHAPES["a line"]
    case = pretend(tiny, 64 * MIB, lambda config: memory(config.batch_size))
    assert case.largest_batch(memory(8), most=99, tries=3) == (98, memory(98))
    assert [config.batch_size for config in case.asked] == [98]
    case.asked.clear()
    assert case.largest_batch(memory(8), most=8, tries=3) == (8, memory(8))
    assert not case.asked
    steep = SHAPES["steeper"]
    case = pretend(
        tiny, 64 * MIB, lambda config: steep(config.batch_size), batch_size=4096
    )
    best, _ = case.largest_batch(steep(4096), most=9999, tries=1)
    assert best in (0, case.asked[0].batch_size) and len(case.asked) == 1
    nothing = pretend(tiny, 1 * MIB, lambda config: memory(config.batch_size))
    assert nothing.largest_batch(memory(8), most=99, tries=3) == (0, 0.0)


def test_batches_of_parts_stay_whole_parts(tiny):
    memory = SHAPES["a line"]
    case = pretend(
        tiny,
        64 * MIB,
        lambda config: memory(config.batch_size),
        batch_size=60,
        micro_batch_size=30,
    )
    best, _ = case.largest_batch(memory(60), most=10_000, tries=4)
    assert best % 30 == 0 and memory(best + 60) > 64 * MIB


def test_remedies(tiny):
    """Each differs from the settings in what it says, and parts have a margin."""
    limit, fixed, each = 64 * MIB, 4 * MIB, MIB
    case = pretend(tiny, limit, None, 8, batch_size=128)
    remedies = dict(case.remedies(fixed + 128 * each, 128 * each))
    found = list(remedies)
    assert found[:3] == [
        "model.dtype=bfloat16",
        "model.remat=True",
        "micro_batch_size=32",
    ]
    config = case.programs.config
    models = [remedies[words].model for words in found]
    assert models[0] == dataclasses.replace(config.model, dtype="bfloat16")
    assert models[1] == dataclasses.replace(config.model, remat=True)
    assert models[2] == config.model
    both = remedies[found[3]]
    assert both.model.remat and both.model.dtype == "bfloat16"
    assert both.micro_batch_size == remedies[found[2]].micro_batch_size == 32
    lean = pretend(tiny, limit, None, 8, **{"model.remat": True, "batch_size": 8})
    assert list(lean.remedies(9 * each, 8 * each)) == [
        ("model.dtype=bfloat16", dataclasses.replace(
            lean.programs.config,
            model=dataclasses.replace(lean.programs.config.model, dtype="bfloat16"),
        ))
    ]  # fmt: skip


def test_what_batches_are_multiples_of(tiny):
    def multiple(devices, **settings):
        config = pretend(tiny, 0, None, **settings).programs.config
        return batch_size.batch_multiple(config, devices)

    assert multiple(1) == 2 and multiple(4) == 8
    assert multiple(4, batch_size=48, micro_batch_size=12) == 24


def test_programs_are_compiled_and_told(tiny):
    flags = ["--config", str(tiny.config)]
    config = config_flags.parse(flags).config
    mesh, said = Mesh(np.array(jax.devices()[:1]), ("data",)), []
    programs = TrainPrograms(config, Classes(4), mesh)
    case = MemoryFit(programs, 1024.0, said.append)
    program, total = case.compile(config, "batch_size=8")
    assert program is not None and total > 1024
    assert said[0] == "compiling the training step with batch_size=8 ..."
    assert "a device, does not fit (" in said[1]
    assert not case.fits(total) and MemoryFit(programs, None, said.append).fits(total)


@pytest.mark.parametrize(
    ("message", "least"),
    [("(28.00G) exceeds available HBM (15.75G)", 28 * 2**30), ("", math.inf)],
)
def test_a_program_that_is_refused_does_not_fit(tiny, monkeypatch, message, least):
    """TPU's compiler refuses what its chips cannot hold; other errors are ours."""
    config = config_flags.parse(["--config", str(tiny.config)]).config
    programs = TrainPrograms(
        config, Classes(4), Mesh(np.array(jax.devices()[:1]), "data")
    )
    said = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for"

    def refuse(self):
        raise jax.errors.JaxRuntimeError(said)

    monkeypatch.setattr(TrainPrograms, "lower_train_step", refuse)
    said += f" HLO temporaries {message}"
    sentences = []
    case = MemoryFit(programs, 16 * 2**30, sentences.append)
    program, total = case.compile(config, "these settings")
    assert program is None and total >= least and not case.fits(total)
    assert "does not fit" in sentences[1]
    assert ("28 GiB a device" if message else "too much a device") in sentences[1]
    said = "INTERNAL: Failed"
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        case.compile(config, "these settings")
