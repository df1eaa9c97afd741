"""The recipes of docs/recipes.md as they stand there, on real servers: what is stored is what was sent.

test_transform.py follows the recipe with a function, in docs/transform.md.
"""

from __future__ import annotations

import json
import random
import re
import signal
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import fastavro
import pytest
from confluent_kafka import Producer
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from tests.support.framed import registry_at
from tests.support.guide import DOCS, Guide
from tests.support.kit import PATIENCE_S, Worker, run_sql, run_worker, wait_until
from tests.support.oracle import device, rows
from worker.core.errors import ExitCode
from worker.decoding.framing import frame
from worker.decoding.protobuf import _compile
from worker.local import Server, fetch

WEBHOOKS = "7.6.1"  # of @octokit/webhooks-examples, MIT: payloads that GitHub sent
GOOD = "missing 0, doubled 0, extra 0"
NO_DEVIATION = re.compile(r"OK    sample: (\d+) of the \1 sampled events would be stored")


class Recipe:
    """A section of the page, with a topic, group and table of the test's own."""

    def __init__(self, section: str, env: Mapping[str, str], table: str, directory: Path) -> None:
        self._guide = Guide("recipes.md", section)
        self.env = {**env, "WORKER_TABLE": table}
        (options,) = self._guide.blocks("toml")
        self.table = table
        self._documented_table = re.findall(r'^table = "(\w+)"$', options, re.MULTILINE)[0]
        self.config = directory / f"{self._documented_table}.toml"
        self.config.write_text(options)
        self.commands = self._guide.commands(self.config)
        self.ran: set[int] = set()  # the commands that were started

    def block(self, language: str, index: int = 0) -> str:
        return self._guide.blocks(language)[index]

    def sql(self, statement: str) -> Any:
        """Run a statement, on the test's table instead of the documented one."""
        return run_sql(
            self.env["WORKER_CLICKHOUSE_URL"], re.sub(rf"\b{self._documented_table}\b", self.table, statement)
        )

    def start(self, index: int, **env: str) -> Worker:
        """Start the command of this number on the page."""
        self.ran.add(index)
        return run_worker(*self.commands[index], env={**self.env, **env})

    def run(self, index: int, verb: str) -> list[str]:
        """Run the command of this number on the page to its end; return its output."""
        assert self.commands[index][0] == verb
        with self.start(index) as command:
            assert command.wait() == ExitCode.OK, command.tail()
        return command.stdout

    def send(self, messages: Iterable[Mapping[str, Any]], partitions: int = 1) -> None:
        """Write messages (arguments of Producer.produce) in turn to the partitions."""
        producer = Producer(
            {"bootstrap.servers": self.env["WORKER_BOOTSTRAP_SERVERS"], "enable.idempotence": True, "log_level": 2}
        )
        for i, message in enumerate(messages):
            producer.produce(self.env["WORKER_TOPIC"], partition=i % partitions, **message)
            producer.poll(0)
        assert producer.flush(PATIENCE_S) == 0


@pytest.fixture
def follow(env: dict[str, str], table_name: str, tmp_path: Path) -> Iterator[Callable[[str], Recipe]]:
    """Make the recipe of a section. The test has to run all of its commands."""
    recipes: list[Recipe] = []

    def make(section: str) -> Recipe:
        recipes.append(Recipe(section, env, table_name, tmp_path))
        return recipes[-1]

    yield make
    for recipe in recipes:
        assert recipe.ran == set(range(len(recipe.commands)))


def test_every_recipe_has_a_test() -> None:
    sections = re.findall(r"^## (.+)$", (DOCS / "recipes.md").read_text(), re.MULTILINE)
    tested = re.findall(r'= follow\("(.+)"\)', Path(__file__).read_text())
    assert sections == [*tested[:3], "Readings in other units, without test devices", *tested[3:]]


