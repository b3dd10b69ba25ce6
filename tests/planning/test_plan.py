"""What `--mode plan` says of a run, and that it leaves nothing behind."""

import importlib.util
import re

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from paths import CONFIGS

from metricjax.cli import config_flags
from metricjax.errors import InputError
from metricjax.models.cost import count_parameters
from metricjax.objectives.hierarchical_proxies import Classes
from metricjax.planning import batch_size, hardware, plan
from metricjax.planning.hardware import ChipSpec
from metricjax.planning.timing import run_steps
from metricjax.runtime import program_costs
from metricjax.training.programs import TrainPrograms
from metricjax.training.run import Run


def settings(tiny, *overrides):
    root = f"--config.data.root={tiny.shapes}"
    overrides = [f"--config.{override}" for override in overrides]
    return ["--config", str(tiny.config), root, *overrides]


def one_device():
    return Mesh(np.array(jax.devices()[:1]), ("data",))


@pytest.fixture
def said(tiny, tmp_path, monkeypatch, capsys, quick):
    """What `--mode plan` prints, run in an empty directory that stays empty."""

    def run(*arguments):
        monkeypatch.chdir(tmp_path)
        options = config_flags.parse([*arguments, "--mode", "plan"])
        plan.plan(options.config, options.name)
        assert not list(tmp_path.iterdir())
        return capsys.readouterr().out

    return run


def test_a_plan_for_the_devices_that_are_here(tiny, said):
    before = sorted(tiny.directory.rglob("*"))
    out = said(*settings(tiny, "batch_size=8"))
    assert sorted(tiny.directory.rglob("*")) == before
    lines = out.splitlines()
    assert lines[0] == "plan of tiny: nothing is trained, no workdir is made"
    assert "train: 24 images of 4 classes" in lines
    assert "loss sees 8 = 8 cpu devices x 1 = 4 classes x 2; an epoch is 3 steps" in (
        lines
    )
    assert "run: 30 steps = 10 epochs, 3 validations" in lines
    for words in (
        "devices: 8 x cpu, ",
        "checkpoint: ",
        "compiling the training step with batch_size=8 ...",
        "memory of a device: ",
        "products of a step: ",
        "between devices: each sends ",
        "images/s, measured over 3 steps on random images",
        "memory of a device in them, measured: ",
        "evaluation: 18 images at each validation, 42 twice at the end",
        "are steps (measured)",
    ):
        assert words in out
    # All four classes with two images each are in the batch: there is no more.
    assert "largest batch of these settings seen to fit: 8 (" in lines[-1]
    assert "there is data for no larger one" in lines[-1]


def test_a_plan_for_memory_that_is_too_small(tiny, said, monkeypatch):
    """What would make room is compiled, not promised."""
    overrides = ("batch_size=64", "data.turns=4", "instances_per_class=4")
    overrides += ("model.remat=True", "model.dtype=bfloat16", "plan.compiles=2")
    asked = settings(tiny, *overrides, "data.transform.image_size=32")
    programs = TrainPrograms(
        config_flags.parse(asked).config, Classes(16), one_device()
    )
    need = program_costs.memory(programs.lower_train_step().compile()).total
    small = hardware.Target(programs.mesh, 0.7 * need, "a device of little memory")
    monkeypatch.setattr(hardware, "present_devices", lambda: small)
    out = said(*asked)
    assert "time of a step: unknown" in out and "measured" not in out
    assert re.search("this batch would fit with .*micro_batch_size=32 \\(", out)
    assert len(re.findall("compiling the training step", out)) <= 1 + 1 + 2
    largest = re.search(r"largest batch .*: (\d+) \(.* a device\)", out)
    assert 32 <= int(largest[1]) < 64 and int(largest[1]) % 4 == 0


def test_data_of_the_papers_need_not_be_here(said):
    out = said(
        *("--config", f"{CONFIGS / 'cgd_resnet50.py'}:sop", "--config.plan.compiles=0"),
        *("--config.model.backbone=convnet", "--config.model.widths=(8,)"),
        *("--config.model.last_stride=2", "--config.model.dim=16"),
        "--config.data.transform.image_size=32",
    )
    assert "assumed: Stanford Online Products is not here (data.root=None)" in out
    assert "test: 60502 images of 11316 classes" in out
    assert "loss sees 128 = 8 cpu devices x 16 = 32 classes x 4" in out
    assert "compiling the training step" in out and "largest batch" not in out


