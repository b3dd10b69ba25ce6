"""A persistent cache of compiled programs for the tests' own process.

Most of the time of most tests is compiling. What one worker has compiled the other
finds, and the next run of the tests finds nearly all of it: JAX's key is the program,
the compiler's version and its options, so that a changed program is compiled anew.
Processes that tests kill have caches of their own (see tests/support/tiny.py): a kill
can leave half an entry.
"""

import shutil
from pathlib import Path

import jax

from metricjax.runtime import compilation_cache

LIMIT = 2**30  # bytes; the directory is emptied when it is larger


def keep_in(directory: Path) -> None:
    """Look for programs in `directory` before compiling them, and write them there."""
    # Programs are for one kind of processor, as in the user's cache.
    directory = directory / compilation_cache.default_directory().name
    size = sum(path.stat().st_size for path in directory.glob("*"))
    if size > LIMIT:
        shutil.rmtree(directory, ignore_errors=True)
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def environment() -> dict[str, str]:
    """Variables for a process that is to use the same cache, if there is one."""
    directory = jax.config.jax_compilation_cache_dir
    if directory is None:
        return {}
    return {
        "JAX_COMPILATION_CACHE_DIR": directory,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
