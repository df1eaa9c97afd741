"""HTTP servers that answer as a test says."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class HttpServer:
    """Answers every GET with what `answer` returns, in a thread of its own until `stop`."""

    def __init__(self) -> None:
        own = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body, headers = own.answer(self.path, dict(self.headers))
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def answer(self, path: str, headers: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
        """Return status, body and headers for a request."""
        raise NotImplementedError

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


class Served(HttpServer):
    """Answers every GET with `body`; `paths` has those that were requested."""

    def __init__(self, body: bytes) -> None:
        self.paths: list[str] = []
        self._body = body
        super().__init__()

    def answer(self, path: str, headers: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:  # noqa: ARG002 (the base's)
        self.paths.append(path)
        return 200, self._body, {}


class Answers(HttpServer):
    """Answers with a status and a body for each path, and with a schema registry's "not found" for all others."""

    def __init__(self) -> None:
        self.by_path: dict[str, tuple[int, Any]] = {}
        self.headers: list[dict[str, str]] = []
        super().__init__()

    def answer(self, path: str, headers: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
        self.headers.append(headers)
        status, body = self.by_path.get(path.partition("?")[0], (404, {"error_code": 40403, "message": "not found"}))
        location = {"Location": f"http://{self.address}/other"} if status == 302 else {}
        return status, body if isinstance(body, bytes) else json.dumps(body).encode(), location
