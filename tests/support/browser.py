"""A headless Chromium for tests of pages: what a person would see, press and read."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

# Nothing but the page under test is to be loaded, and nothing is to be reported.
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def opened() -> Iterator["Browser"]:
    """A browser with a profile of its own, closed at the end.

    Skips the test where there is no Selenium, Chromium or chromedriver.
    """
    selenium = pytest.importorskip("selenium.webdriver", reason="no Selenium here")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver_program = shutil.which("chromedriver")
    if not program or not driver_program:
        pytest.skip("no Chromium with its chromedriver here")
    options = selenium.ChromeOptions()
    options.binary_location = program
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*_FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = selenium.Chrome(options, selenium.ChromeService(driver_program))
        try:
            yield Browser(driver)
        finally:
            driver.quit()


class Browser:
    """One tab of a browser.

    Attributes:
      driver: Selenium's, for all that is not here.
    """

    def __init__(self, driver):
        self.driver = driver

    def show(self, address: str, width: int = 1280, height: int = 900, dark=False):
        """Opens a page at a size in CSS pixels, in the light or the dark scheme."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._command("Emulation.setEmulatedMedia", features=[scheme])
        size = {"width": width, "height": height}
        phone = {"deviceScaleFactor": 1, "mobile": width < 600}
        self._command("Emulation.setDeviceMetricsOverride", **size, **phone)
        self.driver.get_log("browser")  # What an earlier page said is forgotten.
        self.driver.get("about:blank")  # Another #hash alone would load nothing.
        self.driver.get(address)

    def run(self, script: str, *arguments):
        """The value of a JavaScript function's body."""
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str):
        """The first element of a CSS selector."""
        return self.driver.find_element("css selector", selector)

    def all(self, selector: str) -> list:
        """All elements of a CSS selector."""
        return self.driver.find_elements("css selector", selector)

    def press(self, keys: str) -> None:
        """Keys pressed wherever the focus is; `selenium.webdriver.Keys` names more."""
        self.driver.switch_to.active_element.send_keys(keys)

    def wait_for(self, script: str, *arguments, seconds: float = 20):
        """The value of a JavaScript function's body as soon as it is true."""
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, seconds, poll_frequency=0.05).until(
            lambda driver: driver.execute_script(script, *arguments),
            f"this never came true: {script}",
        )

    def complaints(self) -> list[str]:
        """Errors and refusals the page has caused since it was opened."""
        return [
            entry["message"]
            for entry in self.driver.get_log("browser")
            if entry["level"] in ("SEVERE", "WARNING")
        ]

    def overflow(self) -> int:
        """CSS pixels by which the page is wider than its window; 0 is well."""
        root = "document.documentElement"
        return self.run(f"return {root}.scrollWidth - {root}.clientWidth")

    def screenshot(self, path) -> None:
        """What is seen now, as a PNG file."""
        self.driver.save_screenshot(str(path))

    def _command(self, name: str, **parameters) -> None:
        self.driver.execute_cdp_cmd(name, parameters)
