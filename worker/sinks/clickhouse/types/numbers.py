"""Numbers: integers of all widths, floats, Bool, Enum, Decimal.

A number must be a JSON number: no string, no boolean, and no 5.0 for an integer. Only integers beyond 64 bits and exact
decimals, which JSON numbers cannot carry here, may also be strings.
"""

from __future__ import annotations

import re
from array import array
from decimal import Context, Decimal
from math import isfinite
from struct import error as StructError
from struct import pack
from typing import Any

from worker.core.records import Convert
from worker.decoding.converters import BadValue, check_types, integers
from worker.sinks.clickhouse.types.codec import Codec

_integer_text = re.compile(r"-?[0-9]{1,78}").fullmatch
_decimal_text = re.compile(r"(-?[0-9]{1,78})(?:\.([0-9]{1,78}))?([eE][+-]?[0-9]{1,2})?").fullmatch
_float_text = re.compile(r"-?[0-9]{1,400}(?:\.[0-9]{1,400})?(?:[eE][+-]?[0-9]{1,4})?").fullmatch
_exactly = Context(prec=400)
_EXACT_FLOATS = 1 << 53  # the float of a whole number below has all of its digits
_MOST_DIGITS = 80  # more than any Decimal has
_WHOLE_BELOW = 2**53
_FLOAT_DIGITS = 15  # decimal digits that every float keeps


def integer(bits: int, signed: bool) -> Codec:
    """Int8 … UInt256. From 128 bits on, strings of digits are accepted too: JSON numbers end at 64 bits."""
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    return Codec(integers(low, high) if bits <= 64 else _wide(bits // 8, signed), null=0)


def _wide(size: int, signed: bool) -> Convert:
    def convert(values: list[Any]) -> bytes:
        return b"".join([_whole(value).to_bytes(size, "little", signed=signed) for value in values])

    return convert


def _whole(value: Any) -> int:
    if type(value) is int:
        return value
    if type(value) is str and _integer_text(value):
        return int(value)
    raise BadValue("wrong_type")


def float32(values: list[Any]) -> bytes:
    """Float32: rounded to the nearest value; out_of_range beyond the largest."""
    _check_floats(values)
    try:
        return pack(f"<{len(values)}f", *values)
    except (OverflowError, StructError):
        raise BadValue("out_of_range") from None


def bfloat16(values: list[Any]) -> array[int]:
    """BFloat16: the upper half of the Float32, cut as the server cuts it."""
    return array("H", float32(values))[1::2]


def float64(values: list[Any]) -> array[float]:
    """Float64; an integer becomes the nearest float."""
    _check_floats(values)
    return array("d", values)


def _check_floats(values: list[Any]) -> None:
    check_types(values, float, int)
    if not isfinite(sum(values)) and not all(map(isfinite, values)):  # large values may add up to infinity
        raise BadValue("out_of_range")


def whole_number(value: Any) -> Any:
    """Return 5 for 5.0, "5" and "5.0", 1 for true; other values as they are. BadValue for fractions.

    Floats of 2^53 and more may have lost digits of the number that was written, so they are rejected.
    """
    kind = type(value)
    if kind is bool:
        return int(value)
    if kind is float:
        if not (value.is_integer() and abs(value) < _EXACT_FLOATS):
            raise BadValue("out_of_range")
        return int(value)
    if kind is str and _decimal_text(value):
        return int(value) if _integer_text(value) else _whole_decimal(Decimal(value), 0)
    return value


def any_number(value: Any) -> Any:
    """Return 5.5 for "5.5", 1 for true; other values as they are."""
    if type(value) is bool:
        return int(value)
    return float(value) if type(value) is str and _float_text(value) else value


def decimal_number(value: Any) -> Any:
    """Return 1 for true; other values, which Decimal accepts as they are, unchanged."""
    return int(value) if type(value) is bool else value


def truth(value: Any) -> Any:
    """Return true for 1, "1", "true", "True" and "TRUE", false likewise; other values as they are."""
    return _TRUTHS.get(value, value) if type(value) in (str, int, float) else value


_TRUTHS: dict[Any, bool] = {
    **dict.fromkeys((1, "1", "true", "True", "TRUE"), True),
    **dict.fromkeys((0, "0", "false", "False", "FALSE"), False),
}


def boolean(values: list[Any]) -> bytes:
    """Bool: JSON's true and false, nothing else."""
    check_types(values, bool)
    return bytes(values)


def enum(members: dict[str, int], code: str) -> Codec:
    """Enum8 and Enum16: a member's name, or its number."""
    numbers: dict[Any, int] = {**members, **{number: number for number in members.values()}}

    def convert(values: list[Any]) -> array[int]:
        check_types(values, str, int)  # True and 1.0 are keys, too
        return array(code, map(numbers.__getitem__, values))

    return Codec(convert, null=next(iter(members)))


def decimal(precision: int, scale: int) -> Codec:
    """Decimal(P, S), stored as an integer multiple of 10^-S: exact, or rejected.

    A float means its shortest decimal form (0.1 is one tenth). It is rejected if that has more than 15 digits, because
    the JSON text may have had more digits than the float kept; the decoder then passes the text's own digits as a
    Decimal. A string may have any number of digits.
    """
    size = next(size for size, digits in ((4, 9), (8, 18), (16, 38), (32, 76)) if precision <= digits)
    factor, limit = 10**scale, 10**precision

    def whole(value: Any) -> int:
        kind = type(value)
        if kind is int:
            return int(value * factor)
        if kind is float:
            if abs(value) >= _WHOLE_BELOW:  # orjson makes floats of whole numbers beyond 64 bits
                raise BadValue("out_of_range")
            guess: int = round(value * factor)  # a ValueError for NaN, an OverflowError for infinity
            if abs(guess) < 10**_FLOAT_DIGITS and guess / factor == value:
                return guess  # a float has only one decimal form of at most 15 digits: the shortest
            return _whole_decimal(_shortest(value), scale)
        if kind is Decimal:
            return _whole_decimal(value, scale)
        match = _decimal_text(value)  # TypeError if it is not a string
        if not match:
            raise BadValue("wrong_type")
        if match[3] is None and len(match[2] or "") <= scale:
            return int(match[1] + (match[2] or "").ljust(scale, "0"))
        return _whole_decimal(Decimal(value), scale)

    def convert(values: list[Any]) -> array[int] | bytes:
        numbers = list(map(whole, values))
        if numbers and not -limit < min(numbers) <= max(numbers) < limit:
            raise BadValue("out_of_range")
        if size <= 8:
            return array("i" if size == 4 else "q", numbers)
        return b"".join([number.to_bytes(size, "little", signed=True) for number in numbers])

    return Codec(convert, null=0)


def _shortest(value: float) -> Decimal:
    number = Decimal(repr(value)).normalize(_exactly)
    if len(number.as_tuple().digits) > _FLOAT_DIGITS:
        raise BadValue("out_of_range")
    return number


def _whole_decimal(number: Decimal, scale: int) -> int:
    if number and number.adjusted() > _MOST_DIGITS:  # 1e999999 would be an integer of so many digits
        raise BadValue("out_of_range")
    scaled = number.scaleb(scale, _exactly)
    if scaled != (whole := int(scaled)):
        raise BadValue("out_of_range")
    return whole
