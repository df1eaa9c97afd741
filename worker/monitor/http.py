"""A small HTTP server for a few read-only pages. No client can block it.

Each connection gets one response. Request headers have a deadline and a size limit, responses have a deadline. When too
many connections are open, the oldest is closed, so slow clients never keep others out.
"""

from __future__ import annotations

import asyncio
import errno
import gzip
import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit

from worker.core.errors import Fatal

log = logging.getLogger(__name__)

_HEADER_S = 5.0
_RESPONSE_S = 10.0
_HEADER_BYTES = 8192
_CONNECTIONS = 64
_HEADERS = (
    "Connection: close\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"
    "Content-Security-Policy: default-src 'none'; connect-src 'self'; img-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'\r\n"
)
_COMPRESSED_FROM_BYTES = 1400  # smaller answers fit one packet
_GZIP_HEADERS = "Content-Encoding: gzip\r\nVary: Accept-Encoding\r\n"
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


class Request(NamedTuple):
    """A GET or HEAD of a path that exists."""

    query: dict[str, str]
    accept: str  # the header Accept


class Response(NamedTuple):
    """The response to a request."""

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: int = 200


Page = Callable[[Request], Response]  # runs in the event loop, so it must be quick


class Server:
    """The listening socket and its open connections."""

    def __init__(self, pages: Mapping[str, Page]) -> None:
        self._pages = pages
        self._open: dict[asyncio.StreamWriter, None] = {}  # oldest first
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> str:
        """Listen; return the address as a URL. Raises Fatal if the address cannot be used."""
        try:
            self._server = await asyncio.start_server(self._serve, host, port, limit=_HEADER_BYTES, reuse_address=True)
        except OSError as error:
            in_use = error.errno == errno.EADDRINUSE
            reason = "is in use" if in_use else f"cannot be used ({error.strerror or error})"
            raise Fatal(
                f"address {host}:{port} {reason}: choose another with --metrics-host, --metrics-port (0: any free port)"
            ) from None
        url_host = f"[{host}]" if ":" in host else host
        return f"http://{url_host}:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        """Stop listening and close all connections."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._open):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= _CONNECTIONS:
            oldest = next(iter(self._open))
            self._open.pop(oldest)
            oldest.transport.abort()
        self._open[writer] = None
        try:
            async with asyncio.timeout(_HEADER_S):
                head = await reader.readuntil(b"\r\n\r\n")
            writer.write(self._respond(head))
            async with asyncio.timeout(_RESPONSE_S):
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except asyncio.LimitOverrunError:
            writer.write(_message(Response(b"the headers are too long\n", status=400)))
            writer.close()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            writer.transport.abort()
        finally:
            self._open.pop(writer, None)

    def _respond(self, head: bytes) -> bytes:
        request_line, *header_lines = head.decode("latin-1").split("\r\n")
        try:
            method, target, version = request_line.split(" ")
            url = urlsplit(target)
            query = dict(parse_qsl(url.query))
        except ValueError:
            return _message(Response(b"not an HTTP request\n", status=400))
        if not version.startswith("HTTP/1."):
            return _message(Response(b"only HTTP/1.0 and HTTP/1.1 are supported\n", status=400))
        if method not in ("GET", "HEAD"):
            return _message(Response(b"only GET and HEAD are supported\n", status=405), "Allow: GET, HEAD\r\n")
        page = self._pages.get(url.path)
        if page is None:
            paths = "".join(f"{path}\n" for path in self._pages)
            return _message(Response(f"not found; the pages are:\n{paths}".encode(), status=404), body=method == "GET")
        headers: dict[str, str] = {}
        for line in header_lines:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        answer = page(Request(query, headers.get("accept", "")))
        response, extra = _compressed(answer, headers.get("accept-encoding", ""))
        return _message(response, extra, body=method == "GET")


def _compressed(response: Response, accept_encoding: str) -> tuple[Response, str]:
    """Return the response in gzip, if the client accepts that and it pays, and the headers that say so."""
    if len(response.body) < _COMPRESSED_FROM_BYTES or "gzip" not in accept_encoding:
        return response, ""
    return response._replace(body=gzip.compress(response.body, 1)), _GZIP_HEADERS


def _message(response: Response, extra: str = "", body: bool = True) -> bytes:
    head = (
        f"HTTP/1.1 {response.status} {_REASONS[response.status]}\r\nContent-Type: {response.content_type}\r\n"
        f"Content-Length: {len(response.body)}\r\n{_HEADERS}{extra}\r\n"
    )
    return head.encode("latin-1") + (response.body if body else b"")
