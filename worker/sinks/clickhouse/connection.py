"""A connection to ClickHouse: the driver's client, its address for messages, certificates."""

from __future__ import annotations

from urllib.parse import urlsplit

from clickhouse_driver import Client, defines, errors
from clickhouse_driver.util.helpers import parse_url

_SYNTAX = (62, 46)  # codes of servers without CHECK GRANT
_DEFAULTS = {"client_name": "kafka-ingest-worker", "send_receive_timeout": 60.0, "tcp_keepalive": True}


def connect(url: str, password: str = "") -> Client:
    """Return a client that connects at its first query: one connection, for one thread.

    The URL's query accepts all options of clickhouse-driver (`?compression=lz4`, `?send_receive_timeout=300`,
    `?ca_certs=…`) and query settings. A setting that the server does not know is an error; it is not ignored.
    """
    host, options = parse_url(url)
    if password:
        options["password"] = password
    return Client(host, **{**_DEFAULTS, **options, "settings_is_important": True})


def has_right(client: Client, right: str) -> bool:
    """Whether the client's user has the right; True if the server has no CHECK GRANT. Raises the driver's errors."""
    try:
        return bool(client.execute(f"CHECK GRANT {right}")[0][0])
    except errors.ServerException as error:
        if error.code in _SYNTAX:
            return True
        raise


def address(url: str) -> str:
    """Return host and port of a URL, for messages."""
    parts = urlsplit(url)
    port = defines.DEFAULT_SECURE_PORT if parts.scheme == "clickhouses" else defines.DEFAULT_PORT
    return f"{parts.hostname}:{parts.port or port}"


def certificate_advice(error: Exception) -> str:
    """Return what to do if this client does not trust the server's certificate; empty for any other error."""
    if "CERTIFICATE_VERIFY_FAILED" not in str(error):
        return ""
    return "name the CA that signed the server's certificate: --clickhouse-url clickhouses://…?ca_certs=FILE"
