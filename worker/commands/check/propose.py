"""`check --propose`: CREATE TABLE with a column for each field of a sample that a type is certain for."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple, TextIO

from worker.commands.check.finding import Finding, fail, fail_with, ok, warn
from worker.commands.check.read_sample import sample_events
from worker.config.field_paths import parse_element_path, parse_path
from worker.config.settings import Settings
from worker.core.errors import ExitCode, WorkerError
from worker.core.records import Field
from worker.decoding.converters import elements
from worker.decoding.json import decode, read_events
from worker.decoding.transform import Transform, load_transform
from worker.kafka.log_reader import require_topic
from worker.kafka.topics import each_topic
from worker.sinks import uncounted
from worker.sinks.clickhouse import devices
from worker.sinks.clickhouse.avro_types import avro_types
from worker.sinks.clickhouse.inference import InferredField, KnownTypes, infer, infer_column, printed
from worker.sinks.clickhouse.names import quoted, shown
from worker.sinks.clickhouse.sink import ClickHouseSink
from worker.sinks.clickhouse.table import ORIGIN, Column, bind_columns, counted, events_template

_MOST_COLUMNS, _MOST_REASONS, _MOST_NAMES = 500, 100, 20
_KEYS = 3  # columns of few values in ORDER BY
_WIDTH = 32  # of the names, aligned
_NO_KEYS = ("Array(", "Map(", "JSON")
_RARE = "others are in more of the events"
_METADATA = {"_key": "String", "_timestamp": "DateTime64(3, 'UTC')", "_headers": "Map(String, String)"}
_ORDER = "-- Few values, the device, the time. Put first what queries filter by: the key cannot be changed later."


class Proposal(NamedTuple):
    """A table for the events of one or more topics."""

    settings: Settings  # of one of the topics
    template: str  # as events.sql; empty: there is no table, and a finding says why
    findings: list[Finding]

    @property
    def statement(self) -> str:
        """Return CREATE TABLE as it is shown. It fails if the table exists."""
        statement = devices.create_statements(self.template, self.settings.report)[0]
        text = statement.format(table=shown(self.settings.table)).replace("TABLE IF NOT EXISTS", "TABLE", 1)
        return text and f"{text.rstrip()};\n"


def print_proposals(settings: Settings, *, sample: int, out: TextIO, notes: TextIO) -> int:
    """Print the statement for each table to `out`, the findings to `notes`; return FAILED if a table has none."""
    transform = load_transform(settings.transform) if settings.transform else None
    topics, code = each_topic(settings), ExitCode.OK
    for topic in topics:
        require_topic(topic)
    for proposal in _proposals(topics, sample, transform):
        print(*proposal.findings, sep="\n", file=notes, flush=True)
        out.write(proposal.statement)
        code = code if proposal.template else ExitCode.FAILED
    return code


def create_proposed(
    topics: Sequence[Settings], sample: int, transform: Transform | None, statements: TextIO
) -> Iterator[Finding]:
    """Create the missing tables, and write their statements to `statements`."""
    try:
        for proposal in _proposals(topics, sample, transform):
            yield from proposal.findings
            if proposal.template:
                with closing(ClickHouseSink(proposal.settings, proposal.template)) as sink:
                    sink.open()
                statements.write(proposal.statement if sink.has_created_table else "")
                result = "was created as proposed" if sink.has_created_table else "exists, and stays as it is"
                yield ok("proposal", f"{shown(proposal.settings.table)} {result}")
    except WorkerError as error:
        yield fail_with("proposal", error)


def _proposals(topics: Sequence[Settings], sample: int, transform: Transform | None) -> Iterator[Proposal]:
    by_table: dict[str, list[Settings]] = {}
    for topic in topics:
        by_table.setdefault(topic.table, []).append(topic)
    for group in by_table.values():
        payloads: list[bytes] = []
        findings: list[Finding] = []
        metadata = {"_timestamp"}
        for topic in group:
            sampled, of_topic = sample_events(topic, sample, transform, metadata)
            payloads += sampled
            findings += of_topic
        names = ", ".join(topic.topic for topic in group)
        template, of_table = propose_table(group[0], names, payloads, _known(group), metadata)
        yield Proposal(group[0], template, findings + of_table)


def _known(topics: Sequence[Settings]) -> KnownTypes:
    """Return what the newest schemas of the topics say."""
    known = KnownTypes({}, set())
    for topic in topics:
        if topic.format == "avro":
            from worker.kafka.schema_registry import SchemaRegistry

            latest = SchemaRegistry(topic).latest(f"{topic.topic}-value")
            if latest and latest.schema.kind == "AVRO":
                types, nullable = avro_types(latest.schema)
                known = KnownTypes({**known.types, **types}, {*known.nullable, *nullable})
    return known


def propose_table(
    settings: Settings, names: str, payloads: Sequence[bytes], known: KnownTypes, metadata: Collection[str]
) -> tuple[str, list[Finding]]:
    """Return a table's template and the findings. `metadata` are columns that the messages of the topics could fill."""
    events = [event for event in read_events(payloads) if type(event) is dict]
    total = f"of the {len(payloads)} sampled events of {names}"
    if not payloads:
        return "", [fail("proposal", f"{names}: there are no events", "send some, or name another --topic")]
    if not events:
        fix = "--format if the events have another one, or another --topic"
        return "", [fail("proposal", f"none {total} is a JSON object", fix)]
    fields = _fields(settings, payloads, events, known)
    columns, without = [field for field in fields if field.type], [field for field in fields if not field.type]
    table = [Column(field.column, field.type) for field in columns]
    try:
        device = counted(table, bind_columns(table, settings.map, settings.types), settings.device_field)
    except ValueError as error:
        reasons = "; ".join(f"{printed(field.path)}: {field.undecided}" for field in without[:_MOST_NAMES])
        return "", [fail("proposal", f"{error} ({reasons})", "see the reasons")]
    result = f"{shown(settings.table)}: {len(columns)} of {len(fields)} fields have a column, for {len(events)} {total}"
    findings = [ok("proposal", result)]
    if without:
        more = f" and {len(without) - _MOST_NAMES} more" if len(without) > _MOST_NAMES else ""
        paths = ", ".join(printed(field.path) for field in without[:_MOST_NAMES])
        findings.append(warn("proposal", f"no column for {paths}{more}", "the statement says why, and what to do"))
    if not device:
        findings.append(ok("devices", uncounted(settings)))
    return _template(columns, without, device, settings.time_field, metadata), findings


