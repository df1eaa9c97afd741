"""A real Prometheus on this machine: `prometheus` from the PATH."""

from __future__ import annotations

from worker.local import fetch
from worker.local.directory import Directory
from worker.local.process import Server, exchange, free_port


def start_prometheus(config: str) -> Server:
    """Return a Prometheus for `with`, running `config` (YAML); `address` is its http URL."""
    command = fetch.tool("prometheus")
    directory = Directory("prometheus")
    port = free_port()
    file = directory.path / "prometheus.yml"
    file.write_text(config)
    return Server(
        directory,
        [
            command,
            f"--config.file={file}",
            f"--storage.tsdb.path={directory.path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--web.enable-lifecycle",
            "--log.level=warn",
        ],
        lambda: b" 200 " in exchange(port, b"GET /-/ready HTTP/1.0\r\n\r\n"),
        address=f"http://127.0.0.1:{port}",
        port=port,
        http_port=port,
    )
