"""Every option once: name, type, default, unit, help and secrecy in one frozen dataclass.

Flag (`--batch-rows`), environment variable (`WORKER_BATCH_ROWS`), key of the TOML file (`batch_rows`), `--help` and the
table in docs/options.md, `--print-config` and the JSON Schema all come from these fields. A flag wins over a variable,
a variable over the file, the file over the default.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from worker import mapping
from worker.errors import ExitCode, Fatal

PREFIX = "WORKER_"
CONFIG_VARIABLE = f"{PREFIX}CONFIG"  # what --config names, where no argument can be given
_MASK = "***"
_SECRET_PROPERTY = re.compile(r"password|passphrase|secret|\.pem$|jaas|oauthbearer\.config$")
# Kafka's own rule: kafka.common.Topic.validate
_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")
_HOLE = "{topic}"  # in a template
_NAME = r"([A-Za-z_]|\{topic\})([A-Za-z0-9_]|\{topic\})*"
_TABLE = re.compile(rf"{_NAME}(\.{_NAME})?")
WINDOWS = {"minute": 60, "hour": 3600, "day": 86_400}  # what `--windows` knows, with its length in seconds
_TTL = re.compile(r"(minute|hour|day)=([1-9][0-9]{0,5})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_REDIS_KINDS = ("cluster", "sentinel")
_NEARLY = 0.8  # how like an option's variable one has to be to be taken for a slip: others may begin with WORKER_, too


class UsageError(Fatal):
    """An option that cannot be used as it was given; the text says what to write instead."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code=ExitCode.USAGE)


def option(
    default: Any,
    help: str,
    *,
    parse: Callable[[str], Any] = str,
    unit: str = "",
    choices: tuple[str, ...] = (),
    secret: bool = False,
    metavar: str = "",
) -> Any:
    """Declare one option. `parse` turns its text into the value and raises ValueError saying what is expected."""
    metadata = {
        "help": help,
        "parse": parse,
        "unit": unit,
        "choices": choices,
        "secret": secret,
        "metavar": metavar,
    }
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Form:
    """A parser of an option's text, and what it takes as JSON Schema."""

    parse: Callable[[str], Any]
    schema: Mapping[str, Any]

    def __call__(self, text: str) -> Any:
        return self.parse(text)


def number(low: float, high: float, kind: type[int] | type[float] = int) -> Form:
    """Return a parser of a number in [low, high]."""
    noun = "a whole number" if kind is int else "a number"

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise ValueError(f"write {noun} from {low:g} to {high:g}")
        return value

    return Form(parse, {"type": "integer" if kind is int else "number", "minimum": low, "maximum": high})


def _processes(text: str) -> int | None:
    """Parse `auto` (None) or a number of consumer processes."""
    if text == "auto":
        return None
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 1 <= value <= 256:
        raise ValueError("write a number of processes from 1 to 256, or auto for one per partition")
    return value


def _switch(text: str) -> bool:
    """Parse a yes/no text."""
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if text.lower() not in words:
        raise ValueError("write true or false")
    return words[text.lower()]


def _properties(text: str) -> dict[str, str]:
    """Parse `KEY=VALUE`, one a line, as in Kafka's own client.properties; blank lines and comments (#) are skipped."""
    found: dict[str, str] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        key, separator, value = line.partition("=")
        if not line.startswith("#"):
            if not separator or not key.strip():
                raise ValueError("write one KEY=VALUE a line, for example security.protocol=SASL_SSL")
            found[key.strip()] = value.strip()
    return found


def _topics(text: str) -> str:
    """Parse names of topics and patterns (they begin with ^), with commas; those in a pattern's {2,3} are its own."""
    words = [word for word in map(str.strip, re.split(r",(?![^{]*\})", text)) if word]
    for word in words:
        if word.startswith("^"):
            try:
                re.compile(word)
            except re.error as error:
                raise ValueError(f"{word} is no regular expression: {error}") from None
        elif not _TOPIC.fullmatch(word) or word in {".", ".."}:
            raise ValueError(
                "write a topic name: letters, digits, '.', '_' and '-', 249 at most; or a regular expression that "
                "begins with ^"
            )
    return ",".join(dict.fromkeys(words))


