"""A tree of files, in a directory or in a .zip, read from any thread."""

import os
import struct
import threading
import zipfile
import zlib
from collections.abc import Sequence
from typing import Protocol

from metricjax.errors import InputError


class Files(Protocol):
    """Files by their path relative to the root, with forward slashes."""

    root: str
    paths: Sequence[str]

    def size(self, path: str) -> int:
        """In bytes."""

    def read(self, path: str, limit: int | None = None) -> bytes:
        """The content, or its first bytes; raises OSError."""


def open_files(root: str | None) -> Files:
    """The files under a directory or in a .zip.

    Raises:
      InputError: no root is given, there is nothing there, or it is neither.
    """
    if not root:
        raise InputError(
            "data.name=folder needs data.root: the path of a directory or a .zip of "
            "class folders."
        )
    root = os.path.expanduser(os.fspath(root))
    if os.path.isdir(root):
        return Directory(root)
    if not os.path.exists(root):
        raise InputError(
            f"data.root {root!r} does not exist: give a directory or a .zip of class "
            "folders."
        )
    return Zip(root)


def _is_clutter(path: str) -> bool:
    """What operating systems leave beside one's files."""
    parts = path.split("/")
    return any(part.startswith(".") or part == "__MACOSX" for part in parts) or parts[
        -1
    ] in ("Thumbs.db", "desktop.ini")


class Directory:
    """The files under a directory; links to directories are followed once each."""

    def __init__(self, root: str):
        self.root = root
        paths = []
        seen = set()
        for folder, folders, names in os.walk(root, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            prefix = os.path.relpath(folder, root).replace(os.sep, "/")
            prefix = "" if prefix == "." else prefix + "/"
            paths.extend(prefix + name for name in names)
            folders[:] = sorted(name for name in folders if not _is_clutter(name))
        self.paths = sorted(path for path in paths if not _is_clutter(path))

    def size(self, path: str) -> int:
        return os.path.getsize(os.path.join(self.root, path))

    def read(self, path: str, limit: int | None = None) -> bytes:
        with open(os.path.join(self.root, path), "rb") as file:
            return file.read(-1 if limit is None else limit)


class Zip:
    """The members of a .zip.

    Its directory is read once; each thread then reads through a handle of its own, so
    no thread waits for another. Can be pickled.

    Raises:
      InputError: not a .zip, or a member's path leads out of the archive.
    """

    def __init__(self, root: str):
        self.root = root
        try:
            with zipfile.ZipFile(root) as archive:
                members = archive.infolist()
        except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
            raise InputError(
                f"data.root {root!r} is neither a directory nor a .zip that can be "
                f"opened ({error}): give one of the two."
            ) from error
        for member in members:
            _refuse_escape(root, member.filename)
        self._members = {
            member.filename: member
            for member in members
            if not member.is_dir() and not _is_clutter(member.filename)
        }
        self.paths = sorted(self._members)
        self._local = threading.local()

    def __getstate__(self):
        return {k: v for k, v in self.__dict__.items() if k != "_local"}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._local = threading.local()

    def size(self, path: str) -> int:
        return self._members[path].file_size

    def read(self, path: str, limit: int | None = None) -> bytes:
        member = self._members[path]
        if member.flag_bits & 1:
            raise OSError("it is encrypted")
        raw = self._raw(member)
        if member.compress_type == zipfile.ZIP_STORED:
            content = raw if limit is None else raw[:limit]
        elif member.compress_type == zipfile.ZIP_DEFLATED:
            content = _inflate(raw, member.file_size if limit is None else limit)
        else:
            content = self._read_rare(member, limit)
        if limit is None and zlib.crc32(content) != member.CRC:
            raise OSError("its checksum in the .zip is wrong")
        return content

    def _read_rare(self, member: zipfile.ZipInfo, limit: int | None) -> bytes:
        """Other compressions: the standard library opens the archive once more."""
        try:
            with zipfile.ZipFile(self.root) as archive, archive.open(member) as file:
                return file.read(-1 if limit is None else limit)
        except Exception as error:  # Each decompressor has exceptions of its own.
            raise OSError(f"it cannot be decompressed ({error})") from error

    def _raw(self, member: zipfile.ZipInfo) -> bytes:
        """The member's bytes as they are stored."""
        file = getattr(self._local, "file", None)
        if file is None:
            file = self._local.file = open(self.root, "rb")
        file.seek(member.header_offset)
        header = file.read(30)
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise OSError("the .zip is damaged here")
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        file.seek(name_length + extra_length, os.SEEK_CUR)
        return file.read(member.compress_size)


def _inflate(raw: bytes, limit: int) -> bytes:
    """At most `limit` bytes, so that a member which lies about its size is harmless."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(raw, max(1, limit))
    except zlib.error as error:
        raise OSError(f"it cannot be decompressed ({error})") from error


def _refuse_escape(root: str, path: str) -> None:
    parts = path.replace("\\", "/").split("/")
    if ".." in parts or parts[0] == "" or parts[0].endswith(":"):
        raise InputError(
            f"{root!r} holds a member with the path {path!r}, which leads out of the "
            "archive: it is not opened; make the .zip again without such paths."
        )
