"""Thresholds over all pairs: against brute force and scikit-learn, ties, tiles."""

import jax
import numpy as np
import pytest
from scipy.optimize import brentq
from sklearn.metrics import roc_curve

from metricjax.errors import InputError
from metricjax.evaluation import calibrate, pairs, reached, verification

RATES = (0.3, 0.1, 0.01)


def normal(classes=30, most=8, width=16, spread=0.8, seed=0):
    """Unit rows around a random direction for each class, of unequal sizes."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), rng.integers(1, most, size=classes))
    rows = rng.normal(size=(classes, width))[labels]
    rows += spread * rng.normal(size=rows.shape)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32), labels


def tied(count=150):
    """Rows of quarters of ones: products are exact, and nearly all are tied."""
    rng = np.random.default_rng(3)
    rows = rng.choice([-0.25, 0.25], size=(count, 16)).astype(np.float32)
    rows[40:60] = rows[40]
    return rows, rng.integers(0, 20, size=count)


def pairs_of(rows, labels):
    """(similarity, same class) of all pairs, each once."""
    first, second = np.triu_indices(len(rows), 1)
    # As the library multiplies them: one program, one shape.
    size = -len(rows) % pairs.TILE
    padded = np.pad(rows, ((0, size), (0, 0)))
    multiply = jax.jit(lambda a: jax.numpy.matmul(a, a.T, precision="highest"))
    similarities = np.asarray(multiply(padded))[first, second]
    return similarities, labels[first] == labels[second]


@pytest.mark.parametrize("make", [normal, tied])
def test_equals_brute_force(make):
    rows, labels = make()
    similarities, same = pairs_of(rows, labels)
    found = calibrate(rows, labels, false_match_rates=RATES, bootstrap=0)
    assert found["pairs"] == {"same": same.sum(), "different": (~same).sum()}
    assert [one["false_match_rate"] for one in found["thresholds"]] == list(RATES)
    for one in found["thresholds"]:
        threshold = np.float32(one["similarity"])
        allowed = one["false_match_rate"] * (~same).sum()
        assert (similarities[~same] >= threshold).sum() <= allowed
        below = np.nextafter(threshold, np.float32(-np.inf))
        assert (similarities[~same] >= below).sum() > allowed
        assert one["true_match_rate"] == np.mean(similarities[same] >= threshold)


@pytest.mark.parametrize("make", [normal, tied])
def test_equal_error_rate_is_that_of_sklearns_curve(make):
    rows, labels = make()
    similarities, same = pairs_of(rows, labels)
    false, true, _ = roc_curve(same, similarities, drop_intermediate=False)
    expected = brentq(lambda x: 1 - x - np.interp(x, false, true), 0, 1)
    found = calibrate(rows, labels, false_match_rates=RATES, bootstrap=0)
    assert found["equal_error_rate"] == pytest.approx(expected, abs=1e-9)


def test_curve_lies_on_the_roc():
    rows, labels = normal()
    similarities, same = pairs_of(rows, labels)
    curve = calibrate(rows, labels, bootstrap=0)["curve"]
    assert len(curve["similarity"]) > 20
    for threshold, false, true in zip(*curve.values(), strict=True):
        assert false == np.mean(similarities[~same] >= threshold)
        assert true == np.mean(similarities[same] >= threshold)
    assert curve["false_match_rate"][0] == 1.0
    assert curve["false_match_rate"] == sorted(curve["false_match_rate"], reverse=True)


@pytest.mark.parametrize("make", [normal, tied])
def test_order_of_the_rows_and_numbers_of_the_labels_change_nothing(make):
    rows, labels = make()
    order = np.random.default_rng(1).permutation(len(rows))
    options = {"false_match_rates": RATES, "bootstrap": 0}
    assert calibrate(rows[order], 7 - 3 * labels[order], **options) == calibrate(
        rows, labels, **options
    )


def test_tiles_change_nothing(monkeypatch):
    """Exact products, so that a product of another shape gives the same bits."""
    rows, labels = tied()
    whole = calibrate(rows, labels, false_match_rates=RATES)
    monkeypatch.setattr(pairs, "TILE", 32)
    jax.clear_caches()
    assert calibrate(rows, labels, false_match_rates=RATES) == whole
    at = [one["similarity"] for one in whole["thresholds"]]
    small = reached(rows, labels, at)
    monkeypatch.undo()
    assert reached(rows, labels, at) == small


def test_reached_counts_on_other_images_what_calibrate_set():
    rows, labels = normal()
    at = [one["similarity"] for one in calibrate(rows, labels)["thresholds"]]
    others, other_labels = normal(seed=5)
    similarities, same = pairs_of(others, other_labels)
    found = reached(others, other_labels, at)
    for threshold, one in zip(at, found["reached"], strict=True):
        match = similarities >= np.float32(threshold)
        assert one["false_match_rate"] == np.mean(match[~same])
        assert one["true_match_rate"] == np.mean(match[same])
        for rate, interval in (
            ("false_match_rate", "false_match_interval"),
            ("true_match_rate", "interval"),
        ):
            low, high = one[interval]
            assert 0 <= low < one[rate] < high <= 1


def test_intervals_are_those_of_classes_drawn_in_a_loop():
    """With all pairs of the drawn classes looked at anew, within their noise."""
    rows, labels = normal(classes=60)
    (threshold,) = calibrate(rows, labels, false_match_rates=[0.1])["thresholds"]
    (found,) = reached(rows, labels, [threshold["similarity"]], bootstrap=20_000)[
        "reached"
    ]
    match = rows @ rows.T >= np.float32(threshold["similarity"])
    np.fill_diagonal(match, False)
    members = np.eye(60)[labels]
    matches, sizes = members.T @ match @ members, np.bincount(labels)
    pairs = np.outer(sizes, sizes)
    rng, true, false = np.random.default_rng(9), [], []
    for _ in range(5_000):
        times = np.bincount(rng.integers(60, size=60), minlength=60)
        weights = np.outer(times, times)
        np.fill_diagonal(weights, 0)
        false.append((weights * matches).sum() / (weights * pairs).sum())
        own = np.diag(matches) @ times
        true.append(own / ((sizes * (sizes - 1)) @ times))
    for interval, drawn in (("interval", true), ("false_match_interval", false)):
        expected = np.percentile(drawn, [2.5, 97.5])
        width = np.diff(expected)[0]
        np.testing.assert_allclose(found[interval], expected, atol=0.15 * width)


def test_rates_without_enough_pairs_are_left_out_and_named():
    rows, labels = normal()
    different = calibrate(rows, labels)["pairs"]["different"]
    enough = verification.LEAST_FALSE_MATCHES / different
    found = calibrate(
        rows, labels, false_match_rates=[enough / 1.1, 0.1, enough * 1.001]
    )
    assert found["too_few"] == [enough / 1.1]
    kept = [one["false_match_rate"] for one in found["thresholds"]]
    assert kept == [0.1, enough * 1.001]
    none = calibrate(rows, labels, false_match_rates=[enough / 2])
    assert none["thresholds"] == [] and none["equal_error_rate"] > 0


def test_perfect_and_useless_embeddings():
    labels = np.repeat(np.arange(20), 5)
    perfect = calibrate(np.eye(20, dtype=np.float32)[labels], labels)
    assert perfect["equal_error_rate"] == 0
    assert {one["true_match_rate"] for one in perfect["thresholds"]} == {1.0}
    same = np.ones((100, 1), np.float32)
    useless = calibrate(same, labels)
    assert useless["equal_error_rate"] == 0.5
    # No threshold lets in some of equal similarity and not the others.
    assert {one["true_match_rate"] for one in useless["thresholds"]} == {0.0}


@pytest.mark.parametrize(
    "change, said",
    [
        ({"labels": np.zeros(12, int)}, "of one class"),
        ({"labels": np.arange(12)}, "another of its class"),
        ({"labels": np.zeros(11, int)}, "each of the 12 rows"),
        ({"false_match_rates": [0.1, 1.0]}, "has 1.0"),
        ({"false_match_rates": []}, "no rate"),
        ({"embeddings": np.full((12, 2), np.nan, np.float32)}, "NaN"),
        ({"embeddings": np.ones((12, 2), np.float32)}, "length 1.414"),
    ],
)
def test_refuses_in_a_sentence(change, said):
    rows = np.eye(2, dtype=np.float32)[np.arange(12) % 2]
    arguments = {"embeddings": rows, "labels": np.arange(12) % 2} | change
    with pytest.raises(InputError, match=said):
        calibrate(arguments.pop("embeddings"), arguments.pop("labels"), **arguments)
