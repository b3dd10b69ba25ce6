"""A directory here or in a bucket, where a file stands whole or not at all."""

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
    """The files of one directory by their names; errors are `InputError`s."""

    root: str

    def names(self) -> list[str]:
        """What lies there; nothing if there is no such directory."""

    def read(self, name: str) -> bytes | None:
        """The content of a file, or None if there is none."""

    def write(self, name: str, content: bytes) -> None:
        """Writes a small file, or replaces it."""

    def remove(self, name: str) -> None:
        """Removes a file that is there."""

    def claimed(self) -> AbstractContextManager[Path]:
        """Makes a local directory and keeps other writers out of it.

        Yields a directory of this machine in which to write what `put` takes.
        """

    def put(self, file: Path, name: str) -> None:
        """Moves a finished file of the directory of `claimed` there."""

    def fetch(self, name: str, directory: Path) -> Path:
        """The file on this machine; one of a bucket is copied into the directory."""


def open_storage(root: str | os.PathLike) -> Storage:
    """The directory of a path or of an fsspec URL such as gs://bucket/directory.

    Raises:
      InputError: the URL is of no known kind, or its package is not installed.
    """
    path = local_path(root)
    return Bucket(os.fspath(root)) if path is None else Directory(path)


def local_path(root: str | os.PathLike) -> Path | None:
    """The path of a directory of this machine; None of an address elsewhere."""
    root = os.fspath(root).removeprefix("file://")
    return None if "://" in root else Path(root).expanduser()


class Directory:
    """A directory of this machine."""

    def __init__(self, path: Path):
        self.root = str(path)
        self._path = path

    def names(self) -> list[str]:
        with _told(self.root):
            return sorted(os.listdir(self._path)) if self._path.is_dir() else []

    def read(self, name: str) -> bytes | None:
        with _told(self.root):
            path = self._path / name
            return path.read_bytes() if path.is_file() else None

    def write(self, name: str, content: bytes) -> None:
        temporary = self._path / f".{name}.tmp"
        try:
            with _told(self.root):
                temporary.write_bytes(content)
                self.put(temporary, name)
        finally:
            temporary.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        with _told(self.root):
            (self._path / name).unlink()

    @contextmanager
    def claimed(self) -> Iterator[Path]:
        with _told(self.root):
            self._path.mkdir(parents=True, exist_ok=True)
        packing = (
            f"Another process is packing into {self._path}: wait for it, or choose "
            "another directory."
        )
        with locked(self._path, packing):
            yield self._path

    def put(self, file: Path, name: str) -> None:
        with _told(self.root):
            with open(file, "rb+") as written:
                os.fsync(written.fileno())
            os.replace(file, self._path / name)

    def fetch(self, name: str, directory: Path) -> Path:
        return self._path / name


class Bucket:
    """A directory of a file system that fsspec knows."""

    def __init__(self, root: str):
        self.root = root
        self._files, self._path = file_system(root)

    def names(self) -> list[str]:
        with _told(self.root):
            self._files.invalidate_cache()
            try:
                paths = self._files.ls(self._path, detail=False)
            except FileNotFoundError:
                return []
        return sorted(path.rstrip("/").rpartition("/")[2] for path in paths)

    def read(self, name: str) -> bytes | None:
        with _told(self.root):
            try:
                return self._files.cat_file(self._of(name))
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        with _told(self.root):
            self._files.pipe_file(self._of(name), content)

    def remove(self, name: str) -> None:
        with _told(self.root):
            self._files.rm_file(self._of(name))

    @contextmanager
    def claimed(self) -> Iterator[Path]:
        with _told(tempfile.gettempdir()):
            scratch = Path(tempfile.mkdtemp(prefix="metricjax-"))
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def put(self, file: Path, name: str) -> None:
        with _told(self.root):
            self._files.put_file(str(file), self._of(name))
        file.unlink()

    def fetch(self, name: str, directory: Path) -> Path:
        path = directory / name
        temporary = directory / f".{name}.{secrets.token_hex(8)}.tmp"
        try:
            with _told(f"{self.root}/{name}"), disk_errors(directory):
                self._files.get_file(self._of(name), str(temporary))
                os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return path

    def _of(self, name: str) -> str:
        return f"{self._path}/{name}"


def file_system(root: str):
    """(fsspec file system, path in it) of an address.

    Raises:
      InputError: it is of no known kind, or its package is not installed.
    """
    try:
        import fsspec

        # It warns at every call where an account may not ask what kind a bucket is of.
        logging.getLogger("gcsfs").setLevel(logging.ERROR)
        files, path = fsspec.core.url_to_fs(root)
    except ImportError as error:
        raise InputError(
            f"{root} needs a package that is not installed ({error}): for gs:// "
            "pip install 'metricjax[remote]', for other addresses what fsspec wants."
        ) from error
    except Exception as error:  # Each kind of file system has exceptions of its own.
        raise InputError(
            f"{root} cannot be opened ({error}): give a directory or an address that "
            "fsspec knows, such as gs://bucket/directory."
        ) from error
    return files, path.rstrip("/")


@contextmanager
def _told(root: str) -> Iterator[None]:
    """Whatever goes wrong with a file or on the way to it, as one sentence."""
    try:
        with disk_errors(Path(root)):
            yield
    except InputError:
        raise
    except Exception as error:  # Each kind of file system has exceptions of its own.
        what = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{root} cannot be used ({what}): mend that, or choose another directory."
        ) from error
