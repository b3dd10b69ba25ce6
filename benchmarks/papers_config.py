"""Config of one case of `papers.py`, for `--config benchmarks/papers_config.py:CASE`.

CASE is TABLE/NAME/DATA, such as "cgd/SM/omniglot".
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from papers_cases import config_of  # noqa: E402


def get_config(variant):
    return config_of(*variant.split("/"))
