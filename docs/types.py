"""Write the table of all ClickHouse types into docs/mapping.md, from a server: `python -m docs.types`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from worker.local import start_clickhouse
from worker.sinks.clickhouse.connection import connect
from worker.sinks.clickhouse.types import codec

PAGE = Path(__file__).parent / "mapping.md"
BEGIN, END = "<!-- every type: python -m docs.types -->\n", "<!-- end -->\n"
FAMILIES = "SELECT name, alias_to FROM system.data_type_families ORDER BY lower(name), name"

_WHOLE = "a whole number"
_INTERVALS = ("Nanosecond", "Microsecond", "Millisecond", "Second", "Minute", "Hour", "Day", "Week", "Month", "Quarter")
# Each type of the server: an example as DESCRIBE shows it, and its source (empty: rejected, with a reason).
TYPES: dict[str, tuple[str, str]] = {
    **{f"{sign}{bits}": (f"{sign}{bits}", _WHOLE) for sign in ("Int", "UInt") for bits in (8, 16, 32, 64)},
    **{f"{sign}{bits}": (f"{sign}{bits}", f"{_WHOLE}, or its text") for sign in ("Int", "UInt") for bits in (128, 256)},
    **{f"Interval{unit}": (f"Interval{unit}", _WHOLE) for unit in (*_INTERVALS, "Year")},
    "BFloat16": ("BFloat16", "a number, truncated to 8 bits of mantissa, as in the server"),
    "Float32": ("Float32", "a number, rounded"),
    "Float64": ("Float64", "a number"),
    "Decimal": ("Decimal(9, 2)", "a number or its text, exactly"),
    "Decimal32": ("Decimal(9, 2)", "is `Decimal(9, S)`"),
    "Decimal64": ("Decimal(18, 2)", "is `Decimal(18, S)`"),
    "Decimal128": ("Decimal(38, 2)", "is `Decimal(38, S)`"),
    "Decimal256": ("Decimal(76, 2)", "is `Decimal(76, S)`"),
    "Bool": ("Bool", "`true`, `false`"),
    "String": ("String", "text"),
    "FixedString": ("FixedString(3)", "text of at most N bytes"),
    "UUID": ("UUID", "text with dashes"),
    "IPv4": ("IPv4", "text"),
    "IPv6": ("IPv6", "text, also of an IPv4 address"),
    "Enum": ("Enum8('a' = 1)", "is `Enum8` or `Enum16`"),
    "Enum8": ("Enum8('a' = 1)", "a name, or its number"),
    "Enum16": ("Enum16('a' = 1)", "a name, or its number"),
    "Date": ("Date", "a timestamp, `YYYY-MM-DD`, or a number of days"),
    "Date32": ("Date32", "a timestamp, `YYYY-MM-DD`, or a number of days"),
    "DateTime": ("DateTime", "a timestamp"),
    "DateTime32": ("DateTime", "is `DateTime`"),
    "DateTime64": ("DateTime64(3)", "a timestamp"),
    "Time": ("Time", "text `HH:MM:SS`, up to ±999:59:59"),
    "Time64": ("Time64(3)", "text `HH:MM:SS.fff`, truncated to the precision"),
    "Nullable": ("Nullable(Int8)", "as its type, or null"),
    "LowCardinality": ("LowCardinality(String)", "as its type"),
    "SimpleAggregateFunction": ("SimpleAggregateFunction(sum, UInt64)", "as its type"),
    "Array": ("Array(Int8)", "an array"),
    "Map": ("Map(String, Int8)", "an object; keys may be numbers and dates, which are text in JSON"),
    "Tuple": ("Tuple(Int8, String)", "an array of that length, or with names an object"),
    "Nested": ("Nested(a Int8, b String)", "an array of objects; flattened, each column an array"),
    "JSON": ("JSON", "an object"),
    "Variant": ("Variant(Int8, String)", "by the kind of the value; each kind selects at most one type"),
    "Dynamic": (
        "Dynamic",
        "Bool, Int64, UInt64, Float64, String, JSON, or an Array of these, by the kind of the value",
    ),
    "Point": ("Point", "an array of two numbers"),
    "Ring": ("Ring", "an array of points"),
    "LineString": ("LineString", "an array of points"),
    "Polygon": ("Polygon", "an array of rings"),
    "MultiLineString": ("MultiLineString", "an array of lines"),
    "MultiPolygon": ("MultiPolygon", "an array of polygons"),
    "AggregateFunction": ("AggregateFunction(sum, UInt64)", ""),
    "Geometry": ("Geometry", ""),
    "QBit": ("QBit(Float32, 8)", ""),
    "Nothing": ("Nothing", ""),
}


def table(families: Sequence[tuple[str, str]]) -> str:
    """Return the table of these types (name, the type that it is an alias of; empty: none).

    KeyError if TYPES does not contain one of them, so the page cannot omit a type.
    """
    lines = ["| type | other names | filled from |", "| --- | --- | --- |"]
    for name, alias_to in families:
        if not alias_to:
            others = ", ".join(f"`{other}`" for other, target in families if target == name)
            lines.append(f"| `{name}` | {others} | {_how(name)} |")
    return "\n".join(lines) + "\n"


def _how(name: str) -> str:
    example, how = TYPES[name]
    if how:
        codec(example)
        return how
    try:
        codec(example)
    except ValueError as error:
        return f"**rejected**: {str(error).partition(' is not supported: ')[2]}"
    raise ValueError(f"{name} is supported; add its source to TYPES")


def main() -> None:
    """Write the table."""
    with start_clickhouse() as server:
        client = connect(server.address)
        families = client.execute(FAMILIES)
        client.disconnect()
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + table(families) + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
