"""A step that is not finite: which number was the first, what is left of the run."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from metricjax.cli import config_flags
from metricjax.training import nonfinite
from metricjax.training.run import Run

KERNEL = ("backbone", "down0", "kernel")
SGD = ["optimizer.method=sgd"]


def open_run(tiny, directory, *overrides):
    """A run of the shapes, its state before the first step, and a batch."""
    settings = [f"--config.{override}" for override in overrides]
    config = config_flags.parse(["--config", str(tiny.config), *settings]).config
    run = Run.open(config, directory / "run")
    size = config.batch_size
    rows = np.random.default_rng(0).integers(0, 255, (size, 16, 16, 1))
    batch = {
        "images": rows.astype(np.uint8),
        "labels": np.repeat(np.arange(4, dtype=np.int32), size // 4),
    }
    return run, run.init_state(), batch


def look(run, state, batch, saved=0):
    """What is said of the step that comes after the state."""
    frozen = state.replace(step=-1 - state.step)
    error = nonfinite.not_finite(run.programs, frozen, batch, saved)
    assert "\n" not in str(error)
    return str(error)


def spoiled(state, path, factor):
    """The state with one array of the parameters multiplied."""

    def change(tree, names):
        name, *rest = names
        return {**tree, name: change(tree[name], rest) if rest else tree[name] * factor}

    return state.replace(params=change(state.params, path))


@pytest.fixture
def shapes(tiny, monkeypatch, quick):
    monkeypatch.chdir(tiny.directory)
    return tiny


def test_a_parameter(shapes, tmp_path):
    run, state, batch = open_run(shapes, tmp_path)
    said = look(run, spoiled(state, KERNEL, np.nan), batch)
    assert "Step 1 has numbers that are not finite" in said
    assert "the first was the parameter backbone/down0/kernel;" in said
    assert "nothing was saved before it" in said
    for remedy in ("learning_rate than 0.03", "clip_norm", "warmup", "--workdir"):
        assert remedy in said
    assert "float32" not in said


IN_PARTS = ["batch_size=16", "instances_per_class=4", "micro_batch_size=8"]


@pytest.mark.parametrize("overrides", [[], ["model.remat=True", *IN_PARTS]])
def test_an_activation(shapes, tmp_path, overrides):
    """The kernel is finite, and so is the convolution; not the variance behind it."""
    run, state, batch = open_run(shapes, tmp_path, "model.dtype=bfloat16", *overrides)
    said = look(run, spoiled(state, KERNEL, 1e30), batch, saved=4)
    assert "the first was the output of the module backbone/down0_bn;" in said
    assert "the checkpoint of step 4, the last good one, is kept" in said
    assert "model.dtype=float32" in said


def test_an_activation_of_learners(shapes, tmp_path):
    """Their modules are under `nn.vmap`, which hands nothing on: the one around it."""
    overrides = ["model.head=m_heads", "model.learners=2", "model.dim=8"]
    overrides += ["objective.terms.softmax.weight=0"]
    run, state, batch = open_run(shapes, tmp_path, *overrides)
    path = ("backbone", "branch", "network", "down0", "kernel")
    said = look(run, spoiled(state, path, 1e30), batch)
    assert "the first was the output of the whole model;" in said


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["objective.terms.triplet.margin=3e38"], "the loss triplet"),
        (
            [f"objective.terms.triplet.{name}=1e30" for name in ("margin", "weight")],
            "the weighted sum of the losses",
        ),
        (["objective.terms.triplet.weight=3e38"], "the norm of all gradients"),
        ([*SGD, "optimizer.learning_rate=3e38"], "the update of "),
    ],
)
def test_what_is_behind_the_model(shapes, tmp_path, overrides, words):
    run, state, batch = open_run(shapes, tmp_path, *overrides)
    assert f"the first was {words}" in look(run, state, batch)


def test_a_gradient(shapes, tmp_path):
    """Of short embeddings, brought to unit length: each move turns them far."""
    run, state, batch = open_run(
        shapes, tmp_path, "objective.terms.triplet.weight=1e35"
    )
    said = look(run, spoiled(state, ("fc_G", "kernel"), 1e-5), batch)
    assert "the first was the gradient of " in said


def test_what_cannot_be_found_again(shapes, tmp_path):
    run, state, batch = open_run(shapes, tmp_path)
    said = look(run, state, batch)
    assert "the first could not be found by doing it again" in said


def steps_of(workdir):
    return {int(path.name) for path in (workdir / "checkpoints").iterdir()}


def test_a_run_that_blows_up(tiny, tmp_path):
    """At step 13 the rate is a billion times a billion times what it was."""
    workdir = tmp_path / "run"
    overrides = [
        "optimizer.schedule=step", "optimizer.step_boundaries=(12,)",
        "optimizer.step_decay=1e30", *SGD,
    ]  # fmt: skip
    result = tiny.run(workdir, *overrides)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and "Traceback" not in result.stderr
    found = re.search(r"Step (\d+) has numbers that are not finite", result.stderr)
    assert found and int(found[1]) in (13, 14), result.stderr
    assert "the checkpoint of step 10, the last good one, is kept" in result.stderr
    assert steps_of(workdir) == {5, 10}
    assert not (workdir / "results.json").exists()
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert max(json.loads(line)["step"] for line in lines) < int(found[1])
    assert "finite" not in json.loads(lines[-1])


def test_a_pretrained_file_with_a_hole(tiny, tmp_path):
    arrays = load_file(tiny.finished / "model.safetensors")
    name = next(name for name in arrays if name.endswith("weight"))
    arrays[name].flat[5] = np.nan
    path = tmp_path / "broken.safetensors"
    save_file(arrays, path)
    result = tiny.run(tmp_path / "run", f"model.pretrained={path}")
    assert result.returncode == 2 and result.stderr.count("\n") == 1, result.stderr
    assert "Step 1 has" in result.stderr and "the parameter backbone/" in result.stderr
    assert f"see whether model.pretrained={path} holds it" in result.stderr
    assert not list((tmp_path / "run").glob("checkpoints/*"))
