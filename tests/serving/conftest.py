"""One server for all tests that talk to one."""

import pytest
import served


@pytest.fixture(scope="session")
def running(tmp_path_factory):
    """See `served.start`; it must end well, whatever the tests have sent."""
    running = served.start(served.make_gallery(tmp_path_factory.mktemp("gallery")))
    yield running
    assert running.end() == (0, "", "")
