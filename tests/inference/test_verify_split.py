"""Thresholds of a run: set on held-out classes alone, tried on the test classes."""

import numpy as np
import pytest

from metricjax import evaluation
from metricjax.data.datasets import Split
from metricjax.inference import evaluate_split, verify_split
from metricjax.inference.embedder import Embedded
from metricjax.reports import page


def embedded(classes, each=6, seed=0, **roles):
    """Images around a direction for each class, and their split."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    rows = rng.normal(size=(classes, 16))[labels]
    rows += 0.7 * rng.normal(size=rows.shape)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    names = [f"{i}.png" for i in range(len(labels))]
    split = Split(labels, [f"class{i}" for i in range(classes)], names, None, **roles)
    return Embedded(rows.astype(np.float32), np.ones(len(labels), bool)), split


def of_run(held_out, test):
    return verify_split.of_run(held_out, test, bootstrap=50, seed=0)


def test_set_on_held_out_classes_and_tried_on_test_classes():
    held_out, test = embedded(25), embedded(30, seed=1)
    results, (study,) = of_run(held_out, test)
    found = results["thresholds"]
    assert [one["false_match_rate"] for one in found] == [0.1, 0.01]
    own = evaluation.calibrate(held_out[0].embeddings, held_out[1].labels)
    similarities = [one["similarity"] for one in own["thresholds"]]
    assert [one["similarity"] for one in found] == similarities
    tried = evaluation.reached(test[0].embeddings, test[1].labels, similarities)
    for one, there in zip(found, tried["reached"], strict=True):
        for rate in ("false_match_rate", "true_match_rate"):
            assert one["test"][rate] == there[rate]
    summary = results["verification"]
    assert summary["test"]["pairs"] == {"same": 30 * 15, "different": 180 * 174 // 2}
    assert (
        "0.1%, 0.01%" in summary["notes"][0] and "30,000 pairs" in summary["notes"][0]
    )

    text = page.render(
        results=results, history=[], config={}, galleries={}, image=None, name=None,
        studies=[study],
    )  # fmt: skip
    assert "Same or different?" in text and f"{similarities[0]:.3f}" in text
    assert "same found, held-out" in text.lower() and "30,000 pairs" in text


def test_images_that_are_unreadable_or_have_no_role_are_left_out():
    asked = np.arange(150) % 5 > 0
    roles = {"is_query": asked & (np.arange(150) % 2 > 0), "is_gallery": asked}
    held_out, split = embedded(25, **roles)
    held_out.valid[:30] = False
    held_out.embeddings[:30] = 0
    results, _ = of_run((held_out, split), embedded(30, seed=1))
    left = (np.arange(150) >= 30) & asked
    own = evaluation.calibrate(held_out.embeddings[left], split.labels[left])
    assert results["thresholds"][0]["similarity"] == own["thresholds"][0]["similarity"]


@pytest.mark.parametrize("held_out, test", [(1, 30), (25, 1)])
def test_a_single_class_is_a_note_and_no_error(held_out, test):
    results, studies = of_run(embedded(held_out), embedded(test, seed=1))
    assert "one class" in results["verification"]["notes"][-1]
    if held_out == 1:
        assert results["thresholds"] == [] and studies == []
    else:
        assert all("test" not in one for one in results["thresholds"])
        assert "test" not in studies[0].table.columns[-1]


def test_without_held_out_classes_the_test_classes_do_not_take_their_place():
    results, studies = of_run(None, embedded(30))
    assert results["thresholds"] == [] and studies == []
    assert "no classes were held out" in results["verification"]["notes"][0]


def test_of_many_images_those_of_whole_classes_are_compared(monkeypatch):
    monkeypatch.setattr(verify_split, "_COMPARED", 100)
    results, _ = of_run(embedded(25), embedded(30, seed=1))
    assert results["verification"]["test"]["pairs"]["same"] == 16 * 15


def test_some_classes():
    _, split = embedded(10, each=3)
    wanted = np.ones(30, bool)
    wanted[4] = False
    rows = evaluate_split.some_classes(wanted, split, seed=2, most=12)
    labels, sizes = np.unique(split.labels[rows], return_counts=True)
    assert len(rows) in (11, 12) and all(sizes == np.where(labels == 1, 2, 3))
    np.testing.assert_array_equal(
        evaluate_split.some_classes(wanted, split, 0, 29), np.flatnonzero(wanted)
    )
    assert len(evaluate_split.some_classes(wanted, split, 0, 1)) == 1
