"""Write files atomically, and lock a directory against a second writer.

Come here for anything that must never be seen half written: a reader finds the old file
or the new one.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from metricjax.errors import InputError, disk_errors


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that readers see the old content or all of the new.

    Raises:
      InputError: the disk is full.
    """
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary file that replaces `path` unless the body raises.

    Raises:
      InputError: the disk is full.
    """
    path = Path(path)
    # In the same directory, because a rename is atomic within one file system only.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(directory: Path, in_use: str) -> Iterator[None]:
    """Hold an exclusive lock on a directory; a killed process releases it.

    Args:
      directory: an existing local directory.
      in_use: the message if another process holds the lock.

    Raises:
      InputError: another process holds the lock.
    """
    import fcntl

    # flock belongs to the open file, so the kernel releases it however we end.
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise InputError(in_use) from error
    except OSError:
        pass  # Some network file systems have no locks; go ahead without one.
    try:
        yield
    finally:
        os.close(handle)
