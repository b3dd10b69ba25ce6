"""The explorer as it is used: walked through by mouse and by keys, in a browser."""

import exploring
import numpy as np
import pytest

from metricjax.explorer import build
from metricjax.reports import explorer, sprites

VIEWS = ("map", "queries", "classes", "confusions", "similarities")


@pytest.fixture(scope="module")
def shown():
    """What stands on the page; image 3 could not be read."""
    split = exploring.split(
        categories=np.arange(30) % 3, category_names=("a", "b", exploring.HOSTILE)
    )
    embedded = exploring.embedded(split, unreadable=(3,))
    values = exploring.per_query(split, embedded)
    return build.explore(embedded, split, values)


@pytest.fixture(scope="module")
def address(shown, tmp_path_factory):
    sheets = sprites.sheets(
        30, lambda index: None if index == 3 else exploring.picture(index), 64
    )
    text = explorer.render(
        shown, sheets, title=exploring.HOSTILE, side=64, report="report.html"
    )
    path = tmp_path_factory.mktemp("page") / "explorer.html"
    path.write_text(text, encoding="utf-8")
    return path.as_uri()


def asked(browser) -> int:
    """The image that the walker shows, by the address that it names."""
    return int(browser.find("#walker .facts a").text.removeprefix("#image="))


def near(browser) -> list[int]:
    """The images that the walker shows as neighbours, nearest first."""
    tiles = browser.all("#walker ol .tile")
    return [int(tile.get_attribute("data-image")) for tile in tiles]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width, height", [(360, 800), (1280, 900)])
def test_no_view_is_wider_than_its_window_or_complains(
    browser, address, width, height, dark
):
    for view in VIEWS:
        browser.show(f"{address}#view={view}", width, height, dark)
        assert browser.find(f"#view-{view}").is_displayed()
        assert browser.overflow() <= 0
        assert browser.complaints() == []
        for button in browser.all(f"#view-{view} button"):
            assert not button.is_displayed() or button.rect["width"] >= 8


def test_hostile_names_are_shown_as_they_are(browser, address):
    browser.show(f"{address}#image=0")
    assert browser.driver.title.endswith("metricjax explorer")
    shown = browser.find("#walker .facts .class")
    assert browser.run("return arguments[0].textContent", shown) == exploring.HOSTILE
    assert browser.all("h1 b") == []


def test_any_image_can_be_walked_to_and_back(browser, address, shown):
    browser.show(f"{address}#image=7&view=queries")
    assert asked(browser) == 7
    assert near(browser) == shown.neighbors[7].tolist()
    second = near(browser)[1]
    browser.all("#walker ol .tile")[1].click()
    browser.wait_for("return location.hash.includes(arguments[0])", f"image={second}&")
    assert asked(browser) == second
    assert near(browser) == shown.neighbors[second].tolist()
    row = browser.find("#queries-rows .row .tile")
    third = int(row.get_attribute("data-image"))
    row.click()
    assert browser.wait_for("return location.hash.includes('view=queries')")
    assert asked(browser) == third
    browser.find("[data-step='-1']").click()
    browser.wait_for("return location.hash.includes(arguments[0])", f"image={second}&")
    browser.driver.back()
    browser.wait_for("return location.hash.includes('image=7&')")
    assert asked(browser) == 7
    assert not browser.find("[data-step='-1']").is_enabled()
    browser.find("[data-step='1']").click()
    browser.wait_for("return location.hash.includes(arguments[0])", f"image={second}&")


def test_right_and_wrong_neighbours_are_told_apart(browser, address, shown):
    wrong = np.flatnonzero(shown.rank > 1)[0]
    browser.show(f"{address}#image={wrong}")
    tiles = browser.all("#walker ol .tile")
    labels = shown.labels
    for tile, other, alike in zip(
        tiles, shown.neighbors[wrong], shown.similarities[wrong], strict=True
    ):
        said = tile.get_attribute("aria-label")
        kind = "right" if labels[other] == labels[wrong] else "wrong"
        assert kind in tile.get_attribute("class").split() and f", {kind}, " in said
        assert f"{alike:.3f}" in tile.text and said.endswith(f"{alike:.3f}")
    assert f"rank {shown.rank[wrong]}." in browser.find(".verdict").text


def test_pictures_are_those_of_the_images(browser, address, shown):
    browser.show(f"{address}#image=20")
    shade = (
        "const c = document.querySelectorAll('#walker ol canvas')[arguments[0]];"
        "return c.getContext('2d').getImageData(15, 12, 1, 1).data[0]"
    )
    for place, image in enumerate(shown.neighbors[20]):
        expected = exploring.picture(int(image))[0, 0, 0]
        found = browser.wait_for(shade, place)
        assert abs(found - int(expected)) <= 4


