"""The sentences on a data set, and what makes it unfit for training."""

from collections import Counter

import numpy as np
import pytest

from metricjax.data.checks import messages as verdict
from metricjax.data.checks.dataset_report import DatasetReport
from metricjax.data.datasets import Dataset, Split

NOTHING = np.empty(0, np.int64)


def split(title, labels, **options):
    names = tuple(f"{title}/{i}.jpg" for i in range(len(labels)))
    classes = tuple(f"{title}{c}" for c in range(max(labels) + 1))
    return Split(np.array(labels), classes, names, None, **options)


def report(train=(0, 0, 1, 1), test=(0, 0, 1, 1), *, bad=(), **changes):
    """What a check would find in images of 100 x 80 pixels with nothing wrong."""
    dataset = changes.pop("dataset", None)
    dataset = dataset or Dataset("x", split("a", train), split("b", test))
    count = len(dataset.train) + len(dataset.test)
    sizes = np.full((count, 2), (100, 80), np.int32)
    for image, size in changes.pop("sizes", {}).items():
        sizes[image] = size
    sizes[list(bad)] = 0
    pairs = np.array(changes.pop("pairs", NOTHING.reshape(0, 2)))
    nothing_wrong = {
        "formats": Counter(JPEG=count - len(bad)),
        "modes": Counter(colour=count - len(bad)),
        "turned": 0,
        "blank": NOTHING,
        "alike": np.ones(len(pairs), np.float32),
        "identical": np.ones(len(pairs), bool),
        "relations": np.zeros(len(pairs), int),
        "leaked": NOTHING,
        "nearly_leaked": NOTHING,
        "not_compared": 0,
    }
    return DatasetReport(
        dataset=dataset,
        unreadable={image: "it is cut short" for image in bad},
        sizes=sizes,
        pairs=pairs,
        **(nothing_wrong | changes),
    )


def only(sentences):
    """The one sentence."""
    (sentence,) = sentences
    assert sentence.endswith(".") and "\n" not in sentence
    return sentence


def test_a_sound_set_has_neither_problems_nor_warnings():
    sound = report()
    assert verdict.problems(sound) == verdict.warnings(sound) == []
    assert verdict.facts(sound) == [
        "Train: 4 readable images of 2 classes, 2 of each.",
        "Test: 4 readable images of 2 classes, 2 of each; 4 queries.",
        "A batch holds at most 2 classes of 2 images, or 0 of 4 (2 if the others "
        "repeat theirs).",
        "All images have 100 x 80 pixels.",
        "Files: 8 JPEG; 8 colour.",
    ]


def test_nothing_readable_is_one_problem_and_no_facts():
    nothing = report(bad=range(8))
    sentence = only(verdict.problems(nothing))
    assert sentence.startswith("8 of 8 images cannot be read, the first a/0.jpg (it is")
    assert verdict.facts(nothing) == verdict.warnings(nothing) == []


@pytest.mark.parametrize("bad, unfit", [(3, False), (4, True)])
def test_half_unreadable_is_a_problem_fewer_a_warning(bad, unfit):
    some = report((0, 0, 0, 1, 1), (0, 0, 0), bad=(0, 5, 6, 1)[:bad])
    assert any("cannot be read" in s for s in verdict.problems(some)) == unfit
    assert any("cannot be read" in s for s in verdict.warnings(some)) != unfit


@pytest.mark.parametrize(
    "train, bad, words",
    [
        ((0, 1, 2), (), "In train 0 classes have two readable images"),
        ((0, 0, 1), (), "In train 1 class has two readable images"),
        ((0, 0, 1, 1), (3,), "In train 1 class has two readable images"),
    ],
)
def test_two_classes_of_two_are_needed_to_train(train, bad, words):
    assert only(verdict.problems(report(train, bad=bad))).startswith(words)


@pytest.mark.parametrize(
    "test, options, bad",
    [
        ((0, 1, 2), {}, ()),
        ((0, 0, 1), {}, (4,)),
        ((0, 0), {"is_gallery": [False, False]}, ()),
        ((0, 0), {"is_gallery": [True, False], "is_query": [True, False]}, ()),
    ],
)
def test_queries_need_something_to_find(test, options, bad):
    dataset = Dataset("x", split("a", (0, 0, 1, 1)), split("b", test, **options))
    sentence = only(verdict.problems(report(dataset=dataset, bad=bad)))
    assert "of the test split has another image of its class" in sentence


