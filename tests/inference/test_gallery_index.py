"""An index: embedded once, found again by content, asked as `evaluation.nearest` is."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from metricjax import evaluation
from metricjax.data.collections import open_collection
from metricjax.errors import InputError
from metricjax.evaluation import top_k
from metricjax.inference import (
    embedding_files,
    index_cache,
    partial_embeddings,
)
from metricjax.inference.gallery_index import Index
from metricjax.inference.trained_model import TrainedModel
from metricjax.inference.vectors import Vectors

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def trained(tiny):
    return TrainedModel.open(tiny.finished)


@pytest.fixture
def gallery(tiny, tmp_path):
    """42 shapes of 7 classes, of which one is broken and one has no class."""
    for label in range(7):
        name = f"class{label:02d}"
        shutil.copytree(tiny.shapes / name, tmp_path / "gallery" / name)
    shutil.copy(tiny.shapes / "class08" / "0.png", tmp_path / "gallery" / "stray.png")
    broken = tmp_path / "gallery" / "class03" / "2.png"
    broken.write_bytes(broken.read_bytes()[:60])
    return tmp_path / "gallery"


class Opened:
    """What opening an index said, and how many images were embedded for it."""

    def __init__(self, trained, source, **options):
        self.said, self.embedded = [], 0
        self.index = Index.open(
            trained,
            source,
            say=self.said.append,
            progress=self._count,
            **options,
        )

    def _count(self, done, total):
        self.embedded = done


def refuse(*arguments, **options):
    """The one sentence with which it is refused."""
    with pytest.raises(InputError) as caught:
        Index.open(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_gallery_is_embedded_once(trained, gallery, tmp_path):
    cache = tmp_path / "cache"
    first = Opened(trained, gallery, directory=cache)
    split = open_collection(gallery, channels=1)
    assert list(first.index.split.names) == list(split.names)
    assert list(first.index.split.class_names)[:2] == ["", "class00"]
    expected = trained.embed(split)
    np.testing.assert_array_equal(first.index.valid, expected.valid)
    good = expected.valid
    np.testing.assert_array_equal(
        first.index.embeddings[good], expected.embeddings[good]
    )
    assert not first.index.embeddings[~good].any()
    assert first.embedded == 43 and first.said[0] == "Embedding 43 images."
    assert first.said[1].startswith(
        "1 of 43 images cannot be decoded: 'class03/2.png' ("
    )
    assert first.said[1].endswith("; they are never found.")
    again = Opened(trained, gallery, directory=cache)
    assert again.embedded == 0 and again.said == first.said[1:]
    np.testing.assert_array_equal(again.index.embeddings, first.index.embeddings)
    assert [path.name for path in cache.glob("*/*")] == ["index.npz"]


def test_only_what_is_new_is_embedded(trained, gallery, tmp_path):
    cache = tmp_path / "cache"
    Opened(trained, gallery, directory=cache)
    shutil.copy(gallery / "class01" / "0.png", gallery / "class00" / "9.png")
    Image.effect_noise((24, 24), 90).save(gallery / "class02" / "0.png")
    os.utime(gallery / "class04" / "1.png", (1, 1))
    (gallery / "class05" / "3.png").unlink()
    changed = Opened(trained, gallery, directory=cache)
    assert changed.said[0] == "Embedding 3 images of 43 that are new."
    expected = trained.embed(open_collection(gallery, channels=1))
    found = changed.index.embeddings[changed.index.valid]
    np.testing.assert_allclose(found, expected.embeddings[expected.valid], atol=1e-6)
    (gallery / "class05" / "0.png").unlink()
    fewer = Opened(trained, gallery, directory=cache)
    assert fewer.embedded == 0 and len(fewer.index) == 42
    assert "class05/0.png" not in fewer.index.split.names


def test_a_damaged_index_is_made_anew(trained, gallery, tmp_path):
    cache = tmp_path / "cache"
    Opened(trained, gallery, directory=cache)
    (path,) = cache.glob("*/index.npz")
    path.write_bytes(path.read_bytes()[:-300])
    assert Opened(trained, gallery, directory=cache).embedded == 43
    assert Opened(trained, gallery, directory=cache).embedded == 0


class Stopped(Exception):
    pass


def stop(done, total):
    """As if the process was killed after the second batch."""
    if done >= 32:
        raise Stopped


@pytest.mark.parametrize("changed", [False, True])
def test_a_stop_costs_nothing(trained, gallery, tmp_path, changed):
    cache = tmp_path / "cache"
    with pytest.raises(Stopped):
        Index.open(trained, gallery, directory=cache, progress=stop)
    if changed:
        shutil.copy(gallery / "class01" / "0.png", gallery / "class00" / "9.png")
    opened = Opened(trained, gallery, directory=cache)
    assert opened.said[0] == (
        "Embedding 12 images of 44 that are new."
        if changed
        else "Resuming after 32 images."
    )
    expected = trained.embed(open_collection(gallery, channels=1))
    good = expected.valid
    np.testing.assert_allclose(
        opened.index.embeddings[good], expected.embeddings[good], atol=1e-6
    )
    assert [path.name for path in cache.glob("*/*")] == ["index.npz"]


def test_another_model_has_another_index(tiny, trained, gallery, tmp_path):
    cache = tmp_path / "cache"
    Opened(trained, gallery, directory=cache)
    copy = tmp_path / "copy"
    shutil.copytree(tiny.finished, copy, ignore=shutil.ignore_patterns("check*"))
    text = (copy / "config.json").read_text()
    (copy / "config.json").write_text(text.replace('"affine"', '"none"'))
    assert Opened(TrainedModel.open(copy), gallery, directory=cache).embedded == 43
    assert Opened(trained, gallery, directory=cache).embedded == 0


def test_where_it_is_kept(trained, gallery, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert Opened(trained, gallery).embedded == 43
    assert len(list((tmp_path / "home/metricjax/indexes").glob("*/index.npz"))) == 1
    assert Opened(trained, gallery).embedded == 0
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    opened = Opened(trained, gallery)
    assert "the index is not kept" in opened.said[0] and opened.embedded == 43


def test_old_indexes_make_room(tmp_path, monkeypatch):
    monkeypatch.setattr(index_cache, "_LIMIT", 25)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_bytes(bytes(100))
    names = [f"{age:016x}-{0:016x}" for age in range(4)]
    for age, name in enumerate(names):
        path = tmp_path / name / "index.npz"
        path.parent.mkdir()
        path.write_bytes(bytes(10))
        os.utime(path, (1000 - age, 1000 - age))
    index_cache.prune(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [*names[:2], "other"]


def test_two_at_once(trained, gallery, tmp_path):
    cache, seen = tmp_path / "cache", []

    def meanwhile(done, total):
        if not seen:
            seen.append(refuse(trained, gallery, directory=cache))

    Index.open(trained, gallery, directory=cache, progress=meanwhile)
    assert "Another process embeds this gallery" in seen[0]


def test_the_data_set_of_the_run(tiny, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny.directory)
    opened = Opened(trained, None, part="test", directory=tmp_path / "cache")
    assert opened.index.split.class_names[0] == "class07" and len(opened.index) == 42


def random_index(count, width=16, seed=0, copies=3):
    """Some of whose rows are not valid, and whose first rows are the same."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, width)).astype(np.float32)
    rows[:copies] = rows[0]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    valid = rng.random(count) > 0.1
    valid[:copies] = True
    rows[~valid] = 0
    names = tuple(map(str, range(count)))
    made = Vectors(rows, valid, names, np.zeros(count, int), ("",), "model")
    return Index(made.split, rows, valid)


