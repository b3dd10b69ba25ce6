"""Where metricjax keeps what it can make again: in the user's cache directory."""

import os
from pathlib import Path


def home() -> Path:
    """Metricjax's own directory in the user's cache directory, there or not.

    Raises:
      RuntimeError: there is no home.
    """
    caches = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(caches) / "metricjax"
