"""What `check` finds out about Redis: reachable, rights, the key, and what could lose it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import redis
from redis import exceptions

from worker.check.finding import Finding, Stored, fail, ok, trouble, warn
from worker.errors import WorkerError
from worker.settings import Settings
from worker.sinks.redis import CREDENTIALS_ADVICE, RedisSink, connect, where

_TIMEOUT_S = 4.0
_FULL = 0.9


def look_at_redis(settings: Settings, _create: bool, fields: list[Stored]) -> Iterator[Finding]:
    """Yield the findings; fill in the fields of an event that are stored. Writes nothing."""
    key = settings.redis_key_name
    fields += map(Stored, RedisSink.fields)
    with closing(connect(settings, _TIMEOUT_S)) as client:
        place = where(client)
        try:
            client.ping()
        except exceptions.NoPermissionError:
            pass  # it answers, and what it has to let us do is asked below
        except exceptions.AuthenticationError as error:
            yield fail("Redis", f"{place}: {error}", CREDENTIALS_ADVICE)
            return
        except (exceptions.RedisError, OSError) as error:
            yield fail("Redis", f"{place} does not answer: {error}", "--redis-url redis://HOST:PORT/0 (is it running?)")
            return
        yield ok("Redis", f"{place} answers")
        yield _writable(client, key)
        yield _counted(settings, key)
        yield from _server(client)


def _writable(client: redis.Redis, key: str) -> Finding:
    """Say whether PFADD would be taken: queued in a transaction it meets every refusal, and is then discarded."""
    pool = client.connection_pool
    connection: Any = pool.get_connection()
    try:
        connection.send_command("MULTI")
        connection.read_response()
        connection.send_command("PFADD", key, "")
        connection.read_response()
    except exceptions.NoPermissionError:
        return fail("rights", f"this user may not PFADD to {key}", f"ACL SETUSER … ~{key} +pfadd +pfcount")
    except exceptions.ReadOnlyError:
        return fail("role", "this is a replica, which takes no writes", "point --redis-url at its primary")
    except exceptions.OutOfMemoryError:
        return fail("memory", "maxmemory is reached and nothing may be evicted", "CONFIG SET maxmemory …")
    except (exceptions.RedisError, OSError) as error:
        return fail("writes", f"refused: {error}", "see the server's log")
    else:
        return ok("rights", f"writes to {key} are taken")
    finally:
        connection.disconnect()  # discards
        pool.release(connection)


def _counted(settings: Settings, key: str) -> Finding:
    with closing(RedisSink(settings)) as sink:
        try:
            return ok("key", f"{key} has {sink.devices()} devices")
        except WorkerError as error:
            if getattr(error, "reason", "") == "wrong_type":
                return fail("key", f"{key} is no HyperLogLog", f"--redis-key another, or RENAME {key} …")
            return trouble("key", error)


def _server(client: redis.Redis) -> Iterator[Finding]:
    """Yield what could lose the key."""
    try:
        info: dict[str, Any] = client.info("everything")
    except (exceptions.RedisError, OSError) as error:
        yield warn(
            "server", f"INFO is refused ({error}): eviction and persistence are not known", "ACL SETUSER … +info"
        )
        return
    limit, used = int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if policy.startswith("allkeys"):
        yield warn(
            "eviction",
            f"maxmemory-policy {policy} may drop the key" + ("" if limit else " once a maxmemory is set"),
            "CONFIG SET maxmemory-policy noeviction (or volatile-lru: the key has no TTL)",
        )
    else:
        yield ok("eviction", f"maxmemory-policy {policy} keeps the key")
    if limit and used > _FULL * limit:
        yield warn("memory", f"{used} of {limit} bytes are used", f"CONFIG SET maxmemory {2 * limit}")
    else:
        yield ok("memory", f"{used} of {limit} bytes are used" if limit else "no maxmemory")
    if info.get("role") == "slave" and not int(info.get("slave_read_only", 1)):
        yield fail("role", "a replica loses what is written to it", "point --redis-url at its primary")
    if not int(info.get("aof_enabled", 0)):
        yield warn(
            "persistence",
            "without the append-only file a crash of Redis loses devices whose events are committed",
            "CONFIG SET appendonly yes",
        )