@pytest.mark.parametrize("top", [1, 5, 1000])
@pytest.mark.parametrize("block", [1, 1 << 26])
def test_nearest_is_that_of_evaluation(top, block, monkeypatch):
    monkeypatch.setattr(top_k, "SIMILARITIES_PER_BLOCK", block)
    found = random_index(300)
    queries = random_index(7, seed=1).embeddings
    queries[0] = found.embeddings[0]
    queries = queries[np.linalg.norm(queries, axis=1) > 0]
    among = np.arange(300) % 3 > 0
    for mask in (None, among):
        hidden = found.valid if mask is None else found.valid & mask
        rows = np.flatnonzero(hidden)
        count = min(top, len(rows))
        expected, places = evaluation.nearest(queries, found.embeddings[rows], count)
        similarities, indices = found.nearest(queries, top, among=mask)
        np.testing.assert_allclose(similarities, expected, atol=1e-6)
        np.testing.assert_array_equal(indices, rows[places])
        assert similarities.dtype == np.float32 and indices.dtype == np.int64


def test_nothing_to_find():
    found = random_index(30)
    none = np.zeros(30, bool)
    similarities, rows = found.nearest(found.embeddings[:2], 5, among=none)
    assert similarities.shape == rows.shape == (2, 0)


@pytest.mark.parametrize(
    ("queries", "top", "words"),
    [
        (np.full((1, 16), np.nan), 1, "NaN or Inf"),
        (np.ones((1, 16)), 1, "has length 4"),
        (np.eye(8)[:1], 1, "8 numbers a row"),
        (np.eye(16)[:1], 0, "top is 0"),
    ],
)
def test_questions_that_are_refused(queries, top, words):
    with pytest.raises(InputError, match=words):
        random_index(30).nearest(queries, top)


def test_a_file_of_embeddings(trained, tmp_path):
    rows = np.eye(16, dtype=np.float32)
    names = tuple(f"{i}.png" for i in range(16))
    labels = np.arange(16) % 2
    made = Vectors(rows, rows[0] == 0, names, labels, ("a", "b"), trained.identity)
    path = tmp_path / "emb.npz"
    embedding_files.save(made, path)
    found = Index.open(trained, path)
    assert list(found.split.names) == list(names) and not found.valid[0]
    assert found.nearest(rows[3:4], 1)[1].tolist() == [[3]]
    assert "does not exist" in refuse(trained, tmp_path / "gone.npz")
    other = Vectors(rows, rows[0] == 0, names, labels, ("a", "b"), "another")
    embedding_files.save(other, path)
    assert "was made by another model" in refuse(trained, path)


def test_galleries_that_are_refused(trained, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "There is no image" in refuse(trained, empty)
    image = Image.effect_noise((24, 24), 90)
    image.save(empty / "a.png")
    content = (empty / "a.png").read_bytes()
    (empty / "a.png").write_bytes(content[:90])
    words = refuse(trained, empty, directory=tmp_path / "cache")
    assert words.startswith("None of the 1 images can be decoded, the first is 'a.png'")


def test_keys_change_with_the_content(gallery):
    split = open_collection(gallery)
    before = partial_embeddings.keys_of(split)
    assert len(np.unique(before, axis=0)) == len(split)
    os.utime(gallery / split.names[5], (1, 1))
    changed = (before != partial_embeddings.keys_of(open_collection(gallery))).any(
        axis=1
    )
    assert np.flatnonzero(changed).tolist() == [5]
