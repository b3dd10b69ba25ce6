"""The page of a data check: self-contained, escaped, whatever there is to show."""

import numpy as np
import pytest
from pages import HOSTILE, Elements, noise

from metricjax.reports import dataset_check
from metricjax.reports.dataset_check import Section
from metricjax.reports.studies import Pictures
from metricjax.reports.thumbnails import thumbnail


def pictures(*captions, title=""):
    return Pictures(
        title, tuple((caption, thumbnail(noise(0))) for caption in captions)
    )


def render(**changes):
    arguments = {
        "name": "photos.zip",
        "problems": [],
        "warnings": ["2 images cannot be read."],
        "facts": ["Train: 4 images."],
        "tiles": [("Train", 2, 1), ("Test", 1, 1234)],
        "class_sizes": {"Train": np.array([1, 5, 5]), "Test": np.array([7])},
        "sections": [
            Section("Pairs", "1 pair.", (pictures("a", "b"), pictures("c", "d"))),
            Section("Odd", "1 image.", (pictures("e"),)),
            Section("Files", "1 file.", lines=(("a/b.jpg", "it is cut short"),)),
        ],
        "notes": ["The classes were halved."],
    }
    return dataset_check.render(**(arguments | changes))


def test_loads_nothing_runs_nothing_and_links_to_itself():
    text = render()
    assert "http://" not in text and "https://" not in text and "url(" not in text
    assert "default-src 'none'" in text
    found = Elements(text).found
    identifiers = {attributes.get("id") for _, attributes in found}
    for tag, attributes in found:
        assert tag not in ("script", "link", "iframe", "object", "base", "form")
        assert attributes.get("href", "#Pairs").startswith("#")
        assert attributes.get("src", "data:image/").startswith("data:image/")
        if tag == "img":
            assert attributes["alt"]
        if tag == "a":
            assert attributes["href"][1:] in identifiers


def test_hostile_names_are_text():
    row = pictures(HOSTILE, title=HOSTILE)
    text = render(
        name=HOSTILE,
        problems=[HOSTILE],
        warnings=[HOSTILE],
        facts=[HOSTILE],
        notes=[HOSTILE],
        tiles=[(HOSTILE, 1, 1)],
        class_sizes={HOSTILE: np.array([1])},
        sections=[Section(HOSTILE, HOSTILE, (row, row), ((HOSTILE, HOSTILE),))],
    )
    assert "<script" not in text
    Elements(text)


def test_the_verdict_is_the_heading():
    assert "<h1>Fit for training</h1>" in render()
    text = render(problems=["All images are of one class."])
    assert "<h1>Not fit for training</h1>" in text
    assert text.index("All images are of one class.") < text.index("2 images cannot")


def test_a_page_of_nothing():
    text = dataset_check.render(name="", problems=[], warnings=[], facts=[])
    Elements(text)
    assert "Fit for training" in text and "<figure" not in text


def test_pairs_stand_side_by_side_and_numbers_agree():
    text = render()
    assert text.count('<div class="pairs">') == 1
    assert text.count('<div class="rows">') == 1
    assert "<b>1 image</b>" in text and "<b>1,234 images</b>" in text
    assert "<p>of 2 classes</p>" in text and "<p>of 1 class</p>" in text


@pytest.mark.parametrize(
    "sizes, said",
    [
        ([3], "1 with 3."),
        ([1, 3, 3], "1 with 1, 0 with 2, 2 with 3."),
        ([0, 1], "1 with 0, 1 with 1."),
        (
            [20, 30, 43],
            "1 with 20–22, 0 with 23–25, 0 with 26–28, 1 with 29–31, "
            "0 with 32–34, 0 with 35–37, 0 with 38–40, 1 with 41–43.",
        ),
        (
            [0, 1, 2, 3, 20],
            "1 with 0, 1 with 1, 2 with 2–3, 0 with 4–7, 0 with 8–15, 1 with 16–31.",
        ),
    ],
)
def test_bars_of_the_histogram(sizes, said):
    text = str(dataset_check.histogram(np.array(sizes)))
    assert f"Classes by their number of images: {said}" in text
    Elements(text)


@pytest.mark.parametrize("seed", range(5))
def test_every_class_is_in_one_bar(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.geometric(1 / 10 ** rng.uniform(0, 3), 300)
    text = str(dataset_check.histogram(sizes))
    label = dict(Elements(text).found[0][1])["aria-label"]
    counts = [int(part.split(" with ")[0]) for part in label.split(": ")[1].split(", ")]
    assert sum(counts) == 300 and len(counts) <= dataset_check.MAX_BARS + 1
