"""Pictures that are not what their heads say, for tests of uploads."""

import struct
import zlib

import served

RED = served.draw(served.KINDS[0][2])
JPEG = served.encode(RED, "JPEG")


def png(width, height, depth=1, rows=b"") -> bytes:
    """A PNG of a size, whatever pixels follow."""

    def chunk(kind, data):
        checked = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checked

    head = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 9))
    return b"\x89PNG\r\n\x1a\n" + parts + chunk(b"IEND", b"")


def jpeg_of(width, height) -> bytes:
    """A JPEG whose head says another size."""
    place = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:place] + struct.pack(">HH", height, width) + JPEG[place + 4 :]


BOMB = png(20_000, 20_000, rows=bytes(20_000 * 2_501))
