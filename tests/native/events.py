"""Random events for every target of the native decoder: valid, at an edge, invalid, and with changed bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from tests.native.comparison import Wanted, wanted

INTEGERS = [f"{sign}Int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)]
TIMES = ["DateTime", "DateTime('Europe/Berlin')", *[f"DateTime64({digits})" for digits in range(10)]]
TIMES += ["DateTime64(3, 'UTC')", "Date", "Date32"]
TEXTS = ["String", "FixedString(6)", "UUID", "IPv4", "IPv6"]
ENUMS = ["Enum8('a' = 1, 'b, (c)' = -128)", "Enum16('a' = 32767, '' = -32768, 'ü' = 3)"]
PLAIN = [*INTEGERS, "Float32", "Float64", "Bool", *TIMES, *TEXTS, *ENUMS]
LOW_CARDINALITY = ["LowCardinality(String)", "LowCardinality(Nullable(String))"]
TARGETS = [
    *PLAIN,
    *[f"Nullable({target})" for target in PLAIN],
    *LOW_CARDINALITY,
    "SimpleAggregateFunction(sum, UInt64)",
    "SimpleAggregateFunction(anyLast, Nullable(String))",
    "devices",
    "identities",
]
PATHS = [("a",), ("b",), ("time",), ("device_ip",), ("geo", "country"), ("geo", "city"), ("geo", "at", "lat"), ("ü\"\n",)]
PATHS += [("",), ("x" * 63,), ("x" * 64,), ("x" * 63 + "y",), ("geo",), ("a", "b")]

# JSON texts on which parsers disagree, or which a column may not take.
HARD = [
    *["null", "true", "false", "0", "-0", "-0.0", "0.0", "00", "01", "-01", "+1", "1.", ".5", "-", "--1", "1e", "1e+", "1.e1"],
    *["NaN", "-NaN", "nan", "Infinity", "-Infinity", "inf", "1e999", "-1e999", "1e308", "1.8e308", "1e-999", "5e-324", "2e-324"],
    *["9" * 400, "-" + "9" * 400, "9" * 309, "0." + "0" * 400 + "1", "1e" + "9" * 30, "1e-" + "9" * 30, "0e" + "9" * 30],
    *["0e1", "0E+5", "1E5", "1e05", "0.1e-1", "9007199254740993", "9007199254740993.0", "123456789.123456789123456789"],
    *[str(edge + step) for bits in (7, 8, 15, 16, 31, 32, 63, 64) for edge in (1 << bits, -(1 << bits)) for step in (-1, 0, 1)],
    *[f"{sign}{10**power + step}" for sign in ("", "-") for power in (10, 11, 14, 17, 18, 19) for step in (-1, 0, 1)],
    *["5.0", "-5.0", "1e2", "255.0", "3.4028235677973366e38", "3.4028235677973365e38", "1e-46", "65535", "65536", "120529", "120530"],
    *['""', '"a"', '"ab', '"\\"', '"\\u0000"', '"\\ud800"', '"\\udc00\\ud800"', '"\\ud83d\\ude00"', '"\\ud83d"', '"\\uD83Dx"'],
    *['"\\x"', '"\\u12"', '"\\u00zz"', '"\\/\\b\\f\\n\\r\\t\\\\"', '"\n"', '"\x00"', '"\x1f"', '"\x7f"', '"\u2028"', "'a'", "a"],
    *['"\\u0061"', '"' + "x" * 127 + '"', '"' + "y" * 128 + '"', '"' + "ü" * 64 + '"', '"' + "z" * 16_384 + '"', '"日本\U0001f600"'],
    *["[]", "{}", "[1]", '{"a":1}', '{"b":null}', '{"country":"NL"}', "[1,]", "[,1]", "{,}", '{"a":1,}', '{"a"}', "{1:2}", "[1 2]"],
    *['{"a":1,"a":2}', '{"a":1,"\\u0061":2}', "tru", "nul", "nullx", "True", "None", "/**/1", "//\n1", "", " ", "1 ", "\t1\r\n", "\f1"],
    *["[" * depth + "]" * depth for depth in (126, 127, 128, 129, 1022, 1023, 1024, 1025)],
    *['{"a":' * depth + "1" + "}" * depth for depth in (126, 127, 128, 1022, 1023, 1024)],
]
HARD_BYTES = [text.encode() for text in HARD] + [
    *[b'"\xff"', b'"\xc3"', b'"\xa9"', b'"\xed\xa0\x80"', b'"\xc0\x80"', b'"\xf4\x90\x80\x80"', b"\xef\xbb\xbf1", b"\xff", b"\0"],
    b"[" * 100_001 + b"]" * 100_001,
]
TIME_TEXTS = [
    *["2026-11-24T05:30:00.123Z", "2026-11-24t05:30:00,5z", "2026-11-24 05:30:00", "2026-11-24T05:30:00+05:30", "2026-11-24T05:30:00-0330"],
    *["2026-11-24T05:30:00.123456789+01", "1969-12-31T23:59:59.999999999Z", "1900-01-01T00:00:00Z", "1899-12-31T23:59:59.999Z"],
    *["1899-12-31T23:30:00-01:00", "1900-01-01T00:30:00+01:00", "2299-12-31T23:59:59.999999999Z", "2300-01-01T00:00:00Z"],
    *["2262-04-11T23:47:16.854775807Z", "2262-04-11T23:47:16.854775808Z", "2106-02-07T06:28:15Z", "2106-02-07T06:28:16Z"],
    *["2149-06-06", "2149-06-07", "2149-06-06T23:59:59Z", "2024-02-29", "2023-02-29", "1900-02-29", "2026-13-01", "0000-01-01"],
    *["2026-11-24", "20261124", "2026-11-24T05:30", "2026-11-24T24:00:00", "2026-11-24T05:30:60", "2026-11-24T05:60:00", "2026-W48-2"],
    *["1726668850", "1726668850.124", "1726668850124", "1726668850124.9", "1726668850124567", "1726668850124567890", "-1", "-0", "-0.5"],
    *["99999999999.999999999", "-99999999999.999999999", "100000000000", "12345678901234567890.123456789", "10413791999999999999.5"],
    *["10413791999999999999", "10413792000000000000", "00000000000000000001", "000000000000000000001", "65535", "65536", "120529"],
    *["120530", "5.", ".5", "1.1234567890", " 5", "5 ", "5_0", "٥", "1e9", "0.0000000001", "-0.000000001", "--5", "-", ""],
]  # fmt: skip
UUIDS = ["61f0c404-5cb3-11e7-907b-a6006ad3dba0", "61F0C404-5CB3-11E7-907B-A6006AD3DBA0", "61f0c4045cb311e7907ba6006ad3dba0"]
UUIDS += ["61f0c404-5cb3-11e7-907b-a6006ad3dba", "61f0c404-5cb3-11e7-907b-a6006ad3db 0", "61f0c404-5cb3-11e7-907ba-6006ad3dba0"]
UUIDS += ["{61f0c404-5cb3-11e7-907b-a6006ad3db}", "61f0c404-5cb3-11e7-907b-a6006ad3dbaü"]
ADDRESSES = ["10.1.2.3", "255.255.255.255", "0.0.0.0", "1.2.3", "1.2.3.4.5", "01.2.3.4", "256.1.1.1", "1.2.3.4 ", "1.2.3.04", "::", "::1"]
ADDRESSES += ["::ffff:10.0.0.1", "2001:db8::1", "1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7::", "1::2:3:4:5:6:7:8", "::1:2:3:4:5:6:7:8", "fe80::1%eth0"]
ADDRESSES += ["1:2:3:4:5:6:1.2.3.4", "12345::", ":::", "1:2", "[::1]", "::ffff:1.2.3.04", "::1.2.3.4\0", "1.2.3.4\0", "0001::", "g::", ""]
WORDS = ["", "a", "b", "ü", "b, (c)", "abcdef", "abcdefg", "日本", "NL", "null", "0", "-5", "a\nb", 'q"q', "\0", "\U0001f600"]


def value_for(target: str, random: Random) -> Any:
    """Return a value that the target mostly accepts."""
    target = target.removeprefix("Nullable(")
    if target == "Bool":
        return random.random() < 0.5
    if "Int" in target:
        bits = int("".join(filter(str.isdigit, target)))
        low = 0 if "UInt" in target else -(1 << bits - 1)
        return random.randint(low, low + (1 << bits) - 1) >> random.choice((0, 0, bits // 2))
    if target.startswith("Float"):
        return random.choice((random.uniform(-1e6, 1e6), random.uniform(0, 1) * 10 ** random.randint(-330, 38), random.randint(-9, 9)))
    if target.startswith("Date"):
        return time_for(random)
    if target == "UUID":
        digits = f"{random.getrandbits(128):032x}"
        return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
    if target.startswith("IP"):
        return ".".join(str(random.getrandbits(8)) for _ in range(4)) if random.random() < 0.5 else random.choice(ADDRESSES)
    if target.startswith("Enum"):
        return random.choice(("a", "a", 1, 3, "ü", "", "b, (c)", -128, 32767))
    if target == "identities" and random.random() < 0.3:
        return random.randint(-(1 << 63), (1 << 64) - 1)
    return random.choice(WORDS)


def time_for(random: Random) -> Any:
    """Return a point in time in one of its forms; mostly one that all types hold."""
    millis = random.randint(-2_300_000_000_000, 10_500_000_000_000) if random.random() < 0.3 else random.randint(10**12, 2 * 10**12)
    kind = random.randrange(8)
    if kind < 4:
        return iso(millis, random)
    seconds = millis // 1000
    if kind == 4:
        return random.choice((seconds, str(seconds), millis, str(millis)))
    if kind == 5:
        return millis * 10 ** random.choice((3, 6)) + random.randrange(1000)
    if kind == 6:
        return random.choice((millis / 1000, seconds + random.random(), millis + random.random(), random.uniform(-1e20, 1e20)))
    return f"{seconds}.{random.randrange(10 ** random.randint(1, 9))}"


def iso(millis: int, random: Random) -> str:
    days, rest = divmod(millis, 86_400_000)
    year, month, day = _civil(days)
    hour, rest = divmod(rest, 3_600_000)
    minute, rest = divmod(rest, 60_000)
    text = f"{year:04}-{month:02}-{day:02}{random.choice('TTTt ')}{hour:02}:{minute:02}:{rest // 1000:02}"
    digits = random.choice((0, 3, 3, 3, random.randint(1, 10)))
    if digits:
        text += random.choice("...,") + f"{random.randrange(10**digits):0{digits}}"
    offset = f"{random.randint(0, 24):02}{random.choice(('', ':'))}{random.randint(0, 60):02}"
    return text + random.choice(("Z", "Z", "z", "", "+" + offset, "-" + offset, "+02", "-23:59"))


def _civil(days: int) -> tuple[int, int, int]:
    from datetime import date

    return (lambda day: (day.year, day.month, day.day))(date.fromordinal(days + 719_163))


def json_value(target: str, random: Random, oddness: float) -> bytes:
    """Return the JSON text of a value: with a chance of `oddness` one that is unusual or invalid."""
    if random.random() < oddness:
        choice = random.randrange(6)
        if choice == 0:
            return random.choice(HARD_BYTES[:-1])
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
    items = [(key, _object(value, random, oddness) if isinstance(value, dict) else value) for key, value in tree.items()]
    if random.random() < oddness:
        items += [(random.choice(("extra", "a", "geo", "time2", "Time")), random.choice(HARD_BYTES[:-1])) for _ in range(2)]
    if items and random.random() < oddness / 4:
        items.append(random.choice(items))
    if random.random() < 0.2:
        random.shuffle(items)
    space = random.choice((b"", b"", b"", b" ", b"\n\t")) if random.random() < 0.2 else b""
    return b"{" + space + (b"," + space).join([json_text(key, random) + b":" + space + value for key, value in items]) + space + b"}"


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
    changed[at:at] = random.choice(HARD_BYTES[:-1])


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