def url(*schemes: str) -> Form:
    """Return a parser of a URL with one of these schemes, and one host or more of them with commas."""

    def parse(text: str) -> str:
        try:
            parts = urlsplit(text)
            hosts = parts.netloc.rpartition("@")[2].split(",")
            usable = parts.scheme in schemes and all(urlsplit(f"//{host}").port != 0 for host in hosts)
        except ValueError:
            usable = False
        if not usable:
            raise ValueError(f"write a URL such as {schemes[0]}://127.0.0.1:… ({' or '.join(schemes)})")
        return text

    return Form(parse, {"type": "string", "pattern": f"^({'|'.join(map(re.escape, schemes))}):"})


def _table(text: str) -> str:
    """Parse the name of a table, with or without its database; {topic} stands for the topic in it."""
    if not _TABLE.fullmatch(text):
        raise ValueError(
            "write a table name: letters, digits, '_' and {topic}, with its database before a '.' if needed"
        )
    return text


def _dead_letter_topic(text: str) -> str:
    """Parse the name of a topic; {topic} stands for the event's in it."""
    if text == _HOLE or not _TOPIC.fullmatch(text.replace(_HOLE, "t")):
        raise ValueError("write the name of another topic; {topic} in it stands for the event's")
    return text


def _windows(text: str) -> str:
    """Parse names of windows with commas."""
    names = [name for name in map(str.strip, text.split(",")) if name]
    if not set(names) <= set(WINDOWS):
        raise ValueError(f"write some of {', '.join(WINDOWS)}, with commas")
    return ",".join(name for name in WINDOWS if name in names)


def window_ttls(text: str) -> dict[str, int]:
    """Return how long each window's keys live after their slice, in seconds: the defaults, and what the text says."""
    found = {"minute": 86_400, "hour": 30 * 86_400, "day": 400 * 86_400}
    for word in filter(None, map(str.strip, text.split(","))):
        parts = _TTL.fullmatch(word)
        if not parts:
            raise ValueError("write WINDOW=TIME with commas, such as minute=1d,hour=30d,day=400d (s, m, h or d)")
        found[parts[1]] = int(parts[2]) * _SECONDS[parts[3]]
    return found


def _window_ttl(text: str) -> str:
    window_ttls(text)
    return text


