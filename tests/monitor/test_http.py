from __future__ import annotations

import asyncio
import gzip
import http.client
import socket
import threading
from collections.abc import Iterator

import pytest
import uvloop

from tests.support.kit import wait_until
from worker.core.errors import ExitCode, Fatal
from worker.monitor import http as served
from worker.monitor.http import Request, Response, Server

BIG = b"x" * 20_000_000  # more than any socket buffer holds


class Running:
    """A server whose event loop runs in its own thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.requests: list[Request] = []
        self._loop = loop
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.server = Server({"/": self.page, "/big": lambda _: Response(BIG)})
        self.url = asyncio.run_coroutine_threadsafe(self.server.start("127.0.0.1", 0), self._loop).result(30)
        self.port = int(self.url.rpartition(":")[2])

    def page(self, request: Request) -> Response:
        self.requests.append(request)
        return Response(b"hello", "text/x-test")

    def connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        connection.settimeout(60)
        return connection

    def ask(self, raw: bytes) -> tuple[int, bytes]:
        """Send bytes; return the status and the body."""
        with self.connect() as connection:
            connection.sendall(raw)
            response = http.client.HTTPResponse(connection)
            response.begin()
            return response.status, response.read()

    def get(self, path: str = "/") -> tuple[int, bytes]:
        return self.ask(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        await self.server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    server = Running(request.param())
    yield server
    server.stop()


def ended(connection: socket.socket) -> bool:
    """Whether the other side ends a connection before the socket's timeout."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


def test_a_page_gets_the_query_and_the_accepted_format(running: Running) -> None:
    assert running.ask(b"GET /?since=7&a=%20b HTTP/1.1\r\naccept: text/plain\r\n\r\n") == (200, b"hello")
    assert running.requests == [Request({"since": "7", "a": " b"}, "text/plain")]


def test_a_long_answer_is_compressed_for_a_client_that_accepts_it(running: Running) -> None:
    for encoding, compressed in (("gzip, deflate", True), ("identity", False)):
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)
        connection.request("GET", "/big", headers={"Accept-Encoding": encoding})
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        assert (answer.headers["Content-Encoding"] == "gzip") == compressed
        assert (gzip.decompress(body) if compressed else body) == BIG


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"HEAD / HTTP/1.1\r\n\r\n", 200),
        (b"POST / HTTP/1.1\r\n\r\n", 405),
        (b"GET /none HTTP/1.1\r\n\r\n", 404),
        (b"GET /../etc/passwd HTTP/1.1\r\n\r\n", 404),
        (b"GET http://[ HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/2\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", 400),
    ],
)
def test_every_request_gets_a_response(running: Running, raw: bytes, status: int) -> None:
    if raw.startswith(b"HEAD"):
        with running.connect() as connection:
            connection.sendall(raw)
            response = b"".join(iter(lambda: connection.recv(65536), b""))
        assert response.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"Content-Length: 5\r\n" in response
        assert response.endswith(b"\r\n\r\n")
    else:
        assert running.ask(raw)[0] == status
    assert running.get() == (200, b"hello")


def test_a_client_that_sends_its_headers_slowly_is_disconnected(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "_HEADER_S", 0.3)
    with running.connect() as slow:
        slow.sendall(b"GET / HTTP/1.1\r\n")
        assert running.get() == (200, b"hello")
        assert ended(slow)


def test_a_client_that_does_not_read_is_disconnected(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "_RESPONSE_S", 0.3)
    with running.connect() as slow:
        slow.sendall(b"GET /big HTTP/1.1\r\n\r\n")
        wait_until(lambda: not running.server._open, message="the connection is closed")
        assert running.get() == (200, b"hello")


def test_idle_connections_never_block_others(running: Running) -> None:
    idle = [running.connect() for _ in range(200)]
    assert running.get() == (200, b"hello")
    wait_until(lambda: len(running.server._open) <= 64)
    for connection in idle:
        connection.close()
    wait_until(lambda: not running.server._open)


def test_a_large_response_arrives_completely(running: Running) -> None:
    assert running.get("/big") == (200, BIG)


@pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.1", "no.such.host.invalid"])
def test_an_address_that_cannot_be_used_is_a_configuration_error(running: Running, host: str) -> None:
    with pytest.raises(Fatal, match=rf"^address {host}:{running.port} .*--metrics-port") as caught:
        asyncio.run(Server({}).start(host, running.port))
    assert caught.value.code == ExitCode.CONFIG
