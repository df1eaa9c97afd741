"""Which columns of a table the worker fills, and from which fields of an event. No I/O.

A column is filled from the field that `--map` names for it, else from the field with its name, in which dots make a
path. `_key`, `_timestamp`, `_headers` and `_raw_message` are filled from Kafka's message. Where an event lacks the
field of a column with a constant DEFAULT, that value is stored. The server fills columns whose DEFAULT is an
expression, and EPHEMERAL ones, unless `--map` names them; MATERIALIZED and ALIAS always.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

import orjson

from worker.config import field_paths
from worker.config.parsers import nearest
from worker.core.records import Convert, Field
from worker.decoding import metadata
from worker.decoding.converters import CONVERT_ERRORS, elements
from worker.sinks.clickhouse import types

ORIGIN = ("_topic", "_partition", "_offset")
# The types that can hold the fields of a device event. A table with a column of each name is for such events.
_DEVICE_EVENT = {
    "timestamp": ("DateTime", "Date"),
    "device_ip": ("String", "FixedString", "IPv4", "IPv6"),
    "error_code": ("Int", "UInt", "Float", "Decimal", "Enum"),
}
# The columns that are filled from Kafka's message: what each has, fitting types, a value, and how to get the values.
METADATA: dict[str, tuple[str, str, Any, Any]] = {
    "_key": ("a message's key", "String", b"", metadata.keys),
    "_timestamp": ("a message's timestamp", "DateTime64(3) or DateTime", 0, metadata.timestamps),
    "_headers": ("a message's headers", "Map(String, String)", {"name": b"value"}, metadata.headers),
    "_raw_message": ("a message's payload", "String", b"", metadata.raw_messages),
}
_COMPUTED = ("MATERIALIZED", "ALIAS")
_string = re.compile(r"'(?:[^'\\]|\\.)*'", re.DOTALL)
_word = re.compile(r"(?<![\w.])[A-Za-z_`]\w*")
_of_literals = re.compile(r"CAST|array|map|tuple|true|false|NULL|to[A-Z]\w*")


class Column(NamedTuple):
    """A column as DESCRIBE TABLE returns it."""

    name: str
    type: str
    default: str = ""  # DEFAULT, MATERIALIZED, ALIAS, EPHEMERAL; empty if the server needs a value
    expression: str = ""  # of the default
    constant: str = ""  # the value of a DEFAULT that is the same for all rows, as JSON; empty: there is none
    comment: str = ""


class ColumnBinding(NamedTuple):
    """A column, and the field that fills it."""

    column: str
    field: Field
    codec: types.Codec


def bind_columns(
    table: Sequence[Column], mapped: Mapping[str, str], rules: Mapping[str, str] | None = None
) -> list[ColumnBinding]:
    """Return the columns to fill, in the table's order; `mapped` has the field that `--map` names for a column.

    `rules` has `lenient` or `strict` for a column that `--types` names; see `types.codec`. The columns that are filled
    from the message come last. ValueError says why the table cannot be filled, and what to do.
    """
    rules = rules or {}
    _check(table, mapped)
    _check_rules(table, rules)
    of_messages = [column for column in table if _is_filled_from_message(column, mapped)]
    bindings = [
        _bind(column, mapped.get(column.name, ""), rules.get(column.name, "strict"))
        for column in table
        if column not in of_messages
        and (column.name in mapped or not (column.name in ORIGIN or is_filled_by_server(column)))
    ]
    if not bindings:
        raise ValueError("there is no column that an event could fill; name some with --map FIELD=COLUMN")
    _check_device_event({b.column: b.codec.type for b in bindings if b.field.path == (b.column,)})
    return [*bindings, *map(_bind_to_message, of_messages)]


def _is_filled_from_message(column: Column, mapped: Mapping[str, str]) -> bool:
    """Whether Kafka's metadata fills the column: not where `--map` names a field for it, or the server computes it."""
    if column.name not in METADATA or column.name in mapped:
        return False
    return column.default == "EPHEMERAL" or not is_filled_by_server(column)


def default_columns() -> list[Column]:
    """Return the columns of the table that the worker creates if it is missing, without reading the server."""
    return [Column(name, kind) for name, kind in re.findall(r"^ {4}([a-z_]+) +(.+),$", events_template(), re.MULTILINE)]


def events_template() -> str:
    """Return the statement that creates the table for device events, with {table} for its quoted name."""
    return files("worker.sinks.clickhouse").joinpath("events.sql").read_text()


def is_filled_by_server(column: Column) -> bool:
    """Whether the server fills the column, unless `--map` names a field for it."""
    return bool(column.default) and not (column.default == "DEFAULT" and _holds_default(column))


