"""The run end to end, undisturbed and disturbed, on a few small shapes."""

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import time

import jax
import numpy as np
import pytest
import tiny as tiny_module
from safetensors.numpy import load_file

from metricjax import models
from metricjax.cli import config_flags
from metricjax.comparison import per_query
from metricjax.config.parsing import from_config_dict
from metricjax.evaluation import by_class
from metricjax.models import cost, pretrained
from metricjax.training.run import Run

SETTINGS = tiny_module.SETTINGS


def results_of(workdir):
    return json.loads((workdir / "results.json").read_text())


def lines_of(workdir, kind):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["kind"] == kind]


def snapshot(workdir):
    """Every file with its content."""
    return {
        str(path.relative_to(workdir)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(workdir.rglob("*"))
        if path.is_file()
    }


def assert_like_undisturbed(workdir, undisturbed):
    """Same parameters to the bit, same results, every line of metrics once."""
    ours, theirs = results_of(workdir), results_of(undisturbed)
    for timed in ("seconds", "compiled", "warnings"):
        ours.pop(timed), theirs.pop(timed)
    assert ours["parameters_sha256"] == theirs["parameters_sha256"]
    assert ours == theirs
    timings = {"images_per_second", "data_wait"}
    for kind in ("train", "validation"):
        left, right = (
            [{k: v for k, v in line.items() if k not in timings} for line in lines]
            for lines in (lines_of(workdir, kind), lines_of(undisturbed, kind))
        )
        assert left == right
    assert not list((workdir / "checkpoints").glob("*tmp*"))


def test_what_a_run_leaves(tiny):
    workdir = tiny.finished
    names = {path.name for path in workdir.iterdir()} - {"tensorboard"}
    files = {"config.json", "metrics.jsonl", "results.json", "report.html"}
    files |= {"explorer.html", "model.safetensors", "queries.npz"}
    assert names == files | {"checkpoints"}
    kept = {int(path.name) for path in (workdir / "checkpoints").iterdir()}
    selected = results_of(workdir)["selected_step"]
    assert kept == {SETTINGS["steps"], SETTINGS["steps"] - 5, selected}


def test_the_model_is_left_for_others(tiny):
    config = from_config_dict(json.loads((tiny.finished / "config.json").read_text()))
    path = tiny.finished / "model.safetensors"
    backbone = models.build(config.model).backbone
    shape = config.data.transform.shape
    loaded = pretrained.load(path, backbone, image_shape=shape)
    counted = cost.count_parameters(loaded)
    head = {n: a for n, a in load_file(path).items() if n.startswith("head.")}
    assert head["head.fc_G.weight"].shape == (16, 16)
    assert head["head.classifier.weight"].shape == (tiny_module.TRAIN, 16)
    assert counted == cost.count_parameters(
        backbone.init(jax.random.key(0), np.zeros((1, *shape), np.float32))
    )


@pytest.mark.slow
@pytest.mark.parametrize("head", ["abe", "m_heads"])
def test_an_ensemble_is_trained_and_judged(tiny, tmp_path, head):
    overrides = [
        f"model.head={head}",
        "model.learners=4",
        "objective.terms.softmax.weight=0",
    ]
    result = tiny.run(tmp_path / "run", *overrides)
    assert result.returncode == 0, result.stderr
    learners = results_of(tmp_path / "run")["learners"]
    assert len(learners["recall@1"]) == 4
    assert all(0 <= recall <= 1 for recall in learners["recall@1"])
    assert -1 / 3 - 1e-6 <= learners["self_cosine"] <= 1


def test_results(tiny):
    results = results_of(tiny.finished)
    metrics = [f"recall@{k}" for k in (1, 2, 4, 8)] + ["r_precision", "map@r"]
    metrics += [f"macro_{name}" for name in metrics]
    for judged in (results, results["untrained"]):
        assert judged["queries"] == tiny_module.TEST * tiny_module.IMAGES
        assert judged["lone_queries"] == 0 and judged["ties"] >= 0
        assert set(judged["intervals"]) == set(metrics)
        for name in metrics:
            low, high = judged["intervals"][name]
            assert 0 <= low <= high <= 1 and 0 <= judged[name] <= 1
        recalls = [judged[f"recall@{k}"] for k in (1, 2, 4, 8)]
        assert recalls == sorted(recalls)
    assert results["untrained"]["map@r"] != results["map@r"]
    assert 0 < results["floor"] < 1
    assert re.fullmatch("[0-9a-f]{64}", results["parameters_sha256"])
    assert results["config"] == "tiny" and results["seed"] == 0
    assert results["steps"] == SETTINGS["steps"] and results["seconds"] > 0
    assert {"metricjax", "jax", "numpy"} <= set(results["versions"])
    counts = {"TRAIN": "train", "VALIDATION": "validation", "TEST": "test"}
    for constant, part in counts.items():
        classes = getattr(tiny_module, constant)
        images = classes * tiny_module.IMAGES
        assert results["dataset"][part] == {"classes": classes, "images": images}
    for part, name in (("held_out", "VALIDATION"), ("test", "TEST")):
        classes, each = getattr(tiny_module, name), tiny_module.IMAGES
        same, pairs = each * (each - 1) // 2, classes * (classes - 1) // 2
        counted = results["verification"][part]["pairs"]
        assert counted == {"same": classes * same, "different": pairs * each**2}
    assert results["thresholds"] == []  # so few pairs say nothing
    assert results["dataset"]["name"] == "folder"
    assert results["dataset"]["skipped"] == []
    assert results["dataset"]["closed_set"] is False
    assert results["selected_on_test"] is False and "nmi" not in results


def test_values_of_the_queries_are_kept(tiny):
    results = results_of(tiny.finished)
    arrays = per_query.unpack((tiny.finished / per_query.FILE).read_bytes(), "")
    assert len(arrays["query"]) == results["queries"]
    for name, values in per_query.metrics(arrays).items():
        assert np.mean(values) == pytest.approx(results[name], abs=1e-6)
        macro = np.mean(by_class(arrays | {name: values})[name])
        assert macro == pytest.approx(results[f"macro_{name}"], abs=1e-6)


def test_metrics_of_the_steps(tiny):
    steps, every = SETTINGS["steps"], SETTINGS["log_every"]
    train = lines_of(tiny.finished, "train")
    assert [line["step"] for line in train] == list(range(every, steps + 1, every))
    names = {"loss", "triplet", "softmax", "positive_distance", "negative_distance"}
    names |= {"active", "gradient_norm", "learning_rate"}
    for line in train:
        assert names <= set(line)
        assert line["loss"] == pytest.approx(line["triplet"] + line["softmax"], 1e-5)
        assert 0 <= line["active"] <= 1 and line["learning_rate"] == 3e-2
    assert np.mean([line["loss"] for line in train[-5:]]) < train[0]["loss"]


def test_selected_on_held_out_classes(tiny):
    results, found = results_of(tiny.finished), lines_of(tiny.finished, "validation")
    assert [line["step"] for line in found] == [10, 20, 30]
    best = max(found, key=lambda line: (line["map@r"], line["step"]))
    assert results["selected_step"] == best["step"]
    assert "held-out" in results["selected_by"]
    for name, value in results["validation"].items():
        assert value == best[name]


def test_selected_on_test_is_stamped(tiny, tmp_path):
    """And where clusters are asked for, how they agree with the classes."""
    overrides = ("evaluation.select_on_test=true", "evaluation.clustering_restarts=2")
    workdir, steps = tmp_path / "run", ("steps=4", "eval_every=2")
    result = tiny.run(workdir, *overrides, *steps, "objective.terms.softmax.weight=0")
    assert result.returncode == 0, result.stderr
    assert "the best checkpoint is chosen on the test classes" in result.stdout
    results = results_of(workdir)
    assert results["selected_on_test"] is True
    assert results["selected_by"] == "map@r on test classes"
    assert results["dataset"]["train"]["classes"] == 7  # None of them is held out.
    assert results["dataset"]["validation"] == results["dataset"]["test"]
    best = max(line["map@r"] for line in lines_of(workdir, "validation"))
    assert results["map@r"] == pytest.approx(best, abs=1e-6)
    assert "Selected on test" in (workdir / "report.html").read_text()
    assert results["thresholds"] == []
    about = results["clustering"]
    assert (about["clusters"], about["images"], about["restarts"]) == (7, 42, 2)
    assert 0 < results["nmi"] <= 1 and 0 < results["f1"] <= 1 and results["ami"] <= 1


JUDGE_THE_BEST = """
import json, sys
from metricjax.cli import config_flags
from metricjax.training.checkpoints import Checkpoints
from metricjax.training.run import Run
options = config_flags.parse(sys.argv[1:])
run = Run.open(options.config, options.workdir)
with Checkpoints(options.workdir / "checkpoints", "map@r") as checkpoints:
    step, state = checkpoints.restore_best(run.programs.abstract_state, print)
found = {
    "test": run.evaluate(state.variables, run.dataset.test, 0),
    "validation": run.evaluate(state.variables, run.validation, 0),
}
print(json.dumps({"step": step, **found}))
sys.exit()
"""


def test_the_selected_parameters_are_those_judged(tiny):
    found = json.loads(tiny.run(tiny.finished, before=JUDGE_THE_BEST).stdout)
    results = results_of(tiny.finished)
    assert found["step"] == results["selected_step"]
    for name in ("recall@1", "map@r"):
        assert found["test"][name] == pytest.approx(results[name], abs=1e-6)
        validation = results["validation"][name]
        assert found["validation"][name] == pytest.approx(validation, abs=1e-6)


def test_classes_are_disjoint(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny.directory)
    config = config_flags.parse(["--config", str(tiny.config)]).config
    run = Run.open(config, tmp_path / "unused")
    train, validation, test = run.train, run.validation, run.dataset.test
    parts = [set(split.class_names) for split in (train, validation, test)]
    assert [len(part) for part in parts] == [4, 3, 7]
    assert len(set.union(*parts)) == 14
    assert parts[2] == {f"class{label:02d}" for label in range(7, 14)}
    assert {name.split("/")[0] for name in train.names} == parts[0]
    assert not (tmp_path / "unused").exists()


def test_the_report_needs_nothing_else(tiny):
    page = (tiny.finished / "report.html").read_text()
    references = re.findall(r"""\b(?:src|href)\s*=\s*["']?([^"'\s>]+)""", page)
    references += re.findall(r"""url\(["']?([^"')]+)""", page)
    assert any(reference.startswith("data:image/") for reference in references)
    assert {r for r in references if not r.startswith(("data:", "#"))} == {
        "explorer.html"
    }
    assert "@import" not in page and "<script src" not in page
    assert "width=device-width" in page
    assert f"{100 * results_of(tiny.finished)['recall@1']:.1f}" in page
    assert all(f"class{label:02d}/" in page for label in range(7, 14))


def test_what_a_run_says(tiny):
    lines = tiny.said.splitlines()
    assert "train: 24 images of 4 classes" in lines
    assert "validation: 18 images of 3 classes" in lines
    assert "test: 42 images of 7 classes" in lines
    assert sum(line.startswith("step ") for line in lines) == 15 + 3
    assert any("loss sees 8 = 1 cpu device x 8 = 4 classes x 2;" in x for x in lines)
    assert lines[-3].startswith("unseen classes: Recall@1 ")
    assert lines[-1] == f"report: {tiny.finished / 'report.html'}"
    assert "\x1b" not in tiny.said


def test_running_a_finished_run_again_changes_nothing(tiny):
    before = snapshot(tiny.finished)
    result = tiny.run(tiny.finished)
    assert result.returncode == 0 and result.stderr == ""
    assert "this run is complete" in result.stdout
    assert f"report: {tiny.finished / 'report.html'}" in result.stdout
    assert "compiled" not in result.stdout and "step 2/" not in result.stdout
    assert snapshot(tiny.finished) == before


def test_a_lost_report_is_written_again(tiny, tmp_path):
    workdir = shutil.copytree(tiny.finished, tmp_path / "run")
    (workdir / "report.html").unlink()
    (workdir / "results.json").unlink()
    result = tiny.run(workdir)
    assert result.returncode == 0, result.stderr
    assert "compiled" not in result.stdout
    assert_like_undisturbed(workdir, tiny.finished)
    assert (workdir / "report.html").exists()


# Each sends a signal to its own process at a definite moment of the run.
SEND = """
import os, signal
from metricjax.training import checkpoints, finalize, loop, metric_writer
def at(module, name, wanted, moment):
    real, seen = getattr(module, name), [0]
    def send():
        if seen[0] == 1:
            seen[0] += 1
            os.kill(os.getpid(), signal.{name})
    def function(*args, **kwargs):
        seen[0] += bool(wanted(*args, **kwargs))
        if moment == "before":
            send()
        result = real(*args, **kwargs)
        if moment == "written" and seen[0] == 1:
            args[0].wait()
        send()
        return result
    setattr(module, name, function)
{call}
"""
LINE = """at(metric_writer.MetricWriter, "record",
   lambda self, step, kind, values: step == {} and kind == "train", "after")"""
SAVE = """at(checkpoints.Checkpoints, "save",
   lambda self, step, *rest: step == {}, "{}")"""
VALIDATE = 'at(loop, "_validate", lambda *args: args[2] == 20, "{}")'
# Where the run may go on: checkpoints, of every fifth step, are written behind the
# steps, so that on a busy machine a kill can meet the two before it unwritten.
MOMENTS = {
    "before the first checkpoint": ({0}, LINE.format(2)),
    "in training": ({5, 10, 15}, LINE.format(14)),
    "right after a checkpoint": ({15}, SAVE.format(15, "written")),
    "while saving": ({5, 10, 15}, SAVE.format(15, "after")),
    "before validation": ({5, 10, 15}, VALIDATE.format("before")),
    "after validation": ({5, 10, 15}, VALIDATE.format("after")),
    "before the results": ({30}, 'at(loop, "finish", lambda *_: True, "before")'),
    "before the report": (
        {30},
        'at(finalize.page, "write", lambda *_, **__: True, "before")',
    ),
}


def send(name, call):
    return SEND.format(name=name, call=call)


def go_on(tiny, workdir, starts):
    """Run again: it resumes where it should and ends as if nothing had been."""
    written = [p.name for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()]
    newest = max(map(int, written), default=0)
    result = tiny.run(workdir)
    assert result.returncode == 0 and result.stderr == "", result.stderr
    found = re.search(r"resuming after step (\d+) of 30", result.stdout)
    assert (int(found[1]) if found else 0) == newest and newest in starts
    assert_like_undisturbed(workdir, tiny.finished)


@pytest.mark.parametrize(
    "moment",
    [
        "right after a checkpoint",
        *(
            pytest.param(moment, marks=pytest.mark.slow)
            for moment in MOMENTS
            if moment != "right after a checkpoint"
        ),
    ],
)
def test_killed(tiny, tmp_path, moment):
    starts, code = MOMENTS[moment]
    killed = tiny.run(tmp_path / "run", before=send("SIGKILL", code))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "run" / "report.html").exists()
    go_on(tiny, tmp_path / "run", starts)


