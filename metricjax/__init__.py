"""Deep metric learning for image retrieval in JAX/Flax.

`metricjax.losses`, `models`, `data` and `evaluation` are imported when they are first
used, so that importing this package loads nothing else.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metricjax import data, evaluation, losses, models

__version__ = "0.1.0"
__all__ = ["__version__", "data", "evaluation", "losses", "models"]


def __getattr__(name: str):
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
