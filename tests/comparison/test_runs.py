"""Runs compared: grouped by settings, paired by seed or query, refused where they
cannot be; and the tables of it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from metricjax.comparison import (
    per_query,
)
from metricjax.comparison import runs as comparison
from metricjax.comparison import tables as comparison_table
from metricjax.config import default_config, terms
from metricjax.config.parsing import from_config_dict, to_dict
from metricjax.data.datasets import Split
from metricjax.errors import InputError
from metricjax.evaluation.averages import over_queries
from metricjax.main import main

CLASSES, IMAGES = 12, 10
LABELS = np.repeat(np.arange(CLASSES), IMAGES)


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Leaves in a directory what a finished run leaves, and names it."""
    monkeypatch.chdir(tmp_path)
    return write_run


def split(first=0):
    return Split(
        labels=LABELS,
        class_names=tuple(f"class {label}" for label in range(CLASSES)),
        names=tuple(f"c/{first + i}.png" for i in range(len(LABELS))),
        reader=None,
    )


def values_of(level, seed):
    """Queries of which a share is answered; classes differ, and so do runs a bit."""
    hard = np.random.default_rng(0).normal(0, 0.15, CLASSES)[LABELS]
    chance = np.random.default_rng(1).random(len(LABELS))
    noise = np.random.default_rng(seed + 10).normal(0, 0.05, len(LABELS))
    right = (chance < level + hard + noise).astype(float)
    return {
        "query": np.arange(len(LABELS)),
        "label": LABELS,
        "recall@1": right,
        "r_precision": right / 2,
        "map@r": right / 3,
    }


def write_run(
    directory, *, level=0.5, margin=0.1, test=None, name="cub", more=None, **settings
):
    """`settings` are of the config (`seed`), or of its data (`data__fold`)."""
    workdir = Path(directory)
    workdir.mkdir(parents=True)
    config = default_config()
    config.objective.terms = terms(triplet={"margin": margin})
    config.data.name = name
    for key, value in settings.items():
        group, _, last = key.rpartition("__")
        (config[group] if group else config)[last] = value
    tree = to_dict(from_config_dict(config))
    (workdir / "config.json").write_text(json.dumps(tree))
    values = values_of(level, config.seed + 7 * config.data.fold)
    means, intervals = over_queries(values, bootstrap=200, seed=0)
    results = {
        **means,
        "intervals": intervals,
        "dataset": {
            "name": name,
            "fingerprint": "" if name == "glyphs" else "abc",
            "test": {"classes": CLASSES, "images": len(LABELS)},
        },
        "selected_on_test": False,
        "versions": {"metricjax": "0.1.0", "jax": "0.10.2"},
        **(more or {}),
    }
    (workdir / "results.json").write_text(json.dumps(results))
    packed = per_query.pack(values, test or split())
    (workdir / per_query.FILE).write_bytes(packed)
    return str(directory)


def refused(*runs, match):
    with pytest.raises(InputError, match=match) as caught:
        comparison_table.render(comparison.read(runs), "markdown")
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_runs_of_the_same_settings_are_one_entry(make):
    runs = [make(f"runs/a{seed}", seed=seed) for seed in range(3)]
    runs.insert(1, make("runs/b", margin=0.2, level=0.6))
    first, second = comparison.read(runs)
    assert [run.address for run in first.runs] == ["runs/a0", "runs/a1", "runs/a2"]
    assert [run.address for run in second.runs] == ["runs/b"]
    differing = comparison.differing_settings([first, second])
    assert differing == {"objective.terms.triplet.margin": [0.1, 0.2]}
    recalls = [run.results["recall@1"] for run in first.runs]
    found = first.estimate("recall@1")
    assert found.value == pytest.approx(np.mean(recalls))
    half = 4.302653 * np.std(recalls, ddof=1) / np.sqrt(3)  # t of two degrees
    assert found.high - found.value == pytest.approx(half, rel=1e-5)
    assert second.estimate("recall@1")[1:] == (
        *second.runs[0].results["intervals"]["recall@1"],
    )


def test_where_a_run_lies_and_how_often_it_speaks_do_not_count(make):
    make("a", log_every=5, data__threads=1, seed=1)
    make("b", log_every=50, data__threads=2)
    assert len(comparison.read(["a", "b"])) == 1


def test_several_seeds_are_paired_by_seed(make):
    for seed in (2, 0, 1):
        make(f"a{seed}", seed=seed)
        make(f"b{seed}", seed=seed, level=0.55, margin=0.2)
    first, second = comparison.read(["a2", "a0", "a1", "b0", "b1", "b2"])
    found = comparison.difference(second, first)
    assert found.how == "paired by 3 seeds"
    each = [
        results_of(f"b{seed}")["map@r"] - results_of(f"a{seed}")["map@r"]
        for seed in range(3)
    ]
    assert found.estimates["map@r"].value == pytest.approx(np.mean(each))
    half = 4.302653 * np.std(each, ddof=1) / np.sqrt(3)
    estimate = found.estimates["map@r"]
    assert (estimate.high - estimate.low) / 2 == pytest.approx(half, rel=1e-5)


def results_of(directory):
    with open(f"{directory}/results.json") as file:
        return json.load(file)


def test_other_seeds_are_not_paired(make):
    for seed in range(2):
        make(f"a{seed}", seed=seed)
        make(f"b{seed}", seed=seed + 1, margin=0.2)
    first, second = comparison.read(["a0", "a1", "b0", "b1"])
    assert comparison.difference(second, first).how == "2 and 2 runs, unpaired"


