"""Eight host devices for every test, set before JAX starts its backend.

XLA ends a process whose devices have not all come to an all-reduce within 40 s, as they
have not where the machine itself stood still; here it waits for ten minutes.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    + " --xla_cpu_collective_call_terminate_timeout_seconds=600"
)

import browser as browsers  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402
from tiny import Tiny  # noqa: E402


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A small run, made ready; see tests/tiny.py."""
    return Tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def quick():
    """Programs that compile in a third of the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def browser():
    """A headless browser; skips where there is none. See tests/browser.py."""
    with browsers.opened() as one:
        yield one