def test_some_queries_without_a_match_are_a_warning():
    sentence = only(verdict.warnings(report(test=(0, 0, 1, 2))))
    assert sentence.startswith("2 of 4 test queries have no other image")
    gallery = split("b", (0, 0, 1), is_query=[1, 0, 0], is_gallery=[0, 1, 1])
    sound = report(dataset=Dataset("x", split("a", (0, 0, 1, 1)), gallery))
    assert verdict.warnings(sound) == []


@pytest.mark.parametrize("leaked, unfit", [(1, False), (2, False), (3, True)])
def test_more_than_half_of_the_test_images_in_train_is_a_problem(leaked, unfit):
    some = report(leaked=np.arange(4, 4 + leaked))
    said = only(verdict.problems(some) if unfit else verdict.warnings(some))
    verb = "is" if leaked == 1 else "are"
    assert said.startswith(f"{leaked} of 4 test images {verb} also in train")
    assert bool(verdict.problems(some)) == unfit


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"nearly_leaked": np.array([5])}, "1 test image looks like a training image"),
        ({"blank": np.array([1, 2])}, "2 images are of one shade, the first a/1.jpg"),
        ({"train": (0, 0, 1, 1, 2)}, "1 training class has a single image"),
        (
            {"sizes": {1: (10, 8)}},
            "1 image has an unusual size (1 tiny), the first a/1",
        ),
        (
            {
                "pairs": [[0, 1], [0, 2], [1, 3]],
                "relations": np.array([0, 1, 1]),
                "identical": np.array([True, True, False]),
            },
            "1 identical and 1 nearly identical pairs of images have different "
            "classes, the first a/0.jpg (a0) and a/2.jpg (a1)",
        ),
    ],
)
def test_each_thing_to_look_at_is_said(changes, words):
    some = report(**changes)
    assert only(verdict.warnings(some)).startswith(words)
    assert verdict.problems(some) == []


def test_skipped_files_are_said():
    sound = report().dataset
    dataset = Dataset(
        "x", sound.train, sound.test, (("a/n.txt", "it is not an image"),)
    )
    sentence = only(verdict.warnings(report(dataset=dataset)))
    assert sentence == ("1 file is left out, the first a/n.txt (it is not an image).")


def test_unusual_sizes_most_unusual_first_and_once_each():
    sizes = {1: (15, 80), 2: (10, 9), 3: (900, 90), 4: (500, 400), 5: (90, 560)}
    some = report((0, 0, 0, 1, 1, 1), (0,) * 6, sizes=sizes)
    kinds = [(one.image, one.kind) for one in verdict.unusual_sizes(some)]
    assert kinds == [(2, "tiny"), (1, "tiny"), (3, "long"), (5, "long"), (4, "huge")]


def test_what_is_long_is_relative_to_the_others():
    lines = {image: (100, 1000) for image in range(8)}
    assert verdict.unusual_sizes(report(sizes=lines)) == []


def test_facts_on_copies_orientation_closed_sets_and_what_was_left_out():
    dataset = Dataset("x", split("a", (0, 0, 1, 1)), split("a", (0, 0, 1, 1)))
    text = " ".join(
        verdict.facts(
            report(
                dataset=dataset,
                pairs=[[0, 1], [2, 3]],
                identical=np.array([True, False]),
                turned=3,
                not_compared=1234,
                sizes={0: (300, 200)},
            )
        )
    )
    for words in (
        "Closed set: 2 classes in both splits.",
        "3 turned upright as their EXIF data say.",
        "there are 1 identical and 1 nearly identical pairs",
        "1,234 comparisons were left out",
        "The shorter side has 80 to 200 pixels (median 80), the longer up to 300.",
    ):
        assert words in text


def test_images_of_one_shorter_side():
    some = report(sizes={0: (120, 80)})
    said = "The shorter side has 80 pixels, the longer up to 120."
    assert said in verdict.facts(some)
