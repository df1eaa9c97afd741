"""Every option once: name, type, default, unit, help and secrecy in one frozen dataclass.

Flag (`--batch-rows`), environment variable (`WORKER_BATCH_ROWS`), key of the TOML file (`batch_rows`), `--help` and the
table in docs/options.md, `--print-config` and the JSON Schema all come from these fields.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from typing import Any

from worker.config import parsers
from worker.config.redaction import masked
from worker.core.errors import ExitCode, Fatal

_REDIS_KINDS = ("cluster", "sentinel")


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


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of `run`, `count`, `check`, `verify` and `dlq`; the fields' metadata is their documentation."""

    topic: str = option(
        "",
        "topic to read; repeat it, or write several with commas; one that begins with ^ is a regular expression",
        parse=parsers.topics,
        metavar="T",
    )
    backend: str = option("redis", "where events go", choices=("redis", "clickhouse"))
    processes: int | None = option(
        None, "consumer processes; auto is one per partition", parse=parsers.processes, metavar="N|auto"
    )
    bootstrap_servers: str = option("127.0.0.1:9092", "Kafka brokers to start from", metavar="HOST:PORT,…")
    group_id: str = option("worker", "consumer group that shares the topic", metavar="ID")
    redis_url: str = option(
        "redis://127.0.0.1:6379/0",
        "Redis server, redis+cluster://HOST:PORT,… or redis+sentinel://HOST:PORT,…/SERVICE/DB; rediss for TLS",
        parse=parsers.url(
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
        parse=parsers.windows,
        metavar="minute,hour,day",
    )
    window_ttl: str = option(
        "minute=1d,hour=30d,day=400d",
        "how long their keys live after the slice has ended",
        parse=parsers.window_ttl,
        metavar="WINDOW=TIME,…",
    )
    by: str = option(
        "", "Redis: HyperLogLogs for each value of this field of the event, too, of 256 values at most", metavar="FIELD"
    )
    clickhouse_url: str = option(
        "clickhouse://default@127.0.0.1:9000/default",
        "ClickHouse server, native protocol",
        parse=parsers.url("clickhouse", "clickhouses"),
        metavar="URL",
    )
    clickhouse_password: str = option("", "password for ClickHouse", secret=True)
    table: str = option(
        "events", "ClickHouse table, {topic} in it for one per topic; made when it is missing", parse=parsers.table
    )
    map: Mapping[str, str] = option(
        {},
        "fill this column of the table from that field; others are filled from the field of their name (repeatable)",
        parse=parsers.columns,
        metavar="FIELD=COLUMN",
    )
    device_field: str = option(
        "device_ip",
        "field whose distinct values are counted, such as user.id; of ClickHouse the column that it fills",
        parse=parsers.field_path,
        metavar="FIELD",
    )
    delivery: str = option(
        "auto",
        "what is promised of ClickHouse rows; auto is exactly-once where the table can do it",
        choices=("auto", "exactly-once", "at-least-once"),
    )
    batch_rows: int = option(100_000, "events in a batch at most", parse=parsers.number(1, 10_000_000), unit="events")
    linger_ms: int = option(1000, "age of a batch at most", parse=parsers.number(0, 600_000), unit="ms")
    dead_letter_topic: str = option(
        "{topic}.dlq", "topic for events that can never be written", parse=parsers.dead_letter_topic
    )
    max_bad_ratio: float = option(
        1.0,
        "stop when more than this part of the last 10 000 or more events was bad; 1 is never",
        parse=parsers.number(0, 1, float),
    )
    report_interval: float = option(30.0, "between two reports", parse=parsers.number(0.1, 86_400, float), unit="s")
    metrics_host: str = option("127.0.0.1", "address that serves /metrics, /livez, /readyz and the status page")
    metrics_port: int = option(9108, "its port; 0 is any free one, printed in the log", parse=parsers.number(0, 65_535))
    drain_timeout: float = option(
        30.0, "for the last writes at a stop", parse=parsers.number(0.1, 3600, float), unit="s"
    )
    until_end: bool = option(False, "stop when all that was in the topic at start is written", parse=parsers.switch)
    kafka_password: str = option("", "sasl.password for Kafka", secret=True)
    kafka: Mapping[str, str] = option(
        {},
        "any librdkafka property (repeatable; as a variable one a line)",
        parse=parsers.properties,
        metavar="KEY=VALUE",
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
        return parsers.TOPIC_PLACEHOLDER in self.table

    def for_topic(self, topic: str) -> Settings:
        """Return the settings for one of the topics: what sinks and whatever else works on a single topic take."""
        return replace(self, topic=topic, table=self.table.replace(parsers.TOPIC_PLACEHOLDER, _in_table(topic)))

    @property
    def redis_key_name(self) -> str:
        """The HyperLogLog's key; the braces stay, so that a cluster keeps a topic's keys on one node."""
        return self.redis_key.replace(parsers.TOPIC_PLACEHOLDER, f"{{{self.topic}}}")

    @property
    def dead_letter_topic_name(self) -> str:
        return self.dead_letter_topic.replace(parsers.TOPIC_PLACEHOLDER, self.topic)

    def shown(self) -> dict[str, Any]:
        """Return all settings fit for a log: no secret, no password inside a URL."""
        return {option.name: masked(option, getattr(self, option.name)) for option in fields(self)}


def flag_of(name: str) -> str:
    """Return the flag of a field."""
    return "-X" if name == "kafka" else "--" + name.replace("_", "-")


def written(value: Any) -> Any:
    """Return a value as it is written in a file: None is `auto`."""
    return "auto" if value is None else value


def default_of(item: Field[Any]) -> Any:
    """Return a field's default."""
    return item.default_factory() if item.default_factory is not MISSING else item.default


def _in_table(topic: str) -> str:
    """Return a topic as a part of a table's name: `_` for what a name cannot have, and before a digit at its start."""
    return re.sub(r"^(?=\d)|[^A-Za-z0-9_]", "_", topic)