def webhooks() -> list[tuple[str, dict[str, Any]]]:
    """Return payloads that GitHub sent, each with its kind."""

    def download(target: Path) -> None:
        options = ["--prefix", str(target), "--no-save", "--no-audit", "--no-fund", "--ignore-scripts"]
        fetch.run([fetch.tool("npm"), "install", *options, f"@octokit/webhooks-examples@{WEBHOOKS}"], target)

    directory = fetch.once(f"webhooks-{WEBHOOKS}", f"fetching webhook payloads {WEBHOOKS} (9 MB, npm)", download)
    kinds = [
        kind
        for file in sorted(directory.glob("node_modules/@octokit/webhooks-examples/*/index.json"))
        for kind in json.loads(file.read_bytes())
    ]
    return [(kind["name"], payload) for kind in kinds for payload in kind["examples"]]


def test_webhooks_from_github(follow: Callable[[str], Recipe]) -> None:
    recipe = follow("Webhooks from GitHub")
    sent = webhooks()
    assert len(sent) > 700
    begin = int(datetime.now(UTC).timestamp() * 1000) - len(sent)
    texts = [json.dumps(payload).encode() for _, payload in sent]
    repositories = [(payload.get("repository") or {}).get("full_name") for _, payload in sent]
    recipe.sql(recipe.block("sql"))
    recipe.send(
        {"value": text, "key": repository, "timestamp": begin + i, "headers": {"X-GitHub-Event": kind}}
        for i, (text, repository, (kind, _)) in enumerate(zip(texts, repositories, sent, strict=True))
    )
    assert any(NO_DEVIATION.match(line) for line in recipe.run(0, "check"))
    recipe.run(1, "--config")
    assert recipe.run(2, "verify")[-1].endswith(GOOD)
    stored = recipe.sql(
        "SELECT action, repository, sender, issue_labels, pull_labels, _key, toUnixTimestamp64Milli(_timestamp), "
        "_headers, _raw_message FROM github ORDER BY _timestamp"
    )
    labels = [
        [[label["name"] for label in payload.get(key, {}).get("labels", [])] for key in ("issue", "pull_request")]
        for _, payload in sent
    ]
    assert sum(len(names) for each in labels for names in each) > 50
    assert [row[8].encode() for row in stored] == texts
    assert [row[:8] for row in stored] == [
        (
            payload.get("action"),
            repositories[i],
            payload.get("sender", {}).get("login"),
            *labels[i],
            repositories[i],
            begin + i,
            {"X-GitHub-Event": kind},
        )
        for i, (kind, payload) in enumerate(sent)
    ]


