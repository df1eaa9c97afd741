"""The Redis node that currently holds a key, and the meaning of its errors.

`redis://`, `rediss://` and `unix://` name a server, as in redis-py; `redis+cluster://host:port,…` some nodes of a Redis
Cluster; `redis+sentinel://host:26379,…/mymaster/0` the Sentinels that watch the primary. With `rediss+…://` all
connections use TLS. The query has redis-py's options: `?ssl_ca_certs=FILE`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import hiredis
import redis
from redis import exceptions
from redis.cluster import ClusterNode, RedisCluster
from redis.connection import SSLConnection, parse_url
from redis.sentinel import Sentinel

from worker.config.settings import Settings
from worker.core.errors import ExitCode, Fatal, Retryable

TIMEOUT_S = 10.0
_SENTINEL_PORT, _PORT = 26379, 6379

CREDENTIALS_ADVICE = "check the user in --redis-url and WORKER_REDIS_PASSWORD or WORKER_REDIS_PASSWORD_FILE"

# redis-py's class of an error, the first word of the reply (empty: any), a reason and advice. The first match counts:
# AuthenticationError and BusyLoadingError are also ConnectionErrors.
_ERRORS: tuple[tuple[type[Exception], str, str, str], ...] = (
    (exceptions.AuthenticationError, "", "credentials", CREDENTIALS_ADVICE),
    (exceptions.NoPermissionError, "", "credentials", "worker check prints the ACL line that it needs"),
    (exceptions.BusyLoadingError, "", "overloaded", "Redis is loading its data"),
    (exceptions.OutOfMemoryError, "", "memory", "raise maxmemory or free some"),
    (exceptions.ReadOnlyError, "", "read_only", "point --redis-url at the primary"),
    (exceptions.ClusterDownError, "", "connection", "the cluster does not serve all slots"),
    (exceptions.MasterDownError, "", "connection", "the replica has lost its primary"),
    (exceptions.TryAgainError, "", "overloaded", "a slot is being moved"),
    (exceptions.AskError, "", "connection", "the key's slot is moving, or write redis+cluster:// in --redis-url"),
    (exceptions.TimeoutError, "", "timeout", "no answer in time"),
    (exceptions.ConnectionError, "", "connection", "is it running?"),
    (exceptions.RedisClusterException, "", "connection", "is the cluster running, with all slots?"),
    (exceptions.ResponseError, "WRONGTYPE", "wrong_type", "rename or remove that key, or set --redis-key"),
    (exceptions.ResponseError, "DB index", "configuration", "name another database in --redis-url: …/0"),
    (exceptions.ResponseError, "MISCONF", "no_space", "Redis cannot save its snapshot: see its log"),
    (exceptions.ResponseError, "BUSY", "overloaded", "a script is running"),
    (exceptions.ResponseError, "NOREPLICAS", "connection", "too few replicas are connected"),
    (OSError, "", "connection", "is it running?"),
    (Exception, "", "other", "see its log"),
)
_FAILURES = (exceptions.RedisError, exceptions.RedisClusterException, OSError)


class Node:
    """The node that holds a key, and all keys of its slot. It connects at the first command.

    After any error it looks the node up again, so the next command follows a failover or a moved slot.
    """

    def __init__(self, settings: Settings, key: str, timeout_s: float = TIMEOUT_S) -> None:
        """`timeout_s` is for each connection and each reply. Raises Fatal for an invalid URL."""
        self._key = key
        target = _Target.of(settings, timeout_s)
        self.where = target.where
        self._connect = target.connect
        self._client: redis.Redis | RedisCluster | None = None

    def client(self) -> redis.Redis:
        """Return redis-py's client of that node; raises its errors."""
        if self._client is None:
            self._client = self._connect()
        if isinstance(self._client, RedisCluster):
            node = self._client.get_node_from_key(self._key)
            if node is None:
                raise exceptions.ClusterDownError(f"no node has the slot of {self._key}")
            client: redis.Redis = self._client.get_redis_connection(node)
            return client
        return self._client

    def exchange(self, commands: Sequence[bytes]) -> list[Any]:
        """Send packed commands in one write, read all replies, and raise Retryable for the first error reply."""
        first_error: exceptions.RedisError | None = None
        try:
            pool = self.client().connection_pool
            connection: Any = pool.get_connection()
        except _FAILURES as error:
            raise self.to_retryable(error) from None
        except (TypeError, ValueError) as error:  # an invalid option in the URL's query
            raise Fatal(f"{self.where}: {error}; correct --redis-url") from None
        try:
            connection.send_packed_command(commands)
            replies = []
            for _ in commands:
                try:
                    replies.append(connection.read_response())
                except exceptions.ResponseError as error:  # the other replies must be read all the same
                    first_error = first_error or error
        except _FAILURES as error:
            connection.disconnect()
            raise self.to_retryable(error) from None
        finally:
            pool.release(connection)
        if first_error is not None:
            raise self.to_retryable(first_error)
        return replies

    def ask(self, *words: str | int) -> Any:
        """Return the reply to one command; raises Retryable."""
        return self.exchange([packed(*map(str, words))])[0]

    def to_retryable(self, error: Exception) -> Retryable:
        """Return what an error of redis-py means, and close the connections so that the next command finds the node."""
        self.close()
        if isinstance(error, exceptions.RedisClusterException) and isinstance(error.__cause__, exceptions.RedisError):
            error = error.__cause__
        reason, advice = next(
            (reason, advice)
            for kind, word, reason, advice in _ERRORS
            if isinstance(error, kind) and str(error).startswith(word)
        )
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            reason, advice = "credentials", "name the CA that signed its certificate: ?ssl_ca_certs=FILE"
        return Retryable(f"{self.where}, key {self._key}: {error} ({advice})", reason=reason, backend="redis")

    def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            client.close()