def has_constant_default(column: Column) -> bool:
    """Whether a column's DEFAULT is made of literals only, so that it is the same in every row."""
    words = _word.findall(_string.sub("", column.expression))
    return column.default == "DEFAULT" and all(map(_of_literals.fullmatch, words))


def _holds_default(column: Column) -> bool:
    try:
        types.codec(column.type).convert([orjson.loads(column.constant)])
    except CONVERT_ERRORS:
        return False
    return True


def counted(table: Sequence[Column], bindings: Sequence[ColumnBinding], device_field: str) -> str:
    """Return the column whose distinct values are the devices; empty if the table has none.

    It is the first column that the field fills, else a column of the field's name that the server fills.
    """
    path = field_paths.parse_path(device_field)
    names = [binding.column for binding in bindings if binding.field.path == path]
    names += [column.name for column in table if column.name == ".".join(path) and column.default != "EPHEMERAL"]
    return names[0] if names else ""


def _check(table: Sequence[Column], mapped: Mapping[str, str]) -> None:
    defaults = {column.name: column.default for column in table}
    for name, field in mapped.items():
        flag = f"--map {field}={name}"
        if name in ORIGIN:
            raise ValueError(f"{flag}: the worker itself fills {name}, with the event's origin; name another column")
        if name not in defaults:
            guess = nearest(name, [column for column in defaults if column not in ORIGIN])
            raise ValueError(
                f"{flag}: there is no column {name}{guess}; correct it, or ALTER TABLE … ADD COLUMN {name} …"
            )
        if defaults[name] in _COMPUTED:
            raise ValueError(
                f"{flag}: column {name} is {defaults[name]}, so the server fills it; make it a DEFAULT, or drop this"
            )


def _check_device_event(types: Mapping[str, str]) -> None:
    """Reject a table for device events that cannot hold any: each would become a dead letter."""
    if not _DEVICE_EVENT.keys() <= types.keys():
        return
    for name, allowed in _DEVICE_EVENT.items():
        if not re.sub(r"^(?:Nullable|LowCardinality)\(|\)$", "", types[name]).startswith(allowed):
            raise ValueError(
                f"column {name} is {types[name]}, which cannot hold an event's {name}; its type has to begin with "
                f"{' or '.join(allowed)}, or --map has to name another field for it"
            )


def _check_rules(table: Sequence[Column], rules: Mapping[str, str]) -> None:
    names = [column.name for column in table]
    for name in rules:
        if name not in names:
            raise ValueError(f"--types {name}={rules[name]}: there is no column {name}{nearest(name, names)}")


def _bind(column: Column, field: str, rules: str) -> ColumnBinding:
    try:
        codec = types.codec(column.type, rules)
    except ValueError as error:
        raise ValueError(f"column {column.name}: {error}; give it a DEFAULT, or another type") from None
    by_name = tuple(filter(None, column.name.split("."))) or (column.name,)
    path, *inner = field_paths.parse_element_path(field) if field else [by_name]
    bound = Field(field or field_paths.format_path(path), path, codec.convert, required=codec.null is not None)
    bound = bound._replace(exact="Decimal" in column.type, target=codec.type if rules == "strict" else "")
    if column.constant:
        default = orjson.loads(column.constant)
        convert = codec.convert if codec.null is None else _with_default(codec.convert, default)
        # Without a NULL to write, native code leaves null and absent fields to `convert`.
        target = "" if codec.null is None else bound.target
        bound = bound._replace(convert=convert, required=False, missing=default, target=target)
    if inner:
        bound = bound._replace(convert=elements(inner, bound.convert), missing=None, exact=False, target="")
    return ColumnBinding(column.name, bound, codec)


def _bind_to_message(column: Column) -> ColumnBinding:
    name = column.name
    what, suitable, sample, values = METADATA[name]
    if name == "_headers" and _leaf(column.type) == "Array":
        sample, values = [["name", b"value"]], metadata.header_pairs
    try:
        codec = types.codec(column.type, "message")
        codec.convert([sample])
    except CONVERT_ERRORS:
        raise ValueError(
            f"column {name}: {types.plain(column.type)} cannot hold {what}; make it {suitable}, or fill it from a "
            f"field of the events: --map {name}={name}"
        ) from None
    convert = codec.convert if codec.null is None else _with_default(codec.convert, codec.null)
    return ColumnBinding(name, Field(name, (name,), convert, of_message=values), codec)


def _leaf(type_name: str) -> str:
    """Return the name of a type without Nullable and LowCardinality."""
    name, arguments = types.split(type_name)
    return _leaf(arguments[0]) if name in ("Nullable", "LowCardinality") else name


def _with_default(convert: Convert, default: Any) -> Convert:
    """Return a converter to which null is the default, as JSONEachRow has it for columns that are not Nullable."""
    return lambda values: convert([default if value is None else value for value in values])
