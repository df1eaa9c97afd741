"""Types whose JSON values are strings (String, FixedString, UUID, IPv4, IPv6), and JSON."""

from __future__ import annotations

from array import array
from io import BytesIO
from itertools import repeat
from operator import itemgetter
from socket import AF_INET, AF_INET6, inet_pton
from struct import pack
from types import NoneType
from typing import Any

import orjson
from clickhouse_driver.bufferedwriter import CompressedBufferedWriter

from worker.decoding.converters import BadValue, check_types, texts
from worker.sinks.clickhouse.types.codec import Codec

JSON_AS_TEXT = pack("<Q", 1)  # the serialization of JSON that the server parses

_CHARACTERS = [chr(size) for size in range(128)]
_length = _CHARACTERS.__getitem__
_uuid_dashes = itemgetter(slice(8, 24, 5))
_MAPPED = bytes(10) + b"\xff\xff"  # an IPv4 address as IPv6: ::ffff:10.0.0.1
_IPV4, _IPV6 = int(AF_INET), int(AF_INET6)  # each use of an enum member would cost 100 ns


def string(values: list[Any]) -> bytes:
    """String: the length in bytes as a varint, then UTF-8.

    Short ASCII strings, which are nearly all, are joined with a length character before each and encoded at once. That
    takes 55 to 75 ns per string; a cache of encoded strings takes 250 to 400, the driver 60 to 110.
    """
    pieces = [""] * (2 * len(values))
    try:
        pieces[::2] = map(_length, map(len, values))
        pieces[1::2] = values
        return "".join(pieces).encode("ascii")
    except (IndexError, UnicodeEncodeError):
        return _with_lengths(texts(values))


def raw_string(values: list[Any]) -> bytes:
    """String of bytes as they are; a null is an empty string."""
    check_types(values, bytes, str, NoneType)
    return _with_lengths([value.encode() if type(value) is str else value or b"" for value in values])


def _with_lengths(values: list[str] | list[bytes]) -> bytes:
    out = BytesIO()
    writer = CompressedBufferedWriter(out, 1 << 16)  # does not compress: it buffers writes to any object
    writer.write_strings(values, encoding="utf-8")
    writer.flush()
    return out.getvalue()


def as_text(value: Any) -> Any:
    """Return text as it is, null as None, any other JSON value as JSON text without spaces.

    Numbers beyond 64 bits have lost digits when they were parsed, so they are rejected, also in arrays and objects.
    """
    if value is None or type(value) is str:
        return value
    if _has_large_float(value):
        raise BadValue("out_of_range")
    return orjson.dumps(value).decode()


def _has_large_float(value: Any) -> bool:
    if type(value) is list:
        return any(map(_has_large_float, value))
    if type(value) is dict:
        return any(map(_has_large_float, value.values()))
    return type(value) is float and abs(value) >= 1 << 63


def fixed_string(size: int) -> Codec:
    """FixedString(N): at most N bytes of UTF-8, padded with zero bytes."""

    def convert(values: list[Any]) -> bytes:
        encoded = [value.ljust(size, b"\0") for value in map(str.encode, values)]
        if set(map(len, encoded)) - {size}:
            raise BadValue("out_of_range")
        return b"".join(encoded)

    return Codec(convert, null="")


def uuid(values: list[Any]) -> array[int]:
    """UUID: 8-4-4-4-12 hexadecimal digits; two 64-bit numbers, the higher half first."""
    digits = "".join(values).replace("-", "")
    lengths, dashes = set(map(len, values)), set(map(_uuid_dashes, values))
    if not (lengths <= {36} and dashes <= {"----"} and len(digits) == 32 * len(values)):
        raise BadValue("wrong_type")
    raw = bytes.fromhex(digits)  # ValueError for any other character …
    if len(raw) != 16 * len(values):  # … but it skips spaces
        raise BadValue("wrong_type")
    halves = array("Q", raw)
    halves.byteswap()
    return halves


def ipv4(values: list[Any]) -> array[int]:
    """IPv4: four decimal numbers with dots → a 32-bit number."""
    try:
        numbers = array("I", b"".join(map(inet_pton, repeat(_IPV4), values)))
    except OSError:
        raise BadValue("wrong_type") from None
    numbers.byteswap()
    return numbers


def ipv6(values: list[Any]) -> bytes:
    """IPv6: its 16 bytes; an IPv4 address becomes ::ffff:…, as in ClickHouse."""
    try:
        return b"".join(
            [inet_pton(_IPV6, text) if ":" in text else _MAPPED + inet_pton(_IPV4, text) for text in texts(values)]
        )
    except OSError:
        raise BadValue("wrong_type") from None


def json(values: list[Any]) -> bytes:
    """JSON: the objects as JSON text, which the server parses."""
    check_types(values, dict)
    return _with_lengths(list(map(orjson.dumps, values)))


def json_of_bytes(values: list[Any]) -> bytes:
    """JSON: objects whose values are bytes of UTF-8, or null."""
    check_types(values, dict)
    return json([{key: None if value is None else value.decode() for key, value in each.items()} for each in values])
