"""The page as a person uses it, in a browser."""

import base64

import pytest
import served

CARDS = "#results a.card"


@pytest.fixture
def page(browser, running):
    def show(fragment="", **options):
        browser.show(f"http://127.0.0.1:{running.port}/{fragment}", **options)
        settle(browser)
        return browser

    return show


def settle(browser):
    """Wait for the answer to what was done last."""
    browser.wait_for("return !document.body.classList.contains('waits')")


def titles(browser):
    return [card.get_attribute("innerText") for card in browser.all(f"{CARDS} b")]


def choose(browser, tmp_path, colour, name="mine.png"):
    path = tmp_path / name
    path.write_bytes(served.encode(served.draw(colour)))
    browser.find("#choose").send_keys(str(path))
    browser.wait_for("return location.hash.startsWith('#picture')")
    settle(browser)


def test_it_begins_with_samples_and_loads_nothing_from_elsewhere(page, running):
    browser = page()
    assert len(browser.all(CARDS)) == 19
    loaded = browser.run(
        "return performance.getEntriesByType('resource').map(entry => entry.name)"
    )
    assert loaded and all(f"127.0.0.1:{running.port}/" in address for address in loaded)
    assert browser.complaints() == []
    pictures = "return [...document.querySelectorAll('#results img')]"
    browser.wait_for(pictures + ".every(image => image.complete)")
    assert browser.run(pictures + ".every(image => image.naturalWidth > 0)")


def test_names_are_text_and_never_run(page):
    browser = page()
    names = {name for name, _, _ in served.KINDS}
    assert set(titles(browser)) == {name.strip() for name in names}
    assert (
        browser.run("return document.querySelectorAll('#results script').length") == 0
    )
    assert browser.run("return document.title") == "colours: metricjax search"


def test_a_file_is_chosen(page, tmp_path):
    browser = page()
    choose(browser, tmp_path, served.KINDS[3][2], "<b>mine.png")
    assert titles(browser)[:4] == ["blue"] * 4
    assert browser.find("#asked-name").text == "<b>mine.png"
    assert browser.find("#asked-picture").get_attribute("naturalWidth") == "40"
    same = browser.all(f"{CARDS} .same")
    assert browser.find("#status").text.startswith("12 of 19 images in")
    assert (
        f"; {len(same)} the same (0.980 or more; 0.1% false matches)"
        in browser.find("#status").text
    )
    assert browser.complaints() == []


DROP = """
const bytes = Uint8Array.from(atob(arguments[0]), one => one.charCodeAt(0));
const files = new DataTransfer();
files.items.add(new File([bytes], "dropped.png", {type: "image/png"}));
const happened = arguments[1] === "paste"
    ? new ClipboardEvent("paste", {clipboardData: files, bubbles: true})
    : new DragEvent("drop", {dataTransfer: files, bubbles: true, cancelable: true});
document.body.dispatchEvent(happened);
"""


@pytest.mark.parametrize("how", ["drop", "paste"])
def test_a_file_is_dropped_or_pasted(how, page):
    browser = page()
    content = served.encode(served.draw(served.KINDS[0][2]))
    browser.run(DROP, base64.b64encode(content).decode(), how)
    browser.wait_for("return location.hash.startsWith('#picture')")
    settle(browser)
    assert titles(browser)[:4] == ["red"] * 4


def test_what_is_no_picture_gets_the_servers_sentence(page, tmp_path):
    browser = page()
    (tmp_path / "page.png").write_text("<script>document.title = 'owned'</script>")
    browser.find("#choose").send_keys(str(tmp_path / "page.png"))
    browser.wait_for("return !document.getElementById('problem').hidden")
    assert browser.find("#problem").text.startswith("This is not a picture: send")
    assert browser.all(CARDS) == []
    choose(browser, tmp_path, served.KINDS[0][2])
    assert not browser.find("#problem").is_displayed()
    assert titles(browser)[:4] == ["red"] * 4


def test_a_picture_that_is_too_large_is_made_smaller_here(page, tmp_path):
    browser = page()
    noisy = served.draw(served.KINDS[3][2], size=(900, 900))
    path = tmp_path / "large.bmp"
    path.write_bytes(served.encode(noisy, "BMP"))
    assert path.stat().st_size > 2**20
    browser.find("#choose").send_keys(str(path))
    browser.wait_for("return location.hash.startsWith('#picture')")
    settle(browser)
    assert titles(browser)[:4] == ["blue"] * 4


