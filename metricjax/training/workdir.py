"""The directory of a run: claimed by its settings, refused to others."""

import json
from pathlib import Path

from metricjax.config import identity
from metricjax.config.schema import RunConfig
from metricjax.errors import InputError
from metricjax.storage.atomic import write_atomically


def check_owner(workdir: Path, config: RunConfig) -> None:
    """Check that the workdir is free or holds a run of these settings.

    Raises:
      InputError: it holds a run of another config, or cannot be read.
    """
    path = workdir / "config.json"
    try:
        text = path.read_bytes() if path.exists() else None
    except OSError as error:
        raise identity.unreadable(workdir, error) from error
    identity.check_config(text, workdir, config)


def claim(workdir: Path, config: RunConfig) -> None:
    """Make the workdir and write down whose it is.

    Raises:
      InputError: it cannot be made or written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        text = json.dumps(identity.as_json(config), indent=1)
        write_atomically(workdir / "config.json", text + "\n")
    except OSError as error:
        raise InputError(
            f"--workdir {workdir} cannot be used ({error}): choose another directory."
        ) from error
