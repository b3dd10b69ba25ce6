"""P x K batches: classes and images come as often as others, exactly."""

import numpy as np
import pytest

from metricjax.data.samplers.class_balanced import CategorySampler, PKSampler
from metricjax.errors import InputError


def unequal_labels():
    """31 classes of 1 to 9 images, in no order."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(31), rng.integers(1, 10, 31))
    return rng.permutation(labels)


@pytest.mark.parametrize(("classes", "instances"), [(8, 4), (5, 2), (25, 3), (7, 1)])
def test_coverage_of_unequal_classes(classes, instances):
    labels = unequal_labels()
    sampler = PKSampler(labels, classes * instances, instances, seed=5)
    sizes = np.bincount(labels)
    dealt = sizes >= (1 if instances == 1 else 2)
    assert sampler.num_classes == dealt.sum()
    assert sampler.left_out == (~dealt).sum()
    class_counts = np.zeros(31, int)
    image_counts = np.zeros(len(labels), int)
    for step in range(60):
        batch = sampler[step]
        assert batch.dtype == np.int64
        groups = labels[batch].reshape(classes, instances)
        assert (groups == groups[:, :1]).all()
        assert len(set(groups[:, 0].tolist())) == classes
        for group in batch.reshape(classes, instances):
            size = sizes[labels[group[0]]]
            assert len(set(group.tolist())) == min(size, instances)
        class_counts[groups[:, 0]] += 1
        np.add.at(image_counts, batch, 1)
        assert np.ptp(class_counts[dealt]) <= 1
        for c in np.flatnonzero(dealt):
            assert np.ptp(image_counts[labels == c]) <= 1
    assert (class_counts[~dealt] == 0).all()


def test_a_batch_is_a_function_of_seed_and_step():
    labels = unequal_labels()
    first = PKSampler(labels, 32, 4, seed=1)
    batches = [first[step] for step in range(30)]
    again = PKSampler(labels, 32, 4, seed=1)
    for step in (29, 3, 0, 14, 15):
        np.testing.assert_array_equal(again[step], batches[step])
    other = PKSampler(labels, 32, 4, seed=2)
    assert any((other[step] != batches[step]).any() for step in range(5))


def test_golden_batch():
    """Pins the order of batches: made by this code when it was written."""
    sampler = PKSampler(np.repeat(np.arange(6), 5), 6, 2, seed=0)
    assert sampler[0].tolist() == [21, 22, 3, 0, 5, 7]
    assert sampler[3].tolist() == [1, 2, 8, 9, 23, 24]
    assert sampler[1000].tolist() == [6, 7, 0, 2, 17, 19]


def test_distant_step():
    sampler = PKSampler(np.repeat(np.arange(608), 12), 128, 4, seed=0)
    assert len(set(sampler[10**9].tolist())) == 128


def test_epoch_deals_each_image_once_on_average():
    sampler = PKSampler(np.repeat(np.arange(10), 8), 16, 4, seed=0)
    assert sampler.steps_per_epoch == 5
    counts = np.zeros(80, int)
    for step in range(10):  # Two epochs: every class 4 times, every image twice.
        counts[sampler[step]] += 1
    assert (counts == 2).all()
    labels = np.concatenate([np.repeat(np.arange(10), 8), [10, 11]])
    assert PKSampler(labels, 16, 4, seed=0).steps_per_epoch == 5
    assert PKSampler(labels, 12, 1, seed=0).steps_per_epoch == 7


def test_hosts_get_whole_classes():
    labels = np.repeat(np.arange(20), 6)
    batch = PKSampler(labels, 32, 4, seed=0)[3]
    for share in batch.reshape(4, -1):
        assert len(set(labels[share].tolist())) == 2


@pytest.mark.parametrize(
    ("batch_size", "instances", "words"),
    [
        (30, 4, "28 or 32"),
        (3, 4, "is 4"),
        (0, 4, "is 4"),
        (32, 0, "instances_per_class is 0"),
        (128, 4, "needs 32 classes, but there are 20"),
    ],
)
def test_bad_batches_are_told_in_a_sentence(batch_size, instances, words):
    with pytest.raises(InputError, match=words):
        PKSampler(np.repeat(np.arange(20), 6), batch_size, instances, seed=0)


def test_only_single_images():
    with pytest.raises(InputError, match="with at least two images"):
        PKSampler(np.arange(20), 8, 2, seed=0)


def test_distinct_images_whatever_the_classes():
    labels = unequal_labels()
    sizes = np.bincount(labels)
    sampler = PKSampler(labels, 24, 4, seed=3, distinct=True)
    assert sampler.left_out == (sizes < 4).sum()
    counts = np.zeros(len(labels), int)
    for step in range(80):
        batch = sampler[step]
        counts[batch] += 1
        assert len(set(batch.tolist())) == 24
        groups = labels[batch].reshape(6, 4)
        assert (groups == groups[:, :1]).all()
        assert len(set(groups[:, 0].tolist())) == 6
    for c in range(31):
        assert np.ptp(counts[labels == c]) <= 1
        assert counts[labels == c].any() == (sizes[c] >= 4)


def test_what_is_left_out_is_said():
    labels = unequal_labels()
    few = int((np.bincount(labels) < 4).sum())
    (note,) = PKSampler(labels, 24, 4, seed=0, distinct=True).notes
    assert f"{few} classes of fewer than 4 images" in note
    (note,) = PKSampler([0, 0, 1, 1, 2], 4, 2, seed=0).notes
    assert "1 class of fewer than 2 images" in note
    assert PKSampler(np.repeat(np.arange(6), 5), 6, 2, seed=0).notes == ()


def test_too_few_classes_of_distinct_images():
    labels = np.repeat(np.arange(20), 3)
    with pytest.raises(InputError, match="0 with at least 4 images: take fewer images"):
        PKSampler(labels, 8, 4, seed=0, distinct=True)
    labels = np.repeat(np.arange(20), np.where(np.arange(20) < 3, 4, 3))
    words = "3 with at least 4 images: the largest batch is 12, or take fewer images"
    with pytest.raises(InputError, match=words):
        PKSampler(labels, 16, 4, seed=0, distinct=True)


def categorised():
    """Labels and categories: 9, 6, 5 and 1 classes of 1 to 6 images, in no order."""
    rng = np.random.default_rng(2)
    of_class = np.repeat([7, 3, 5, 9], [9, 6, 5, 1])
    labels = rng.permutation(np.repeat(np.arange(21), rng.integers(1, 7, 21)))
    return labels, of_class[labels], of_class


@pytest.mark.parametrize(
    ("classes", "of", "left_out"), [(4, 1, 1), (6, 2, 1), (3, 3, 0), (4, 4, 0)]
)
def test_classes_of_few_categories(classes, of, left_out):
    labels, categories, of_class = categorised()
    # The category of a class that would be left out must have one to deal.
    labels = np.concatenate([labels, [20, 20]])
    categories = np.concatenate([categories, [9, 9]])
    sizes = np.bincount(labels)
    sampler = CategorySampler(labels, categories, classes * 2, 2, of, seed=1)
    each = classes // of
    category_counts = np.zeros(10, int)
    class_counts = np.zeros(21, int)
    image_counts = np.zeros(len(labels), int)
    for step in range(80):
        batch = sampler[step]
        assert batch.dtype == np.int64 and batch.shape == (classes * 2,)
        groups = labels[batch].reshape(classes, 2)
        assert (groups[:, 0] == groups[:, 1]).all()
        assert len(set(groups[:, 0].tolist())) == classes
        drawn = categories[batch].reshape(of, each * 2)
        assert (drawn == drawn[:, :1]).all()
        assert len(set(drawn[:, 0].tolist())) == of
        category_counts[drawn[:, 0]] += 1
        class_counts[groups[:, 0]] += 1
        np.add.at(image_counts, batch, 1)
    dealt = np.flatnonzero(category_counts)
    assert len(dealt) == 4 - left_out
    assert np.ptp(category_counts[dealt]) <= 1
    for category in dealt:
        members = (of_class == category) & (sizes > 1)
        assert np.ptp(class_counts[members]) <= 1
    for c in range(21):
        assert np.ptp(image_counts[labels == c]) <= 1
    words = f"{left_out} of 4 categories, of fewer than {each} classes"
    assert any(words in note for note in sampler.notes) == bool(left_out)


def test_categories_are_dealt_independently():
    labels = np.repeat(np.arange(12), 2)
    sampler = CategorySampler(labels, labels // 6, 8, 2, 2, seed=0)
    drawn = np.array([sorted(set(labels[sampler[step]])) for step in range(20)])
    assert (drawn[:, 2:] - 6 != drawn[:, :2]).any()


@pytest.mark.parametrize(
    ("classes", "of", "words"),
    [
        (6, 4, "categories_per_batch is 4, .* one of 1, 2, 3, 6"),
        (6, 0, "categories_per_batch is 0"),
        (6, 6, "needs 6 with at least 1 classes, but only 4 of 4"),
        (10, 1, "needs 1 with at least 10 classes, but only 0 of 4"),
    ],
)
def test_categories_that_do_not_fill_a_batch(classes, of, words):
    categories = np.repeat([0, 1, 2, 3], [27, 18, 15, 3])
    with pytest.raises(InputError, match=words):
        CategorySampler(np.arange(63) // 3, categories, classes * 2, 2, of, seed=0)


def test_a_class_of_two_categories():
    labels = np.repeat(np.arange(4), 3)
    categories = np.array([0, 0, 0, 0, 1, 0, 1, 1, 1, 1, 1, 1])
    with pytest.raises(InputError, match="Images 3 and 4 .* categories 0 and 1"):
        CategorySampler(labels, categories, 4, 2, 1, seed=0)
