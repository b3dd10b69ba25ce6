"""Which settings make a run the same run: compared when it is resumed."""

import json
from pathlib import Path
from typing import Any

from metricjax.config.parsing import flat, to_dict
from metricjax.config.schema import RunConfig
from metricjax.errors import InputError

# Settings that may change between two starts of the same run.
_FREE = {"log_every", "checkpoint_every", "host_timeout", "plan"}
_FREE |= {f"data.{name}" for name in ("root", "source", "threads", "cache_gib")}
# How many differences a sentence names.
_NAMED = 5


def check_config(text: bytes | None, workdir: Path | str, config: RunConfig) -> None:
    """Check that a config.json is absent or of these settings.

    Args:
      text: its content.
      workdir: where it lies: a directory, or the address of one in a bucket.
      config: the settings.

    Raises:
      InputError: it is of another config, or unreadable.
    """
    if text is None:
        return
    try:
        theirs = json.loads(text.decode())
        if not isinstance(theirs, dict):
            raise ValueError("it holds no settings")
    except ValueError as error:
        raise unreadable(workdir, error) from error
    differences = _differences(theirs, as_json(config))
    if differences:
        changes = [f"{name}: {old!r} -> {new!r}" for name, old, new in differences]
        more = f" and {len(changes) - _NAMED} more" if changes[_NAMED:] else ""
        raise InputError(
            f"{workdir} belongs to a run with another config "
            f"({', '.join(changes[:_NAMED])}{more}): restore its settings to go on "
            "with it, or choose another --workdir."
        )


def unreadable(workdir: Path | str, error: Exception) -> InputError:
    """What to raise where a config.json cannot be read."""
    return InputError(
        f"{workdir}/config.json cannot be read ({error}): choose another --workdir."
    )


def as_json(config: RunConfig) -> dict[str, Any]:
    """The settings as they come back from config.json."""
    return json.loads(json.dumps(to_dict(config)))


def settings_that_count(config: RunConfig) -> dict[str, Any]:
    """`{"a.b": value}` of all settings that a run may not change on the way."""
    return {
        name: value
        for name, value in flat(as_json(config)).items()
        if not {name, name.partition(".")[0]} & _FREE
    }


def _differences(theirs, mine, path="") -> list[tuple[str, Any, Any]]:
    """(setting, their value, my value) wherever two configs differ and may not."""
    if path in _FREE:
        return []
    if isinstance(theirs, dict) and isinstance(mine, dict):
        found = []
        for name in sorted({*theirs, *mine}):
            where = f"{path}.{name}" if path else name
            found += _differences(theirs.get(name), mine.get(name), where)
        return found
    return [] if theirs == mine else [(path, theirs, mine)]
