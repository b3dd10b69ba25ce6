"""The report: self-contained, escaped, tolerant of what is missing, repeatable."""

import os

import numpy as np
import pytest
from pages import HOSTILE, Elements, noise

from metricjax.reports import page

METRICS = {"recall@1": 0.8312, "recall@10": 0.97, "recall@2": 0.9, "map@r": 0.5}
RESULTS = {
    **METRICS,
    "intervals": {key: (value - 0.01, value + 0.01) for key, value in METRICS.items()},
    "floor": 0.1043,
    "untrained": {key: value / 3 for key, value in METRICS.items()},
    "validation": {"recall@1": 0.85},
    "queries": 7536,
    "lone_queries": 2,
    "ties": 3,
    "dataset": {
        "name": "glyphs",
        "train": {"classes": 565, "images": 6780},
        "test": {"classes": 628, "images": 7536},
        "skipped": [["a/<script>alert(1)</script>.jpg", "empty file"], "b.png"],
    },
    "selected_step": 20,
    "seconds": 74.2,
    "parameters_sha256": "3f2a" * 16,
    "versions": {"jax": "0.10.2"},
}
HISTORY = [
    {
        "step": step,
        "kind": "train",
        "loss": 1 / step,
        "positive_distance": 0.5,
        "images_per_second": 2900.0 + step,
    }
    for step in (10, 20, 30)
] + [{"step": 20, "kind": "validation", "recall@1": 0.85}]


def gallery(count=3, k=4, correct=True):
    return page.QueryNeighbors(
        queries=np.arange(count),
        neighbors=np.arange(count * k).reshape(count, k),
        similarities=np.full((count, k), 0.75, np.float32),
        correct=np.full((count, k), correct),
    )


def render(**changes):
    arguments = {
        "results": RESULTS,
        "history": HISTORY,
        "config": {"seed": 0, "data": {"name": "glyphs"}},
        "galleries": {"before": gallery(correct=False), "after": gallery()},
        "image": noise,
        "name": lambda index: f"letter/{index}.png",
    }
    return page.render(**(arguments | changes))


def test_loads_nothing_from_outside():
    text = render()
    assert "http://" not in text and "https://" not in text
    assert "@import" not in text and "url(" not in text
    assert "default-src 'none'" in text
    for tag, attributes in Elements(text).found:
        assert tag not in ("script", "link", "iframe", "object", "base", "form")
        assert not any(key.startswith("on") for key in attributes)
        if tag == "img":
            assert attributes["src"].startswith("data:image/")
        else:
            assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")


def test_the_explorer_is_linked_where_there_is_one():
    links = [
        attributes["href"]
        for tag, attributes in Elements(render(explorer="explorer.html")).found
        if tag == "a" and not attributes["href"].startswith("#")
    ]
    assert links == ["explorer.html", "explorer.html"]


def test_every_picture_has_a_name_and_every_link_a_target():
    found = Elements(render()).found
    assert all(attributes["alt"] for tag, attributes in found if tag == "img")
    identifiers = {attributes.get("id") for _, attributes in found}
    targets = {
        attributes["href"][1:] for _, attributes in found if "href" in attributes
    }
    assert targets <= identifiers


def test_hostile_names_are_text():
    text = render(
        name=lambda index: HOSTILE,
        config={HOSTILE: HOSTILE, "data": {"name": HOSTILE}},
        galleries={HOSTILE: gallery()},
        history=[{"step": 1, "kind": HOSTILE, HOSTILE: 1.0}, *HISTORY],
        results={**RESULTS, HOSTILE: HOSTILE, "intervals": {HOSTILE: (0.1, 0.2)}},
    )
    assert "<script" not in text
    assert all(tag != "script" for tag, _ in Elements(text).found)


@pytest.mark.parametrize("missing", [*RESULTS])
def test_a_missing_key_is_no_crash(missing):
    Elements(render(results={k: v for k, v in RESULTS.items() if k != missing}))


def test_nothing_at_all_is_a_page_that_says_so():
    text = render(results={}, history=[], config={}, galleries={})
    Elements(text)
    assert "Not measured" in text and "recorded no metrics" in text


def test_null_and_nan_are_not_numbers():
    results = RESULTS | {
        "recall@1": float("nan"),
        "intervals": {"recall@1": None, "map@r": [None, None]},
        "untrained": None,
        "validation": None,
        "queries": None,
        "selected_step": None,
        "dataset": None,
    }
    history = [{"step": 1, "kind": "train", "loss": float("nan"), "x": None}]
    text = render(results=results, history=history)
    assert "nan%" not in text and "not measured" in text


