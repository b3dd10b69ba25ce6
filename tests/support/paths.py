"""Where the parts of the repository lie, wherever a test stands."""

import os
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parent
TESTS = SUPPORT.parent
ROOT = TESTS.parent
BENCHMARKS, CONFIGS = ROOT / "benchmarks", ROOT / "configs"
DOCS, LAUNCH = ROOT / "docs", ROOT / "launch"


def real_data(name: str) -> str:
    """A set of real images beside the repository; skips where it is absent."""
    directory = os.environ.get("METRICJAX_DATA", ROOT.parent / "shared" / "data")
    path = Path(directory) / name
    if not path.exists():
        pytest.skip(f"{path} is not there; METRICJAX_DATA may say where {name} is")
    return str(path)