def test_counted_data_are_those_of_the_papers():
    counts = plan.papers.KNOWN["inshop"].counts
    found = plan._counted("inshop", counts)
    assert (len(found.train), found.train.num_classes) == (25_882, 3_997)
    assert found.test.is_query.sum() == 14_218
    assert found.test.is_gallery.sum() == 12_612
    assert not (found.test.is_query & found.test.is_gallery).any()
    cub = plan._counted("cub", plan.papers.KNOWN["cub"].counts)
    assert cub.test.is_query.all() and cub.test.is_gallery.all()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.root=nowhere"], ["nowhere"]),
        (["batch_size=12"], ["config.batch_size is 12", "8 devices"]),
        (["plan.topology=v9:2x2"], ["'v9:2x2'", "no TPU topology", "v5e:4x4"]),
        (["plan.topology=4x4"], ["'4x4'", "CHIP:SHAPE", "v5e:16x16"]),
    ],
)
def test_what_a_plan_refuses(tiny, capsys, overrides, words):
    options = config_flags.parse(settings(tiny, *overrides))
    with pytest.raises(InputError) as raised:
        plan.plan(options.config, options.name)
    assert capsys.readouterr().out == ""
    for word in words:
        assert word in str(raised.value)


def test_without_the_compiler_of_tpus_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'metricjax\[plan\]'"):
        hardware.topology("v5e:4x4")


def test_the_compiled_memory_is_what_steps_use(tiny, tmp_path, quick):
    """Compiled and measured within a factor of 2, of 100 MiB and more.

    Convolutions on CPU take memory of their own that the compiler does not count.
    """
    overrides = ("batch_size=64", "data.turns=4", "data.transform.image_size=128")
    overrides += ("model.widths=(32,64)", "instances_per_class=4")
    arguments = settings(tiny, *overrides)
    config = config_flags.parse(arguments).config
    run = Run.build(config, tmp_path, plan.open_data(config), one_device())
    program = run.programs.lower_train_step().compile()
    compiled = program_costs.memory(program).total
    timing = run_steps(run, program)
    if timing.memory is None:
        pytest.skip("this system does not tell a process's peak memory")
    assert compiled > 100 * 2**20
    assert compiled / 2 < timing.memory < 2 * compiled
    assert timing.steps == 3 and timing.seconds > 0


def test_expected_times():
    """By hand: 4 TFLOP/s at half the peak, 2 GB/s of memory, 1 GB/s between chips."""
    spec = ChipSpec(flops=8e12, memory=1e9, bandwidth=2e9, interconnect=1e9)
    work = {"flops": 8e12, "loss_flops": 4e12, "sent": 5e8}
    found = hardware.estimate_step(spec, 0.5, moved=2e9, **work)
    assert found.losses == 6.0 and found.products == 7.0
    assert found.memory == 1.0 and found.between == 0.5 and found.total == 7.5
    assert hardware.estimate_step(spec, 0.5, moved=2e10, **work).total == 10.5


def test_flops_count_every_turn_of_a_loop(tiny):
    """Parts add a second forward pass to the same products; blocks of losses none."""

    def flops(*overrides):
        config = config_flags.parse(settings(tiny, "batch_size=16", *overrides)).config
        return TrainPrograms(config, Classes(4), one_device())

    whole, parts = flops(), flops("micro_batch_size=4")
    assert flops("objective.block_size=4").step_flops() == whole.step_flops()
    more = parts.step_flops() - whole.step_flops()
    forward = 16 * whole.embedding_flops()
    assert more == forward
    assert whole.step_flops() == pytest.approx(3 * forward, rel=0.2)
    assert 0 < whole.loss_flops() < whole.step_flops()
    parameters = count_parameters(whole.abstract_state.variables)
    assert batch_size.size_of(whole.abstract_state) == pytest.approx(
        12 * parameters, rel=0.1
    )


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)
def test_a_plan_for_chips_that_are_elsewhere(tiny, said):
    out = said(*settings(tiny, "batch_size=8", "plan.topology=v5e:2x4"))
    for words in (
        "devices: v5e:2x4, 8 chips of 16 GiB each, not here",
        "loss sees 8 = 8 tpu chips x 1",
        "memory of a chip: ",
        "between chips: each sends ",
        "estimated, not measured, from published figures",
    ):
        assert words in out
