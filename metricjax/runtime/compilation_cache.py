"""JAX's persistent compilation cache, on by default, in the user's cache directory.

The next start of the same run, or of a similar one, skips most of the compilation. An
existing `JAX_COMPILATION_CACHE_DIR` is respected; `JAX_ENABLE_COMPILATION_CACHE=false`
turns the cache off.
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
_LIMIT = 2 * 2**30  # bytes; the least recently used programs are evicted


def enable() -> Path | None:
    """Cache programs that take a second or more to compile, from now on.

    Returns:
      The directory: below `metricjax/programs` in the user's cache directory
      (`XDG_CACHE_HOME`, or `~/.cache`), one for each kind of processor, because
      machines may share a home directory. None if it cannot be written, if caching is
      off, or if JAX was given a directory already.
    """
    if (
        jax.config.jax_compilation_cache_dir
        or not jax.config.jax_enable_compilation_cache
    ):
        return None
    try:
        directory = default_directory()
        directory.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: there is no home directory.
        return None
    if not os.access(directory, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_max_size", _LIMIT)
    jax.config.update("jax_compilation_cache_dir", str(directory))
    return directory


def default_directory() -> Path:
    """The default cache directory, whether or not it exists.

    Raises:
      RuntimeError: there is no home directory.
    """
    return user_cache.home() / "programs" / _processor()


def _processor() -> str:
    """Name of this machine's kind of processor: programs compiled for one run on it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    kind = f"{platform.machine()} {platform.processor()} {flags}"
    return f"{platform.machine()}-{hashlib.sha256(kind.encode()).hexdigest()[:8]}"


class Hits:
    """Counts cache hits since it was created; read it with `int()`."""

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
    """The one counter of this process, as JAX cannot unregister a listener."""
    counter = _Counter()
    monitoring.register_event_listener(counter)
    return counter