processes = Form(_processes, {"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1, "maximum": 256}]})
switch = Form(_switch, {"type": "boolean"})
properties = Form(_properties, {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}})
topics = Form(_topics, {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]})
columns = Form(
    lambda text: mapping.columns(text.split(",")),
    {"type": "object", "additionalProperties": {"type": ["string", "array", "object"]}},
)
field_path = Form(mapping.field, {"type": "string", "minLength": 1})
table = Form(_table, {"type": "string", "pattern": f"^{_TABLE.pattern}$"})
dead_letter_topic = Form(_dead_letter_topic, {"type": "string"})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of `run`, `count`, `check`, `verify` and `dlq`; the fields' metadata is their documentation."""

    topic: str = option(
        "",
        "topic to read; repeat it, or write several with commas; one that begins with ^ is a regular expression",
        parse=topics,
        metavar="T",
    )
    backend: str = option("redis", "where events go", choices=("redis", "clickhouse"))
    processes: int | None = option(
        None, "consumer processes; auto is one per partition", parse=processes, metavar="N|auto"
    )
    bootstrap_servers: str = option("127.0.0.1:9092", "Kafka brokers to start from", metavar="HOST:PORT,…")
    group_id: str = option("worker", "consumer group that shares the topic", metavar="ID")
    redis_url: str = option(
        "redis://127.0.0.1:6379/0",
        "Redis server, redis+cluster://HOST:PORT,… or redis+sentinel://HOST:PORT,…/SERVICE/DB; rediss for TLS",
        parse=url(
            "redis", "rediss", "unix", *(f"{plain}+{kind}" for plain in ("redis", "rediss") for kind in _REDIS_KINDS)
        ),
        metavar="URL",
    )
    redis_password: str = option("", "password for Redis", secret=True)
    redis_key: str = option(
        "devices:{topic}", "key of the HyperLogLog; {topic} stands for the topic in braces (a cluster hash tag)"
    )
    windows: str = option(
        "",
        "Redis: a HyperLogLog per minute, hour, day of the events' own time, too (docs/windows.md)",
        parse=_windows,
        metavar="minute,hour,day",
    )
    window_ttl: str = option(
        "minute=1d,hour=30d,day=400d",
        "how long their keys live after the slice has ended",
        parse=_window_ttl,
        metavar="WINDOW=TIME,…",
    )
    by: str = option(
        "", "Redis: HyperLogLogs for each value of this field of the event, too, of 256 values at most", metavar="FIELD"
    )
    clickhouse_url: str = option(
        "clickhouse://default@127.0.0.1:9000/default",
        "ClickHouse server, native protocol",
        parse=url("clickhouse", "clickhouses"),
        metavar="URL",
    )
    clickhouse_password: str = option("", "password for ClickHouse", secret=True)
    table: str = option(
        "events", "ClickHouse table, {topic} in it for one per topic; made when it is missing", parse=table
    )
    map: Mapping[str, str] = option(
        {},
        "fill this column of the table from that field; others are filled from the field of their name (repeatable)",
        parse=columns,
        metavar="FIELD=COLUMN",
    )
    device_field: str = option(
        "device_ip",
        "field whose distinct values are counted, such as user.id; of ClickHouse the column that it fills",
        parse=field_path,
        metavar="FIELD",
    )
    delivery: str = option(
        "auto",
        "what is promised of ClickHouse rows; auto is exactly-once where the table can do it",
        choices=("auto", "exactly-once", "at-least-once"),
    )
    batch_rows: int = option(100_000, "events in a batch at most", parse=number(1, 10_000_000), unit="events")
    linger_ms: int = option(1000, "age of a batch at most", parse=number(0, 600_000), unit="ms")
    dead_letter_topic: str = option(
        "{topic}.dlq", "topic for events that can never be written", parse=dead_letter_topic
    )
    max_bad_ratio: float = option(
        1.0,
        "stop when more than this part of the last 10 000 or more events was bad; 1 is never",
        parse=number(0, 1, float),
    )
    report_interval: float = option(30.0, "between two reports", parse=number(0.1, 86_400, float), unit="s")
    metrics_host: str = option("127.0.0.1", "address that serves /metrics, /livez, /readyz and the status page")
    metrics_port: int = option(9108, "its port; 0 is any free one, printed in the log", parse=number(0, 65_535))
    drain_timeout: float = option(30.0, "for the last writes at a stop", parse=number(0.1, 3600, float), unit="s")
    until_end: bool = option(False, "stop when all that was in the topic at start is written", parse=switch)
    kafka_password: str = option("", "sasl.password for Kafka", secret=True)
    kafka: Mapping[str, str] = option(
        {}, "any librdkafka property (repeatable; as a variable one a line)", parse=properties, metavar="KEY=VALUE"
    )
    log_format: str = option("text", "one line an event", choices=("text", "json"))
    log_level: str = option("info", "least level that is logged", choices=("debug", "info", "warning", "error"))

    @property
    def topics(self) -> tuple[str, ...]:
        """Names of topics, and regular expressions for such names, which begin with ^."""
        return tuple(re.split(r",(?![^{]*\})", self.topic)) if self.topic else ()

    @property
    def one_topic(self) -> bool:
        """Whether it is the name of one topic, and not more."""
        return len(self.topics) == 1 and not self.topic.startswith("^")

    @property
    def table_by_topic(self) -> bool:
        """Whether each topic has a table of its own."""
        return _HOLE in self.table

    def of(self, topic: str) -> Settings:
        """Return the settings for one of the topics: what sinks and whatever else works on a single topic take."""
        return replace(self, topic=topic, table=self.table.replace(_HOLE, _in_table(topic)))

    @property
    def redis_key_name(self) -> str:
        """The HyperLogLog's key; the braces stay, so that a cluster keeps a topic's keys on one node."""
        return self.redis_key.replace(_HOLE, f"{{{self.topic}}}")

    @property
    def dead_letter_topic_name(self) -> str:
        return self.dead_letter_topic.replace(_HOLE, self.topic)

    def shown(self) -> dict[str, Any]:
        """Return all settings fit for a log: no secret, no password inside a URL."""
        return {option.name: _masked(option, getattr(self, option.name)) for option in fields(self)}


