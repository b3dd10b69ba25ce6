"""The explorer's page as text: self-contained, escaped, its script named by digest."""

import base64
import hashlib
import html.parser
import json
import os
import re

import exploring
import numpy as np
import pytest

from metricjax.explorer import build
from metricjax.reports import explorer, sprites

pytestmark = pytest.mark.usefixtures("quick")


def render(split=None, *, unreadable=(), title="shapes", **options):
    split = split or exploring.split(unreadable=unreadable)
    embedded = exploring.embedded(split, unreadable=unreadable)
    explored = build.explore(embedded, split, exploring.per_query(split, embedded))
    sheets = sprites.sheets(len(split), exploring.picture, 64)
    return explored, explorer.render(explored, sheets, title=title, side=64, **options)


@pytest.fixture(scope="module")
def page():
    return render(
        title=exploring.HOSTILE, report="report.html", notes=("Only <some>.",)
    )


class Scripts(html.parser.HTMLParser):
    """Every element with its attributes, and the content of scripts."""

    def __init__(self, text):
        super().__init__()
        self.found, self.scripts, self.inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append("")
            self.inside = True

    def handle_data(self, data):
        if self.inside:
            self.scripts[-1] += data

    def handle_endtag(self, tag):
        self.inside = False


def facts(text):
    kinds = Scripts(text)
    (place,) = [
        number
        for number, (_, attributes) in enumerate(
            one for one in kinds.found if one[0] == "script"
        )
        if attributes.get("id") == "facts"
    ]
    return json.loads(kinds.scripts[place])


def numbers(text, name):
    packed = facts(text)["arrays"][name]
    found = np.frombuffer(base64.b64decode(packed["bytes"]), packed["type"])
    return found.reshape(-1, packed["width"]) if packed["width"] > 1 else found


def test_loads_nothing_and_runs_only_its_own_script(page):
    _, text = page
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text and "@import" not in text and "url(" not in text
    policy = re.search(r'Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; script")
    digest = re.search(r"script-src 'sha256-([^']*)'", policy)[1]
    kinds = Scripts(text)
    elements = [attributes for tag, attributes in kinds.found if tag == "script"]
    running = [
        script
        for script, attributes in zip(kinds.scripts, elements, strict=True)
        if "type" not in attributes
    ]
    (script,) = running
    made = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert made == digest
    for tag, attributes in kinds.found:
        assert tag not in ("link", "iframe", "object", "base", "img")
        assert "src" not in attributes
        assert not any(key.startswith("on") for key in attributes)
        assert attributes.get("href", "#")[0] == "#" or tag == "a"


def test_hostile_names_stay_text(page):
    _, text = page
    assert "document.title = 'mine'</script>" not in text
    assert facts(text)["classes"][0] == facts(text)["names"][0] == exploring.HOSTILE
    assert text.count("<b>é") == 0 and "&lt;b&gt;é" in text
    assert "Only &lt;some&gt;." in text


def test_numbers_come_back(page):
    explored, text = page
    np.testing.assert_array_equal(numbers(text, "neighbors"), explored.neighbors)
    assert facts(text)["arrays"]["neighbors"]["type"] == "uint16"
    np.testing.assert_array_equal(numbers(text, "labels"), explored.labels)
    np.testing.assert_array_equal(numbers(text, "rank"), explored.rank)
    similarities = numbers(text, "similarities") / 32767
    np.testing.assert_allclose(similarities, explored.similarities, atol=2e-5)
    np.testing.assert_allclose(numbers(text, "heat"), explored.heat.means, rtol=1e-6)
    assert "categories" not in facts(text)["arrays"]


def test_no_neighbour_is_the_largest_number():
    explored, text = render(unreadable=(2,))
    assert (numbers(text, "neighbors")[2] == 2**16 - 1).all()
    assert numbers(text, "right")[2] == 2**16 - 1
    assert explored.neighbors[2].tolist() == [-1] * 10


def test_categories_and_no_link_without_a_report():
    categories = np.arange(30) % 3
    split = exploring.split(categories=categories, category_names=("a", "b", "<c>"))
    _, text = render(split)
    assert facts(text)["categories"] == ["a", "b", "<c>"]
    np.testing.assert_array_equal(numbers(text, "categories"), categories)
    assert ">Report</a>" not in text


def test_names_that_are_no_unicode():
    names = (os.fsdecode(b"photo\xff.png"), *map(str, range(1, 30)))
    _, text = render(exploring.split(names=names))
    assert facts(text)["names"][0] == "photo?.png"
    text.encode("utf-8")


def test_the_same_images_give_the_same_bytes(page):
    again = render(
        title=exploring.HOSTILE, report="report.html", notes=("Only <some>.",)
    )
    assert again[1] == page[1]
