"""Which settings make two starts one run, and which may change in between.

Come here to allow a new setting to change when a run is resumed. Whoever opens a
workdir compares its config.json by `differences`; comparisons of finished runs group
them by `settings_that_count`.
"""

import json
from collections.abc import Mapping
from typing import Any

from metricjax.config.parsing import flat, to_dict
from metricjax.config.schema import RunConfig

# Settings that do not change what a run computes: logging, saving, where files are.
_FREE = {"log_every", "checkpoint_every", "host_timeout", "plan"}
_FREE |= {f"data.{name}" for name in ("root", "source", "threads", "cache_gib")}


def as_json(config: RunConfig) -> dict[str, Any]:
    """The settings as they come back from config.json."""
    return json.loads(json.dumps(to_dict(config)))


def settings_that_count(config: RunConfig) -> dict[str, Any]:
    """`{"a.b": value}` of all settings that may not change when a run is resumed."""
    return {
        name: value
        for name, value in flat(as_json(config)).items()
        if not {name, name.partition(".")[0]} & _FREE
    }


def differences(
    stored: Mapping[str, Any], config: RunConfig
) -> list[tuple[str, Any, Any]]:
    """What keeps a run from being resumed with these settings.

    Args:
      stored: the content of the run's config.json.
      config: the settings now.

    Returns:
      (setting, stored value, value now), sorted by setting. A setting or group that one
      side lacks counts as None there.
    """
    return list(_differences(stored, as_json(config), ""))


def _differences(stored, now, path):
    if path in _FREE:
        return
    if isinstance(stored, dict) and isinstance(now, dict):
        for name in sorted({*stored, *now}):
            where = f"{path}.{name}" if path else name
            yield from _differences(stored.get(name), now.get(name), where)
    elif stored != now:
        yield path, stored, now