@pytest.fixture(scope="module")
def optimized(tmp_path_factory):
    """The same run compiled as it is for users."""
    return tiny_module.Tiny(tmp_path_factory.mktemp("optimized"), optimized=True)


@pytest.mark.parametrize(
    ("wanted", "seed"),
    [
        pytest.param(5, 0, marks=pytest.mark.slow, id="five"),
        pytest.param(50, None, marks=pytest.mark.soak, id="fifty"),
    ],
)
def test_killed_at_random(optimized, tmp_path, wanted, seed):
    """Runs resume through kill after kill until they are done; then the next begins.

    Fifty kills, drawn anew each time, are a soak test; five of a fixed seed are not.

    A kill comes some milliseconds after a line of output that is drawn: every fifth
    time of the opening, which every start prints again, otherwise of compiling, steps,
    validations and report; every second step a checkpoint is written. Every fourth kill
    is a SIGTERM.
    """
    seed = time.time_ns() if seed is None else seed
    rng, kills, workdir, out = random.Random(seed), 0, None, tmp_path / "out.txt"
    said = optimized.said.splitlines()
    opening = next(n for n, line in enumerate(said) if line.startswith("compiled"))
    starts, finished = set(), 0
    with optimized.nursery("checkpoint_every=2") as nursery:
        while kills < wanted or workdir is not None:
            workdir = workdir or tmp_path / str(finished)
            process = nursery.start(workdir, out)
            # The last run is let go to its end, and half of those with only pages left.
            spared = kills >= wanted or (
                (workdir / "results.json").exists() and rng.random() < 0.5
            )
            at = rng.randrange(opening)
            if kills % 5:
                at = rng.randrange(opening, lines_left(workdir, len(said)))
            delay = rng.uniform(0.0, 0.15)
            if not spared and wait_for_lines(process, out, at, delay):
                term = kills % 4 == 3
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGTERM if term else signal.SIGKILL)
            code, printed = nursery.wait(), out.read_text()
            found = re.search(r"resuming after step (\d+) of 30", printed)
            starts.add(int(found[1]) if found else 0)
            told = f"seed {seed}, kill {kills}, line {at}: {printed}"
            assert code in (0, -signal.SIGKILL, -signal.SIGTERM), told
            stopped = "stopped after step" in printed
            kills += stopped or code != 0
            if code == 0 and not stopped:
                assert_like_undisturbed(workdir, optimized.finished)
                finished, workdir = finished + 1, None
    assert finished >= 1 and len(starts) >= wanted // 10 + 1, (seed, finished, starts)


