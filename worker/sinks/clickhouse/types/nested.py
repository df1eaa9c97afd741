"""Types that contain others: Nullable, LowCardinality, Array, Map, Tuple."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from itertools import accumulate, chain, repeat
from operator import is_, itemgetter
from struct import pack
from types import NoneType
from typing import Any

from worker.decoding.converters import BadValue, check_types
from worker.sinks.clickhouse.types.codec import Codec

_ADDITIONAL_KEYS, _NEW_DICTIONARY = 1 << 9, 1 << 10
_SHARED_DICTIONARIES = pack("<Q", 1)  # the only version that exists


def nullable(inner: Codec) -> Codec:
    """Nullable(T): a byte per row that is 1 for NULL, then the values."""

    def convert(values: list[Any]) -> tuple[bytes, Any]:
        if None not in values:
            return bytes(len(values)), inner.convert(values)
        filled = [inner.null if value is None else value for value in values]
        return bytes(map(is_, values, repeat(None))), inner.convert(filled)

    return inner._replace(convert=convert, join=join_each((b"".join, inner.join)), null=None)


def low_cardinality(inner: Codec, nullable: bool) -> Codec:
    """LowCardinality(T) or LowCardinality(Nullable(T)), where `inner` is T. Each record batch has its own dictionary.

    The server reads dictionaries, each with its rows, until it has all rows. Entry 0 is NULL if T is nullable.
    """

    def convert(values: list[Any]) -> bytes:
        if not values:
            return b""
        if len(set(map(type, values)) - {NoneType}) > 1:  # 1, 1.0 and True are one key, but not all may be valid
            inner.convert([value for value in values if value is not None])
        positions = _Positions({None: 0} if nullable else {})
        rows = list(map(positions.__getitem__, values))
        keys = list(positions)
        if nullable:
            keys[0] = inner.null
        width = (len(keys) > 1 << 8) + (len(keys) > 1 << 16)
        header = pack("<QQ", width | _ADDITIONAL_KEYS | _NEW_DICTIONARY, len(keys))
        dictionary = inner.join([inner.convert(keys)])
        return b"".join((header, dictionary, pack("<Q", len(rows)), array("BHI"[width], rows)))

    return Codec(convert, null=None if nullable else inner.null, prefix=_SHARED_DICTIONARIES)


class _Positions(dict[Any, int]):
    """Values → their positions, in the order of the first lookups."""

    def __missing__(self, value: Any) -> int:
        position = self[value] = len(self)
        return position


def array_of(inner: Codec) -> Codec:
    """Array(T): for each row its end position in the elements, then the elements of all rows."""

    def convert(values: list[Any]) -> tuple[array[int], Any]:
        check_types(values, list)
        return array("Q", map(len, values)), inner.convert(list(chain.from_iterable(values)))

    return Codec(convert, join_each((_ends, inner.join)), [], inner.prefix)


def map_of(key: Codec, value: Codec) -> Codec:
    """Map(K, V), from a JSON object: for each row its end position in the pairs, then all keys, then all values."""

    def convert(values: list[Any]) -> tuple[array[int], Any, Any]:
        check_types(values, dict)
        keys = list(chain.from_iterable(values))
        items = list(chain.from_iterable(map(dict.values, values)))
        return array("Q", map(len, values)), key.convert(keys), value.convert(items)

    return Codec(convert, join_each((_ends, key.join, value.join)), {}, key.prefix + value.prefix)


def tuple_of(names: list[str], elements: list[Codec]) -> Codec:
    """Tuple(…): a JSON array of as many elements or, for named elements, an object with at least these keys."""

    def convert(values: list[Any]) -> tuple[Any, ...]:
        kinds = set(map(type, values))
        if kinds <= {dict} and all(names):
            columns = by_name(values)
        elif kinds <= {list} and set(map(len, values)) <= {len(elements)}:
            columns = [list(map(itemgetter(i), values)) for i in range(len(elements))]
        elif kinds <= {list, dict}:  # row by row, because both kinds may be valid
            columns = [list(column) for column in zip(*map(row, values), strict=True)]
        else:
            raise BadValue("wrong_type")
        return tuple([element.convert(column) for element, column in zip(elements, columns, strict=True)])

    def by_name(values: list[Any]) -> list[list[Any]]:
        try:
            return [list(map(itemgetter(name), values)) for name in names]
        except KeyError:
            raise BadValue("missing_field") from None

    def row(value: list[Any] | dict[str, Any]) -> list[Any]:
        if type(value) is dict and all(names):
            return [column[0] for column in by_name([value])]
        if type(value) is list and len(value) == len(elements):
            return value
        raise BadValue("wrong_type")

    return Codec(
        convert,
        join_each(tuple(element.join for element in elements)),
        [element.null for element in elements],
        b"".join(element.prefix for element in elements),
    )


def _ends(sizes: list[array[int]]) -> bytes:
    return array("Q", accumulate(chain.from_iterable(sizes))).tobytes()


def join_each(joins: tuple[Callable[[list[Any]], bytes], ...]) -> Callable[[list[Any]], bytes]:
    """Return a join of parts that are tuples: it joins all first elements, then all second elements, and so on."""

    def join(parts: list[Any]) -> bytes:
        return b"".join([join_element([part[i] for part in parts]) for i, join_element in enumerate(joins)])

    return join