# Properties that the delivery protocol depends on, and what to use instead.
OWNED_PROPERTIES = {
    "bootstrap.servers": "use --bootstrap-servers",
    "metadata.broker.list": "use --bootstrap-servers",
    "group.id": "use --group-id",
    "enable.auto.commit": "offsets are committed only after the store has acknowledged",
    "auto.commit.enable": "offsets are committed only after the store has acknowledged",
    "enable.auto.offset.store": "offsets are committed only after the store has acknowledged",
    "enable.partition.eof": "the worker needs it to step over transaction markers",
    "auto.offset.reset": "a group without offsets starts at the beginning; anything else would skip events",
    "partition.assignment.strategy": "cooperative assignors do not go with manual commits; it is range, or roundrobin",
    "isolation.level": "aborted transactions must not be stored",
    "acks": "a dead letter counts only once all in-sync replicas have it",
    "request.required.acks": "a dead letter counts only once all in-sync replicas have it",
    "enable.idempotence": "a dead letter must not be doubled by its producer",
    "transactional.id": "`dlq replay` has its own, so that two at a time fence each other",
    "statistics.interval.ms": "nothing reads librdkafka's statistics; /metrics has the worker's own",
    "sasl.password": "use the environment variable WORKER_KAFKA_PASSWORD or WORKER_KAFKA_PASSWORD_FILE",
}


def load(
    flags: Mapping[str, Any], environ: Mapping[str, str], config: Path | None = None
) -> tuple[Settings, dict[str, str]]:
    """Build the settings from texts; also return where each value that is not a default came from.

    The origin of a property is under `kafka.<property>`, of a column under `map.<column>`. `flags` maps field names to
    the texts given on the command line, or to a list of them. Raises UsageError.
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
    return Settings(**values), origins


def flag_of(name: str) -> str:
    """Return the flag of a field."""
    return "-X" if name == "kafka" else "--" + name.replace("_", "-")


def written(value: Any) -> Any:
    """Return a value as it is written in a file: None is `auto`."""
    return "auto" if value is None else value


def default_of(item: Field[Any]) -> Any:
    """Return a field's default."""
    return item.default_factory() if item.default_factory is not MISSING else item.default


def nearest(word: str, known: list[str]) -> str:
    """Return ` (did you mean X?)` for the nearest known word, or nothing."""
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean {found[0]}?)" if found else ""


def _parse(item: Field[Any], text: Any, origin: str) -> Any:
    if isinstance(text, Mapping):
        return {str(key): str(value) for key, value in text.items()}
    choices = item.metadata["choices"]
    if choices and text not in choices:
        raise UsageError(f"{origin}: {text!r} is not one of {', '.join(choices)}{nearest(text, list(choices))}")
    try:
        return item.metadata["parse"](text)
    except ValueError as error:
        shown = _masked(item, text)
        raise UsageError(f"{origin}: {shown!r} does not fit: {error}") from None


def _from_flags(flags: Mapping[str, Any]) -> list[tuple[str, Any, str]]:
    for key in flags.get("kafka", ()):
        if secret_property(key) and key not in OWNED_PROPERTIES:
            raise UsageError(
                f"-X {key}: a secret in an argument is seen by every user of this machine; put it into the table "
                f"[kafka] of the file that --config names, or into {PREFIX}KAFKA or {PREFIX}KAFKA_FILE"
            )
    for name, text in flags.items():
        if name.endswith("_url") and _without_password(str(text)) != text:
            raise UsageError(
                f"{flag_of(name)}: a password in an argument is seen by every user of this machine; "
                f"put the URL into the environment variable {PREFIX}{name.upper()}, or the password alone into "
                f"{PREFIX}{name.split('_')[0].upper()}_PASSWORD_FILE"
            )
    known = {item.name: item for item in fields(Settings)}
    return [
        (name, _parse(known[name], ",".join(text), flag_of(name)) if isinstance(text, list) else text, flag_of(name))
        for name, text in flags.items()
    ]


