"""The user's cache directory: for files that metricjax can create again."""

import os
from pathlib import Path


def home() -> Path:
    """$XDG_CACHE_HOME/metricjax or ~/.cache/metricjax; it may not exist yet.

    Raises:
      RuntimeError: the home directory is unknown.
    """
    caches = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(caches) / "metricjax"