def test_an_unreadable_image_says_so(browser, address):
    browser.show(f"{address}#image=3")
    assert "could not be read" in browser.find(".verdict").text
    assert near(browser) == []


def test_keys_walk(browser, address, shown):
    from selenium.webdriver import Keys

    browser.show(f"{address}#image=9&view=classes")
    browser.press("4")
    fourth = int(shown.neighbors[9, 3])
    browser.wait_for("return location.hash.includes(arguments[0])", f"image={fourth}&")
    browser.press("0")
    tenth = int(shown.neighbors[fourth, 9])
    browser.wait_for("return location.hash.includes(arguments[0])", f"image={tenth}&")
    browser.press(Keys.ARROW_LEFT)
    browser.wait_for("return location.hash.includes(arguments[0])", f"image={fourth}&")
    browser.press("n")
    browser.wait_for(
        "return location.hash.includes(arguments[0])", f"image={fourth + 1}&"
    )
    browser.press("f")
    browser.wait_for("return location.hash.includes('view=confusions')")
    browser.press("/")
    assert browser.driver.switch_to.active_element.get_attribute("id") == (
        "confusions-filter"
    )
    browser.press("5")  # Typed, not walked.
    assert f"image={fourth + 1}&" in browser.driver.current_url


def test_tabs_and_rows_are_reached_by_keys(browser, address):
    from selenium.webdriver import Keys

    browser.show(f"{address}#view=map")
    browser.run("document.querySelector('[aria-selected=true]').focus()")
    browser.press(Keys.ARROW_RIGHT)
    assert browser.find("#tab-queries").get_attribute("aria-selected") == "true"
    for _ in range(5):  # Order, find, list, its first image.
        browser.press(Keys.TAB)
        if browser.run("return !!document.activeElement.dataset.image"):
            break
    first = browser.driver.switch_to.active_element.get_attribute("data-image")
    browser.press(Keys.ARROW_DOWN)
    below = browser.driver.switch_to.active_element.get_attribute("data-image")
    assert below != first
    browser.press(Keys.ENTER)
    browser.wait_for("return location.hash.includes(arguments[0])", f"image={below}&")
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert browser.run(outline) == "solid"


def test_queries_worst_and_best_first(browser, address, shown):
    def images():
        rows = browser.all("#queries-rows .row")
        rows.sort(key=lambda row: int(row.get_attribute("aria-rowindex")))
        return [
            int(row.find_element("css selector", ".tile").get_attribute("data-image"))
            for row in rows
        ]

    browser.show(f"{address}#view=queries")
    rank = shown.rank[images()]
    assert rank[0] == shown.rank.max() > 1 and (np.diff(rank) <= 0).all()
    assert len(rank) < len(shown.queries)  # Only what is in sight exists.
    browser.run(
        "const order = document.getElementById('queries-order'); order.value = 'best';"
        "order.dispatchEvent(new Event('change'))"
    )
    assert (shown.rank[images()] == 1).all()
    browser.run("document.getElementById('queries-rows').scrollTop = 1e6")
    browser.wait_for(
        "return document.querySelector('#queries-rows [aria-rowindex=\"29\"]')"
    )
    browser.find("#queries-filter").send_keys("image 11.")
    browser.wait_for("return document.querySelectorAll('#queries-rows .row').length==1")
    assert images() == [11]
    browser.find("#queries-filter").send_keys("x")
    browser.wait_for("return !document.querySelector('#queries-rows .nothing').hidden")


def test_classes_are_sorted_and_found(browser, address, shown):
    def column(kind):
        rows = browser.all("#classes-rows .row")
        rows.sort(key=lambda row: int(row.get_attribute("aria-rowindex")))
        return [row.find_element("css selector", f".{kind}").text for row in rows]

    browser.show(f"{address}#view=classes")
    means = [
        np.mean(shown.metrics["map@r"][shown.labels[shown.queries] == c])
        for c in range(6)
    ]
    browser.find("#classes-head .map button").click()
    assert column("map") == [f"{100 * mean:.1f}%" for mean in sorted(means)]
    browser.find("#classes-head .map button").click()
    assert column("map") == [f"{100 * mean:.1f}%" for mean in sorted(means)[::-1]]
    sort = browser.find("#classes-head .map").get_attribute("aria-sort")
    assert sort == "descending"
    browser.find("#classes-filter").send_keys("class 4")
    browser.wait_for("return document.querySelectorAll('#classes-rows .row').length==1")
    browser.find("#classes-rows .name .class").click()
    browser.wait_for("return location.hash.includes('view=queries&class=4')")
    assert browser.find("#queries-count").text.startswith("5 queries")
    browser.find("#queries-class button").click()
    browser.wait_for("return !location.hash.includes('class=')")
    assert browser.find("#queries-count").text.startswith("29 queries")


