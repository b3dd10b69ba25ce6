"""The embedded data set: enough classes, disjoint, deterministic, hard enough."""

import unicodedata

import numpy as np
import pytest

from metricjax import data
from metricjax.data.benchmarks import glyphs
from metricjax.errors import InputError


@pytest.fixture(scope="module")
def dataset():
    return data.open_dataset("glyphs")


def pixels(split):
    return np.stack([split.read(i) for i in range(len(split))])


def test_what_it_holds(dataset):
    """Counts of DejaVu 2.37, the version that matplotlib has shipped since 2017."""
    train, test = dataset.train, dataset.test
    assert (train.num_classes, test.num_classes) == (608, 607)
    for split in (train, test):
        assert (np.bincount(split.labels) == 12).all()
        assert split.read(5).shape == (32, 32, 1)
        assert split.read(5).dtype == np.uint8
        assert set(split.category_names) <= {
            name.capitalize() for name in glyphs.SCRIPTS
        }
        for label, category in zip(split.labels, split.categories, strict=True):
            script = split.class_names[label].split(" ")[1]
            assert split.category_names[category] == script.capitalize()
    assert not set(train.class_names) & set(test.class_names)
    assert dataset.notes and not dataset.skipped


def test_letters_that_look_alike_are_one_class(dataset):
    names = {*dataset.train.class_names, *dataset.test.class_names}
    letters = {name[0] for name in names}
    for alike in ("A\u0391\u0410", "o\u03bf\u043e", "H\u0397\u041d"):
        assert letters & set(alike) == {alike[0]}
    assert {"B", "\u0416", "b", "\u03c9", "\u0561"} <= letters
    assert all(unicodedata.name(name[0]) == name[2:] for name in names)


def test_deterministic_in_the_seed():
    first, again, other = (
        data.open_dataset("glyphs", size=12, seed=seed) for seed in (3, 3, 4)
    )
    assert again.test.class_names == first.test.class_names
    np.testing.assert_array_equal(pixels(again.test), pixels(first.test))
    assert other.test.class_names != first.test.class_names
    name = next(n for n in first.test.names if n in set(other.test.names))
    one, two = (
        split.read(split.names.index(name)) for split in (first.test, other.test)
    )
    assert (one != two).any()


def test_raw_pixels_find_few_of_the_unseen_letters(dataset):
    """Cosine nearest neighbour on pixels: 0.134 when this was written."""
    x = pixels(dataset.test).reshape(len(dataset.test), -1).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    similarity = x @ x.T
    np.fill_diagonal(similarity, -1.0)
    labels = dataset.test.labels
    recall = (labels[similarity.argmax(1)] == labels).mean()
    assert 0.05 < recall < 0.35


def test_every_image_shows_ink_inside(dataset):
    """The letter is dark on white, and the border is mostly left free."""
    images = pixels(dataset.test)[..., 0].astype(int)
    assert ((images < 128).sum((1, 2)) > 3).all()
    rim = np.concatenate([images[:, [0, -1]].reshape(len(images), -1)], axis=1)
    assert (rim < 128).mean() < 0.01


@pytest.mark.parametrize("size", [4, 1000])
def test_impossible_sizes(size):
    with pytest.raises(InputError, match="8 to 256"):
        data.open_dataset("glyphs", size=size)


def test_a_root_is_refused():
    with pytest.raises(InputError, match="drawn, not read"):
        data.open_dataset("glyphs", "/some/where")
