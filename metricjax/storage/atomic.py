"""Write files atomically, and keep a second writer out of a directory.

Come here for anything that must never be seen half written: a reader finds the old file
or the new one.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from metricjax.errors import InputError, disk_errors


def write_atomically(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
      InputError: the disk is full.
    """
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yields a temporary file that takes the place of `path` if nothing goes wrong.

    Raises:
      InputError: the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(directory: Path, in_use: str) -> Iterator[None]:
    """Nobody else in here; the system lets go of the lock when the process ends.

    Raises:
      InputError: with the sentence `in_use`, if another process is in here.
    """
    import fcntl

    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise InputError(in_use) from error
    except OSError:
        pass  # Some file systems have no locks; then two writers are the user's care.
    try:
        yield
    finally:
        os.close(handle)
