"""Files of a bucket, asked for with patience; what goes wrong becomes a sentence."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from metricjax.errors import InputError, disk_errors
from metricjax.storage.directories import file_system

# Between one try and the next, in seconds. What fsspec opens tries again by itself too.
_WAITS = (2.0, 10.0, 30.0)
# What no patience mends, as Google's and Amazon's clients say it.
_DENIED = ("forbidden", "denied", "anonymous", "credential", "unauthorized", " 401")


class BucketFiles:
    """The files below an address, by their names from there on (`a/b.json`).

    Args:
      address: anything that fsspec opens, such as gs://bucket/directory.
      patient: whether to try again what fails, for about a minute.

    Raises:
      InputError: the address is of no known kind, or its package is not installed.
    """

    def __init__(self, address: str, patient: bool = True):
        self.address = address.rstrip("/")
        self._waits = _WAITS if patient else ()
        self._files, self._root = file_system(address)
        if not self._root.strip("/"):
            raise InputError(
                f"--workdir {address} names no bucket: give one, and a directory in "
                "it, such as gs://bucket/run."
            )

    def find(self, directory: str) -> list[str]:
        """The names of all files below a directory, in order; none if there is none."""

        def find() -> list[str]:
            self._files.invalidate_cache()
            with suppress(FileNotFoundError):
                return self._files.find(self._of(directory))
            return []

        start = self._root.strip("/") + "/"
        found = self._patiently(find)
        return sorted(path.strip("/").removeprefix(start) for path in found)

    def read(self, name: str) -> bytes | None:
        """The content of a file, or None if there is none."""

        def read() -> bytes | None:
            with suppress(FileNotFoundError):
                return self._files.cat_file(self._of(name))
            return None

        return self._patiently(read)

    def write(self, name: str, content: bytes) -> None:
        """Write a small file, or replace it."""
        self._patiently(lambda: self._files.pipe_file(self._of(name), content))

    def put(self, directory: Path, names: list[str]) -> None:
        """Copy files of a local directory there, several at a time."""
        if names:
            local, remote = self._paths(directory, names)
            self._patiently(lambda: self._files.put(local, remote))

    def get(self, names: list[str], directory: Path) -> None:
        """Copy files into a local directory, several at a time."""
        local, remote = self._paths(directory, names)
        with disk_errors(directory):
            for path in local:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
        if names:
            self._patiently(lambda: self._files.get(remote, local))

    def remove(self, names: list[str]) -> None:
        """Remove files, those that are there, in this order."""

        def remove(name: str) -> None:
            with suppress(FileNotFoundError):
                self._files.rm_file(self._of(name))

        for name in names:
            self._patiently(lambda name=name: remove(name))

    def _of(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _paths(self, directory: Path, names: list[str]) -> tuple[list[str], list[str]]:
        return [str(directory / name) for name in names], list(map(self._of, names))

    def _patiently(self, call: Callable[[], Any]) -> Any:
        """The value of a call that is made again where that may help."""
        for wait in (*self._waits, None):
            try:
                with disk_errors(Path(self.address)):
                    return call()
            except InputError:
                raise
            except Exception as error:  # Each kind of bucket has errors of its own.
                remedy = _remedy(error)
                if wait is None or remedy:
                    what = " ".join(str(error).split()) or type(error).__name__
                    raise InputError(
                        f"--workdir {self.address} cannot be used ({what[:300]}): "
                        f"{remedy or _AGAIN}"
                    ) from error
            time.sleep(wait)


_AGAIN = (
    "see that this machine reaches it, and run the same command again to go on from "
    "the last checkpoint there."
)


def _remedy(error: Exception) -> str:
    """What helps against an error that would come again; nothing of another."""
    text = f" {error}".lower()
    if isinstance(error, FileNotFoundError):
        return "is there such a bucket? Make it, or choose another --workdir."
    if isinstance(error, PermissionError) or any(word in text for word in _DENIED):
        return (
            "let this machine's account read, write and delete there, or log in, for "
            "gs:// with gcloud auth application-default login."
        )
    if isinstance(error, ValueError | TypeError | NotImplementedError):
        return "choose another --workdir."
    return ""
