"""Decks: every item as often as any other, at random access."""

import numpy as np
import pytest

from metricjax.data import random_streams
from metricjax.data.samplers.decks import Deck


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


def test_a_deck_is_not_changed_by_who_uses_its_draws():
    deck = Deck(6, 3, 0, 0)
    first = deck.draw(0)[0].copy()
    deck.draw(0)[0][:] = -1
    np.testing.assert_array_equal(deck.draw(0)[0], first)


@pytest.mark.parametrize(
    "name", [(0, 2), (3, 3, 5), (7, 2, 9, 1), (2**64 - 1, 4, 1, 2), (-1, 4, 1, 2)]
)
def test_a_reused_stream_is_the_stream(name):
    expected = random_streams.stream(*name)
    # What is left of another stream must not come out of this one.
    random_streams.reused_stream(1, 2).integers(5, size=3, dtype=np.int32)
    got = random_streams.reused_stream(*name)
    for _ in range(2):
        np.testing.assert_array_equal(got.permutation(20), expected.permutation(20))
        np.testing.assert_array_equal(got.random(3), expected.random(3))
