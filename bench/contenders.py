"""The contenders: for each the command that reads a whole topic into a store and ends, and the table it fills."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import confluent_kafka

from bench.services import ROOT, Dataset, Services

PEERS = Path(__file__).parent / "peers"
CACHE = Path(__file__).parent / ".cache"

FLOOR, C_FLOOR = "discard, Python → nothing", "discard, C → nothing"  # keys
_COLUMNS = "(timestamp DateTime64(3, 'UTC'), device_ip String, error_code Int8) ENGINE = MergeTree ORDER BY device_ip"
_AS_TEXT = "(timestamp String, device_ip String, error_code Int8) ENGINE = MergeTree ORDER BY device_ip"


class Job(NamedTuple):
    """The topic of one run, and its own group, table or key."""

    services: Services
    data: Dataset
    group: str
    target: str
    metrics_port: int


@dataclass(frozen=True)
class Contender:
    """`store` is redis, clickhouse or nothing. `short`: too slow for the whole topic, so it reads a tenth of it."""

    name: str
    store: str
    command: Callable[[Job], list[str]]
    short: bool = False
    ours: bool = False
    in_store: bool = False  # the store's server does all the work: the client's CPU time is not a reader's
    as_text: bool = False  # stores the timestamp as text
    earlier: int = 0  # rows in its table before the run
    statement: str = ""  # that creates its table {target}, if it is not a table of device events
    arrived: Callable[[Job], str] | None = None  # returns the error in the store, if the events are not device events
    cwd: Path = ROOT

    @property
    def key(self) -> str:
        return f"{self.name} → {self.store}"

    def table(self, target: str) -> str:
        """Return the statement that creates the table; the worker creates its own, with the origin columns."""
        if self.statement:
            return self.statement.format(target=target)
        return "" if self.ours else f"CREATE TABLE {target} {_AS_TEXT if self.as_text else _COLUMNS}"


def ours(
    processes: int,
    store: str,
    extra: tuple[str, ...] = (),
    variant: str = "",
    cwd: Path = ROOT,
    *,
    earlier: int = 0,
    name: str = "",
) -> Contender:
    """Return the worker, as a user starts it."""

    def command(job: Job) -> list[str]:
        services = job.services
        words = [sys.executable, "-m", "worker", "--topic", job.data.topic, "--backend", store]
        words += ["--processes", str(processes), "--until-end", "--group-id", job.group, "--log-level", "warning"]
        words += ["--bootstrap-servers", services.kafka, "--metrics-port", str(job.metrics_port)]
        if store == "redis":
            words += ["--redis-url", services.redis, "--redis-key", job.target]
        else:
            words += ["--clickhouse-url", services.clickhouse, "--table", job.target]
        return [*words, *(word.format(clickhouse=services.clickhouse, redis=services.redis) for word in extra)]

    name = name or f"worker, {processes} process{'es' if processes > 1 else ''}" + (f" [{variant}]" if variant else "")
    return Contender(name, store, command, ours=True, cwd=cwd, earlier=earlier)


def variants(text: str) -> list[Contender]:
    """Read `NAME=ARGUMENTS`: the worker with one process and further arguments; `@DIR` first is another checkout.

    `{clickhouse}` and `{redis}` in the arguments are replaced by the stores' URLs.
    """
    name, _, rest = text.partition("=")
    words = rest.split()
    cwd = Path(words.pop(0)[1:]).resolve() if words and words[0].startswith("@") else ROOT
    return [ours(1, store, tuple(words), name, cwd) for store in ("redis", "clickhouse")]


def floor() -> Contender:
    return peer("discard, Python", "nothing", "discard")


def c_floor() -> Contender | None:
    """Build and return the floor in C; None without a compiler or librdkafka's headers."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    CACHE.mkdir(exist_ok=True)
    program = CACHE / "discard"
    build = [compiler, "-O2", str(PEERS / "discard.c"), "-o", str(program)]
    # The wheel's library, so that both floors use the same; else the system's.
    bundled = next(Path(confluent_kafka.__file__).parents[1].glob("confluent_kafka.libs/librdkafka-*.so*"), None)
    wheel = [f"-L{bundled.parent}", f"-l:{bundled.name}", f"-Wl,-rpath,{bundled.parent}"] if bundled else []
    for libraries in ([*wheel, "-Wl,--allow-shlib-undefined"], ["-lrdkafka"]):
        if subprocess.run([*build, *libraries], capture_output=True, check=False).returncode == 0:
            break
    else:
        return None

    def command(job: Job) -> list[str]:
        return [str(program), job.services.kafka, job.data.topic, job.group, str(job.data.partitions)]

    return Contender("discard, C", "nothing", command)


def peer(
    name: str,
    store: str,
    script: str,
    python: str = sys.executable,
    *,
    short: bool = False,
    in_store: bool = False,
    kind: str = "",
) -> Contender:
    """Return a program of peers/, run by `python`; `kind` is its own argument."""

    def command(job: Job) -> list[str]:
        services, data = job.services, job.data
        url = {"redis": services.redis, "clickhouse": services.clickhouse}.get(store, "")
        words = [python, "-m", f"bench.peers.{script}", "--bootstrap", services.kafka, "--topic", data.topic]
        words += ["--group", job.group, "--partitions", str(data.partitions), "--count", str(data.events)]
        words += ["--store", store, "--url", url, "--target", job.target, "--kind", kind]
        return [*words, "--http", services.clickhouse_http()] if store == "clickhouse" else words

    return Contender(name, store, command, short=short, in_store=in_store)


def obvious() -> list[Contender]:
    return [peer("one message at a time", store, "one_message", short=True) for store in ("redis", "clickhouse")]


def in_clickhouse() -> list[Contender]:
    return [
        peer("JSONEachRow pass-through", "clickhouse", "passthrough"),
        peer("ClickHouse Kafka engine", "clickhouse", "kafka_engine", in_store=True),
    ]
