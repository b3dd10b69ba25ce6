"""Compiled programs are kept for the next start, in a place of their own."""

import os
import subprocess
import sys

import pytest

COMPILE = """
import jax
from metricjax.runtime import compilation_cache
directory = compilation_cache.enable()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
hits = compilation_cache.Hits()
jax.jit(lambda x: jax.numpy.sin(x) @ x).lower(jax.numpy.ones((3, 3))).compile()
print(directory, int(hits))
"""


def start(**environment):
    """(directory, hits) of a process that compiles something."""
    inherited = {k: v for k, v in os.environ.items() if "COMPILATION_CACHE" not in k}
    out = subprocess.run(
        [sys.executable, "-c", COMPILE],
        check=True,
        capture_output=True,
        text=True,
        env=inherited | environment,
    ).stdout
    directory, hits = out.split()
    return directory, int(hits)


def test_the_second_start_finds_what_the_first_compiled(tmp_path):
    home = str(tmp_path)
    directory, hits = start(XDG_CACHE_HOME=home)
    assert directory.startswith(os.path.join(home, "metricjax", "programs"))
    assert os.listdir(directory) and hits == 0
    again, hits = start(XDG_CACHE_HOME=home)
    assert again == directory and hits > 0


@pytest.mark.parametrize(
    "settings",
    [
        {"JAX_COMPILATION_CACHE_DIR": "elsewhere"},
        {"JAX_ENABLE_COMPILATION_CACHE": "false"},
    ],
)
def test_what_jax_was_told_is_kept_to(tmp_path, settings):
    settings = {
        k: v.replace("elsewhere", str(tmp_path / "else")) for k, v in settings.items()
    }
    directory, _ = start(XDG_CACHE_HOME=str(tmp_path), **settings)
    assert directory == "None" and not (tmp_path / "metricjax").exists()
    assert (tmp_path / "else").exists() == ("JAX_COMPILATION_CACHE_DIR" in settings)


def test_a_place_that_cannot_be_made_is_done_without(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    assert start(XDG_CACHE_HOME=str(file)) == ("None", 0)
