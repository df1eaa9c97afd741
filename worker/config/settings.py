"""Every option once: name, type, default, unit, help and secrecy in one frozen dataclass.

The flag (`--batch-rows`), the environment variable (`WORKER_BATCH_ROWS`), the key of the TOML file (`batch_rows`),
`--help`, the table in docs/options.md, `--print-config` and the JSON Schema all come from these fields.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from worker.config import parsers
from worker.config.redaction import redact_option
from worker.core.counters import STORES
from worker.core.errors import ExitCode, Fatal

BOTH = ",".join(STORES)
_REDIS_KINDS = ("cluster", "sentinel")


class UsageError(Fatal):
    """An invalid option; the message states the correction."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code=ExitCode.USAGE)


def option(
    group: str,  # heading in --help and docs/options.md; a group with a store's name is for that store only
    default: Any,
    help: str,
    *,
    parse: Callable[[str], Any] = str,
    unit: str = "",
    choices: tuple[str, ...] = (),
    secret: bool = False,
    metavar: str = "",
    backend: str = "",
) -> Any:
    """Declare an option. `parse` converts its text, or raises ValueError with the correction.

    `backend` is the only store that uses the option, if the group does not name it.
    """
    metadata = {
        "group": group,
        "help": help,
        "parse": parse,
        "unit": unit,
        "choices": choices,
        "secret": secret,
        "metavar": metavar,
        "backend": backend or (group.lower() if group.lower() in STORES else ""),
    }
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


