"""Each fault of the proxy affects a connection exactly as documented."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.support.kit import wait_until
from tests.support.proxy import Proxy


class Echo:
    """A server that sends all data back, and keeps what it received."""

    def __init__(self) -> None:
        self.received = bytearray()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._echo, args=(connection,), daemon=True).start()

    def _echo(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    self.received += data
                    connection.sendall(data)
            except OSError:
                return


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    with Proxy("127.0.0.1", echo.port) as proxy:
        yield proxy


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=30)


def receive(connection: socket.socket, size: int) -> bytes:
    """Return `size` bytes, fewer at the end of the stream; ConnectionResetError if it was reset before."""
    data = b""
    while len(data) < size and (piece := connection.recv(size - len(data))):
        data += piece
    return data


def test_data_passes_unchanged_in_both_directions(proxy: Proxy, echo: Echo) -> None:
    payload = bytes(range(256)) * 4000
    with connect(proxy) as connection:
        sender = threading.Thread(target=connection.sendall, args=(payload,))
        sender.start()
        assert receive(connection, len(payload)) == payload
        sender.join()
    assert bytes(echo.received) == payload


def test_the_clients_end_of_stream_reaches_the_server_and_its_reply_comes_back(proxy: Proxy) -> None:
    with connect(proxy) as connection:
        connection.sendall(b"last words")
        connection.shutdown(socket.SHUT_WR)
        assert receive(connection, 100) == b"last words"


def test_a_delay_applies_to_each_direction(proxy: Proxy) -> None:
    proxy.delay(0.1)
    with connect(proxy) as connection:
        start = time.monotonic()
        connection.sendall(b"x")
        assert receive(connection, 1) == b"x"
        assert time.monotonic() - start >= 0.2


def test_a_black_hole_holds_all_data_until_heal(proxy: Proxy, echo: Echo) -> None:
    with connect(proxy) as connection:
        connection.sendall(b"1")
        assert receive(connection, 1) == b"1"
        proxy.blackhole()
        with connect(proxy) as late:
            connection.sendall(b"2")
            late.sendall(b"3")
            connection.settimeout(0.2)
            with pytest.raises(TimeoutError):
                connection.recv(1)
            assert bytes(echo.received) == b"1"
            connection.settimeout(30)
            proxy.heal()
            assert receive(connection, 1) == b"2"
            assert receive(late, 1) == b"3"


def test_refuse_applies_to_new_connections_until_heal(proxy: Proxy) -> None:
    with connect(proxy) as connection:
        connection.sendall(b"1")
        assert receive(connection, 1) == b"1"
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
        connection.sendall(b"2")
        assert receive(connection, 1) == b"2"
    proxy.heal()
    with connect(proxy) as connection:
        connection.sendall(b"3")
        assert receive(connection, 1) == b"3"


def test_reset_ends_every_open_connection_and_no_later_one(proxy: Proxy) -> None:
    with connect(proxy) as first, connect(proxy) as second:
        for connection in (first, second):
            connection.sendall(b"x")
            assert receive(connection, 1) == b"x"
        proxy.reset()
        for connection in (first, second):
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
    with connect(proxy) as connection:
        connection.sendall(b"y")
        assert receive(connection, 1) == b"y"
    assert proxy.connections == 3


def test_a_cut_to_the_server_forwards_exactly_the_given_bytes_once(proxy: Proxy, echo: Echo) -> None:
    with connect(proxy) as connection:
        connection.sendall(b"head")
        assert receive(connection, 4) == b"head"
        proxy.cut_to_server(6)
        connection.sendall(b"0123456789")
        with pytest.raises(ConnectionResetError):
            receive(connection, 100)  # the echo of the forwarded bytes may precede the reset
    assert proxy.faults == 1
    wait_until(lambda: bytes(echo.received) == b"head012345", message="the bytes before the cut arrive")
    with connect(proxy) as connection:
        connection.sendall(b"again")
        assert receive(connection, 5) == b"again"


def test_a_cut_to_the_client_forwards_exactly_the_given_bytes(proxy: Proxy, echo: Echo) -> None:
    proxy.cut_to_client(3)
    with connect(proxy) as connection:
        connection.sendall(b"0123456789")
        assert receive(connection, 3) == b"012"
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    assert bytes(echo.received) == b"0123456789"


def test_the_request_of_a_dropped_reply_reaches_the_server(proxy: Proxy, echo: Echo) -> None:
    proxy.drop_reply()
    with connect(proxy) as connection:
        connection.sendall(b"insert")
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    assert bytes(echo.received) == b"insert"
    assert proxy.faults == 1


def test_the_dropped_reply_comes_after_the_given_bytes_and_ends_as_given(proxy: Proxy, echo: Echo) -> None:
    proxy.drop_reply(after_bytes=8, until=b".")
    with connect(proxy) as connection:
        for text in (b"Hello.", b"and so"):
            connection.sendall(text)
            assert receive(connection, len(text)) == text
        connection.sendall(b"on.")
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    assert proxy.faults == 1
    assert bytes(echo.received) == b"Hello.and soon."


def test_a_server_that_is_down_gives_a_reset(echo: Echo) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with Proxy("127.0.0.1", port) as proxy, pytest.raises(ConnectionResetError), connect(proxy) as connection:
        connection.recv(1)