def test_single_runs_are_paired_by_query(make):
    """The interval of a difference is narrower than those of the two suggest."""
    first, second = comparison.read(
        [make("a", level=0.5), make("b", level=0.56, margin=0.2)]
    )
    found = comparison.difference(second, first)
    assert found.how == "paired by 120 queries"
    low, high = found.estimates["recall@1"][1:]
    value = second.estimate("recall@1").value - first.estimate("recall@1").value
    assert found.estimates["recall@1"].value == pytest.approx(value, abs=1e-6)
    assert low < value < high
    alone = first.estimate("recall@1")
    assert high - low < 0.7 * (alone.high - alone.low)
    same = comparison.difference(first, first).estimates["map@r"]
    assert same == (0, 0, 0)


def test_queries_that_one_run_could_not_read_are_left_out(make):
    make("a")
    make("b", margin=0.2, level=0.6)
    values = values_of(0.6, 0)
    kept = {name: column[5:] for name, column in values.items()}
    with open("b/queries.npz", "wb") as file:
        file.write(per_query.pack(kept, split()))
    first, second = comparison.read(["a", "b"])
    assert comparison.difference(second, first).how == "paired by 115 queries"


def test_one_run_against_several_is_by_query(make):
    make("b", margin=0.2)
    runs = [make(f"a{seed}", seed=seed) for seed in range(2)]
    first, second = comparison.read([*runs, "b"])
    assert comparison.difference(second, first).how == "paired by 120 queries"


def test_folds_of_a_workdir_are_runs_of_one_entry(make):
    for fold in range(4):
        for name, margin in (("a", 0.1), ("b", 0.2)):
            options = {"data__folds": 4, "data__fold": fold, "margin": margin}
            make(f"{name}/fold{fold}", **options)
    first, second = comparison.read(["a", "b"])
    assert len(first.runs) == len(second.runs) == 4
    assert comparison.difference(second, first).how == "paired by 4 folds"
    text = comparison_table.render([first, second], "markdown")
    assert "0; 4 folds" in text and "too narrow" in text


def test_runs_on_different_images_are_refused(make):
    make("a")
    make("b", test=split(first=1), margin=0.2)
    refused("a", "b", match="a and b were tested on different images .*same data")
    make("c", name="cars", test=split(first=2))
    refused("a", "c", match=r"\(cub, 120 images of 12 classes; cars, 120 images")


def test_glyphs_are_drawn_from_the_seed(make):
    for seed in range(2):
        for name, margin in (("a", 0.1), ("b", 0.2)):
            images = split(first=seed)
            options = {"name": "glyphs", "test": images, "margin": margin}
            make(f"{name}{seed}", seed=seed, **options)
    first, second = comparison.read(["a0", "a1", "b0", "b1"])
    assert comparison.difference(second, first).how == "paired by 2 seeds"
    refused("a0", "b1", match="the seed draws them, so compare runs of the same seeds")


def test_what_is_no_finished_run_is_refused(make, tmp_path):
    make("a")
    refused("a", "nowhere", match="^nowhere holds no run .*config.json")
    make("b")
    (tmp_path / "b/results.json").unlink()
    refused("a", "b", match="^The run in b is not finished .*again")
    make("c")
    (tmp_path / "c/queries.npz").unlink()
    refused("c", match="^The run in c has kept no values .*without training")
    make("d")
    (tmp_path / "d/queries.npz").write_bytes(b"nonsense")
    refused("d", match="^d/queries.npz cannot be read")
    make("e")
    (tmp_path / "e/results.json").write_text('{"map@r": ')
    refused("e", match="^e/results.json cannot be read .*damaged")
    make("f")
    (tmp_path / "f/results.json").write_text("{}")
    refused("f", match="^f/results.json lacks dataset")
    refused("a", "a", match="the same seed, so that they are one run")
    shutil.copytree("a", "again")
    refused("a", "again", match="^a and again have the same settings")


def test_tables(make, capsys):
    for seed in range(3):
        make(f"runs/a_{seed}", seed=seed)
    stamped = {"selected_on_test": True, "versions": {"metricjax": "9", "jax": "1"}}
    make("b", margin=0.2, level=0.6, more=stamped)
    runs = [f"runs/a_{seed}" for seed in range(3)]
    assert main(["--mode", "compare", *runs, "b"]) == 0
    text = capsys.readouterr().out
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 3
    for table in tables:
        assert len({len(line) for line in table.splitlines()}) == 1
    assert "| A   | runs/a_0, a_1, a_2 | 0, 1, 2 |" in text
    assert "| B - A |" in text and "| 0.1 | 0.2 |" in text
    assert "Selected on the test classes, so too good: b." in text
    assert "Not of one version: jax 0.10.2, 1." in text
    assert main(["--mode", "compare", *runs, "b", "--format=latex"]) == 0
    text = capsys.readouterr().out
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 3
    assert r"runs/a\_0, a\_1, a\_2" in text
    for line in text.splitlines():
        assert not line or line[0] in "\\%" or line.endswith(r" \\")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to compare"),
        (["a", "--config", "x.py"], "takes no --config"),
        (["a", "--config.steps=3"], "takes no --config.steps"),
        (["a", "--fromat=latex"], "takes no --fromat"),
        (["a", "--format=latx"], "did you mean 'latex'"),
    ],
)
def test_mistakes_on_the_command_line(arguments, words, capsys):
    assert main(["--mode", "compare", *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out and words in err and err.count("\n") == 1


def test_an_entry_of_one_run_reads_itself(make, capsys):
    make("a")
    assert main(["--mode=compare", "a"]) == 0
    assert "| A" in capsys.readouterr().out
