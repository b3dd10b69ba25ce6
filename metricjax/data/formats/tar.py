"""Files in a .tar, plain or compressed."""

import bz2
import gzip
import lzma
import os
import tarfile
import tempfile
import zlib
from typing import BinaryIO

from metricjax.data.formats.archives import Archive, damaged, inner_path, neither
from metricjax.errors import InputError

_DECOMPRESSORS = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
HEAD_BYTES = 512
_CHUNK = 1 << 20


def looks_like_tar(head: bytes) -> bool:
    """Whether a file that begins so is a .tar, or compressed and so may hold one.

    Args:
      head: the first `HEAD_BYTES` of the file.
    """
    return _is_header(head) or head.startswith(tuple(_DECOMPRESSORS))


class Tar(Archive):
    """The files of a .tar; links and devices are not read.

    A compressed one can only be read from its beginning, so it is unpacked once, into a
    temporary file (in TMPDIR) that vanishes with the process.

    Raises:
      InputError: it is damaged, a member's path leads out of the archive, or there is
        no room for the temporary file.
    """

    def __init__(self, root: str):
        with open(root, "rb") as packed:
            head = packed.read(HEAD_BYTES)
        starts = [start for start in _DECOMPRESSORS if head.startswith(start)]
        file = _unpack(root, _DECOMPRESSORS[starts[0]]) if starts else open(root, "rb")
        members, others = _tar_members(root, file)
        super().__init__(root, file, members)
        self._changed = os.stat(root).st_mtime_ns
        if starts:
            self.notes += (
                f"{root} is compressed as a whole, so it was unpacked into a temporary "
                f"file of {self._file.size / 2**20:,.0f} MiB for this run: to spare "
                "this each time, unpack it yourself or pack its images with "
                "python -m metricjax.prepare.",
            )
        if others:
            self.notes += (f"{others} links or devices in {root} are not read.",)

    def read(self, path: str, limit: int | None = None) -> bytes:
        offset, size = self._members[path]
        size = size if limit is None else min(size, limit)
        content = self._file.read(offset, size)
        if len(content) < size:
            raise OSError("the .tar was cut short since it was opened")
        return content

    def stamp(self, path: str) -> str:
        # There are no checksums in a .tar: where it has changed, all in it may have.
        return f"{self._members[path][1]} {self._changed}"


def _unpack(root: str, decompress) -> BinaryIO:
    """What a compressed file holds, in a file without a name."""
    try:
        temporary = tempfile.TemporaryFile(prefix="metricjax-")
        with decompress(root) as packed:
            while chunk := _next_chunk(root, packed):
                temporary.write(chunk)
        temporary.flush()
    except OSError as error:
        raise InputError(
            f"{root!r} is compressed as a whole and could not be unpacked into a "
            f"temporary file ({error.strerror}): let TMPDIR name a directory with room "
            "for it, or unpack it yourself and give its directory."
        ) from error
    return temporary


def _next_chunk(root: str, packed) -> bytes:
    try:
        return packed.read(_CHUNK)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise damaged(root, "compressed .tar", error) from error


def _tar_members(root: str, file: BinaryIO) -> tuple[dict[str, tuple[int, int]], int]:
    """(where each file lies: offset and size in bytes, number of links and devices)."""
    file.seek(0)
    if not _is_header(file.read(HEAD_BYTES)):
        raise neither(root)
    file.seek(0)
    members, others = [], 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if member.issparse():
                    raise tarfile.ReadError("it has sparse files, which are not read")
                if member.isreg():
                    members.append((member.name, member.offset_data, member.size))
                elif not member.isdir():
                    others += 1
            end = archive.offset
    except Exception as error:  # On damaged data, nearly anything.
        raise damaged(root, ".tar", error) from error
    # The standard library takes a damaged header for the end, which is a block of 0.
    file.seek(end)
    if file.read(HEAD_BYTES) != bytes(HEAD_BYTES):
        raise damaged(root, ".tar", f"it breaks off at byte {end:,}")
    return {inner_path(root, name): (at, size) for name, at, size in members}, others


def _is_header(head: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(head, tarfile.ENCODING, "surrogateescape")
    except tarfile.TarError:
        return False
    return True
