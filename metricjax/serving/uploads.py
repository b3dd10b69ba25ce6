"""Pictures that strangers send: read and decoded within bounds of memory and time."""

import asyncio
import contextlib
import io
import threading
import warnings
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from metricjax.data import decoding
from metricjax.serving.refusals import Refused, busy

# What browsers show, and TIFF. PIL knows many more, one of which runs another program.
Image.init()
_NAMES = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", "TIFF")
FORMATS = tuple(name for name in _NAMES if name in Image.OPEN)
KINDS = "a JPEG, PNG, WebP, GIF, BMP, AVIF or TIFF file"
# Pixels of a picture, at most: of a photograph 8192 x 6144, of others, which come out
# whole and in more copies, 4096 x 4096. Those of more than `_MANY` are decoded one at a
# time, so that many at once need little more memory than the largest alone.
_MOST_JPEG = 48 * 2**20
_MOST = 16 * 2**20
_MANY = 4 * 2**20
# Scans of a JPEG, at most; progressive ones have about ten. Each is work for all
# pixels: with thousands of empty ones a small file would take minutes.
_MAX_SCANS = 64
_SCAN = b"\xff\xda"
# Bytes of a form around its picture.
_AROUND = 64 * 2**10
_MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """What clients may send.

    Attributes:
      picture: bytes of one picture.
      held: bytes of all that are being received or decoded.
      seconds: in which a picture must have arrived.
    """

    picture: int = 16 * _MIB
    held: int = 128 * _MIB
    seconds: float = 30.0