_kafka = partial(option, "Kafka")
_format = partial(option, "Format")
_store = partial(option, "Store")
_events = partial(option, "Events")
_redis = partial(option, "Redis")
_clickhouse = partial(option, "ClickHouse")
_delivery = partial(option, "Delivery")
_processes = partial(option, "Processes")
_observability = partial(option, "Observability")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of `run`, `count`, `check`, `verify` and `dlq`; the fields' metadata is their documentation."""

    topic: str = _kafka(
        "",
        "topic to read; repeat the flag or separate topics with commas; ^… is a regular expression",
        parse=parsers.topics,
        metavar="T",
    )
    bootstrap_servers: str = _kafka("127.0.0.1:9092", "Kafka bootstrap servers", metavar="HOST:PORT,…")
    group_id: str = _kafka("", "consumer group; default: worker, the store, and its table or key", metavar="ID")
    start: str = _kafka(
        "earliest",
        "where a group without committed offsets starts: earliest, latest, or the first event at or after a time",
        parse=parsers.start,
        metavar="earliest|latest|TIME",
    )
    kafka_password: str = _kafka("", "sasl.password for Kafka", secret=True)
    kafka: Mapping[str, str] = _kafka(
        {},
        "any librdkafka property (repeatable; in the variable, one per line)",
        parse=parsers.properties,
        metavar="KEY=VALUE",
    )
    format: str = _format(
        "json",
        "format of the events; all except json use Confluent's wire format (docs/formats.md)",
        choices=("json", "avro", "protobuf", "json-schema"),
    )
    schema_registry_url: str = _format(
        "",
        "schema registry of the events' schemas, such as http://127.0.0.1:8081 or https://USER@HOST:8081",
        parse=parsers.optional_url("http", "https"),
        metavar="URL",
    )
    schema_registry_password: str = _format("", "password for the schema registry", secret=True)
    schema_registry_token: str = _format("", "bearer token for the schema registry", secret=True)
    schema_registry_ca: str = _format(
        "", "CA certificates for the schema registry; default: the system's", metavar="FILE"
    )
    backend: str = _store(
        "redis",
        "store for the events; with both, one pass writes to both (docs/guarantees.md)",
        choices=(*STORES, BOTH),
    )
    device_field: str = _store(
        "device_ip",
        "field whose distinct values are counted, such as user.id; in ClickHouse, those of the column that it fills",
        parse=parsers.field_path,
        metavar="FIELD",
    )
    transform: str = _events(
        "",
        "Python function that changes or skips events before they are stored (docs/transform.md)",
        parse=parsers.function,
        metavar="MODULE:FUNCTION",
    )
    redis_url: str = _redis(
        "redis://127.0.0.1:6379/0",
        "Redis server, redis+cluster://HOST:PORT,… or redis+sentinel://HOST:PORT,…/SERVICE/DB; rediss for TLS",
        parse=parsers.url(
            "redis", "rediss", "unix", *(f"{plain}+{kind}" for plain in ("redis", "rediss") for kind in _REDIS_KINDS)
        ),
        metavar="URL",
    )
    redis_password: str = _redis("", "password for Redis", secret=True)
    redis_key: str = _redis(
        "devices:{topic}",
        "key of the HyperLogLog; {topic} is replaced by the topic in braces (a cluster hash tag)",
    )
    windows: str = _redis(
        "",
        "add a HyperLogLog per minute, hour or day of the events' own time (docs/windows.md)",
        parse=parsers.windows,
        metavar="minute,hour,day",
    )
    window_time_zone: str = _redis(
        "",
        "time zone of the days of --windows, such as Europe/Amsterdam; default: UTC",
        parse=parsers.time_zone,
        metavar="ZONE",
    )
    time_field: str = _redis(
        "timestamp",
        "field with the time for --windows, such as meta.at",
        parse=parsers.field_path,
        metavar="FIELD",
    )
    window_ttl: str = _redis(
        "minute=1d,hour=30d,day=400d",
        "lifetime of a window's keys after its end",
        parse=parsers.window_ttl,
        metavar="WINDOW=TIME,…",
    )
    by: str = _redis(
        "",
        "add HyperLogLogs for each value of a field, or combination of values of two fields, at most 256",
        parse=parsers.by,
        metavar="FIELD[,FIELD]",
    )
    clickhouse_url: str = _clickhouse(
        "clickhouse://default@127.0.0.1:9000/default",
        "ClickHouse server, native protocol",
        parse=parsers.url("clickhouse", "clickhouses"),
        metavar="URL",
    )
    clickhouse_password: str = _clickhouse("", "password for ClickHouse", secret=True)
    table: str = _clickhouse(
        "events",
        "ClickHouse table, created if missing; with {topic}, one table per topic",
        parse=parsers.table,
    )
    map: Mapping[str, str] = _clickhouse(
        {},
        "fill the column from the field; other columns are filled from the field of the same name (repeatable)",
        parse=parsers.columns,
        metavar="FIELD=COLUMN",
    )
    types: Mapping[str, str] = _clickhouse(
        {},
        'lenient column: "5" and true are numbers, 5 is text, 1 is true; default: strict (repeatable, docs/mapping.md)',
        parse=parsers.types,
        metavar="COLUMN=lenient",
    )
    evolve: int = _clickhouse(
        0,
        "add columns for fields that many of the last events have, at most so many; 0: none (docs/mapping.md)",
        parse=parsers.number(0, 1000),
        unit="columns",
    )
    delivery: str = _delivery(
        "auto",
        "delivery to ClickHouse; auto: exactly-once if the table supports it",
        choices=("auto", "exactly-once", "at-least-once"),
        backend="clickhouse",
    )
    batch_rows: int = _delivery(100_000, "maximum size of a batch", parse=parsers.number(1, 10_000_000), unit="events")
    linger_ms: int = _delivery(1000, "maximum age of a batch", parse=parsers.number(0, 600_000), unit="ms")
    dead_letter_topic: str = _delivery(
        "{topic}.dlq", "topic for events that can never be written", parse=parsers.dead_letter_topic
    )
    max_bad_ratio: float = _delivery(
        1.0,
        "stop if more than this fraction of the last 10 000 or more events was invalid; 1: never",
        parse=parsers.number(0, 1, float),
    )
    processes: int | None = _processes(
        None, "consumer processes; auto: one per partition", parse=parsers.processes, metavar="N|auto"
    )
    until_end: bool = _processes(False, "stop after writing the events in the topic at start", parse=parsers.switch)
    until: str = _processes(
        "",
        "stop after writing all events before the first one with a Kafka timestamp at or after this time",
        parse=parsers.until,
        metavar="TIME",
    )
    reader: str = _processes(
        "auto",
        "implementation of reading and decoding; auto: the optional native package if it can be used, else Python",
        choices=("auto", "native", "python"),
    )
    drain_timeout: float = _processes(
        30.0,
        "maximum time for the last writes when the worker stops",
        parse=parsers.number(0.1, 3600, float),
        unit="s",
    )
    report: str = _observability(
        "exact",
        "how ClickHouse counts the devices; approximate: within 1 %, with uniqCombined64; off: no count",
        choices=("exact", "approximate", "off"),
    )
    report_interval: float = _observability(
        30.0, "time between reports", parse=parsers.number(0.1, 86_400, float), unit="s"
    )
    metrics_host: str = _observability("127.0.0.1", "address of /metrics, /livez, /readyz and the status page")
    metrics_port: int = _observability(
        9108, "port of --metrics-host; 0: any free port, logged at start", parse=parsers.number(0, 65_535)
    )
    log_format: str = _observability("text", "format of the log on stderr", choices=("text", "json"))
    log_level: str = _observability(
        "info", "lowest level that is logged", choices=("debug", "info", "warning", "error")
    )

    def __post_init__(self) -> None:
        if not self.group_id:
            object.__setattr__(self, "group_id", self._default_group())

    def _default_group(self) -> str:
        """Return a group for this store and table or key only: a shared group would have no events left."""
        database = urlsplit(self.clickhouse_url).path.strip("/")
        table = self.table if "." in self.table or database in ("", "default") else f"{database}.{self.table}"
        targets = {"redis": self.redis_key, "clickhouse": table}
        names = (targets[backend].replace(parsers.TOPIC_PLACEHOLDER, "").strip(":._-") for backend in self.backends)
        return "-".join(filter(None, ("worker", *self.backends, *names)))

    @property
    def backends(self) -> tuple[str, ...]:
        return tuple(self.backend.split(","))

    @property
    def counting_backend(self) -> str:
        """The store that counts the devices: of both, Redis, which counts without reading a table."""
        return self.backends[0]

    @property
    def by_fields(self) -> tuple[str, ...]:
        """The fields whose values have separate HyperLogLogs."""
        return parsers.by_fields(self.by)

    @property
    def topics(self) -> tuple[str, ...]:
        """Topic names and regular expressions; the latter start with ^."""
        return tuple(re.split(r",(?![^{]*\})", self.topic)) if self.topic else ()

    @property
    def one_topic(self) -> bool:
        """Whether exactly one topic is named, and no regular expression."""
        return len(self.topics) == 1 and not self.topic.startswith("^")

    @property
    def start_ms(self) -> int | None:
        """The time of `--start` in Unix milliseconds; None if it is not a time."""
        return None if self.start in parsers.START_NAMES else parsers.to_millis(self.start)

    @property
    def until_ms(self) -> int | None:
        """The time of `--until` in Unix milliseconds; None if there is none."""
        return parsers.to_millis(self.until) if self.until else None

    @property
    def is_bounded(self) -> bool:
        """Whether the worker stops by itself."""
        return self.until_end or bool(self.until)

    @property
    def table_by_topic(self) -> bool:
        return parsers.TOPIC_PLACEHOLDER in self.table

    def for_topic(self, topic: str) -> Settings:
        return replace(self, topic=topic, table=self.table.replace(parsers.TOPIC_PLACEHOLDER, _table_part(topic)))

    @property
    def redis_key_name(self) -> str:
        """The HyperLogLog's key. The braces remain, so a cluster keeps a topic's keys on one node."""
        return self.redis_key.replace(parsers.TOPIC_PLACEHOLDER, f"{{{self.topic}}}")

    @property
    def dead_letter_topic_name(self) -> str:
        return self.dead_letter_topic.replace(parsers.TOPIC_PLACEHOLDER, self.topic)

    def redacted(self) -> dict[str, Any]:
        """Return all settings without secrets and without passwords inside URLs."""
        return {option.name: redact_option(option, getattr(self, option.name)) for option in fields(self)}


def flag_of(name: str) -> str:
    return "-X" if name == "kafka" else "--" + name.replace("_", "-")


def toml_value(value: Any) -> Any:
    """Return a value as in a configuration file: None is `auto`."""
    return "auto" if value is None else value


def default_of(item: Field[Any]) -> Any:
    return item.default_factory() if item.default_factory is not MISSING else item.default


def _table_part(topic: str) -> str:
    """Return a topic as part of a table's name: `_` replaces invalid characters and precedes a leading digit."""
    return re.sub(r"^(?=\d)|[^A-Za-z0-9_]", "_", topic)
