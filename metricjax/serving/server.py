"""The socket, and what ends the server."""

import asyncio
import contextlib
import ipaddress
import logging
import signal
import socket
from collections.abc import Callable

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from metricjax.errors import InputError

# Seconds in which a request's head must have arrived, and which an idle connection is
# kept open; connections at a time.
_HEAD_SECONDS = 10.0
_KEPT_SECONDS = 10
_CONNECTIONS = 512
# Seconds in which the last answers must be given when the server ends.
_LAST_SECONDS = 5


def bind(host: str, port: int) -> socket.socket:
    """A socket of an address, held from now on but not listening yet.

    Args:
      host: a name or an address.
      port: 0: any that is free.

    Raises:
      InputError: the address is unknown, not this machine's, or in use.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"--host {host} is no address of this machine ({error}): leave it out to "
            "serve this machine alone, or give 0.0.0.0 for all of its addresses."
        ) from error
    family, kind, protocol, _, address = found[0]
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
    except OSError as error:
        opened.close()
        raise _unusable(host, port, error) from error
    return opened


def _unusable(host: str, port: int, error: OSError) -> InputError:
    return InputError(
        f"--host {host} --port {port} cannot be used ({error.strerror}): choose "
        "another port, or --port 0 for any that is free."
    )


def is_loopback(bound: socket.socket) -> bool:
    """Whether only programs on this machine reach a socket."""
    return ipaddress.ip_address(bound.getsockname()[0]).is_loopback


def address_of(bound: socket.socket) -> str:
    """What to type into a browser to get to a socket."""
    host, port = bound.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "localhost"
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def run(app: Starlette, bound: socket.socket, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or Ctrl-C, then answer what has been asked and return.

    Args:
      app: the application.
      bound: where to listen, see `bind`.
      ready: called when the first request can be answered.

    Raises:
      InputError: another program listens at the address by now.
    """
    config = uvicorn.Config(
        app,
        http=_Punctual,
        ws="none",
        log_level=logging.ERROR,
        access_log=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=_KEPT_SECONDS,
        timeout_graceful_shutdown=_LAST_SECONDS,
    )
    try:
        bound.listen(128)
    except OSError as error:  # Another one has begun to in the meantime.
        raise _unusable(*bound.getsockname()[:2], error) from error
    server = _Server(config, ready)
    # The server hands the signal that ended it on to whom it found in charge.
    with _heeding(signal.SIGTERM, signal.SIGINT):
        server.run(sockets=[bound])


@contextlib.contextmanager
def _heeding(*numbers: signal.Signals):
    """Signals that end the server and nothing else."""
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Server(uvicorn.Server):
    """One that says when it is ready."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]):
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()


class _Punctual(H11Protocol):
    """Hangs up on who does not send the head of a request in time."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Time runs from the first byte of a head, or from the connection."""
        if self.conn.their_state is not h11.IDLE:
            self._stop_watching()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(_HEAD_SECONDS, self._hang_up)

    def _stop_watching(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _hang_up(self) -> None:
        self._deadline = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.close()
