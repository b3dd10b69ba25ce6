"""The settings of a run: `schema` and `constraints`, `parsing` of files, `identity`.

A config file starts so::

    from metricjax.config import default_config, terms
"""

from metricjax.config.parsing import (
    DATA_VARIANTS,
    choose_variant,
    default_config,
    terms,
    use_data,
)

__all__ = ["DATA_VARIANTS", "choose_variant", "default_config", "terms", "use_data"]