def _fields(
    settings: Settings, payloads: Sequence[bytes], events: Sequence[dict[str, Any]], known: KnownTypes
) -> list[InferredField]:
    """Return the columns that `--map` names, then the other fields; those without a type have no column."""
    mapped = [_map(column, text, settings, payloads, len(events), known) for column, text in settings.map.items()]
    paths = [parse_element_path(text)[0] for text in settings.map.values()]
    lenient = [column for column, rules in settings.types.items() if rules == "lenient"]
    others = [field for field in infer(events, known, lenient) if not any(field.path[: len(p)] == p for p in paths)]
    most_frequent = sorted((field for field in others if field.type), key=lambda field: -field.present)
    rare = {field.path for field in most_frequent[_MOST_COLUMNS:]}
    for i, field in enumerate(others):
        if field.column in settings.map:
            others[i] = field._replace(type="", undecided="--map fills the column of this name from another field")
        elif field.path in rare:
            others[i] = field._replace(type="", undecided=_RARE)
    return [*mapped, *others]


def _map(
    column: str, text: str, settings: Settings, payloads: Sequence[bytes], events: int, known: KnownTypes
) -> InferredField:
    """Return the column that `--map` names, with the column's name as its path. Objects without a type become JSON."""
    path, *inner = parse_element_path(text)
    decoded = decode(payloads, (Field(text, path, elements(inner, list) if inner else list, required=False),))
    if any(reject.field for reject in decoded.rejects):
        return InferredField((column,), decoded.rows, 0, "", "in some events the path leads through another value")
    types = ["" if inner else known.types.get(path, ""), "JSON", "Array(JSON)"]
    for kind in types:
        lenient = settings.types.get(column) == "lenient"
        field = infer_column(path, decoded.columns[0], events, kind, lenient=lenient)
        if field.type or field.nulls == field.present:
            break
    return known.completed(field)._replace(path=(column,))


def _template(
    columns: Sequence[InferredField],
    without: Sequence[InferredField],
    device: str,
    time_field: str,
    metadata: Collection[str],
) -> str:
    """Return the statement of events.sql with these columns; braces are doubled, because it is formatted again."""
    template = events_template() if device else devices.create_statements(events_template(), "off")[0]
    head, _, rest = template.partition("(\n")
    origin = re.findall(r"    (_.*,)\n", rest)
    explained = [field for field in without if field.undecided != _RARE][:_MOST_REASONS]
    rest_count = len(without) - len(explained)
    width = min(_WIDTH, max(len(quoted(field.column)) for field in columns))
    body = [
        *(f"{quoted(field.column):{width}} {field.definition}," for field in columns),
        *(f"-- {printed(field.path)}: {field.undecided}" for field in explained),
        *([f"-- and {rest_count} more fields, of fewer events"] if rest_count else []),
        *origin,
        "-- What Kafka has of each message; remove the dashes to store it:",
        *(f"-- {name:10} {kind}," for name, kind in _METADATA.items() if name in metadata),
    ]
    rest = rest.partition(f"{origin[-1]}\n")[2].replace("(device_ip)", f"({quoted(device)})")
    order = f"{_ORDER}\nORDER BY ({', '.join(_sorting_key(columns, device, time_field))})"
    text = "".join(f"    {line}\n" for line in body) + re.sub("ORDER BY .*", lambda _: order, rest)
    return f"{head}(\n" + text.replace("{", "{{").replace("}", "}}")


def _sorting_key(columns: Sequence[InferredField], device: str, time_field: str) -> list[str]:
    """Return quoted columns: of few distinct values, the fewest first; the device; the time, `time_field` first."""
    required = [field for field in columns if not field.optional]
    few = sorted((field for field in required if field.distinct > 1), key=lambda field: field.distinct)
    of_device = [field for field in required if field.column == device and not field.type.startswith(_NO_KEYS)]
    times = [field for field in required if field.type.startswith("DateTime64(")]
    times.sort(key=lambda field: field.path != parse_path(time_field))
    keys = dict.fromkeys(field.column for field in [*few[:_KEYS], *of_device, *times[:1]])
    return list(map(quoted, keys or ORIGIN))
