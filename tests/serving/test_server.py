"""The server as a process: slow clients, many clients, bombs, and its end."""

import asyncio
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import served
import uvicorn
from odd_pictures import BOMB, jpeg_of
from uvicorn.server import ServerState

from metricjax.errors import InputError
from metricjax.serving import server

PICTURE = served.encode(served.draw(served.KINDS[0][2]))


def read_all(connection) -> bytes:
    """What comes until the server hangs up."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def test_pictures_that_come_at_once(running):
    def search(number):
        kind = number % len(served.KINDS)
        picture = served.encode(served.draw(served.KINDS[kind][2], number % 7))
        status, answer = running.ask("POST", "/search?top=3", picture)
        return status, [one["class"] for one in answer["neighbours"]]

    before = running.ask("GET", "/healthz")[1]
    with ThreadPoolExecutor(16) as pool:
        for number, (status, classes) in enumerate(pool.map(search, range(64))):
            assert status == 200
            assert classes == [served.KINDS[number % len(served.KINDS)][0]] * 3
    after = running.ask("GET", "/healthz")[1]
    assert after["answered"] - before["answered"] == 64
    assert after["batches"] - before["batches"] < 64 and after["largest_batch"] > 1


def test_bombs_take_no_memory(running):
    running.ask("POST", "/search", PICTURE)
    before = running.peak()
    for bomb in (BOMB, jpeg_of(60_000, 60_000)):
        status, answer = running.ask("POST", "/search", bomb)
        assert status == 413 and "too many pixels" in answer["error"]
    assert running.peak() - before < 30 * 2**20
    assert running.ask("POST", "/search", PICTURE)[0] == 200


def test_who_sends_too_much_hears_why(running):
    status, answer = running.ask("POST", "/search", bytes(3 * 2**20))
    assert status == 413 and "larger than 1 MiB" in answer["error"]
    with running.connect() as connection:
        head = b"POST /search HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked"
        connection.sendall(head + b"\r\n\r\n")
        for _ in range(24):
            connection.sendall(b"20000\r\n" + bytes(0x20000) + b"\r\n")
        connection.sendall(b"0\r\n\r\n")
        assert b"413 Request Entity Too Large" in read_all(connection)[:60]


def test_a_body_that_does_not_come(running):
    with running.connect() as connection:
        head = b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000"
        connection.sendall(head + b"\r\n\r\nabc")
        assert running.ask("POST", "/search", PICTURE)[0] == 200
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 408") and b"within 1.5 seconds" in answer


def test_a_client_that_leaves(running):
    for _ in range(5):
        with running.connect() as connection:
            head = b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000"
            connection.sendall(head + b"\r\n\r\nabc")
    assert running.ask("POST", "/search", PICTURE)[0] == 200


def test_what_is_no_request(running):
    for content in (
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/9\r\n\r\n",
        b"\0" * 99,
    ):
        with running.connect() as connection:
            connection.sendall(content + b"\r\n\r\n")
            assert b"400" in read_all(connection)[:20]
    with running.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 20_000)
        assert b"400" in read_all(connection)[:20]
    assert running.ask("GET", "/healthz")[0] == 200


class Alone(server._Punctual):
    """Without a server around it."""

    def __init__(self, loop):
        config = uvicorn.Config(lambda *_: None, log_config=None)
        super().__init__(config, ServerState(), {}, loop)


def test_a_head_that_does_not_come(monkeypatch):
    monkeypatch.setattr(server, "_HEAD_SECONDS", 0.05)

    async def talk(*parts):
        """What a client hears that sends these parts, then nothing."""
        loop = asyncio.get_running_loop()
        listening = await loop.create_server(lambda: Alone(loop), "127.0.0.1", 0)
        place = listening.sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(*place)
        for part in parts:
            writer.write(part)
            await asyncio.sleep(0.01)
        heard = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        listening.close()
        return heard

    assert asyncio.run(talk()) == b""
    assert asyncio.run(talk(b"GET / HT", b"TP/1.1\r\nHo")) == b""


def test_it_ends_when_told_and_answers_first(tmp_path):
    running = served.start(served.make_gallery(tmp_path))
    with running.connect() as idle, running.connect() as connection:
        head = b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
        connection.sendall(head % len(PICTURE) + PICTURE[:-9])
        time.sleep(0.3)
        running.process.send_signal(signal.SIGINT)  # And SIGTERM in `running`.
        time.sleep(0.3)
        connection.sendall(PICTURE[-9:])
        assert read_all(connection).startswith(b"HTTP/1.1 200 OK")
        assert idle.recv(1) == b""
        out, err = running.process.communicate(timeout=30)
    assert (running.process.returncode, out, err) == (0, "", "")


def test_a_port_that_is_taken():
    with server.bind("127.0.0.1", 0) as bound:
        bound.listen()
        port = bound.getsockname()[1]
        with pytest.raises(InputError, match=rf"--port {port} cannot be used"):
            server.bind("127.0.0.1", port)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7", "a b", "é\0"])
def test_addresses_that_are_not_ours(host):
    with pytest.raises(InputError, match="--host"):
        server.bind(host, 0)


def test_addresses_and_who_reaches_them():
    with server.bind("127.0.0.1", 0) as here, server.bind("0.0.0.0", 0) as anywhere:
        assert server.is_loopback(here) and not server.is_loopback(anywhere)
        port = here.getsockname()[1]
        assert server.address_of(here) == f"http://127.0.0.1:{port}/"
        assert server.address_of(anywhere).startswith("http://localhost:")