class _Target(NamedTuple):
    """What a URL names."""

    where: str  # for messages
    connect: Callable[[], redis.Redis | RedisCluster]  # raises redis-py's errors

    @staticmethod
    def of(settings: Settings, timeout_s: float) -> _Target:
        scheme, _, rest = settings.redis_url.partition("://")
        plain, _, kind = scheme.partition("+")
        _, _, hosts = urlsplit(f"//{rest}").netloc.rpartition("@")
        first = f"{plain}://{rest.replace(hosts, hosts.split(',')[0], 1)}" if hosts else f"{plain}://{rest}"
        try:
            options: dict[str, Any] = parse_url(first if kind != "sentinel" else _without_path(first))
            addresses = [_address(host, _SENTINEL_PORT if kind == "sentinel" else _PORT) for host in hosts.split(",")]
        except ValueError as error:
            raise Fatal(f"--redis-url: {error}", code=ExitCode.USAGE) from None
        if settings.redis_password:
            options["password"] = settings.redis_password
        options = {
            "socket_timeout": timeout_s,
            "socket_connect_timeout": min(timeout_s, TIMEOUT_S),
            "protocol": 2,
            **options,
        }
        if kind == "cluster":
            return _cluster(hosts, addresses, options)
        if kind == "sentinel":
            return _sentinel(hosts, addresses, urlsplit(f"//{rest}").path, options)
        address = options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', _PORT)}"
        connection = options.pop("connection_class", redis.Connection)
        return _Target(
            f"Redis at {address}",
            lambda: redis.Redis(
                connection_pool=redis.ConnectionPool(connection_class=connection, retry=None, **options)
            ),
        )


def same_slot(key: str) -> str:
    """Return a prefix whose keys are all in the cluster slot of `key`."""
    return key if re.search(r"\{[^}]+\}", key) else f"{{{key}}}"


def packed(*words: str) -> bytes:
    """Return a command as bytes; redis-py packs arguments in Python, which takes three times as long."""
    command: tuple[Any, ...] = words
    wire: bytes = hiredis.pack_command(command)
    return wire


def _cluster(hosts: str, addresses: list[tuple[str, int]], options: dict[str, Any]) -> _Target:
    options = _without_host(options)
    if options.pop("db", 0):
        raise Fatal("--redis-url: a cluster has only database 0", code=ExitCode.USAGE)
    nodes = [ClusterNode(*address) for address in addresses]
    return _Target(f"Redis Cluster at {hosts}", lambda: RedisCluster(startup_nodes=list(nodes), **options))


def _sentinel(hosts: str, addresses: list[tuple[str, int]], path: str, options: dict[str, Any]) -> _Target:
    options = _without_host(options)
    service, _, database = path.strip("/").partition("/")
    if not service or not (database or "0").isdigit():
        raise Fatal(
            "--redis-url: write redis+sentinel://HOST:26379,…/SERVICE/DATABASE, such as …/mymaster/0",
            code=ExitCode.USAGE,
        )
    options["db"] = int(database or 0)
    shared = {name: value for name, value in options.items() if name.startswith(("ssl", "socket"))}
    return _Target(
        f"Redis {unquote(service)} of the Sentinels at {hosts}",
        lambda: Sentinel(addresses, sentinel_kwargs=shared).master_for(unquote(service), retry=None, **options),
    )


def _without_host(options: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in options.items() if name not in ("host", "port", "connection_class")}
    return {**kept, **({"ssl": True} if options.get("connection_class") is SSLConnection else {})}


def _without_path(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(path="").geturl()


def _address(host: str, port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{host}")
    return parts.hostname or "localhost", parts.port or port
