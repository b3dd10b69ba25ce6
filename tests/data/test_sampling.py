"""P x K batches: coverage as from shuffled decks, exact, at random access."""

import time

import numpy as np
import pytest

from metricjax.data.sampling import Deck, PKSampler
from metricjax.errors import InputError


def deal(n, k, draws, seed=0, key=0):
    deck = Deck(n, k, seed, key)
    return [deck.draw(d) for d in range(draws)]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 12, 13, 20, 31])
def test_draws_hold_no_item_twice_and_counts_differ_by_at_most_one(n):
    for k in range(1, n + 1):
        counts = np.zeros(n, int)
        for items, decks in deal(n, k, draws=4 * n + 3, key=k):
            assert len(items) == k
            assert len(set(items.tolist())) == k
            np.testing.assert_array_equal(counts[items], decks)
            counts[items] += 1
            assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize(("n", "k"), [(1, 4), (2, 4), (3, 4), (3, 7), (5, 11), (4, 8)])
def test_small_decks_repeat_each_item_as_evenly_as_can_be(n, k):
    counts = np.zeros(n, int)
    for items, _ in deal(n, k, draws=40):
        inside = np.bincount(items, minlength=n)
        assert inside.sum() == k
        assert inside.max() - inside.min() <= 1
        counts += inside
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize(("n", "k"), [(20, 4), (9, 4), (7, 4), (5, 4), (4, 4), (3, 4)])
def test_random_access_equals_replay(n, k):
    in_order = deal(n, k, draws=50, seed=3, key=7)
    deck = Deck(n, k, 3, 7)
    for d in np.random.default_rng(0).permutation(50).tolist():
        np.testing.assert_array_equal(deck.draw(d)[0], in_order[d][0])


def test_every_item_is_as_likely_in_every_place():
    """Over seeds, also in the draws that straddle two decks."""
    n, k, trials = 11, 4, 1500
    seen = np.zeros((6, k, n), int)
    for seed in range(trials):
        for d, (items, _) in enumerate(deal(n, k, draws=6, seed=seed)):
            seen[d, np.arange(k), items] += 1
    # Standard deviation of a binomial share; 264 cells stay within 4.5 of them.
    deviation = np.sqrt((1 / n) * (1 - 1 / n) / trials)
    assert np.abs(seen / trials - 1 / n).max() < 4.5 * deviation


def test_decks_of_other_seeds_and_keys_differ():
    first = np.concatenate([items for items, _ in deal(30, 5, 6)])
    for seed, key in ((1, 0), (0, 1)):
        other = np.concatenate([items for items, _ in deal(30, 5, 6, seed, key)])
        assert (first != other).any()


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


def test_distant_step_costs_what_a_near_one_costs():
    sampler = PKSampler(np.repeat(np.arange(608), 12), 128, 4, seed=0)
    started = time.perf_counter()
    batch = sampler[10**9]
    assert time.perf_counter() - started < 0.5
    assert len(set(batch.tolist())) == 128


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