_FIELDS: list[dict[str, Any]] = [
    {"name": "turbine", "type": "string"},
    {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    {"name": "rotations", "type": "int"},
]
_SITE = {"name": "site", "type": "string", "default": "north"}
_NOTE = {"name": "note", "type": ["null", "string"], "default": None}
TURBINES = [
    {"type": "record", "name": "Reading", "fields": fields}
    for fields in (
        _FIELDS,
        [*_FIELDS, _SITE],
        [*_FIELDS[:2], {"name": "rotations", "type": "long"}, _SITE, _NOTE],
    )
]


def test_avro_whose_schema_changes_twice_while_it_is_read(
    env: dict[str, str], schema_registry: Server, table_name: str, follow: Callable[[str], Recipe]
) -> None:
    env["WORKER_SCHEMA_REGISTRY_URL"] = schema_registry.address
    recipe = follow("Avro whose schema changes")
    recipe.sql(recipe.block("sql"))
    begin = datetime(2026, 11, 1, tzinfo=UTC)
    sent: list[dict[str, Any]] = []

    def produce(version: int, schema_id: int, count: int = 500) -> None:
        """Write events of one schema; every third is beyond Int32 where rotations is a long."""
        schema: Any = fastavro.parse_schema(TURBINES[version])
        payloads = []
        for i in range(len(sent), len(sent) + count):
            event = {"turbine": f"t{i % 20}", "at": begin + timedelta(seconds=i), "site": f"s{i % 3}"}
            event["rotations"] = i + 2**40 if version == 2 and i % 3 == 0 else i
            event["note"] = f"n{i}" if i % 2 else None
            stream = BytesIO()
            fastavro.schemaless_writer(stream, schema, event)
            payloads.append({"value": frame(schema_id, stream.getvalue())})
            sent.append({key: value for key, value in event.items() if key in [f["name"] for f in schema["fields"]]})
        recipe.send(payloads, 2)

    registry = registry_at(schema_registry.address)
    ids = [registry.register(f"{env['WORKER_TOPIC']}-value", "AVRO", json.dumps(TURBINES[0]))]
    produce(0, ids[0])
    assert any(NO_DEVIATION.match(line) for line in recipe.run(0, "check"))
    with recipe.start(1, WORKER_LINGER_MS="50") as worker:
        for version in (1, 2):
            ids.append(registry.register(f"{env['WORKER_TOPIC']}-value", "AVRO", json.dumps(TURBINES[version])))
            produce(version, ids[version])
            produce(0, ids[0], 100)  # an old producer is still there
        wide = sum(event["rotations"] > 2**31 for event in sent)
        due = [(len(sent) - wide,)]
        wait_until(lambda: recipe.sql("SELECT count() FROM turbines") == due, PATIENCE_S, "the events are stored")
        (fix,) = [line for line in recipe.run(0, "check") if "out_of_range" in line]
        assert f"fix: {recipe.block('sql', 1).strip()}".replace("turbines", table_name) in fix
        recipe.sql(recipe.block("sql", 1))
        worker.signal(signal.SIGTERM)
        assert worker.wait() == ExitCode.OK, worker.tail()
    assert recipe.run(3, "dlq") == [
        f"replayed {wide} dead letters to {env['WORKER_TOPIC']}; 0 were replayed before, 0 are duplicates"
    ]
    with recipe.start(1, WORKER_UNTIL_END="true") as worker:
        assert worker.wait() == ExitCode.OK, worker.tail()
    assert recipe.run(2, "verify")[-1] == (
        f"total: {len(sent) + wide} events, {len(sent)} rows, {wide} dead letters, 0 skipped, {GOOD}"
    )
    assert recipe.sql("SELECT turbine, at, rotations, site, note FROM turbines ORDER BY at") == [
        (event["turbine"], event["at"], event["rotations"], event.get("site", "unknown"), event.get("note"))
        for event in sent
    ]


def test_protobuf_registered_as_text_and_as_a_descriptor(
    env: dict[str, str], schema_registry: Server, follow: Callable[[str], Recipe]
) -> None:
    """Confluent's serializers register the text, or the descriptor in base64 (that for Python)."""
    env["WORKER_SCHEMA_REGISTRY_URL"] = schema_registry.address
    recipe = follow("Protobuf")
    recipe.sql(recipe.block("sql"))
    text = recipe.block("proto")
    pool, files = DescriptorPool(), _compile({"worker.proto": text}).file
    for file in files:
        pool.Add(file)
    descriptor = b64encode(files[-1].SerializeToString()).decode()
    registry = registry_at(schema_registry.address)
    ids = [
        registry.register(f"{env['WORKER_TOPIC']}-{i}", "PROTOBUF", form) for i, form in enumerate((text, descriptor))
    ]
    assert ids[0] != ids[1]
    order: Any = GetMessageClass(pool.FindMessageTypeByName("Order"))
    expected, messages = [], []
    begin_ns = 1_793_491_200_000_000_000
    for i in range(1000):
        items = [{"sku": f"s{j}", "count": j + 1} for j in range(i % 4)]
        customer = {"id": f"c{i % 77}", "country": ("NL", "DE")[i % 2]}
        message = order(id=f"o{i}", customer=customer, items=items, status=i % 3, **({"coupon": ""} if i % 5 else {}))
        message.placed_at.FromNanoseconds(begin_ns + i)
        messages.append({"value": frame(ids[i % 2], b"\0" + message.SerializeToString())})
        skus, counts = [item["sku"] for item in items], [item["count"] for item in items]
        status = ("UNKNOWN", "PAID", "SHIPPED")[i % 3]
        coupon = "" if i % 5 else None
        expected.append((f"o{i}", begin_ns + i, *customer.values(), skus, counts, status, coupon))
    recipe.send(messages, 2)
    assert any(NO_DEVIATION.match(line) for line in recipe.run(0, "check"))
    assert recipe.run(1, "--config")[-1] == "Total devices: 77"
    assert recipe.run(2, "verify")[-1].endswith(GOOD)
    columns = "id, toUnixTimestamp64Nano(placed_at), customer, country, skus, counts, status, coupon"
    assert recipe.sql(f"SELECT {columns} FROM orders ORDER BY placed_at") == expected


def test_distinct_users_by_day_and_country_and_all_events(follow: Callable[[str], Recipe]) -> None:
    recipe = follow("Distinct users by day and country, and all events")
    recipe.sql(recipe.block("sql"))
    documented = json.loads(recipe.block("json"))
    draw = random.Random(7)
    sent = []
    for i in range(4000):
        country = draw.choice(("NL", "DE", "FR", None))
        visit = {"ts": documented["ts"] + i * 60_000_001, "user": {"id": draw.randrange(600)}, "country": country}
        sent.append({**documented, **visit})
        if i % 7 == 0:
            del sent[i]["country"]
    recipe.send(({"value": json.dumps(visit).encode()} for visit in sent), 2)
    assert any(NO_DEVIATION.match(line) for line in recipe.run(0, "check"))
    recipe.run(1, "--config")
    devices, all_events = [line for line in recipe.run(2, "verify") if line.startswith("total")]
    assert devices.endswith("missing 0, extra 0")
    assert all_events == f"total: {len(sent)} events, {len(sent)} rows, 0 dead letters, 0 skipped, {GOOD}"
    columns = "toUnixTimestamp64Micro(ts), user_id, country, page"
    assert recipe.sql(f"SELECT {columns} FROM visits ORDER BY ts") == [
        (visit["ts"], visit["user"]["id"], visit.get("country"), visit["page"]) for visit in sent
    ]
    counted = dict(line.split(": ") for line in recipe.run(3, "count"))
    exact = {country or "(none)": count for country, count in recipe.sql(recipe.block("sql", 1))}
    assert len(exact) == 4
    assert recipe.run(4, "count") == [f"Total devices: {len({visit['user']['id'] for visit in sent})}"]
    total = recipe.sql("SELECT uniqExact(user_id) FROM visits WHERE toDate(ts) = '2026-11-01'")[0][0]
    assert counted.keys() == {*exact, "Total devices"}
    for name, count in {**exact, "Total devices": total}.items():
        assert int(counted[name]) == pytest.approx(count, rel=0.04), name  # 5 standard errors


def test_one_month_of_a_topic_with_a_kill_in_between(
    env: dict[str, str], table_name: str, follow: Callable[[str], Recipe]
) -> None:
    recipe = follow("One month of a topic")
    begin = datetime(2026, 9, 1, tzinfo=UTC)
    moments = [begin + timedelta(minutes=10 * i) for i in range(84 * 144)]
    recipe.send(
        (
            {
                "value": json.dumps({"timestamp": at.isoformat(), "device_ip": device(i), "error_code": 0}).encode(),
                "timestamp": int(at.timestamp() * 1000),
            }
            for i, at in enumerate(moments)
        ),
        2,
    )
    october = [(at, device(i)) for i, at in enumerate(moments) if at.month == 10]
    assert any(NO_DEVIATION.match(line) for line in recipe.run(0, "check"))
    with recipe.start(1, WORKER_BATCH_ROWS="5") as worker:
        wait_until(lambda: rows(env["WORKER_CLICKHOUSE_URL"], table_name) > 100, PATIENCE_S, "some are stored")
        worker.kill_tree()
    assert rows(env["WORKER_CLICKHOUSE_URL"], table_name) < len(october)
    assert recipe.run(1, "--config")[-1] == f"Total devices: {len(october)}"
    printed = recipe.run(2, "verify")
    assert printed[-1] == f"total: {len(october)} events, {len(october)} rows, 0 dead letters, 0 skipped, {GOOD}"
    assert not any("not committed" in line for line in printed)
    assert recipe.sql("SELECT timestamp, device_ip FROM october ORDER BY timestamp") == october