def lines_left(workdir, lines):
    """How many of the lines of a whole run one prints that goes on there."""
    written = [p.name for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()]
    done = max(map(int, written), default=0)
    return lines - sum(done // every for every in (2, 10))


def wait_for_lines(process, path, count, delay):
    """Wait for so many lines of a run and a little longer; False if it ended first."""
    until = time.monotonic() + 300
    while not path.exists() or path.read_text().count("\n") < count:
        assert time.monotonic() < until, path.read_text()
        if not lives(process):
            return False
        time.sleep(0.005)
    time.sleep(delay)
    return lives(process)


def lives(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_killed_again_and_again(optimized, tmp_path):
    """One run, killed time after time; every start compiles anew.

    Those of `test_killed_at_random` find their programs compiled.
    """
    workdir = tmp_path / "run"
    saves = [SAVE.format(10, "after"), SAVE.format(25, "after")]
    for code in (LINE.format(4), saves[0], LINE.format(16), saves[1]):
        killed = optimized.run(workdir, before=send("SIGKILL", code), cached=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert optimized.run(workdir, cached=False).returncode == 0
    assert_like_undisturbed(workdir, optimized.finished)


@pytest.mark.parametrize(
    "name", ["SIGTERM", pytest.param("SIGINT", marks=pytest.mark.slow)]
)
def test_asked_to_stop(tiny, tmp_path, name):
    workdir = tmp_path / "run"
    stopped = tiny.run(workdir, before=send(name, LINE.format(12)))
    assert stopped.returncode == 0 and stopped.stderr == ""
    found = re.search(r"stopped after step (\d+); run the same command", stopped.stdout)
    assert found, stopped.stdout
    step = int(found[1])
    assert 12 <= step <= 15 and (workdir / "checkpoints" / str(step)).exists()
    assert not (workdir / "results.json").exists()
    assert max(line["step"] for line in lines_of(workdir, "train")) == step - step % 2
    go_on(tiny, workdir, {step})


@pytest.fixture(scope="module")
def keeping(tmp_path_factory):
    """A run with proxies, groups of classes and a memory."""
    directory = tmp_path_factory.mktemp("keeping")
    return tiny_module.Tiny(directory, config=tiny_module.KEEPING)


@pytest.mark.slow
def test_a_run_with_proxies_groups_and_a_memory(keeping):
    """The groups are made before steps 9, 18 and 27, the memory counts from step 5."""
    train = {line["step"]: line for line in lines_of(keeping.finished, "train")}
    assert "proxies: 96 parameters" in keeping.said.splitlines()
    for step, line in train.items():
        assert (line["contrastive_memory"] > 0) == (step > 4)
        assert line["gradient_norm_hierarchical_proxy_fine"] > 0
        assert (line["gradient_norm_hierarchical_proxy_coarse1"] > 0) == (step > 8)
        expected = line["contrastive"] + line["contrastive_memory"]
        expected += line["hierarchical_proxy"]
        assert line["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("step", [8, 10, 17, 25])
def test_such_a_run_is_killed(keeping, tmp_path, step):
    """Before and after groups were made: a run makes again those it had not saved."""
    workdir = tmp_path / "run"
    every = ["checkpoint_every=1"] if step in (8, 17) else []
    killed = keeping.run(
        workdir, *every, before=send("SIGKILL", SAVE.format(step, "written"))
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    go_on(keeping, workdir, {step})


@pytest.mark.slow
def test_a_checkpoint_cut_short_after_a_kill(tiny, tmp_path):
    workdir = tmp_path / "run"
    killed = tiny.run(workdir, before=send("SIGKILL", SAVE.format(15, "written")))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    damaged = workdir / "checkpoints" / "15"
    path = max(damaged.rglob("*"), key=lambda p: p.is_file() and p.stat().st_size)
    path.write_bytes(path.read_bytes()[:100])
    result = tiny.run(workdir)
    assert result.returncode == 0 and result.stderr == ""
    sentence = next(x for x in result.stdout.splitlines() if str(damaged) in x)
    assert "cannot be restored" in sentence and "going back to step 10" in sentence
    assert "resuming after step 10 of 30" in result.stdout
    assert_like_undisturbed(workdir, tiny.finished)


@pytest.mark.parametrize("devices", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_on_more_devices_than_before(tiny, tmp_path, devices):
    """A run of one device goes on with several: the same, but for rounding."""
    workdir = shutil.copytree(tiny.finished, tmp_path / "run")
    for path in (workdir / "checkpoints").iterdir():
        if path.name != "25":
            shutil.rmtree(path)
    for name in ("results.json", "report.html"):
        (workdir / name).unlink()
    result = tiny.run(workdir, devices=devices)
    assert result.returncode == 0, result.stderr
    assert f" = {devices} cpu devices x " in result.stdout
    assert "resuming after step 25 of 30" in result.stdout
    for ours, theirs in zip(
        lines_of(workdir, "train"), lines_of(tiny.finished, "train"), strict=True
    ):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
    assert results_of(workdir)["selected_step"] == 30


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 4, 8])
def test_from_the_start_on_several_devices(tiny, tmp_path, devices):
    result = tiny.run(tmp_path / "run", "steps=10", devices=devices, cached=False)
    assert result.returncode == 0, result.stderr
    ours = lines_of(tmp_path / "run", "train")
    theirs = lines_of(tiny.finished, "train")[: len(ours)]
    assert [line["step"] for line in ours] == [2, 4, 6, 8, 10]
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=1e-3)


def test_a_batch_that_the_devices_cannot_share(tiny, tmp_path):
    result = tiny.run(tmp_path / "run", devices=3)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "config.batch_size is 8, which 3 devices" in result.stderr
    assert result.stderr.endswith(" 6.\n")
    assert not (tmp_path / "run").exists()


def test_the_explorer_shows_what_was_judged(tiny):
    page = (tiny.finished / "explorer.html").read_text()
    results = results_of(tiny.finished)
    assert f"Recall@1 <b>{100 * results['recall@1']:.1f}%</b>" in page
    assert "<span>42 images</span> <span>7 classes</span>" in page
    assert '<a href="report.html">Report</a>' in page
