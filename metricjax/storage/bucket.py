"""The files of a workdir in a bucket, with retries; failures become one sentence.

Come here for how a run's files are listed, uploaded and downloaded, and for which cloud
errors are retried. For a flat directory that may be local too, see `directories`.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from metricjax.errors import InputError, disk_errors
from metricjax.storage.directories import file_system

# Seconds between attempts. The clients of fsspec retry on their own as well.
_WAITS = (2.0, 10.0, 30.0)
# Words of Google's and Amazon's clients for errors that a retry does not fix.
_DENIED = ("forbidden", "denied", "anonymous", "credential", "unauthorized", " 401")


class BucketFiles:
    """The files below an address, by relative name (`a/b.json`).

    Args:
      address: anything that fsspec opens, such as gs://bucket/directory.
      patient: retry failures for about a minute.

    Raises:
      InputError: an unknown kind of address, or its package is not installed.
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
        """Sorted names of all files below a directory; empty if it does not exist."""

        def find() -> list[str]:
            self._files.invalidate_cache()
            with suppress(FileNotFoundError):
                return self._files.find(self._of(directory))
            return []

        start = self._root.strip("/") + "/"
        paths = self._retry(find)
        return sorted(path.strip("/").removeprefix(start) for path in paths)

    def read(self, name: str) -> bytes | None:
        """The content of a file, or None if it does not exist."""

        def read() -> bytes | None:
            with suppress(FileNotFoundError):
                return self._files.cat_file(self._of(name))
            return None

        return self._retry(read)

    def write(self, name: str, content: bytes) -> None:
        """Write or replace a small file."""
        self._retry(lambda: self._files.pipe_file(self._of(name), content))

    def put(self, directory: Path, names: list[str]) -> None:
        """Upload files of a local directory, several at a time."""
        if names:
            local, remote = self._paths(directory, names)
            self._retry(lambda: self._files.put(local, remote))

    def get(self, names: list[str], directory: Path) -> None:
        """Download files into a local directory, several at a time."""
        local, remote = self._paths(directory, names)
        with disk_errors(directory):
            for path in local:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
        if names:
            self._retry(lambda: self._files.get(remote, local))

    def remove(self, names: list[str]) -> None:
        """Remove files in this order; missing ones are ignored."""

        def remove(name: str) -> None:
            with suppress(FileNotFoundError):
                self._files.rm_file(self._of(name))

        for name in names:
            self._retry(lambda name=name: remove(name))

    def _of(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _paths(self, directory: Path, names: list[str]) -> tuple[list[str], list[str]]:
        return [str(directory / name) for name in names], list(map(self._of, names))

    def _retry(self, call: Callable[[], Any]) -> Any:
        """Call, and retry after failures that may go away."""
        for wait in (*self._waits, None):
            try:
                with disk_errors(Path(self.address)):
                    return call()
            except InputError:
                raise
            except Exception as error:  # Every kind of bucket has its own errors.
                remedy = _remedy(error)
                if wait is None or remedy:
                    what = " ".join(str(error).split()) or type(error).__name__
                    raise InputError(
                        f"--workdir {self.address} cannot be used ({what[:300]}): "
                        f"{remedy or _AGAIN}"
                    ) from error
            time.sleep(wait)


_AGAIN = (
    "check that this machine can reach it, and run the same command again to resume "
    "from its last checkpoint."
)


def _remedy(error: Exception) -> str:
    """What the user must do about a permanent error; "" for one worth a retry."""
    text = f" {error}".lower()
    if isinstance(error, FileNotFoundError):
        return "does the bucket exist? Create it, or choose another --workdir."
    if isinstance(error, PermissionError) or any(word in text for word in _DENIED):
        return (
            "let this machine's account read, write and delete there, or log in, for "
            "gs:// with gcloud auth application-default login."
        )
    if isinstance(error, ValueError | TypeError | NotImplementedError):
        return "choose another --workdir."
    return ""
