"""Opening by name, splits, held-out classes."""

import dataclasses
import pickle

import numpy as np
import pytest

from metricjax import data
from metricjax.data.datasets import Split, options_of
from metricjax.data.splits import fold, with_turns
from metricjax.errors import InputError


def toy_split(classes=10, images=4):
    labels = np.repeat(np.arange(classes), images)
    return Split(
        labels=labels,
        class_names=tuple(f"class {c}" for c in range(classes)),
        names=tuple(f"{i}.png" for i in range(len(labels))),
        reader=Constant(),
        categories=labels // 4,
        category_names=tuple("abcdefgh"[: (classes + 3) // 4]),
        is_query=np.arange(len(labels)) % 2 == 0,
    )


class Constant:
    def __call__(self, index):
        return np.full((2, 2, 1), index, np.uint8)


def test_a_split_fills_in_its_defaults():
    split = toy_split()
    assert len(split) == 40 and split.num_classes == 10
    assert split.labels.dtype == np.int32 and split.categories.dtype == np.int32
    assert split.is_gallery.all() and split.is_query.sum() == 20
    assert split.read(np.int64(7))[0, 0, 0] == 7


@pytest.mark.parametrize(
    "wrong",
    [
        dict(labels=np.array([0, 2])),
        dict(labels=np.array([0, 0])),
        dict(labels=np.array([0, 1, 1])),
        dict(is_query=np.array([True])),
    ],
)
def test_inconsistent_splits_are_refused(wrong):
    right = dict(labels=np.array([0, 1]), class_names="ab", names=("x", "y"))
    Split(**right, reader=Constant())
    with pytest.raises(ValueError, match="Split"):
        Split(**(right | wrong), reader=Constant())


def test_subset_renumbers_and_still_reads_the_same_images():
    split = toy_split()
    part = split.subset(np.array([39, 20, 21, 4]))
    assert part.labels.tolist() == [2, 1, 1, 0]
    assert part.class_names == ("class 1", "class 5", "class 9")
    assert part.category_names == ("a", "b", "c")
    assert part.categories.tolist() == [2, 1, 1, 0]
    assert [int(part.read(i)[0, 0, 0]) for i in range(4)] == [39, 20, 21, 4]
    again = part.subset(part.labels == 1)
    assert [int(again.read(i)[0, 0, 0]) for i in range(2)] == [20, 21]
    assert again.is_query.tolist() == [True, False]
    assert pickle.loads(pickle.dumps(again)).read(1)[0, 0, 0] == 21


@pytest.mark.parametrize(("fraction", "held"), [(0.2, 2), (0.01, 2), (0.5, 5)])
def test_holdout_is_class_disjoint_and_deterministic(fraction, held):
    split = toy_split()
    train, validation = data.holdout(split, fraction, seed=3)
    assert validation.num_classes == held and train.num_classes == 10 - held
    assert not set(train.class_names) & set(validation.class_names)
    assert len(train) + len(validation) == 40
    assert validation.is_query.all() and validation.is_gallery.all()
    again = data.holdout(split, fraction, seed=3)[1]
    assert again.class_names == validation.class_names
    others = {data.holdout(split, fraction, seed=s)[1].class_names for s in range(9)}
    assert len(others) > 1


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 0.9])
def test_impossible_holdouts(fraction):
    with pytest.raises(InputError, match="held out|Holding out"):
        data.holdout(toy_split(), fraction, seed=0)


def test_holdout_needs_a_class_of_two_images():
    with pytest.raises(InputError, match="two images"):
        data.holdout(toy_split(10, 1), 0.5, seed=0)


class Corner:
    """Image i is black but for its upper left corner, of value i."""

    def __call__(self, index):
        image = np.zeros((3, 3, 1), np.uint8)
        image[0, 0] = index
        return image


def test_turned_copies_are_classes_of_their_own():
    split = dataclasses.replace(toy_split(5, 4), reader=Corner())
    turned = with_turns(split, 3)
    assert len(turned) == 60 and turned.num_classes == 15
    assert np.bincount(turned.labels).tolist() == [4] * 15
    np.testing.assert_array_equal(turned.labels[:20], split.labels)
    # Counter-clockwise: the upper left corner goes down, then right.
    for turn, corner in enumerate([(0, 0), (2, 0), (2, 2)]):
        image = turned.read(turn * 20 + 7)
        assert image[corner] == 7 and image.sum() == 7
        assert turned.labels[turn * 20 + 7] == turn * 5 + split.labels[7]
    assert turned.class_names[11] == "class 1, turned 180"
    assert turned.subset([47]).read(0)[2, 2, 0] == 7
    assert with_turns(split, 1) is split
    with pytest.raises(InputError, match="data.turns is 5: it must be 1, 2, 3 or 4"):
        with_turns(split, 5)


def test_unknown_names_get_a_suggestion():
    with pytest.raises(InputError, match="did you mean 'glyphs'"):
        data.open_dataset("glyph")
    with pytest.raises(InputError, match="data.name is one of cars, cub, folder"):
        data.open_dataset("xyz")
    with pytest.raises(InputError, match="no option 'sise'.*did you mean 'size'"):
        data.open_dataset("glyphs", sise=3)


def test_what_a_data_set_takes():
    assert options_of("glyphs") == ["size", "seed"]
    assert options_of("folder") == ["channels", "closed_set", "threads"]
    assert options_of("cub") == options_of("sop") == ["cropped", "channels"]
    assert options_of("tfds:cars196") == ["channels"]
    with pytest.raises(InputError, match="'sop' has no option 'closed_set'"):
        data.open_dataset("sop", "x", closed_set=True)


class Files:
    """A reader of files."""

    def __call__(self, index):
        return np.full((2, 2, 1), index, np.uint8)

    def encoded(self, index):
        return f"file {index}".encode()


def test_undecoded_files_pass_through_subsets_but_not_through_turns():
    split = dataclasses.replace(toy_split(), reader=Files())
    assert split.encoded(np.int64(7)) == b"file 7"
    part = split.subset([39, 20, 21])
    assert part.encoded(1) == b"file 20"
    assert part.subset([2]).encoded(0) == b"file 21"
    assert with_turns(part, 2).encoded(0) is None
    assert toy_split().encoded(7) is None
    assert toy_split().subset([3]).encoded(0) is None


def test_unreadable_image_tells_name_and_reason_and_can_be_pickled():
    error = pickle.loads(pickle.dumps(data.UnreadableImage("a.png", "it is cut")))
    assert (error.name, error.reason) == ("a.png", "it is cut")
    assert str(error) == "a.png cannot be read: it is cut"


def test_folds_are_stretches_of_the_classes_each_held_out_once():
    split = toy_split(classes=10)
    held = []
    for number in range(4):
        train, validation = fold(split, 4, number)
        assert {*train.class_names} | {*validation.class_names} == {*split.class_names}
        assert not {*train.class_names} & {*validation.class_names}
        assert validation.is_query.all() and validation.is_gallery.all()
        assert len(train) + len(validation) == len(split)
        held.append(validation.class_names)
    assert [len(names) for names in held] == [3, 3, 2, 2]
    assert sum(held, ()) == split.class_names
    with pytest.raises(InputError, match="folds is 6, but 10 training classes"):
        fold(split, 6, 0)
