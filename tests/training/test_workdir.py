"""The run's directory: whose it is, and files written whole or not at all."""

import dataclasses
import json
import os

import pytest

from metricjax.config.parsing import to_dict
from metricjax.config.schema import RunConfig
from metricjax.errors import InputError
from metricjax.objectives.objective import ObjectiveConfig, Term
from metricjax.training import workdir

CONFIG = RunConfig(ObjectiveConfig({"triplet": Term(1.0, {"margin": 0.2})}))


def changed(path, value):
    """CONFIG with the setting `a.b.c` changed."""

    def change(settings, names):
        name, *rest = names
        new = change(getattr(settings, name), rest) if rest else value
        return dataclasses.replace(settings, **{name: new})

    return change(CONFIG, path.split("."))


def check(directory, config):
    workdir.check_owner(workdir.read_config_file(directory), directory, config)


def refuse(directory, config):
    with pytest.raises(InputError) as caught:
        check(directory, config)
    message = str(caught.value)
    assert "\n" not in message and str(directory) in message
    assert "choose another --workdir" in message
    return message


def test_a_new_workdir_is_free_until_it_is_claimed(tmp_path):
    directory = tmp_path / "runs" / "first"
    check(directory, CONFIG)
    assert not directory.exists()
    workdir.claim(directory, CONFIG)
    kept = json.loads((directory / "config.json").read_text())
    assert kept == json.loads(json.dumps(to_dict(CONFIG)))
    check(directory, CONFIG)
    workdir.claim(directory, CONFIG)
    assert os.listdir(directory) == ["config.json"]


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("seed", 3, ["(seed: 0 -> 3): restore its settings"]),
        ("steps", 5, ["steps: 1000 -> 5"]),
        ("eval_every", 5, ["eval_every: 250 -> 5"]),
        ("data.name", "folder", ["data.name: 'glyphs' -> 'folder'"]),
        ("data.transform.image_size", 32, ["data.transform.image_size: 224 -> 32"]),
        ("model.widths", (8,), ["model.widths: [64, 128, 256] -> [8]"]),
        ("optimizer.clip_norm", 1.0, ["optimizer.clip_norm: None -> 1.0"]),
        (
            "objective",
            ObjectiveConfig({"triplet": Term(1.0, {"margin": 0.1})}),
            ["objective.terms.triplet.margin: 0.2 -> 0.1"],
        ),
    ],
)
def test_another_config_is_refused_with_the_difference(tmp_path, path, value, words):
    workdir.claim(tmp_path, CONFIG)
    before = (tmp_path / "config.json").read_bytes()
    message = refuse(tmp_path, changed(path, value))
    for word in words:
        assert word in message
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_few_differences_are_all_named(tmp_path):
    workdir.claim(tmp_path, CONFIG)
    message = refuse(tmp_path, dataclasses.replace(CONFIG, seed=1, steps=2))
    assert "(seed: 0 -> 1, steps: 1000 -> 2):" in message


def test_more_differences_are_counted(tmp_path):
    workdir.claim(tmp_path, CONFIG)
    counts = {"batch_size": 8, "eval_every": 2, "instances_per_class": 2, "seed": 1}
    data = dataclasses.replace(CONFIG.data, name="folder")
    message = refuse(
        tmp_path, dataclasses.replace(CONFIG, **counts, steps=2, data=data)
    )
    assert "(batch_size: 128 -> 8, data.name: 'glyphs' -> 'folder', " in message
    assert ", seed: 0 -> 1 and 1 more):" in message


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("log_every", 7),
        ("checkpoint_every", 7),
        ("host_timeout", 30.0),
        ("plan.utilization", 0.3),
        ("data.root", "elsewhere"),
        ("data.source", "from there"),
        ("data.threads", 2),
        ("data.cache_gib", 0.0),
    ],
)
def test_settings_that_do_not_change_the_result_may_change(tmp_path, path, value):
    workdir.claim(tmp_path, CONFIG)
    check(tmp_path, changed(path, value))


@pytest.mark.parametrize("content", [b"", b'{"seed": ', b"\xff\xfe", b"[]", b"null"])
def test_a_config_json_that_is_none(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    refuse(tmp_path, CONFIG)
    assert (tmp_path / "config.json").read_bytes() == content


def test_a_workdir_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    for directory in (tmp_path / "file", tmp_path / "file" / "below"):
        check(directory, CONFIG)
        with pytest.raises(InputError, match="choose another directory") as caught:
            workdir.claim(directory, CONFIG)
        assert f"--workdir {directory}" in str(caught.value)