def test_one_walks_and_comes_back(page, tmp_path):
    browser = page()
    choose(browser, tmp_path, served.KINDS[0][2])
    cards = browser.all(CARDS)
    first = cards[0].get_attribute("href").partition("#")[2]
    cards[0].click()
    browser.wait_for("return location.hash === arguments[0]", f"#{first}")
    settle(browser)
    assert browser.find("#asked-class").text == "red"
    assert browser.find("#asked-category").text == "warm"
    # An image does not find itself.
    assert first not in [
        card.get_attribute("href").partition("#")[2] for card in browser.all(CARDS)
    ]
    assert len(browser.all("#trail a")) == 2
    browser.driver.back()
    browser.wait_for("return location.hash.startsWith('#picture')")
    settle(browser)
    assert browser.find("#asked-name").text == "mine.png"
    browser.find("#clear").click()
    browser.wait_for("return document.getElementById('asked').hidden")


def test_the_way_to_the_explorer(page, tmp_path):
    browser = page()
    assert browser.find("nav a").text == "Explorer"
    choose(browser, tmp_path, served.KINDS[0][2])
    assert not browser.find("#asked-explorer").is_displayed()
    browser = page("#image=7")
    browser.find("#asked-explorer").click()
    browser.wait_for("return document.title === 'explored'")
    assert browser.run("return location.pathname + location.hash") == (
        "/explorer.html#image=7"
    )


def test_filters_stand_in_the_address(page):
    browser = page("#image=0&top=24")
    browser.find("#category").send_keys("cold <b>")
    browser.wait_for("return location.hash.includes('category')")
    settle(browser)
    assert len(browser.all(CARDS)) == 10
    assert {served.KINDS[2][0].strip(), "blue"} == set(titles(browser))
    field = browser.find("#class")
    field.send_keys("blu")
    browser.wait_for(
        "return document.querySelector('#classes option')?.value === 'blue'"
    )
    field.send_keys("e\n")
    browser.wait_for("return location.hash.includes('class=blue')")
    settle(browser)
    assert titles(browser) == ["blue"] * 5
    browser = page("#image=0&class=blue&top=48")
    assert titles(browser) == ["blue"] * 5
    assert browser.find("#class").get_attribute("value") == "blue"
    browser = page("#image=0&class=bleu")
    assert "did you mean 'blue'?" in browser.find("#problem").text


def test_by_keyboard_alone(page):
    from selenium.webdriver import ActionChains, Keys

    browser = page("#image=0")
    browser.run("document.querySelector('#results a').focus()")
    browser.press(Keys.ARROW_RIGHT)
    cards = "[...document.querySelectorAll('#results a')]"
    focused = f"return {cards}.indexOf(document.activeElement)"
    assert browser.run(focused) == 1
    browser.press(Keys.ARROW_DOWN)
    assert browser.run(focused) > 2
    wanted = browser.run("return document.activeElement.hash")
    browser.press(Keys.ENTER)
    browser.wait_for("return location.hash === arguments[0]", wanted)
    settle(browser)
    assert browser.run("return document.activeElement.id") == "heading"
    browser.press(Keys.ESCAPE)
    browser.wait_for("return document.getElementById('asked').hidden")
    reached = set()
    browser.run("document.activeElement.blur()")
    for _ in range(12):
        ActionChains(browser.driver).send_keys(Keys.TAB).perform()
        reached.add(browser.run("return document.activeElement.id"))
    assert {"choose", "category", "class", "top", "others"} <= reached


def test_what_is_said_to_who_does_not_see(page):
    browser = page("#image=0")
    assert browser.find("#status").get_attribute("role") == "status"
    assert browser.find("#problem").get_attribute("role") == "alert"
    label = browser.find(CARDS).get_attribute("aria-label")
    assert label.startswith("red, warm, similarity ") and label.endswith("the same")
    unnamed = """
        return [...document.querySelectorAll("input, select, button, a")]
            .filter(one => !(one.labels?.length || one.textContent.trim()
                || one.ariaLabel || one.querySelector("img[alt]:not([alt=''])")))
            .map(one => one.outerHTML)"""
    assert browser.run(unnamed) == []


@pytest.mark.parametrize("width, height", [(360, 800), (768, 1024), (1280, 900)])
@pytest.mark.parametrize("fragment", ["", "#image=5&top=48"])
def test_it_fits(width, height, fragment, page):
    browser = page(fragment, width=width, height=height)
    assert browser.overflow() == 0
    assert browser.complaints() == []


def test_a_server_that_is_gone(page):
    browser = page()
    browser.run("window.fetch = () => Promise.reject(new TypeError('Failed to fetch'))")
    browser.find("#others").click()
    browser.wait_for("return !document.getElementById('problem').hidden")
    assert "is it still running?" in browser.find("#problem").text
