"""Thresholds from one's own labelled images, on the command line."""

import json

import pytest

from metricjax import evaluation
from metricjax.calibrate import main
from metricjax.data.collections import open_collection
from metricjax.inference.trained_model import TrainedModel

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    return code, capsys.readouterr()


def test_a_table_and_a_file(tiny, tmp_path, capsys):
    out = tmp_path / "thresholds.json"
    code, said = run(capsys, tiny.finished, tiny.shapes, "--out", out)
    assert code == 0, said.err
    trained = TrainedModel.open(tiny.finished)
    split = open_collection(tiny.shapes, channels=1)
    expected = evaluation.calibrate(trained.embed(split).embeddings, split.labels)
    found = json.loads(out.read_text())
    assert found["run"] == trained.identity
    assert found["pairs"] == {"same": 14 * 15, "different": 84 * 78 // 2}
    assert len(found["thresholds"]) == 2 and found["too_few"] == [1e-3, 1e-4]
    for one, other in zip(found["thresholds"], expected["thresholds"], strict=True):
        assert one["similarity"] == pytest.approx(other["similarity"], abs=1e-5)
        assert f"{one['similarity']:.4f}" in said.out
        assert f"{100 * one['true_match_rate']:.3g}%" in said.out
    assert "of 0.1%, 0.01%: 30,000 pairs" in said.out
    assert "84 images of 14 classes: 210 pairs of one class, 3,276" in said.out


def test_the_run_s_own_thresholds_are_tried(tiny, tmp_path, capsys):
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((tiny.finished / file).read_bytes())
    results = json.loads((tiny.finished / "results.json").read_text())
    results["thresholds"] = [{"false_match_rate": 0.1, "similarity": -1.0}]
    (tmp_path / "results.json").write_text(json.dumps(results))
    code, said = run(capsys, tmp_path, tiny.shapes)
    assert code == 0 and "-1.0000" in said.out and "100% to 100%" in said.out


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--rates", "0.1,often"], "--rates"),
        (["--rates", "1"], "--rates"),
        (["--out", "missing/file.json"], "directory that exists"),
        (["--part", "all of it"], "part"),
    ],
)
def test_mistakes_are_told_in_a_sentence(arguments, said, tiny, capsys):
    code, printed = run(capsys, tiny.finished, tiny.shapes, *arguments)
    assert code == 2 and said in printed.err and printed.err.count("\n") == 1


def test_a_single_class(tiny, capsys):
    code, printed = run(capsys, tiny.finished, tiny.shapes / "class00")
    assert code == 2 and "6 images are of one class" in printed.err
