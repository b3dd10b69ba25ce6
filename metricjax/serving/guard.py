"""Middleware for every request: allowed hosts and origins, security headers."""

from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """Refuses cross-site requests and adds security headers.

    A page of another site can send requests to a local server. The browser reports the
    page (Origin) and the name it used (Host); checking the Host also stops DNS
    rebinding, where a foreign name is made to resolve to this machine.

    Args:
      app: the application to protect.
      hosts: names by which the server may be addressed, without ports; None: any.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None):
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        reason = self._reason(Headers(scope=scope))
        if reason:
            answer = JSONResponse({"error": reason}, 403)
            await answer(scope, receive, send_guarded)
        else:
            await self._app(scope, receive, send_guarded)

    def _reason(self, headers: Headers) -> str | None:
        """Why a request is refused."""
        host = headers.get("host", "").lower()
        if self._hosts is not None and _without_port(host) not in self._hosts:
            return (
                f"The server does not answer to the name {host[:80]!r}: call it "
                f"{self._hosts[0]}."
            )
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in (
            f"http://{host}",
            f"https://{host}",
        ):
            return "Pages of other sites may not search here: open the server's own."
        return None


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() else host
