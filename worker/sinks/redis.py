"""Distinct devices into a Redis HyperLogLog. PFADD is idempotent: a range added twice counts once."""

from __future__ import annotations

from itertools import islice
from typing import Any

import hiredis
import redis
from redis import exceptions

from worker.batch import Batch
from worker.errors import Fatal, Retryable
from worker.events import Field, texts
from worker.settings import Settings

# Elements of one PFADD. A command blocks the server for about 180 ns an element.
_PFADD_ELEMENTS = 5000

_TIMEOUT_S = 10.0

CREDENTIALS_ADVICE = "check the user in --redis-url and WORKER_REDIS_PASSWORD or WORKER_REDIS_PASSWORD_FILE"

# What an error means: redis-py's class for it, the first word of the reply where that matters, a reason and advice.
# In this order, for AuthenticationError and BusyLoadingError are ConnectionErrors.
_TROUBLE: tuple[tuple[type[Exception], str, str, str], ...] = (
    (exceptions.AuthenticationError, "", "credentials", CREDENTIALS_ADVICE),
    (exceptions.NoPermissionError, "", "credentials", "it needs +pfadd +pfcount; verify also +pfmerge +expire +del"),
    (exceptions.BusyLoadingError, "", "overloaded", "Redis is loading its data"),
    (exceptions.OutOfMemoryError, "", "memory", "raise maxmemory or free some"),
    (exceptions.ReadOnlyError, "", "read_only", "point --redis-url at the primary"),
    (exceptions.ClusterDownError, "", "connection", "the cluster is not whole"),
    (exceptions.MasterDownError, "", "connection", "the replica has lost its primary"),
    (exceptions.TryAgainError, "", "overloaded", "a slot is being moved"),
    (exceptions.TimeoutError, "", "timeout", "no answer in time"),
    (exceptions.ConnectionError, "", "connection", "is it running?"),
    (exceptions.ResponseError, "WRONGTYPE", "wrong_type", "rename or remove that key, or set --redis-key"),
    (exceptions.ResponseError, "MISCONF", "no_space", "Redis cannot save its snapshot: see its log"),
    (exceptions.ResponseError, "BUSY", "overloaded", "a script is running"),
    (exceptions.ResponseError, "NOREPLICAS", "connection", "too few replicas are connected"),
    (OSError, "", "connection", "is it running?"),
    (Exception, "", "other", "see its log"),
)


def connect(settings: Settings, timeout_s: float = _TIMEOUT_S) -> redis.Redis:
    """Return a client that connects at its first command and tries nothing twice."""
    return redis.Redis.from_url(
        settings.redis_url,
        **({"password": settings.redis_password} if settings.redis_password else {}),
        socket_timeout=timeout_s,
        socket_connect_timeout=min(timeout_s, _TIMEOUT_S),
        retry=None,
        protocol=2,
    )


def where(client: redis.Redis) -> str:
    """Return the server's place, for messages."""
    options = client.connection_pool.connection_kwargs
    return f"Redis at {options.get('path') or '{host}:{port}'.format(**options)}"


def trouble(where: str, error: Exception) -> Retryable:
    """Return what an error of redis-py means, and what to do."""
    reason, advice = next(
        (reason, advice)
        for kind, word, reason, advice in _TROUBLE
        if isinstance(error, kind) and str(error).startswith(word)
    )
    return Retryable(f"{where}: {error} ({advice})", reason=reason)


class RedisSink:
    """One connection, and one HyperLogLog per topic."""

    remembers_ms = 0.0
    exactly_once = False  # not needed: see the module's first line
    fields = (Field("device_ip", ("device_ip",), texts),)

    def __init__(self, settings: Settings) -> None:
        self._key = settings.redis_key_name
        self._client = connect(settings)
        self._where = f"{where(self._client)}, key {self._key}"

    def open(self) -> None:
        """Connect and look whether the key can be counted."""
        try:
            self.devices()
        except Retryable as error:
            if error.reason in ("credentials", "wrong_type"):
                raise Fatal(str(error)) from None
            raise

    def write(self, batch: Batch) -> None:
        """Add the batch's distinct devices: PFADDs of up to 5000 elements, one round trip, every reply looked at."""
        devices = iter(set().union(*batch.columns[0]))
        commands = []
        while part := tuple(islice(devices, _PFADD_ELEMENTS)):
            commands.append(_packed("PFADD", self._key, *part))
        self._exchange(commands)

    def landed(self, topic: str, partition: int, start: int, end: int) -> int | None:
        """Return None: a HyperLogLog does not tell, and need not."""

    def devices(self) -> int:
        """Return PFCOUNT of the key."""
        (count,) = self._exchange([_packed("PFCOUNT", self._key)])
        return int(count)

    def close(self) -> None:
        self._client.close()

    def _exchange(self, commands: list[bytes]) -> list[Any]:
        """Send packed commands at once, read all replies, and raise for the first that is an error."""
        pool = self._client.connection_pool
        failure: exceptions.RedisError | None = None
        try:
            connection = pool.get_connection()
        except exceptions.RedisError as error:
            raise trouble(self._where, error) from None
        try:
            connection.send_packed_command(commands)
            replies = []
            for _ in commands:
                try:
                    replies.append(connection.read_response())
                except exceptions.ResponseError as error:  # the other replies still have to be read
                    failure = failure or error
        except (exceptions.RedisError, OSError) as error:
            connection.disconnect()
            raise trouble(self._where, error) from None
        finally:
            pool.release(connection)
        if failure is not None:
            raise trouble(self._where, failure)
        return replies


def _packed(*words: str) -> bytes:
    """Return a command on the wire; redis-py packs arguments in Python, which takes three times as long."""
    command: tuple[Any, ...] = words
    packed: bytes = hiredis.pack_command(command)
    return packed