def _from_environment(environ: Mapping[str, str]) -> list[tuple[str, Any, str]]:
    found: list[tuple[str, Any, str]] = []
    known = {PREFIX + item.name.upper(): item for item in fields(Settings)}
    _refuse_slips(environ, [*known, *(f"{variable}_FILE" for variable in known), CONFIG_VARIABLE])
    for variable, item in known.items():
        origin = variable
        if f"{variable}_FILE" in environ:
            origin = f"{variable}_FILE"
            try:
                text = Path(environ[origin]).read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                reason = getattr(error, "strerror", None) or "it is no text"
                raise UsageError(f"{origin}: {reason}: {environ[origin]}") from None
        elif variable in environ:
            text = environ[variable]
        else:
            continue
        # A text of several values is taken apart here, so that each of them can win or lose by itself.
        found.append((item.name, _parse(item, text, origin) if default_of(item) == {} else text, origin))
    return found


def _refuse_slips(environ: Mapping[str, str], known: list[str]) -> None:
    """Refuse a variable that is nearly an option's. One that is like none of them is somebody else's."""
    short = {variable.removeprefix(PREFIX): variable for variable in known}
    for variable in sorted(environ.keys() - set(known)):
        if variable.startswith(PREFIX) and (
            like := difflib.get_close_matches(variable.removeprefix(PREFIX), short, n=1, cutoff=_NEARLY)
        ):
            raise UsageError(f"{variable}: there is no such option (did you mean {short[like[0]]}?)")


def _from_file(config: Path | None) -> list[tuple[str, Any, str]]:
    if config is None:
        return []
    try:
        document = tomllib.loads(config.read_text())
    except OSError as error:
        raise UsageError(f"--config {config}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {config}: {error}") from None
    known = {item.name: item for item in fields(Settings)}
    found: list[tuple[str, Any, str]] = []
    for key, value in document.items():
        name = key.replace("-", "_")
        origin = f"{config}: {key}"
        if name not in known:
            raise UsageError(f"{config}: unknown key {key}{nearest(name, list(known))}")
        if known[name].metadata["secret"]:
            raise UsageError(f"{origin}: a secret does not belong into this file; use {PREFIX}{name.upper()}_FILE")
        if name == "kafka":
            if not isinstance(value, dict):
                raise UsageError(f"{origin}: write a table of librdkafka properties")
            found.append((name, {k: _text(v) for k, v in value.items()}, origin))
        elif name == "map":
            found.append((name, _columns(value, origin), origin))
        else:
            found.append((name, _text(value), origin))
    return found


def _columns(value: Any, origin: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise UsageError(f'{origin}: write a table, such as request.user.id = "user_id" below [map]')
    try:
        return mapping.columns(value)
    except ValueError as error:
        raise UsageError(f"{origin}: {error}") from None


def _in_table(topic: str) -> str:
    """Return a topic as a part of a table's name: `_` for what a name cannot have, and before a digit at its start."""
    return re.sub(r"^(?=\d)|[^A-Za-z0-9_]", "_", topic)


def _text(value: Any) -> str:
    if isinstance(value, list):  # of topics
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _without_password(url: str) -> str:
    """Mask whatever may be a password in a URL, also in one that a `/` or `#` in its password cuts short."""
    head, at, rest = url.rpartition("@")
    if at and not re.fullmatch(r"[\w+]+://[^:@/?#]*", head):
        user = re.match(r"[\w+]+://[^:@/?#\[]*(?=:)", head)
        url = f"{user[0]}:{_MASK}@{rest}" if user else f"{_MASK}@{rest}"
    return re.sub(r"(?i)([?&](?!ssl_keyfile=)[^=&]*(?:pass|secret|token|key)[^=&]*=)[^&]*", rf"\1{_MASK}", url)


def secret_property(key: str) -> bool:
    """Whether a property of librdkafka is a secret, or may have one in it."""
    return bool(_SECRET_PROPERTY.search(key))


def _masked(item: Field[Any], value: Any) -> Any:
    if item.metadata["secret"]:
        return _MASK if value else ""
    if item.name == "kafka" and isinstance(value, Mapping):
        return {key: _MASK if secret_property(key) else text for key, text in value.items()}
    return _without_password(value) if item.name.endswith("_url") else value


def from_environment() -> Mapping[str, str]:
    """Return the process' environment: the one place that reads it."""
    return os.environ
