"""Compiled programs, kept for the next start of the same run or a like one.

JAX's own persistent cache, with a place and a limit by default. Who has set
`JAX_COMPILATION_CACHE_DIR` keeps that; `JAX_ENABLE_COMPILATION_CACHE=false` turns it
off.
"""

import functools
import hashlib
import os
import platform
from pathlib import Path

import jax
from jax import monitoring

from metricjax.storage import user_cache

_HIT = "/jax/compilation_cache/cache_hits"
_LIMIT = 2 * 2**30  # bytes; what was not used for longest goes first


def use() -> Path | None:
    """Keep what is compiled from now on; programs that took a second or more.

    Returns:
      The directory: `metricjax/programs` in the user's cache directory
      (`XDG_CACHE_HOME`, or `~/.cache`), and in it one for each kind of processor, as
      homes are shared between machines. None where it cannot be written, where caching
      is off, or where JAX was given another place.
    """
    if (
        jax.config.jax_compilation_cache_dir
        or not jax.config.jax_enable_compilation_cache
    ):
        return None
    try:
        directory = place()
        directory.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # The latter where there is no home.
        return None
    if not os.access(directory, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_max_size", _LIMIT)
    jax.config.update("jax_compilation_cache_dir", str(directory))
    return directory


def place() -> Path:
    """The directory by default, whether or not it is there.

    Raises:
      RuntimeError: there is no home.
    """
    return user_cache.home() / "programs" / _processor()


def _processor() -> str:
    """A name for what programs of this machine's processor run on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    kind = f"{platform.machine()} {platform.processor()} {flags}"
    return f"{platform.machine()}-{hashlib.sha256(kind.encode()).hexdigest()[:8]}"


class Hits:
    """How many programs have been found in the cache since it was made."""

    def __init__(self):
        self._before = _counter().count

    def __int__(self) -> int:
        return _counter().count - self._before


class _Counter:
    count = 0

    def __call__(self, event: str, **_) -> None:
        self.count += event == _HIT


@functools.cache
def _counter() -> _Counter:
    """The one counter of this process, which listens from now on."""
    counter = _Counter()
    monitoring.register_event_listener(counter)
    return counter
