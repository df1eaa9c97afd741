"""A TCP proxy with network faults that a test switches at run time, each at a known byte."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import struct
import termios
import threading
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

END_OF_STREAM = b"\x05"  # ends the response to a query in ClickHouse's native protocol
_CHUNK = 65536
_T = TypeVar("_T")


class Proxy:
    """Forwards 127.0.0.1:`port` to a server; `with Proxy(host, port) as proxy`.

    `delay`, `blackhole` and `refuse` last until `heal`. `cut_to_server`, `cut_to_client` and `drop_reply` occur once,
    on the first connection that qualifies; `faults` counts them. Then the proxy forwards everything again.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._listener: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self.port = 0
        self.connections = 0  # accepted so far
        self.faults = 0
        self.delay_s = 0.0
        self.open = asyncio.Event()  # cleared: forward nothing
        self.open.set()
        self.pending_fault: _Fault | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def heal(self) -> None:
        """Forward again, beginning with the data that a black hole held back."""
        self._call(self._heal())

    def delay(self, seconds: float) -> None:
        """Delay all data, in both directions, by this time."""
        self.delay_s = seconds

    def blackhole(self) -> None:
        """Accept connections and data, forward nothing."""
        self._loop.call_soon_threadsafe(self.open.clear)

    def refuse(self) -> None:
        """Refuse new connections; open connections continue (see `reset`)."""
        self._call(self._refuse())

    def reset(self) -> None:
        """Reset (RST) every open connection, on both sides."""
        self._call(self._reset())

    def cut_to_server(self, size: int) -> None:
        """Forward `size` more bytes of a connection to the server, then reset it."""
        self.pending_fault = _Fault(to_server=True, size=size)

    def cut_to_client(self, size: int) -> None:
        """Forward `size` more bytes of a connection to the client, then reset it."""
        self.pending_fault = _Fault(to_server=False, size=size)

    def drop_reply(self, after_bytes: int = 0, until: bytes = b"") -> None:
        """Lose a reply: the server executes the request, and the client gets no reply.

        When a client has sent `after_bytes` more on its connection, the proxy discards the next data from the server
        that ends with `until`, and resets the connection. ClickHouse also replies to every block of an insert, so use
        `drop_reply(after_bytes=<less than the block's>, until=END_OF_STREAM)` for an insert.
        """
        self.pending_fault = _Fault(to_server=False, size=0, after_bytes=after_bytes, until=until)

    def _call(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def _heal(self) -> None:
        self.delay_s = 0.0
        self.pending_fault = None
        self.open.set()
        if self._listener is None:
            await self._listen()

    async def _refuse(self) -> None:
        if self._listener:
            self._listener.close()  # wait_closed would also wait for the open connections
            self._listener = None

    async def _reset(self) -> None:
        for link in list(self._links):
            link.reset()

    async def _close(self) -> None:
        await self._refuse()
        await self._reset()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            server = await asyncio.open_connection(*self._target)
        except OSError:
            _reset(writer)
            return
        link = _Link(self, (reader, writer), server)
        self._links.add(link)
        try:
            await link.run()
        finally:
            self._links.discard(link)


class _Fault:
    """A fault that has not occurred yet."""

    def __init__(self, *, to_server: bool, size: int, after_bytes: int = -1, until: bytes = b"") -> None:
        self.to_server = to_server
        self.size = size  # bytes to forward before it
        self.after_bytes = after_bytes  # -1: a cut, not a lost reply
        self.until = until


_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Link:
    """A connection: the client's and the server's streams."""

    def __init__(self, proxy: Proxy, client: _Streams, server: _Streams) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._fault: _Fault | None = None
        self._passed = {True: 0, False: 0}  # bytes by direction, since the pending fault was set

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(self._client[0], self._server[1], to_server=True))
                group.create_task(self._pump(self._server[0], self._client[1], to_server=False))
        except* OSError:
            self.reset()
        finally:
            for _, writer in (self._client, self._server):
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    def reset(self) -> None:
        _reset(self._client[1])
        _reset(self._server[1])

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, to_server: bool) -> None:
        while data := await reader.read(_CHUNK):
            if self._proxy.delay_s:
                await asyncio.sleep(self._proxy.delay_s)
            await self._proxy.open.wait()
            passed = self._count(len(data), to_server=to_server)
            fault = self._fault
            if fault is None or not self._is_due(fault, data, passed, to_server=to_server):
                writer.write(data)
                await writer.drain()
                continue
            writer.write(data[: fault.size - (passed - len(data))] if fault.size else b"")
            await _wait_delivered(writer)
            self._proxy.pending_fault = None
            self._proxy.faults += 1
            self.reset()
            return
        if writer.can_write_eof() and not writer.is_closing():
            writer.write_eof()

    def _count(self, size: int, *, to_server: bool) -> int:
        """Return the bytes of this direction since the pending fault was set, including these."""
        if self._fault is not self._proxy.pending_fault:
            self._fault = self._proxy.pending_fault
            self._passed = {True: 0, False: 0}
        self._passed[to_server] += size
        return self._passed[to_server]

    def _is_due(self, fault: _Fault, data: bytes, passed: int, *, to_server: bool) -> bool:
        if fault.to_server != to_server:
            return False
        if fault.after_bytes >= 0:
            return self._passed[True] >= fault.after_bytes and data.endswith(fault.until)
        return passed >= fault.size


async def _wait_delivered(writer: asyncio.StreamWriter) -> None:
    """Wait until the peer's kernel has all written data: a reset discards unsent data."""
    await writer.drain()
    connection = writer.get_extra_info("socket")
    while not writer.is_closing():
        unsent = struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))[0]
        if not unsent and not writer.transport.get_write_buffer_size():
            return
        await asyncio.sleep(0.001)


def _reset(writer: asyncio.StreamWriter) -> None:
    if not writer.transport.is_closing():
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
