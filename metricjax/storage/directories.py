"""One flat directory, local or in a bucket, behind one interface: `open_storage`.

Come here for small files and packed shards whose directory may be a gs:// URL. Files
appear whole or not at all. A run's workdir in a bucket has subdirectories and needs
retries: see `bucket.BucketFiles`.
"""

import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from metricjax.errors import InputError, disk_errors
from metricjax.storage.atomic import locked


class Storage(Protocol):
    """The files of one directory, by name; failures are raised as `InputError`."""

    root: str

    def names(self) -> list[str]:
        """Sorted file names; empty if the directory does not exist."""

    def read(self, name: str) -> bytes | None:
        """The content of a file, or None if it does not exist."""

    def write(self, name: str, content: bytes) -> None:
        """Write or replace a small file."""

    def remove(self, name: str) -> None:
        """Remove an existing file."""

    def staging(self) -> AbstractContextManager[Path]:
        """Yield a local directory in which to write the files that `put` moves in.

        Creates the directory; a local one is locked against other writers.
        """

    def put(self, file: Path, name: str) -> None:
        """Move a finished file from the `staging` directory into this one."""

    def fetch(self, name: str, directory: Path) -> Path:
        """The local path of a file; one in a bucket is downloaded to `directory`."""


def open_storage(root: str | os.PathLike) -> Storage:
    """Open a path or an fsspec URL such as gs://bucket/directory.

    Raises:
      InputError: an unknown kind of URL, or its package is not installed.
    """
    path = local_path(root)
    return RemoteStorage(os.fspath(root)) if path is None else LocalStorage(path)


def local_path(root: str | os.PathLike) -> Path | None:
    """The local path of a directory or file:// URL; None for any other URL."""
    root = os.fspath(root).removeprefix("file://")
    return None if "://" in root else Path(root).expanduser()


class LocalStorage:
    """A directory on this machine; see `Storage`."""

    def __init__(self, path: Path):
        self.root = str(path)
        self._path = path

    def names(self) -> list[str]:
        with _as_input_errors(self.root):
            return sorted(os.listdir(self._path)) if self._path.is_dir() else []

    def read(self, name: str) -> bytes | None:
        with _as_input_errors(self.root):
            path = self._path / name
            return path.read_bytes() if path.is_file() else None

    def write(self, name: str, content: bytes) -> None:
        temporary = self._path / f".{name}.tmp"
        try:
            with _as_input_errors(self.root):
                temporary.write_bytes(content)
                self.put(temporary, name)
        finally:
            temporary.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        with _as_input_errors(self.root):
            (self._path / name).unlink()

    @contextmanager
    def staging(self) -> Iterator[Path]:
        with _as_input_errors(self.root):
            self._path.mkdir(parents=True, exist_ok=True)
        packing = (
            f"Another process is packing into {self._path}: wait for it, or choose "
            "another directory."
        )
        with locked(self._path, packing):
            yield self._path

    def put(self, file: Path, name: str) -> None:
        with _as_input_errors(self.root):
            # On disk before the rename: a crash must not leave a name without bytes.
            with open(file, "rb+") as written:
                os.fsync(written.fileno())
            os.replace(file, self._path / name)

    def fetch(self, name: str, directory: Path) -> Path:
        return self._path / name


class RemoteStorage:
    """A directory in a file system that fsspec opens, such as a bucket."""

    def __init__(self, root: str):
        self.root = root
        self._files, self._path = file_system(root)

    def names(self) -> list[str]:
        with _as_input_errors(self.root):
            self._files.invalidate_cache()
            try:
                paths = self._files.ls(self._path, detail=False)
            except FileNotFoundError:
                return []
        return sorted(path.rstrip("/").rpartition("/")[2] for path in paths)

    def read(self, name: str) -> bytes | None:
        with _as_input_errors(self.root):
            try:
                return self._files.cat_file(self._of(name))
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        with _as_input_errors(self.root):
            self._files.pipe_file(self._of(name), content)

    def remove(self, name: str) -> None:
        with _as_input_errors(self.root):
            self._files.rm_file(self._of(name))

    @contextmanager
    def staging(self) -> Iterator[Path]:
        with _as_input_errors(tempfile.gettempdir()):
            scratch = Path(tempfile.mkdtemp(prefix="metricjax-"))
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def put(self, file: Path, name: str) -> None:
        with _as_input_errors(self.root):
            self._files.put_file(str(file), self._of(name))
        file.unlink()

    def fetch(self, name: str, directory: Path) -> Path:
        path = directory / name
        temporary = directory / f".{name}.{secrets.token_hex(8)}.tmp"
        try:
            with _as_input_errors(f"{self.root}/{name}"), disk_errors(directory):
                self._files.get_file(self._of(name), str(temporary))
                os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return path

    def _of(self, name: str) -> str:
        return f"{self._path}/{name}"


def file_system(root: str):
    """The fsspec file system of a URL, and the path in it.

    Raises:
      InputError: an unknown kind of URL, or its package is not installed.
    """
    try:
        import fsspec

        # Without permission to read a bucket's metadata, gcsfs warns at every call.
        logging.getLogger("gcsfs").setLevel(logging.ERROR)
        files, path = fsspec.core.url_to_fs(root)
    except ImportError as error:
        raise InputError(
            f"{root} needs a package that is not installed ({error}): for gs:// "
            "pip install 'metricjax[remote]', for other addresses what fsspec wants."
        ) from error
    except Exception as error:  # Every fsspec file system has its own errors.
        raise InputError(
            f"{root} cannot be opened ({error}): give a directory or an address that "
            "fsspec knows, such as gs://bucket/directory."
        ) from error
    return files, path.rstrip("/")


@contextmanager
def _as_input_errors(root: str) -> Iterator[None]:
    """Raise any failure of a file or the network as an `InputError`."""
    try:
        with disk_errors(Path(root)):
            yield
    except InputError:
        raise
    except Exception as error:  # Every fsspec file system has its own errors.
        what = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{root} cannot be used ({what}): fix that, or choose another directory."
        ) from error
