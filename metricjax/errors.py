"""`InputError` for whatever the user can fix, full disks included; words for messages.

Come here to write an error message: what was found, near names, counts of things.
"""

import difflib
import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class InputError(ValueError):
    """A mistake that the user can fix, reported in one sentence.

    The sentence names the file or option, what was found and what to do. Commands print
    it without a traceback and exit with code 2; for a caller of the library it is a
    `ValueError`.
    """


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raise a full disk or quota as an `InputError` that names `path`."""
    try:
        yield
    except Exception as error:
        if not _is_full(error):
            raise
        raise InputError(
            f"{path}: the disk is full; free some space and run the same command again "
            "to resume."
        ) from error


def _is_full(error: BaseException | None) -> bool:
    # Orbax and others raise errors of their own and keep the cause or only its words.
    if error is None:
        return False
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return True
    words = ("No space left on device", "Disk quota exceeded", "File too large")
    if any(word in str(error) for word in words):
        return True
    return _is_full(error.__cause__ or error.__context__)


def suggestion(name: str, known: Sequence[str]) -> str:
    """` (did you mean 'x'?)` if a known name is similar, else an empty string."""
    near = difflib.get_close_matches(str(name), known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """`1 image`, `2,000 images`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
