"""The sources of the settings: a flag wins over a variable, a variable over the file, the file over the default."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from worker.config import field_paths
from worker.config.parsers import TYPE_RULES, nearest
from worker.config.redaction import is_secret_property, redact_option, redact_url
from worker.config.settings import Settings, UsageError, default_of, flag_of

PREFIX = "WORKER_"
CONFIG_VARIABLE = f"{PREFIX}CONFIG"  # the same as --config
_SHARED = ("_url", "_password")  # ends of the names of options that may be given for a store that is not used
_TYPO_RATIO = 0.81  # a variable this similar to an option's is a typo; others may belong to other programs

# Properties that the delivery protocol depends on, with the reason or what to use instead.
OWNED_PROPERTIES = {
    "bootstrap.servers": "use --bootstrap-servers",
    "metadata.broker.list": "use --bootstrap-servers",
    "group.id": "use --group-id",
    "enable.auto.commit": "offsets are committed only after the store has acknowledged",
    "auto.commit.enable": "offsets are committed only after the store has acknowledged",
    "enable.auto.offset.store": "offsets are committed only after the store has acknowledged",
    "enable.partition.eof": "the worker needs it to pass transaction markers",
    "auto.offset.reset": "use --start",
    "partition.assignment.strategy": "it is range or roundrobin; group.protocol=consumer rebalances incrementally",
    "isolation.level": "aborted transactions must not be stored",
    "acks": "a dead letter counts only once all in-sync replicas have it",
    "request.required.acks": "a dead letter counts only once all in-sync replicas have it",
    "enable.idempotence": "the producer must not duplicate a dead letter",
    "transactional.id": "`dlq replay` sets its own, so that concurrent replays fence each other",
    "statistics.interval.ms": "nothing reads librdkafka's statistics; /metrics has the worker's own",
    "sasl.password": "use the environment variable WORKER_KAFKA_PASSWORD or WORKER_KAFKA_PASSWORD_FILE",
}


def load(
    flags: Mapping[str, Any], environ: Mapping[str, str], config: Path | None = None
) -> tuple[Settings, dict[str, str]]:
    """Build the settings from texts; also return the origin of each value that is not a default.

    The origin of a property is under `kafka.<property>`, of a column under `map.<column>`. `flags` maps field names to
    the texts of the command line, or to lists of them. Raises UsageError.
    """
    texts: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name, text, origin in [*_from_file(config), *_from_environment(environ), *_from_flags(flags)]:
        if isinstance(text, Mapping):
            texts.setdefault(name, {}).update(text)
            origins.update({f"{name}.{key}": origin for key in text})
        else:
            texts[name] = text
        origins[name] = origin
    values: dict[str, Any] = {}
    for item in fields(Settings):
        if item.name in texts:
            values[item.name] = _parse(item, texts[item.name], origins[item.name])
    for key in values.get("kafka", {}):
        if key in OWNED_PROPERTIES:
            raise UsageError(f"{origins[f'kafka.{key}']} {key} cannot be set: {OWNED_PROPERTIES[key]}")
    settings = Settings(**values)
    is_empty = settings.start == "latest" or (settings.start_ms or 0) >= (settings.until_ms or 0)
    if settings.until and is_empty:
        raise UsageError(f"{origins['until']}: {settings.until} is not after --start {settings.start}")
    return settings, origins


def reject_other_backends_options(settings: Settings, origins: Mapping[str, str]) -> None:
    """Reject options that only another store uses: they would have no effect. Raises UsageError.

    A file and the environment may serve workers of both stores, so these may have both addresses and passwords, and
    defaults, which `--print-config` writes.
    """
    for item in fields(Settings):
        other, origin = item.metadata["backend"], origins.get(item.name, "")
        if not origin or other in ("", *settings.backends):
            continue
        is_shared = item.name.endswith(_SHARED) or getattr(settings, item.name) == default_of(item)
        if origin == flag_of(item.name) or not is_shared:
            raise UsageError(
                f"{origin}: it has no effect with --backend {settings.backend}; leave it out, or use --backend {other}"
            )


def _parse(item: Field[Any], text: Any, origin: str) -> Any:
    if isinstance(text, Mapping):
        return {str(key): str(value) for key, value in text.items()}
    choices = item.metadata["choices"]
    if choices and text not in choices:
        raise UsageError(f"{origin}: {text!r} is not one of {', '.join(choices)}{nearest(text, list(choices))}")
    try:
        return item.metadata["parse"](text)
    except ValueError as error:
        raise UsageError(f"{origin}: invalid value {redact_option(item, text)!r}: {error}") from None


def _from_flags(flags: Mapping[str, Any]) -> list[tuple[str, Any, str]]:
    for key in flags.get("kafka", ()):
        if is_secret_property(key) and key not in OWNED_PROPERTIES:
            raise UsageError(
                f"-X {key}: every user of this machine can see a secret in an argument; put it into the table "
                f"[kafka] of the file that --config names, or into {PREFIX}KAFKA or {PREFIX}KAFKA_FILE"
            )
    for name, text in flags.items():
        if name.endswith("_url") and redact_url(str(text)) != text:
            raise UsageError(
                f"{flag_of(name)}: every user of this machine can see a password in an argument; "
                f"put the URL into the environment variable {PREFIX}{name.upper()}, or the password alone into "
                f"{PREFIX}{name.removesuffix('_url').upper()}_PASSWORD_FILE"
            )
    options = {item.name: item for item in fields(Settings)}
    return [
        (name, _parse(options[name], ",".join(text), flag_of(name)) if isinstance(text, list) else text, flag_of(name))
        for name, text in flags.items()
    ]


def _from_environment(environ: Mapping[str, str]) -> list[tuple[str, Any, str]]:
    values: list[tuple[str, Any, str]] = []
    options = {PREFIX + item.name.upper(): item for item in fields(Settings)}
    _reject_typos(environ, [*options, *(f"{variable}_FILE" for variable in options), CONFIG_VARIABLE])
    for variable, item in options.items():
        origin = variable
        if f"{variable}_FILE" in environ:
            origin = f"{variable}_FILE"
            try:
                text = Path(environ[origin]).read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                reason = getattr(error, "strerror", None) or "it is not text"
                raise UsageError(f"{origin}: {reason}: {environ[origin]}") from None
        elif variable in environ:
            text = environ[variable]
        else:
            continue
        # A text of several values is parsed here, so that another source can override each of them.
        values.append((item.name, _parse(item, text, origin) if default_of(item) == {} else text, origin))
    return values


def _reject_typos(environ: Mapping[str, str], variables: list[str]) -> None:
    """Reject a variable that is similar to an option's. Others may belong to other programs."""
    short = {variable.removeprefix(PREFIX): variable for variable in variables}
    for variable in sorted(environ.keys() - set(variables)):
        if variable.startswith(PREFIX) and (
            matches := difflib.get_close_matches(variable.removeprefix(PREFIX), short, n=1, cutoff=_TYPO_RATIO)
        ):
            raise UsageError(f"{variable}: there is no such option (did you mean {short[matches[0]]}?)")


