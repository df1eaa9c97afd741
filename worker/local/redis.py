"""A real Redis on this machine: `redis-server` from the PATH."""

from __future__ import annotations

from worker.local import fetch
from worker.local.directory import Directory
from worker.local.process import Server, exchange, free_port


def start_redis(binary: str | None = None, **options: str | int) -> Server:
    """Return a Redis for `with`; `options` are configuration directives (`maxmemory="1mb"`, `requirepass="x"`).

    Acknowledged writes survive a kill: the append-only file is on, unless `appendonly="no"`.
    """
    command = [binary or fetch.tool("redis-server")]
    directory = Directory("redis")
    port = free_port()
    directives: dict[str, str | int] = {
        "port": port,
        "bind": "127.0.0.1",
        "dir": str(directory.path),
        "save": "",
        "appendonly": "yes",
        **{name.replace("_", "-"): value for name, value in options.items()},
    }
    for name, value in directives.items():
        command += [f"--{name}", str(value)]
    secret = f":{options['requirepass']}@" if "requirepass" in options else ""
    return Server(
        directory,
        command,
        lambda: exchange(port, b"PING\r\n").startswith((b"+PONG", b"-NOAUTH")),
        address=f"redis://{secret}127.0.0.1:{port}/0",
        port=port,
    )
