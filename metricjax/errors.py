"""Mistakes of the user and full disks, each told in one sentence; words for counts."""

import difflib
import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class InputError(ValueError):
    """Bad input, told in one sentence.

    The sentence names the file or the option, what was found and what to do.
    `python -m metricjax.main` prints it without a traceback and exits with code 2;
    to a caller of the library it is an ordinary `ValueError`.
    """


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """A full disk as one sentence instead of a traceback."""
    try:
        yield
    except Exception as error:
        if not _is_full(error):
            raise
        raise InputError(
            f"{path}: the disk is full; free some space and run the same command again "
            "to go on."
        ) from error


def _is_full(error: BaseException | None) -> bool:
    if error is None:
        return False
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return True
    words = ("No space left on device", "Disk quota exceeded", "File too large")
    if any(word in str(error) for word in words):
        return True
    return _is_full(error.__cause__ or error.__context__)


def suggestion(name: str, known: Sequence[str]) -> str:
    """` (did you mean 'x'?)` where a known name is near, else nothing."""
    near = difflib.get_close_matches(str(name), known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """`1 image`, `2,000 images`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
