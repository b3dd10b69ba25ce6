"""A finished run opened again: the same embeddings, and what is refused."""

import json
import shutil

import numpy as np
import pytest

from metricjax.data import open_dataset
from metricjax.errors import InputError
from metricjax.inference import evaluate_split
from metricjax.inference.trained_model import TrainedModel
from metricjax.runtime import mesh

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def trained(tiny):
    return TrainedModel.open(tiny.finished)


@pytest.fixture(scope="module")
def test_split(tiny):
    return open_dataset("folder", str(tiny.shapes), channels=1).test


def test_it_embeds_as_the_run_did(trained, test_split):
    found = evaluate_split.evaluate(
        trained.embed(test_split), test_split, trained.config.evaluation, bootstrap=0
    )
    for name in ("recall@1", "map@r", "queries"):
        assert found[name] == pytest.approx(trained.results[name], abs=1e-6)
    assert trained.width == 16
    np.testing.assert_allclose(
        np.linalg.norm(trained.embed(test_split).embeddings, axis=1), 1, atol=1e-5
    )


def test_from_any_image_on(trained, test_split):
    whole = trained.embed(test_split).embeddings
    rows, found = zip(*trained.blocks(test_split, first=11), strict=True)
    assert rows[0].start == 11 and rows[-1].stop == len(test_split)
    rest = np.concatenate([block.embeddings for block in found])
    np.testing.assert_allclose(rest, whole[11:], atol=1e-6)


@pytest.mark.parametrize("count", [1, 3, 21])
def test_images_that_are_decoded(count, trained, test_split):
    images = [test_split.read(i) for i in range(count)]
    found = trained.embed_images(images)
    whole = trained.embed(test_split).embeddings[:count]
    np.testing.assert_allclose(found, whole, atol=1e-6)


def test_what_is_the_same_model(tiny, trained, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny.finished, copy, ignore=shutil.ignore_patterns("check*"))
    assert TrainedModel.open(copy).identity == trained.identity
    config = json.loads((copy / "config.json").read_text())
    config["model"]["remat"], config["data"]["threads"] = True, 3
    (copy / "config.json").write_text(json.dumps(config))
    assert TrainedModel.open(copy).identity == trained.identity
    config["data"]["transform"]["image_size"] = 17
    (copy / "config.json").write_text(json.dumps(config))
    assert TrainedModel.open(copy).identity != trained.identity


def test_a_run_in_a_bucket(tiny, trained):
    fsspec = pytest.importorskip("fsspec", reason="needs the extra `remote`")
    bucket = fsspec.filesystem("memory")
    for name in ("config.json", "results.json", "model.safetensors"):
        bucket.pipe_file(f"/trained/run/{name}", (tiny.finished / name).read_bytes())
    assert TrainedModel.open("memory://trained/run").identity == trained.identity


def _cut(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda run: shutil.rmtree(run), "holds no run"),
        (lambda run: (run / "results.json").unlink(), "is not finished"),
        (lambda run: (run / "model.safetensors").unlink(), "is not finished"),
        (lambda run: (run / "results.json").write_text("[]"), "is not what a run"),
        (lambda run: (run / "results.json").write_text("{"), "cannot be read"),
        (lambda run: (run / "results.json").write_text("{}"), "on how many classes"),
        (lambda run: _cut(run / "model.safetensors"), "cut short or damaged"),
        (lambda run: _resized(run), r"of shape \[16, 8, 3, 3\]|describe"),
        (lambda run: _deeper(run), "does not hold the CGD that the settings"),
    ],
)
def test_what_is_refused(damage, words, tiny, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "results.json", "model.safetensors"):
        shutil.copy(tiny.finished / name, run)
    damage(run)
    with pytest.raises(InputError, match=words):
        TrainedModel.open(run)


def _changed(run, **model):
    config = json.loads((run / "config.json").read_text())
    config["model"] |= model
    (run / "config.json").write_text(json.dumps(config))


def _resized(run):
    _changed(run, widths=[8, 24])


def _deeper(run):
    _changed(run, widths=[8, 16, 16])


def test_variables_live_on_all_devices(trained):
    assert trained.embedder.devices == mesh.make_mesh()
    assert trained.embedder.batch_size % trained.embedder.devices.size == 0
