"""Eight host devices for every test, set before JAX starts its backend."""

import os

from devices import xla_flags
from paths import SUPPORT

os.environ["JAX_PLATFORMS"] = "cpu"
# Child processes find tests/support, too.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(SUPPORT), os.environ.get("PYTHONPATH")])
)
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " " + xla_flags(8)

import browser as browsers  # noqa: E402
import compiled  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402
from tiny import Tiny  # noqa: E402


def pytest_configure(config):
    """Compiled programs are kept: for all workers, and for the next run of the tests.

    `-p no:cacheprovider` keeps none.
    """
    if hasattr(config, "cache"):
        compiled.keep_in(config.cache.mkdir("programs"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A small run, made ready; see tests/support/tiny.py."""
    return Tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def quick():
    """Programs that compile in a third of the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def browser():
    """A headless browser; skips where there is none. See tests/support/browser.py."""
    with browsers.opened() as one:
        yield one
