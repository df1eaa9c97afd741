"""Random events for every target of the native decoder: valid, at an edge, invalid, and with changed bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import date
from random import Random
from typing import Any

from tests.native.comparison import Wanted, wanted
from tests.native.corpus import ADDRESSES, HARD, TIME_TEXTS, UUIDS, WORDS

INTEGERS = [f"{sign}Int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)]
TIMES = ["DateTime", "DateTime('Europe/Berlin')", *[f"DateTime64({digits})" for digits in range(10)]]
TIMES += ["DateTime64(3, 'UTC')", "Date", "Date32"]
TEXTS = ["String", "FixedString(6)", "UUID", "IPv4", "IPv6"]
ENUMS = ["Enum8('a' = 1, 'b, (c)' = -128)", "Enum16('a' = 32767, '' = -32768, 'ü' = 3)"]
DECIMALS = ["Decimal(9, 2)", "Decimal(18, 6)", "Decimal(18, 18)"]
PLAIN = [*INTEGERS, *DECIMALS, "Float32", "Float64", "Bool", *TIMES, *TEXTS, *ENUMS]
LOW_CARDINALITY = ["LowCardinality(String)", "LowCardinality(Nullable(String))"]
COLLECTIONS = [
    *["Array(String)", "Array(Nullable(Int32))", "Array(LowCardinality(String))", "Array(DateTime64(3))"],
    *["Map(String, String)", "Map(LowCardinality(String), Nullable(UInt8))"],
    *["Tuple(lat Float64, lon Nullable(Int16))", "Tuple(word LowCardinality(String), b Bool)"],
]
TARGETS = [
    *PLAIN,
    *[f"Nullable({target})" for target in PLAIN],
    *LOW_CARDINALITY,
    *COLLECTIONS,
    "SimpleAggregateFunction(sum, UInt64)",
    "SimpleAggregateFunction(anyLast, Nullable(String))",
    "devices",
    "identities",
]
PATHS = [
    ("a",),
    ("b",),
    ("time",),
    ("device_ip",),
    ("geo", "country"),
    ("geo", "city"),
    ("geo", "at", "lat"),
    ('ü"\n',),
]
PATHS += [("",), ("x" * 63,), ("x" * 64,), ("x" * 63 + "y",), ("geo",), ("a", "b")]


def value_for(target: str, random: Random) -> Any:
    """Return a value that the target mostly accepts."""
    if target.startswith("Nullable("):
        target = target[9:-1]
    name, _, arguments = target.partition("(")
    if name == "Array":
        return [value_for(arguments[:-1], random) for _ in range(random.randrange(4))]
    if name == "Map":
        value = arguments.partition(", ")[2][:-1]
        return {random.choice(WORDS): value_for(value, random) for _ in range(random.randrange(4))}
    if name == "Tuple":
        members = [member.partition(" ") for member in arguments[:-1].split(", ")]
        return {member: value_for(inner, random) for member, _, inner in members}
    if name == "LowCardinality":
        return random.choice(WORDS)
    if name == "Decimal":
        return decimal_for(int(arguments[:-1].partition(", ")[2]), random)
    if target == "Bool":
        return random.random() < 0.5
    if "Int" in target:
        bits = int("".join(filter(str.isdigit, target)))
        low = 0 if "UInt" in target else -(1 << bits - 1)
        return random.randint(low, low + (1 << bits) - 1) >> random.choice((0, 0, bits // 2))
    if target.startswith("Float"):
        return random.choice(
            (random.uniform(-1e6, 1e6), random.uniform(0, 1) * 10 ** random.randint(-330, 38), random.randint(-9, 9))
        )
    if target.startswith("Date"):
        return time_for(random)
    if target == "UUID":
        digits = f"{random.getrandbits(128):032x}"
        return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
    if target.startswith("IP"):
        return (
            ".".join(str(random.getrandbits(8)) for _ in range(4))
            if random.random() < 0.8
            else random.choice(ADDRESSES)
        )
    if target.startswith("Enum"):
        return random.choice(("a", "b, (c)", 1, -128) if "Enum8" in target else ("a", "", "ü", 3, 32767))
    if target == "identities" and random.random() < 0.3:
        return random.randint(-(1 << 63), (1 << 64) - 1)
    return random.choice(WORDS)


def decimal_for(scale: int, random: Random) -> Any:
    digits = random.randrange(-(10**7), 10**7) * random.choice((1, 1, 10**9))
    return random.choice(
        (digits / 10**scale, digits % 9, f"{digits / 10**scale:.{scale}f}", round(random.uniform(0, 9), 2))
    )


def time_for(random: Random) -> Any:
    """Return a point in time in one of its forms; mostly one that all types hold."""
    millis = (
        random.randint(-2_300_000_000_000, 10_500_000_000_000)
        if random.random() < 0.1
        else random.randint(10**12, 2 * 10**12)
    )
    kind = random.randrange(8)
    if kind < 4:
        return iso(millis, random)
    seconds = millis // 1000
    if kind == 4:
        return random.choice((seconds, str(seconds), millis, str(millis)))
    if kind == 5:
        return millis * 10 ** random.choice((3, 6)) + random.randrange(1000)
    if kind == 6:
        return random.choice(
            (millis / 1000, seconds + random.random(), millis + random.random(), random.uniform(-1e14, 1e14))
        )
    return f"{seconds}.{random.randrange(10 ** random.randint(1, 9))}"


def iso(millis: int, random: Random) -> str:
    days, rest = divmod(millis, 86_400_000)
    day = date.fromordinal(days + 719_163)
    hour, rest = divmod(rest, 3_600_000)
    minute, rest = divmod(rest, 60_000)
    text = f"{day}{random.choice('TTTt ')}{hour:02}:{minute:02}:{rest // 1000:02}"
    digits = random.choice((0, 3, 3, 3, random.randint(1, 9)))
    if digits:
        text += random.choice("...,") + f"{random.randrange(10**digits):0{digits}}"
    offset = f"{random.randint(0, 23):02}{random.choice(('', ':'))}{random.randint(0, 59):02}"
    return text + random.choice(("Z", "Z", "z", "", "+" + offset, "-" + offset, "+02", "-23:59"))


def json_value(target: str, random: Random, oddness: float) -> bytes:
    """Return the JSON text of a value: with a chance of `oddness` one that is unusual or invalid."""
    if random.random() < oddness:
        choice = random.randrange(6)
        if choice == 0:
            return random.choice(HARD)
        if choice == 1:
            return json_text(random.choice(TIME_TEXTS), random)
        if choice == 2:
            return json_text(random.choice(UUIDS + ADDRESSES + WORDS), random)
        if choice == 3:
            return json_text(value_for(random.choice(TARGETS), random), random)
        return b"null"
    return json_text(value_for(target, random), random)


def json_text(value: Any, random: Random) -> bytes:
    """Return the value as JSON; a string now and then with escapes that it does not need."""
    if isinstance(value, str) and random.random() < 0.05:
        return b'"' + b"".join(b"\\u%04x" % unit for unit in _utf16(value)) + b'"'
    if isinstance(value, float) and random.random() < 0.2:
        return f"{value:.{random.randint(0, 20)}e}".encode()
    return json.dumps(value, ensure_ascii=random.random() < 0.1).encode()


def _utf16(text: str) -> list[int]:
    encoded = text.encode("utf-16-le")
    return [int.from_bytes(encoded[i : i + 2], "little") for i in range(0, len(encoded), 2)]


def event(fields: Sequence[Wanted], random: Random, oddness: float = 0.1) -> bytes:
    """Return an event that has the fields: in any order, some missing or twice, with others between them."""
    tree: dict[str, Any] = {}
    for field in fields:
        if random.random() > oddness / 4:
            _put(tree, field.path, json_value(field.target, random, oddness))
    return _object(tree, random, oddness)


def _put(tree: dict[str, Any], path: tuple[str, ...], value: bytes) -> None:
    for key in path[:-1]:
        inner = tree.setdefault(key, {})
        if not isinstance(inner, dict):
            return
        tree = inner
    tree.setdefault(path[-1], value)


def _object(tree: dict[str, Any], random: Random, oddness: float) -> bytes:
    items = [
        (key, _object(value, random, oddness) if isinstance(value, dict) else value) for key, value in tree.items()
    ]
    if random.random() < oddness:
        items += [(random.choice(("extra", "a", "geo", "time2", "Time")), random.choice(HARD)) for _ in range(2)]
    if items and random.random() < oddness / 4:
        items.append(random.choice(items))
    if random.random() < 0.2:
        random.shuffle(items)
    space = random.choice((b"", b"", b"", b" ", b"\n\t")) if random.random() < 0.2 else b""
    return (
        b"{"
        + space
        + (b"," + space).join([json_text(key, random) + b":" + space + value for key, value in items])
        + space
        + b"}"
    )


def mutate(payload: bytes, others: Sequence[bytes], random: Random) -> bytes:
    """Return the payload with a few bytes changed, removed or added, or joined with another."""
    changed = bytearray(payload)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        at = random.randrange(len(changed) + 1)
        MUTATIONS[random.randrange(len(MUTATIONS))](changed, at, others, random)
    return bytes(changed)


def _replace_byte(changed: bytearray, at: int, _: Sequence[bytes], random: Random) -> None:
    changed[at : at + 1] = random.choice((random.randbytes(1), bytes([random.choice(INTERESTING)])))


def _insert_byte(changed: bytearray, at: int, _: Sequence[bytes], random: Random) -> None:
    changed[at:at] = bytes([random.choice(INTERESTING)])


def _remove(changed: bytearray, at: int, _: Sequence[bytes], random: Random) -> None:
    del changed[at : at + random.choice((1, 1, 2, 5, 20))]


def _repeat(changed: bytearray, at: int, _: Sequence[bytes], random: Random) -> None:
    changed[at:at] = changed[at : at + random.choice((1, 2, 8, 30))]


def _insert_hard(changed: bytearray, at: int, _: Sequence[bytes], random: Random) -> None:
    changed[at:at] = random.choice(HARD)


def _splice(changed: bytearray, at: int, others: Sequence[bytes], random: Random) -> None:
    changed[at:] = random.choice(others)[at:]


Mutation = Callable[[bytearray, int, Sequence[bytes], Random], None]
MUTATIONS: list[Mutation] = [_replace_byte, _replace_byte, _insert_byte, _remove, _repeat, _insert_hard, _splice]
INTERESTING = b'"\\{}[]:,0123456789.eE+-tfnulTZ \n\r\t\0\x1f\x7f\xff\xc3\xed'


def any_fields(random: Random) -> list[Wanted]:
    """Return up to six fields; several may have the same path, or a path through another."""
    paths = random.sample(PATHS, random.randint(1, 5))
    paths += random.sample(paths, 1) if random.random() < 0.2 else []
    fields = [wanted(path, random.choice(TARGETS)) for path in paths]
    return [field._replace(required=not field.required) if random.random() < 0.05 else field for field in fields]