class Receiver:
    """Reads the bodies of requests, all together within `Limits.held` bytes."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self._held = 0

    @contextlib.asynccontextmanager
    async def picture(self, request: Request) -> AsyncIterator[tuple[bytes, dict]]:
        """The file that a request brings, and the other fields if it is a form.

        Its bytes count as held until the context is left.

        Raises:
          Refused: it is too large, too slow, of another type, or not there.
        """
        body = _Body(self, request)
        try:
            yield await self._in_time(body)
        finally:
            self._held -= body.size

    async def _in_time(self, body: "_Body") -> tuple[bytes, dict]:
        try:
            async with asyncio.timeout(self.limits.seconds):
                content, fields = await body.read()
        except TimeoutError as error:
            raise Refused(
                408,
                f"The picture did not arrive within {self.limits.seconds:g} seconds: "
                "send it again, or a smaller one.",
                {"Connection": "close"},
            ) from error
        except ClientDisconnect as error:
            raise Refused(
                400, "The client left before its picture was here."
            ) from error
        if not content:
            raise Refused(400, f"No picture came with the request: send {KINDS}.")
        if len(content) > self.limits.picture:
            raise self.too_large()
        return content, fields

    def take(self, count: int) -> None:
        """Count bytes as held; raises `Refused` where they are too many."""
        if self._held + count > self.limits.held:
            raise busy("Too many pictures arrive at once")
        self._held += count

    def too_large(self) -> Refused:
        return Refused(
            413,
            f"The picture is larger than {self.limits.picture / _MIB:.3g} MiB: send a "
            "smaller one.",
            {"Connection": "close"},
        )


class _Body:
    """The body of one request.

    Attributes:
      size: bytes of it that are counted as held.
    """

    def __init__(self, receiver: Receiver, request: Request):
        self.size = 0
        self._receiver = receiver
        self._request = request
        content_type = request.headers.get("content-type", "")
        self._kind = content_type.partition(";")[0].strip().lower()
        self._is_form = self._kind == "multipart/form-data"
        self._most = receiver.limits.picture + (_AROUND if self._is_form else 0)

    async def read(self) -> tuple[bytes, dict[str, list[str]]]:
        known = ("", "application/octet-stream", "multipart/form-data")
        if self._kind not in known and not self._kind.startswith("image/"):
            raise Refused(
                415,
                f"The Content-Type is {self._kind[:80]!r}: send the picture itself as "
                "image/jpeg or the like, or a form (multipart/form-data) with the "
                "picture in the field image.",
            )
        announced = self._request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > self._most:
            await self._refuse()
        if self._is_form:
            return await self._form()
        content = bytearray()
        async for chunk in self._chunks():
            content += chunk
        return bytes(content), {}

    async def _chunks(self) -> AsyncIterator[bytes]:
        async for chunk in self._request.stream():
            if self.size + len(chunk) > self._most:
                await self._refuse()
            self._receiver.take(len(chunk))
            self.size += len(chunk)
            yield chunk

    async def _form(self) -> tuple[bytes, dict[str, list[str]]]:
        parser = _Form(
            self._request.headers,
            self._chunks(),
            max_files=1,
            max_fields=64,
            max_part_size=_AROUND,
        )
        try:
            form = await parser.parse()
        except MultiPartException as error:
            raise Refused(
                400,
                f"The form cannot be read ({error.message.rstrip('.')}): send one file "
                "in the field image.",
            ) from error
        content, fields = b"", {}
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(form.close)
            for name, value in form.multi_items():
                if isinstance(value, str):
                    fields.setdefault(name, []).append(value)
                else:
                    content = await value.read()
        return content, fields

    async def _refuse(self) -> None:
        """Let what is still sent pass for a while: who sends does not listen yet."""
        passed = 0
        with contextlib.suppress(TimeoutError, ClientDisconnect, RuntimeError):
            async with asyncio.timeout(2.0):
                async for chunk in self._request.stream():
                    passed += len(chunk)
                    if passed > 4 * self._most:
                        break
        raise self._receiver.too_large()


class _Form(MultiPartParser):
    """One that keeps files in memory: their size is bounded."""

    spool_max_size = 2**40


class Decoder:
    """Files to what the network takes; may be called from several threads.

    Args:
      prepare: makes it of uint8 [h, w, channels] of any size.
      channels: 1 or 3.
      enough: pixels of a side that a JPEG may be decoded at, see `decoding.decode`.
    """

    def __init__(
        self,
        prepare: Callable[[np.ndarray], np.ndarray],
        channels: int,
        enough: int = 0,
    ):
        self._prepare = prepare
        self._channels = channels
        self._enough = enough
        self._alone = threading.Lock()
        # Whoever sends such a picture hears of it; the log need not.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)

    def __call__(self, content: bytes) -> np.ndarray:
        """A file's picture, prepared.

        Raises:
          Refused: it is none, is too large or damaged.
        """
        pixels = _count_pixels(content)
        with self._alone if pixels > _MANY else contextlib.nullcontext():
            try:
                image = decoding.decode(content, self._channels, least=self._enough)
            except ValueError as error:
                reason = str(error).rstrip(".")[:200]
                raise Refused(
                    422, f"The picture is damaged ({reason}): send another one."
                ) from error
            return self._prepare(image)


def _count_pixels(content: bytes) -> int:
    """Of a picture that may be decoded, by the head of its file."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            is_jpeg = image.format in ("JPEG", "MPO")
    except Image.DecompressionBombError as error:
        raise Refused(
            413, f"The picture has far too many pixels: {_SMALLER}"
        ) from error
    except Exception as error:  # PIL's plug-ins raise nearly anything on foreign bytes.
        raise Refused(415, f"This is not a picture: send {KINDS}.") from error
    most = _MOST_JPEG if is_jpeg else _MOST
    if width * height > most:
        raise Refused(
            413,
            f"The picture has {width} x {height} pixels, more than "
            f"{most // 10**6} million: {_SMALLER}",
        )
    if is_jpeg and content.count(_SCAN) > _MAX_SCANS:
        raise Refused(
            413,
            f"The picture is built up in more than {_MAX_SCANS} scans: save it as an "
            "ordinary JPEG.",
        )
    return width * height


_SMALLER = "send it at a smaller size."
