"""Files in a .zip or a .tar, read in place from any thread."""

import os
import posixpath
import struct
import threading
import weakref
import zipfile
import zlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any, BinaryIO

from metricjax.errors import InputError


def is_clutter(path: str) -> bool:
    """What operating systems leave beside one's files."""
    parts = path.split("/")
    return any(part.startswith(".") or part == "__MACOSX" for part in parts) or parts[
        -1
    ] in ("Thumbs.db", "desktop.ini")


class Archive:
    """The files of an archive by their paths; see `file_tree.Files`.

    Can be pickled: it is then opened anew.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, root: str, file: BinaryIO, members: Mapping[str, Any]):
        self.root = root
        self.paths = sorted(path for path in members if not is_clutter(path))
        self._members = {path: members[path] for path in self.paths}
        self._file = _SharedFile(file)

    def __reduce__(self):
        return type(self), (self.root,)

    def has(self, path: str) -> bool:
        return path in self._members

    def entries(self, folder: str) -> tuple[list[str], list[str]]:
        return self._tree.get(folder.rstrip("/"), ([], []))

    @cached_property
    def _tree(self) -> dict[str, tuple[list[str], list[str]]]:
        """The folders and the files that lie directly in each folder."""
        tree = {"": ([], [])}
        for path in self.paths:
            folder, _, name = path.rpartition("/")
            missing = []
            while folder not in tree:
                tree[folder] = ([], [])
                missing.append(folder)
                folder = folder.rpartition("/")[0]
            for folder in reversed(missing):
                above, _, last = folder.rpartition("/")
                tree[above][0].append(last)
            tree[path.rpartition("/")[0]][1].append(name)
        return tree


class Zip(Archive):
    """The files of a .zip.

    Raises:
      InputError: it is damaged, or a member's path leads out of the archive.
    """

    def __init__(self, root: str):
        file = open(root, "rb")
        try:
            with zipfile.ZipFile(file) as archive:
                members = [info for info in archive.infolist() if not info.is_dir()]
        except Exception as error:  # On damaged data, nearly anything.
            raise damaged(root, ".zip", error) from error
        super().__init__(root, file, {inner_path(root, m.filename): m for m in members})

    def read(self, path: str, limit: int | None = None) -> bytes:
        member = self._members[path]
        if member.flag_bits & 1:
            raise OSError("it is encrypted")
        if member.compress_type == zipfile.ZIP_STORED:
            raw = self._raw(member)
            content = raw if limit is None else raw[:limit]
        elif member.compress_type == zipfile.ZIP_DEFLATED:
            raw = self._raw(member)
            content = _inflate(raw, member.file_size if limit is None else limit)
        else:
            content = self._read_rare(member, limit)
        if limit is None and zlib.crc32(content) != member.CRC:
            raise OSError("its checksum in the .zip is wrong")
        return content

    def stamp(self, path: str) -> str:
        return f"{self._members[path].file_size} {self._members[path].CRC:08x}"

    def _read_rare(self, member: zipfile.ZipInfo, limit: int | None) -> bytes:
        """Other compressions: the standard library opens the archive once more."""
        try:
            with zipfile.ZipFile(self.root) as archive, archive.open(member) as file:
                return file.read(-1 if limit is None else limit)
        except Exception as error:  # Each decompressor has exceptions of its own.
            raise OSError(f"it cannot be decompressed ({error})") from error

    def _raw(self, member: zipfile.ZipInfo) -> bytes:
        """The member's bytes as they are stored."""
        header = self._file.read(member.header_offset, 30)
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise OSError("the .zip is damaged here")
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        start = member.header_offset + 30 + name_length + extra_length
        return self._file.read(start, member.compress_size)


class _SharedFile:
    """A file that many threads read at once, each at its own place."""

    def __init__(self, file: BinaryIO):
        self.size = os.fstat(file.fileno()).st_size
        self._file = file
        self._lock = threading.Lock()
        weakref.finalize(self, file.close)

    def read(self, offset: int, size: int) -> bytes:
        size = max(0, min(size, self.size - offset))
        if hasattr(os, "pread"):
            return os.pread(self._file.fileno(), size, offset)
        with self._lock:
            self._file.seek(offset)
            return self._file.read(size)


def _inflate(raw: bytes, limit: int) -> bytes:
    """At most `limit` bytes, so that a member which lies about its size is harmless."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(raw, max(1, limit))
    except zlib.error as error:
        raise OSError(f"it cannot be decompressed ({error})") from error


def inner_path(root: str, path: str) -> str:
    """A member's path, made plain."""
    parts = path.replace("\\", "/").split("/")
    if ".." in parts or parts[0] == "" or parts[0].endswith(":"):
        raise InputError(
            f"{root!r} holds a member with the path {path!r}, which leads out of the "
            "archive: it is not opened; make the archive again without such paths."
        )
    return posixpath.normpath(path)


def damaged(root: str, kind: str, why: object) -> InputError:
    return InputError(
        f"{root!r} is a {kind}, but it is damaged or not all there ({why}): get it "
        "again."
    )


def neither(root: str) -> InputError:
    return InputError(
        f"data.root {root!r} is neither a directory nor a .zip or .tar: give one of "
        "the three."
    )