def _from_file(config: Path | None) -> list[tuple[str, Any, str]]:
    if config is None:
        return []
    try:
        document = tomllib.loads(config.read_text())
    except OSError as error:
        raise UsageError(f"--config {config}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {config}: {error}") from None
    options = {item.name: item for item in fields(Settings)}
    values: list[tuple[str, Any, str]] = []
    for key, value in document.items():
        name = key.replace("-", "_")
        origin = f"{config}: {key}"
        if name not in options:
            raise UsageError(f"{config}: unknown key {key}{nearest(name, list(options))}")
        if options[name].metadata["secret"]:
            raise UsageError(f"{origin}: this file must not contain secrets; use {PREFIX}{name.upper()}_FILE")
        parse, advice = _TABLES.get(name, (_text, ""))
        if advice and not isinstance(value, dict):
            raise UsageError(f"{origin}: {advice}")
        try:
            values.append((name, parse(value), origin))
        except ValueError as error:
            raise UsageError(f"{origin}: {error}") from None
    return values


def _properties(table: Mapping[str, Any]) -> dict[str, str]:
    return {key: _text(value) for key, value in table.items()}


def _types(table: Mapping[str, Any]) -> dict[str, str]:
    if not set(map(str, table.values())) <= set(TYPE_RULES):
        raise ValueError(_TYPES_ADVICE)
    return {column: str(rule) for column, rule in table.items()}


def _text(value: Any) -> str:
    if isinstance(value, list):  # of topics
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


_TYPES_ADVICE = 'write a table of columns, such as status = "lenient" below [types]'
# The tables of the file: how each is parsed, and what to write instead of a value that is no table.
_TABLES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "kafka": (_properties, "write a table of librdkafka properties"),
    "map": (field_paths.columns, 'write a table, such as request.user.id = "user_id" below [map]'),
    "types": (_types, _TYPES_ADVICE),
}


def from_environment() -> Mapping[str, str]:
    """Return the environment of the process. Nothing else reads options from it."""
    return os.environ
