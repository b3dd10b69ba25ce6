"""Which run a workdir belongs to: its config.json is written once, then compared.

Come here for what may be resumed in an existing directory. `remote_workdir.opened` does
the check, for local directories and buckets alike.
"""

import json
from pathlib import Path

from metricjax.config import identity
from metricjax.config.schema import RunConfig
from metricjax.errors import InputError
from metricjax.storage.atomic import write_atomically

CONFIG_FILE = "config.json"
# How many differing settings a message lists.
_LISTED = 5


def read_config_file(workdir: Path) -> bytes | None:
    """The config.json of a local workdir, or None if there is none.

    Raises:
      InputError: it cannot be read.
    """
    path = workdir / CONFIG_FILE
    try:
        return path.read_bytes() if path.exists() else None
    except OSError as error:
        raise _unreadable(workdir, error) from error


def check_owner(content: bytes | None, workdir: Path | str, config: RunConfig) -> None:
    """Check that a workdir is free or holds a run of these settings.

    Args:
      content: its config.json, or None if there is none.
      workdir: the directory, or its address in a bucket, for messages.
      config: the settings.

    Raises:
      InputError: it holds a run of another config, or its config.json is damaged.
    """
    if content is None:
        return
    try:
        stored = json.loads(content.decode())
        if not isinstance(stored, dict):
            raise ValueError("it holds no settings")
    except ValueError as error:
        raise _unreadable(workdir, error) from error
    differences = identity.differences(stored, config)
    if differences:
        changes = [f"{name}: {old!r} -> {new!r}" for name, old, new in differences]
        more = f" and {len(changes) - _LISTED} more" if changes[_LISTED:] else ""
        raise InputError(
            f"{workdir} belongs to a run with another config "
            f"({', '.join(changes[:_LISTED])}{more}): restore its settings to resume "
            "it, or choose another --workdir."
        )


def claim(workdir: Path, config: RunConfig) -> None:
    """Create the workdir and write its config.json.

    Raises:
      InputError: it cannot be created or written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        text = json.dumps(identity.as_json(config), indent=1)
        write_atomically(workdir / CONFIG_FILE, text + "\n")
    except OSError as error:
        raise InputError(
            f"--workdir {workdir} cannot be used ({error}): choose another directory."
        ) from error


def _unreadable(workdir: Path | str, error: Exception) -> InputError:
    return InputError(
        f"{workdir}/{CONFIG_FILE} cannot be read ({error}): choose another --workdir."
    )
