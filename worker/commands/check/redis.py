"""The checks of Redis: connection, rights, the key, and the settings that could lose it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import redis
from redis import exceptions

from worker.commands.check.finding import Finding, Stored, fail, fail_with, ok, warn
from worker.config.settings import Settings
from worker.core.errors import Retryable, WorkerError
from worker.sinks.redis.nodes import CREDENTIALS_ADVICE, Node
from worker.sinks.redis.sink import RedisSink
from worker.sinks.redis.windows import Keys, windows

_TIMEOUT_S = 4.0
_FULL = 0.9
_VERIFY = "+pfadd +pfcount +pfmerge +expire +del"


def check_redis(settings: Settings, _create: bool, fields: list[Stored]) -> Iterator[Finding]:
    """Yield the findings; append the fields of an event that are stored to `fields`. Writes nothing."""
    keys = Keys(settings)
    fields += map(Stored, RedisSink(settings).fields)
    with closing(Node(settings, keys.total, _TIMEOUT_S)) as node:
        try:
            client = node.client()
            client.ping()
        except exceptions.NoPermissionError as error:
            if "'ping'" not in str(error):  # else it answers, and the rights that the worker needs are checked below
                yield fail("rights", f"{node.where}: {error}", "ACL SETUSER … +select, for a database other than 0")
                return
        except (TypeError, ValueError) as error:
            yield fail("Redis", f"{node.where}: {error}", "correct the options in --redis-url")
            return
        except Exception as error:
            yield _unreachable(node, node.to_retryable(error))
            return
        yield ok("Redis", f"{node.where} answers")
        yield _check_writes(client, keys)
        yield _check_key(settings, keys.total)
        yield from _check_days(node, keys)
        yield from _check_server(client, bool(keys.windows))


def _unreachable(node: Node, error: Retryable) -> Finding:
    if error.reason == "credentials":
        return fail("Redis", str(error), f"{CREDENTIALS_ADVICE}, or for a certificate ?ssl_ca_certs=FILE")
    return fail("Redis", f"{node.where} does not answer: {error}", "--redis-url redis://HOST:PORT/0 (is it running?)")


def _commands_to_try(keys: Keys) -> list[tuple[str, ...]]:
    """Return one command of each kind that the worker sends."""
    commands: list[tuple[str, ...]] = [("PFADD", keys.total, ""), ("PFCOUNT", keys.total)]
    if keys.windows:
        window = keys.windows[0]
        slice_key = keys.of(window, 0, "")
        commands += [("PFADD", slice_key, ""), ("EXPIREAT", slice_key, "1"), ("SADD", keys.registry, window.id)]
        commands += [("SMEMBERS", keys.registry)]
    if keys.by:
        values, label = keys.values(keys.names), ":".join("0" for _ in keys.by)
        commands += [("SADD", keys.fields_registry, ""), ("SADD", values, ""), ("SMEMBERS", values)]
        commands += [("PFADD", keys.of(None, 0, label), "")]
    return commands


def _check_writes(client: redis.Redis, keys: Keys) -> Finding:
    """Queue the commands in a transaction, where Redis checks rights and role, and discard it."""
    commands = _commands_to_try(keys)
    pool = client.connection_pool
    connection: Any = pool.get_connection()
    words: tuple[str, ...] = ("MULTI",)
    try:
        _ask(connection, *words)
        for words in commands:
            _ask(connection, *words)
    except exceptions.NoPermissionError:
        return _check_without_transaction(client, keys) if words == ("MULTI",) else _lacks(words, keys)
    except exceptions.ReadOnlyError:
        return fail("role", "this is a replica, which refuses writes", "point --redis-url at its primary")
    except exceptions.OutOfMemoryError:
        return fail("memory", "maxmemory is reached and no key may be evicted", "CONFIG SET maxmemory …")
    except exceptions.AskError:
        return fail("cluster", "this cluster node does not own the key", "--redis-url redis+cluster://HOST:PORT")
    except (exceptions.RedisError, OSError) as error:
        return fail("writes", f"refused: {error}", "see the server's log")
    else:
        return ok("rights", f"writes to {keys.total} are accepted")
    finally:
        connection.disconnect()  # discards
        pool.release(connection)


def _ask(connection: Any, *words: str) -> Any:
    connection.send_command(*words)
    return connection.read_response()


def _check_without_transaction(client: redis.Redis, keys: Keys) -> Finding:
    """Try the commands that write nothing, for a user that may not MULTI: the worker itself does not need it."""
    names = list(dict.fromkeys(name for name, *_ in _commands_to_try(keys)))
    tried: list[str] = []
    words: tuple[str, ...] = ()
    try:
        for words in _harmless_commands(keys):
            reply = client.execute_command(*words)
            tried.append(words[0])
        if reply:
            words = ("PFADD", keys.total)  # without elements: the key exists, so this changes nothing
            client.execute_command(*words)
            tried.append("PFADD")
    except exceptions.NoPermissionError:
        return _lacks(words, keys)
    except exceptions.ReadOnlyError:
        return fail("role", "this is a replica, which refuses writes", "point --redis-url at its primary")
    except (exceptions.RedisError, OSError) as error:
        return fail("rights", f"{words[0]} is refused: {error}", "see the server's log")
    untried = ", ".join(name for name in names if name not in tried)
    text = f"this user may {', '.join(name for name in names if name in tried)}"
    return ok("rights", text + (f"; {untried} cannot be tried without +multi" if untried else ""))


def _harmless_commands(keys: Keys) -> list[tuple[str, ...]]:
    """Return those of `_commands_to_try` that write nothing. The last one counts the key."""
    commands = [words for words in _commands_to_try(keys) if words[0] in ("SMEMBERS", "EXPIREAT")]
    return [*commands, ("PFCOUNT", keys.total)]  # EXPIREAT: of a slice of 1970, which no worker writes


def _lacks(words: tuple[str, ...], keys: Keys) -> Finding:
    pattern = f"{keys.prefix}*" if keys.windows or keys.by else keys.total
    rights = " ".join(dict.fromkeys(f"+{words[0].lower()}" for words in _commands_to_try(keys)))
    more = f"check: +info +multi, verify: {_VERIFY} on ~{keys.prefix}:verify:*"
    return fail("rights", f"this user may not {words[0]} {words[1]}", f"ACL SETUSER … ~{pattern} {rights} ({more})")


def _check_key(settings: Settings, key: str) -> Finding:
    with closing(RedisSink(settings)) as sink:
        try:
            return ok("key", f"{key} has {sink.devices()} devices")
        except WorkerError as error:
            if getattr(error, "reason", "") == "wrong_type":
                return fail("key", f"{key} is not a HyperLogLog", f"another --redis-key, or RENAME {key} …")
            return fail_with("key", error)


def _check_days(node: Node, keys: Keys) -> Iterator[Finding]:
    """Warn about days of other time zones: the option was changed, or differs between hosts."""
    own = [window for window in keys.windows if window.name == "day"]
    with suppress(Retryable):  # SMEMBERS was tried with the other commands
        stored = windows(member.decode() for member in node.ask("SMEMBERS", keys.registry)) if own else ()
        others = [window for window in stored if window.name == "day" and window not in own]
        if others:
            zones = " and ".join(window.zone or "UTC" for window in others)
            text = f"{keys.total} has days of {zones}, too: another host's --window-time-zone, or an earlier one"
            ids = " ".join(window.id for window in others)
            yield warn("days", text, f"the same option on all hosts; after a change: SREM {keys.registry} {ids}")


def _check_server(client: redis.Redis, windows: bool) -> Iterator[Finding]:
    """Check the settings that could lose the key: eviction, memory, role, persistence."""
    try:
        info: dict[str, Any] = client.info("everything")
    except (exceptions.RedisError, OSError) as error:
        yield warn("server", f"INFO is refused ({error}): eviction and persistence are unknown", "ACL SETUSER … +info")
        return
    limit, used = int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if policy.startswith("volatile") and windows:
        yield warn(
            "eviction",
            f"maxmemory-policy {policy} may evict windows: their keys have a TTL",
            "CONFIG SET maxmemory-policy noeviction",
        )
    elif policy.startswith("allkeys"):
        yield warn(
            "eviction",
            f"maxmemory-policy {policy} may evict the key" + ("" if limit else " once a maxmemory is set"),
            "CONFIG SET maxmemory-policy noeviction" + ("" if windows else " (or volatile-lru: the key has no TTL)"),
        )
    else:
        yield ok("eviction", f"maxmemory-policy {policy} keeps the key")
    if limit and used > _FULL * limit:
        yield warn("memory", f"{used} of {limit} bytes are used", f"CONFIG SET maxmemory {2 * limit}")
    else:
        yield ok("memory", f"{used} of {limit} bytes are used" if limit else "no maxmemory")
    if info.get("role") == "slave" and not int(info.get("slave_read_only", 1)):
        yield fail("role", "a replica loses the data written to it", "point --redis-url at its primary")
    if not int(info.get("aof_enabled", 0)):
        yield warn(
            "persistence",
            "without the append-only file a crash of Redis loses devices whose events are committed",
            "CONFIG SET appendonly yes",
        )