def test_frames_and_marks_tell_right_from_wrong():
    found = Elements(render()).found
    frames = [attributes.get("class") for tag, attributes in found if tag == "li"]
    assert frames.count("right") == frames.count("wrong") == 12
    signs = [attributes["href"] for tag, attributes in found if tag == "use"]
    assert signs.count("#tick") == signs.count("#cross") == 12 + 1


def test_long_names_may_break_at_their_separators():
    text = render(name=lambda index: "a/b_c&d.png")
    assert "a/<wbr>b_<wbr>c&amp;d.<wbr>png</h3>" in text
    assert "&lt;wbr" not in text


def test_before_and_after_of_one_query_share_a_row():
    before, after = gallery(3), gallery(3)
    shuffled = page.QueryNeighbors(
        after.queries[::-1], after.neighbors, after.similarities, after.correct
    )
    text = render(galleries={"before": before, "after": shuffled})
    assert text.count("<article") == 3
    assert (
        text.count("Before training <span") == text.count("After training <span") == 3
    )


def test_neighbors_that_do_not_exist_are_left_out():
    padded = page.QueryNeighbors(
        queries=np.array([0]),
        neighbors=np.array([[3, -1, -1]]),
        similarities=np.array([[0.5, -np.inf, -np.inf]]),
        correct=np.array([[True, False, False]]),
    )
    assert "1 of 1 right" in render(galleries={"after": padded})


def test_a_gallery_of_unequal_shapes_is_refused():
    with pytest.raises(ValueError, match=r"queries \[q\]"):
        page.QueryNeighbors(
            np.arange(2), np.ones((3, 4)), np.ones((3, 4)), np.ones((3, 4))
        )


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({}, "55.4 points above the untrained network."),
        ({"floor": 0.9}, "Training did not beat raw pixels."),
        ({"floor": 0.825}, "but the interval reaches there"),
    ],
)
def test_the_verdict_compares_with_the_better_baseline(changes, sentence):
    assert sentence in render(results=RESULTS | changes)


def test_metrics_stand_in_the_order_of_k_with_intervals():
    text = render()
    places = [text.index(f'row">{key}<') for key in ("Recall@1", "Recall@2", "MAP@R")]
    assert places == sorted(places)
    assert text.index('row">Recall@2<') < text.index('row">Recall@10<')
    assert "82.1% to 84.1%" in text


def test_closed_set_is_stamped():
    assert "Closed set" not in render()
    assert "Closed set" in render(config={"data": {"closed_set": True}})


def test_warnings_of_the_run_are_listed_once():
    warnings = ["The embeddings have <collapsed>: lower it.", "And another."]
    html = render(results={**RESULTS, "warnings": warnings})
    assert "2 warnings during training" in html
    assert html.count("The embeddings have &lt;collapsed&gt;: lower it.") == 1
    assert html.count("And another.") == 1
    for none in (RESULTS, {**RESULTS, "warnings": []}):
        assert "during training" not in render(results=none)


def test_the_same_run_gives_the_same_bytes():
    assert render() == render()


def test_twelve_queries_of_large_noisy_photos_stay_small():
    large = gallery(12, 10)
    text = render(
        galleries={"before": large, "after": large},
        image=lambda index: noise(index, side=300, channels=3),
    )
    assert len(text) < 3_000_000


def test_write_replaces_the_file_whole(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    arguments = {"history": HISTORY, "config": {}, "galleries": {}}
    calls = {"image": noise, "name": str}
    page.write(path, results=RESULTS, **arguments, **calls)
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert os.listdir(tmp_path) == ["report.html"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    arguments = {"history": [], "config": {}, "galleries": {}}
    with pytest.raises(OSError, match="No space"):
        page.write(path, results={}, **arguments, image=noise, name=str)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.html"]


def test_names_that_are_no_unicode_are_written(tmp_path):
    path = tmp_path / "report.html"
    page.write(
        path,
        results={},
        history=[],
        config={},
        galleries={"after": gallery()},
        image=noise,
        name=lambda index: os.fsdecode(b"photo\xff.png"),
    )
    assert "photo?.png" in path.read_text(encoding="utf-8")


def test_selected_on_test_is_stamped():
    assert "Selected on test" not in render()
    text = render(results=RESULTS | {"selected_on_test": True})
    assert "Selected on test" in text and "selected on the test classes" in text
    assert "never on the test classes" not in text


def test_averages_by_class_and_clustering_have_names_and_definitions():
    found = {"macro_recall@1": 0.5, "macro_map@r": 0.25, "nmi": 0.75, "ami": 0.7}
    about = {"normalization": "arithmetic", "restarts": 3, "seed": 0}
    text = render(results=RESULTS | found | {"f1": 0.125, "clustering": about})
    for words in ("Recall@1, by class", "MAP@R, by class", "NMI", "AMI", "12.5%"):
        assert words in text
    assert "best of 3 first guesses" in text
