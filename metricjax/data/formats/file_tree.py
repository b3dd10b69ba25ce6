"""A tree of files, in a directory or an archive, read from any thread."""

import os
import zipfile
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Protocol

from metricjax.data.formats.archives import Archive, Zip, is_clutter, neither
from metricjax.data.formats.tar import HEAD_BYTES, Tar, looks_like_tar
from metricjax.errors import InputError


class Files(Protocol):
    """Files by their path relative to the root, with forward slashes.

    Attributes:
      root: the path of the directory or archive.
      paths: of all files, sorted. A directory is walked when they are first asked for.
      notes: sentences on how it was opened.
    """

    root: str
    notes: tuple[str, ...]

    @property
    def paths(self) -> Sequence[str]: ...

    def has(self, path: str) -> bool:
        """Whether there is such a file."""

    def entries(self, folder: str) -> tuple[Sequence[str], Sequence[str]]:
        """Names of the folders and of the files directly in a folder, "" the root."""

    def read(self, path: str, limit: int | None = None) -> bytes:
        """The content, or its first bytes; raises OSError."""

    def stamp(self, path: str) -> str:
        """A text that is another one where the content is; raises OSError."""


def open_files(root: str | None) -> Files:
    """The files under a directory or in an archive.

    Raises:
      InputError: no root is given, there is nothing there, or it is neither.
    """
    if not root:
        raise InputError(
            "data.name=folder needs data.root: the path of a directory, a .zip or a "
            ".tar of class folders."
        )
    root = os.path.expanduser(os.fspath(root))
    if os.path.isdir(root):
        return Directory(root)
    if not os.path.exists(root):
        raise InputError(
            f"data.root {root!r} does not exist: give a directory, a .zip or a .tar."
        )
    return _open_archive(root)


def _open_archive(root: str) -> Files:
    kind = archive_kind(root)
    if kind is None:
        raise neither(root)
    return kind(root)


def archive_kind(root: str) -> type[Archive] | None:
    """What kind of archive a file is, by its content, not by its name; None: none.

    Raises:
      InputError: it cannot be read.
    """
    try:
        with open(root, "rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise InputError(
            f"{root!r} cannot be read ({error.strerror}): give a directory, a .zip or "
            "a .tar that can."
        ) from error
    if looks_like_tar(head):
        return Tar
    # A .zip may also follow a program that unpacks it.
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")) or zipfile.is_zipfile(root):
        return Zip
    return None


def absent(files: Files, paths: Iterable[str]) -> list[str]:
    """Those of the paths where there is no file; each folder is looked at once."""
    listed: dict[str, frozenset[str]] = {}
    found = []
    for path in paths:
        folder, _, name = path.rpartition("/")
        if folder not in listed:
            leads_out = path.startswith("/") or ".." in folder.split("/")
            names = () if leads_out else files.entries(folder)[1]
            listed[folder] = frozenset(names)
        if name not in listed[folder]:
            found.append(path)
    return found


class Directory:
    """The files under a directory; links to directories are followed once each."""

    notes: tuple[str, ...] = ()

    def __init__(self, root: str):
        self.root = root

    @cached_property
    def paths(self) -> list[str]:
        paths = []
        seen = set()
        for folder, folders, names in os.walk(self.root, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            prefix = os.path.relpath(folder, self.root).replace(os.sep, "/")
            prefix = "" if prefix == "." else prefix + "/"
            paths.extend(prefix + name for name in names)
            folders[:] = sorted(name for name in folders if not is_clutter(name))
        return sorted(path for path in paths if not is_clutter(path))

    def has(self, path: str) -> bool:
        return not is_clutter(path) and os.path.isfile(os.path.join(self.root, path))

    def entries(self, folder: str) -> tuple[list[str], list[str]]:
        folders, names = [], []
        try:
            with os.scandir(os.path.join(self.root, folder)) as found:
                for entry in found:
                    if not is_clutter(entry.name):
                        (folders if entry.is_dir() else names).append(entry.name)
        except OSError:  # No such folder, or none that may be read.
            return [], []
        return sorted(folders), sorted(names)

    def read(self, path: str, limit: int | None = None) -> bytes:
        with open(os.path.join(self.root, path), "rb") as file:
            return file.read(-1 if limit is None else limit)

    def stamp(self, path: str) -> str:
        status = os.stat(os.path.join(self.root, path))
        return f"{status.st_size} {status.st_mtime_ns}"
