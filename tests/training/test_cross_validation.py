"""A run for each fold, summed up, resumed, and compared as one entry."""

import json

import numpy as np
import pytest

from metricjax.comparison import runs as comparison
from metricjax.errors import InputError
from metricjax.inference.trained_model import TrainedModel
from metricjax.main import main

FOLDS = "import sys\nsys.argv += ['--mode', 'folds']\n"
SETTINGS = ("data.folds=2", "batch_size=4", "steps=4", "eval_every=2")
SETTINGS += ("checkpoint_every=2", "objective.terms.softmax.weight=0")


@pytest.fixture(scope="module")
def finished(tiny):
    """(workdir, what the command printed)."""
    workdir = tiny.directory / "of_folds"
    result = tiny.run(workdir, *SETTINGS, before=FOLDS)
    assert result.returncode == 0, result.stderr
    return workdir, result.stdout


def read(path):
    return json.loads(path.read_text())


def test_every_training_class_is_held_out_once(finished):
    workdir, _ = finished
    runs = [read(workdir / f"fold{number}/results.json") for number in range(2)]
    held = [run["dataset"]["validation"]["classes"] for run in runs]
    assert held == [4, 3]
    assert [run["dataset"]["train"]["classes"] for run in runs] == [3, 4]
    settings = [read(workdir / f"fold{n}/config.json")["data"] for n in range(2)]
    assert [data["fold"] for data in settings] == [0, 1]


def test_the_summary_is_of_all_folds(finished):
    workdir, said = finished
    results = read(workdir / "results.json")
    runs = [read(workdir / f"fold{number}/results.json") for number in range(2)]
    for name in ("recall@1", "map@r", "macro_map@r"):
        values = [run[name] for run in runs]
        assert [fold[name] for fold in results["folds"]] == values
        assert results["mean"][name] == pytest.approx(np.mean(values))
        low, high = results["intervals"][name]
        half = 12.7062 * np.std(values, ddof=1) / np.sqrt(2)
        assert (high - low) / 2 == pytest.approx(half, rel=1e-4)
    together = results["concatenated"]
    assert together["dim"] == 32 and together["queries"] == 42
    assert (workdir / "table.md").read_text() in said
    assert "joined, 32 numbers" in said and "mean of 2" in said


def test_embeddings_are_joined_side_by_side(finished, tiny, monkeypatch):
    monkeypatch.chdir(tiny.directory)
    from metricjax.training import cross_validation
    from metricjax.training.run import open_data

    runs = [TrainedModel.open(finished[0] / f"fold{number}") for number in range(2)]
    dataset = open_data(runs[0].config)
    joined = cross_validation._concatenated(runs, dataset).embeddings
    np.testing.assert_allclose(np.linalg.norm(joined, axis=1), 1, atol=1e-5)
    alone = [run.embed(dataset.test).embeddings for run in runs]
    mean = sum(rows @ rows.T for rows in alone) / 2
    np.testing.assert_allclose(joined @ joined.T, mean, atol=1e-5)


@pytest.mark.slow
def test_a_stopped_fold_is_gone_on_with(tiny, finished):
    workdir = tiny.directory / "stopped_folds"
    stop = FOLDS + (
        "import os, signal\nfrom metricjax.training import metric_writer\n"
        "say = metric_writer.MetricWriter.validated\n"
        "def validated(self, step, *rest):\n"
        "    say(self, step, *rest)\n"
        "    if 'fold1' in str(self._path) and step == 2:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "metric_writer.MetricWriter.validated = validated\n"
    )
    result = tiny.run(workdir, *SETTINGS, before=stop)
    assert result.returncode == 0, result.stderr
    assert "stopped after step 3" in result.stdout
    assert not (workdir / "results.json").exists()
    with pytest.raises(InputError, match="fold1 is not finished"):
        comparison.read([str(workdir)])
    result = tiny.run(workdir, *SETTINGS, before=FOLDS)
    assert result.returncode == 0, result.stderr
    assert "this run is complete" in result.stdout
    assert "resuming after step 3 of 4" in result.stdout
    assert read(workdir / "results.json") == read(finished[0] / "results.json")


def test_folds_are_compared_as_one_entry(finished, tiny, capsys):
    (entry,) = comparison.read([str(finished[0])])
    assert [run.repetition for run in entry.runs] == [(0, 0), (0, 1)]
    both = [str(finished[0]), str(tiny.finished)]
    assert main(["--mode", "compare", *both]) == 0
    text = capsys.readouterr().out
    assert "paired by 42 queries" in text and "data.folds" in text


def test_mistakes_are_told_in_a_sentence(tiny, tmp_path, capsys):
    def refused(*arguments):
        command = ["--config", str(tiny.config), "--mode", "folds", *arguments]
        assert main(command) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        return err

    assert "say how many parts" in refused("--workdir", str(tmp_path))
    fold = ["--config.data.folds=2", "--config.data.fold=1"]
    assert "trains every fold" in refused("--workdir", str(tmp_path), *fold)
    (tmp_path / "config.json").write_text("{}")
    folds = "--config.data.folds=2"
    assert "holds a single run" in refused("--workdir", str(tmp_path), folds)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