def test_confusions_show_their_images(browser, address, shown):
    browser.show(f"{address}#view=confusions")
    row = browser.find("#confusions-rows [aria-rowindex='1']")
    tiles = row.find_elements("css selector", ".tile")
    found = [int(tile.get_attribute("data-image")) for tile in tiles]
    examples = [one for one in shown.confusions.examples[0] if one >= 0]
    assert found[::2] == examples
    assert found[1::2] == shown.neighbors[examples, 0].tolist()
    there, back = shown.confusions.counts[0]
    assert f"{there} of " in row.text and f"{back} of " in row.text
    total = shown.confusions.total
    assert browser.find("#confusions-count").text.startswith(f"{total} pairs")


# Places of ink on the map, from its middle: images, or what is drawn around them.
_POINTS = """
const c = document.getElementById('map-canvas'), found = [];
const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
for (let y = 0; y < c.height; y += 7) {
  for (let x = 0; x < c.width; x += 7) {
    if (d[4 * (y * c.width + x) + 3]) found.push([x - c.width / 2, y - c.height / 2]);
  }
}
return found.length && found
"""


def test_the_map_is_walked_by_mouse_and_keys(browser, address, shown):
    from selenium.webdriver import ActionChains, Keys

    actions = ActionChains(browser.driver)

    browser.show(f"{address}#image=5&view=map")
    canvas = browser.find("#map-canvas")
    ink = (
        "const c = document.getElementById('map-canvas');"
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "let n = 0; for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n"
    )
    assert browser.wait_for(ink) > 500
    browser.run("arguments[0].focus()", canvas)
    for key in (Keys.ARROW_RIGHT, Keys.ARROW_LEFT, Keys.ARROW_UP, Keys.ARROW_DOWN):
        browser.press(key)
    spoken = browser.find("#map-spoken").get_attribute("textContent")
    assert spoken and browser.find("#map-tip").is_displayed()
    browser.press("+")
    browser.press(Keys.ENTER)
    browser.wait_for("return !location.hash.includes('image=5&')")
    name = shown.names[asked(browser)]
    assert name in spoken
    for layout in ("1", "0"):
        browser.run(
            "const one = document.getElementById('map-layout');"
            "one.value = arguments[0]; one.dispatchEvent(new Event('change'))",
            layout,
        )
        assert browser.wait_for(ink) > 500
    browser.run("location.hash = '#view=map&image=12'")
    browser.wait_for("return document.querySelector('.facts a').hash == '#image=12'")
    browser.find("#map-all").click()
    for x, y in browser.wait_for(_POINTS):
        actions.move_to_element_with_offset(canvas, x, y).perform()
        tip = browser.find("#map-tip span").text  # Empty while it is hidden.
        if tip not in ("", "image 12.png"):
            break
    actions.click().perform()
    browser.wait_for("return !location.hash.includes('image=12')")
    assert tip and shown.names[asked(browser)].endswith(tip)


def test_the_heat_map_is_read_by_keys(browser, address, shown):
    from selenium.webdriver import Keys

    browser.show(f"{address}#view=similarities")
    browser.run("document.getElementById('heat-canvas').focus()")
    browser.press(Keys.ARROW_DOWN)
    mean = shown.heat.means[1, 1]
    assert browser.find("#heat-reading .big").text == f"{mean:.3f}"
    browser.press(Keys.ARROW_RIGHT)
    mean = shown.heat.means[1, 2]
    assert browser.find("#heat-reading .big").text == f"{mean:.3f}"
    pairs = shown.histogram.positive.sum(), shown.histogram.negative.sum()
    said = browser.find("#pairs-text").text
    assert f"{pairs[0]} of one class" in said and f"{pairs[1]} of two" in said
    browser.press(Keys.ENTER)
    browser.wait_for(
        "return location.hash.includes(arguments[0])",
        f"view=confusions&class={shown.heat.classes[1]}",
    )


def test_on_a_phone_the_walker_is_a_sheet(browser, address):
    from selenium.webdriver import Keys

    browser.show(f"{address}#view=queries", 360, 800)
    body = browser.find("#walker-body")
    assert not body.is_displayed()
    browser.find("#queries-rows .tile").click()
    assert body.is_displayed()
    assert browser.find("#walker-toggle").get_attribute("aria-expanded") == "true"
    browser.press(Keys.ESCAPE)
    assert not body.is_displayed()
    browser.find("#walker-toggle").click()
    assert body.is_displayed() and browser.overflow() <= 0


def test_an_address_that_names_nothing_is_no_crash(browser, address):
    browser.show(f"{address}#image=999&view=nowhere&class=77")
    assert browser.find("#view-map").is_displayed()
    assert asked(browser) == 0 and browser.complaints() == []
