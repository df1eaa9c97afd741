"""Each event gives the same row or reject in a record batch as alone, whatever its bytes and its neighbours are."""

from __future__ import annotations

import json
import math
import re
from array import array
from collections.abc import Sequence
from secrets import token_hex
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from worker.core.records import Decoded, Field, Reject
from worker.decoding import json as reference
from worker.decoding.converters import BadValue, integers, millis, texts
from worker.decoding.json import decode

settings.register_profile("worker", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # busy hosts
settings.load_profile("worker")


def optional(values: list[Any]) -> list[str]:
    texts([value for value in values if value is not None])
    return [value or "" for value in values]


def word(values: list[Any]) -> list[int]:
    return [{"one": 1, "two": 2}[value] for value in values]


def anything(values: list[Any]) -> list[tuple[int, Any]]:
    """Accept all values; nested lists as their depth, because Python compares them only to a depth of 1000."""
    results = []
    for value in values:
        depth, inner = 0, value
        while type(inner) is list and len(inner) == 1:
            depth, inner = depth + 1, inner[0]
        results.append((depth, inner))
    return results


DEVICE = Field("device_ip", ("device_ip",), texts)
FIELDS = (Field("timestamp", ("timestamp",), millis), DEVICE, Field("error_code", ("error_code",), integers(-128, 127)))
NESTED = (
    Field("country", ("geo", "country"), texts),
    Field("city", ("geo", "city"), optional, required=False),
    Field("a", ("a",), anything, required=False),
)
ONE_OPTIONAL = (Field("a", ("a",), anything, required=False),)
SHAPES = (FIELDS, (DEVICE,), NESTED, ONE_OPTIONAL, (Field("a", ("a",), word),))

GOOD = b'{"timestamp":1726668850124,"device_ip":"10.0.0.1","error_code":3,"geo":{"country":"NL"},"a":"one"}'
FRAGMENTS = [
    *[
        b"",
        b" ",
        b"\n",
        b"{}",
        b"[]",
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b'"',
        b'\\"',
        b"\\",
        b"0",
        b"0]",
        b"[0",
        b"null",
    ],
    *[
        b"true",
        b"NaN",
        b"1e400",
        b"-",
        b"123456789012345678901234567890",
        b"\xef\xbb\xbf",
        b"\xff",
        b"\xc3",
        b"\xa9",
        b"\0",
    ],
    *[
        b'{"a":9},{"a":10}',
        b'{"a":[{}',
        b"{}]}",
        b'{"a":9}',
        b'{"a":"one"}',
        b'{"a":1,"a":"two"}',
        b'{"a":',
        b"9}",
        b'"a"',
    ],
    *[
        b'{"a":"',
        b'"}',
        b'{"a":"\\',
        b'","a":"one"}',
        b'{"a":"x,',
        b'"a":10},{"b":"',
        b"}],[{",
        b"1],[2",
        b"{},",
        b",{}",
    ],
    *[b'{"a":"\\ud800"}', b'{"a":"\\udc00\\ud800"}', b'{"a":"\xed\xa0\x80"}', b'{"\\u0061":"one"}', b"/**/", b"// x\n"],
    *[b'{"error_code":true}', b'{"error_code":"3"}', b'{"geo":null}', b'{"geo":"NL"}', b'{"geo":{"country":null}}'],
    *[GOOD, GOOD[:40], GOOD[40:], GOOD + b" ", b"\t" + GOOD, GOOD + GOOD, GOOD + b"," + GOOD, b"[" + GOOD + b"]"],
    *[GOOD.replace(b"3,", value + b",") for value in (b"true", b"300", b"-129", b"3.0", b'"3"', b"null", b"[]")],
    *[GOOD.replace(b'"NL"', value) for value in (b"null", b'"NL","city":null', b'"NL","city":7', b'"NL","city":"A"')],
    *[GOOD.replace(b"1726668850124", value) for value in (b'"2021-12-03T16:15:30"', b'"nonsense"', b"true", b"17e300")],
    *[GOOD.replace(b'"geo":{"country":"NL"}', b'"geo":' + value) for value in (b"null", b"[1]", b'"NL"', b"{}")],
    *[b'{"a":' + b"[" * depth + b"]" * depth + b"}" for depth in (1021, 1022, 1023, 1024, 1025, 1100)],
]
fragments = st.sampled_from(FRAGMENTS)
payloads = st.one_of(
    fragments,
    st.lists(fragments, max_size=4).map(b"".join),
    st.lists(fragments, max_size=3).map(b",".join),
    st.binary(max_size=12),
    st.builds(lambda text, cut: text[:cut], fragments, st.integers(0, 120)),
)


def decode_alone(payload: bytes, fields: Sequence[Field]) -> tuple[Any, ...] | tuple[str, str]:
    """The definition of a result: one message's converted values, or the reason and field of its reject."""
    try:
        event = parse(payload)
    except ValueError:
        return "schema_framing" if re.match(rb"\0[\0-\x7f]....", payload, re.DOTALL) else "not_json", ""
    if type(event) is not dict:
        return "not_object", ""
    row: list[Any] = []
    for field in fields:
        value: Any = event
        for key in field.path:
            if value is None and not field.required:
                break
            if type(value) is not dict:
                return "wrong_type", field.name
            if field.required and key not in value:
                return "missing_field", field.name
            value = value.get(key)
        try:
            row.append(field.convert([value])[0])
        except BadValue as error:
            return unusual(value) or error.reason, field.name
        except (OverflowError, KeyError):
            return unusual(value) or "out_of_range", field.name
        except (TypeError, ValueError):
            return unusual(value) or "wrong_type", field.name
    return (row,)


class Huge(float):
    """A number that no float holds."""


def parse(payload: bytes) -> Any:
    """JSON as orjson reads it, but also with numbers beyond the largest float and lone surrogates."""
    try:
        return orjson.loads(payload)
    except ValueError:
        if payload.count(b"[") + payload.count(b"{") > 500:  # no fragment has so many and is unusual otherwise
            raise

    def number(text: str) -> float:
        return Huge(text) if math.isinf(float(text)) else float(text)

    def whole(text: str) -> int | float:
        return int(text) if len(text) < 20 and -(2**63) <= int(text) < 2**64 else number(text)

    def refuse(name: str) -> None:
        raise ValueError(name)

    return json.loads(payload.decode(), parse_float=number, parse_int=whole, parse_constant=refuse)


def unusual(value: Any) -> str:
    """Why a value is invalid in any column, as far as that can be seen in its JSON text."""
    text = json.dumps(value)
    if "Infinity" in text:
        return "out_of_range"
    return "invalid_text" if not encodable(value) else ""


def encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def decode_each_alone(messages: Sequence[bytes], fields: Sequence[Field]) -> Decoded:
    results = [decode_alone(message, fields) for message in messages]
    kept = [index for index, result in enumerate(results) if len(result) == 1]
    rejects = [Reject(index, *result) for index, result in enumerate(results) if len(result) == 2]
    columns = tuple([results[index][0][number] for index in kept] for number in range(len(fields)))
    return Decoded(columns, kept if rejects else None, len(kept), rejects)


def with_lists(decoded: Decoded) -> Decoded:
    columns = tuple(list(column) for column in decoded.columns)
    kept = None if decoded.kept is None else list(decoded.kept)
    return Decoded(columns, kept, decoded.rows, list(decoded.rejects))


@settings(max_examples=2000)
@given(st.lists(payloads, max_size=12), st.sampled_from(SHAPES))
@example([b'{"a":9},{"a":10}', b'{"a":[{}', b"{}]}"], ONE_OPTIONAL)
@example([b'{"a":[{}', b"{}]}"], ONE_OPTIONAL)
@example([b'{"a":[{}', b"{}]}", b'{"a":9},{"a":10}', b'{"a":9},{"a":10}'], ONE_OPTIONAL)
@example([b'{"a":"', b'"}', b'{"a":1},{"a":2}'], ONE_OPTIONAL)
@example([b"0],[0", b"0"], ONE_OPTIONAL)
@example([GOOD, b"", GOOD], FIELDS)
def test_a_record_batch_gives_the_same_as_each_message_alone(messages: list[bytes], fields: tuple[Field, ...]) -> None:
    assert with_lists(decode(messages, fields)) == decode_each_alone(messages, fields)


@settings(max_examples=300)
@given(st.lists(st.one_of(payloads, st.just(GOOD), st.just(GOOD)), min_size=1, max_size=12), st.sampled_from(SHAPES))
def test_no_message_changes_its_neighbours_row(messages: list[bytes], fields: tuple[Field, ...]) -> None:
    fenced = [message for payload in messages for message in (GOOD, payload)]
    decoded = decode(fenced, fields)
    good = decode([GOOD], fields)
    kept = range(len(fenced)) if decoded.kept is None else decoded.kept
    for column, expected in zip(decoded.columns, good.columns, strict=True):
        rows = dict(zip(kept, column, strict=True))
        assert all(rows.get(index) == expected[0] for index in range(0, len(fenced), 2) if good.rows)


@pytest.mark.parametrize("fragment", FRAGMENTS, ids=lambda fragment: ascii(fragment)[2:30])
def test_no_fragment_changes_the_result_of_another(fragment: bytes) -> None:
    for other in FRAGMENTS:
        for messages in ([fragment, other], [fragment, other, GOOD, other, fragment]):
            for fields in (FIELDS, ONE_OPTIONAL):
                assert with_lists(decode(messages, fields)) == decode_each_alone(messages, fields)


def test_a_message_that_contains_the_fence_of_another_call_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = iter(["0123456789abcdef", "fedcba9876543210"])
    monkeypatch.setattr("worker.decoding.json.token_hex", lambda _: next(tokens))
    replayed = b'{"a":1},"0123456789abcdef",{"a":2}'
    decode([b'{"a":1}'], ONE_OPTIONAL)
    assert with_lists(decode([b'{"a":1}', replayed], ONE_OPTIONAL)).rejects == [Reject(1, "not_json", "")]


def test_every_record_batch_has_a_token_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []

    def spy(size: int) -> str:
        drawn.append(token_hex(size))
        return drawn[-1]

    monkeypatch.setattr("worker.decoding.json.token_hex", spy)
    decode([GOOD], FIELDS)
    decode([GOOD], FIELDS)
    assert len(set(drawn)) == 2
    assert all(len(token) == 16 for token in drawn)


def test_a_valid_record_batch_keeps_all_and_parses_no_message_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "_parse_each", None)
    decoded = decode([GOOD] * 1000, FIELDS)
    assert (decoded.kept, decoded.rows, decoded.rejects) == (None, 1000, ())
    assert decoded.columns == (array("q", [1726668850124] * 1000), ["10.0.0.1"] * 1000, array("b", [3] * 1000))


def test_an_invalid_value_costs_no_second_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "_parse_each", None)
    decoded = decode([GOOD, GOOD.replace(b"3,", b"300,"), GOOD, b"[]"], FIELDS)
    assert decoded.rejects == [Reject(1, "out_of_range", "error_code"), Reject(3, "not_object", "")]
    assert decoded.kept == [0, 2]


def test_no_payloads_give_empty_columns_and_no_rows() -> None:
    assert decode([], FIELDS) == Decoded((array("q"), [], array("b")), None, 0, ())


def test_a_record_batch_of_only_invalid_events_has_empty_columns() -> None:
    decoded = decode([b"", b"7"], FIELDS)
    assert decoded.columns == (array("q"), [], array("b"))
    assert (decoded.kept, decoded.rows) == ([], 0)
    assert decoded.rejects == [Reject(0, "not_json", ""), Reject(1, "not_object", "")]


def test_an_event_with_several_invalid_fields_is_rejected_once_for_the_first() -> None:
    assert decode([b'{"timestamp":"?","device_ip":7}'], FIELDS).rejects == [Reject(0, "bad_timestamp", "timestamp")]


def test_an_event_at_the_depth_limit_is_valid_as_it_is_alone() -> None:
    deepest = max((f for f in FRAGMENTS if len(decode_alone(f, ONE_OPTIONAL)) == 1), key=lambda f: f.count(b"["))
    assert deepest.count(b"[") == 1023
    decoded = decode([b"{}", deepest, b"{}"], ONE_OPTIONAL)
    assert (decoded.rows, decoded.kept) == (3, None)


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b'{"geo":{"country":"NL","city":"A"},"a":1}', (["NL"], ["A"], [(0, 1)])),
        (b'{"geo":{"country":"NL","city":null},"a":null}', (["NL"], [""], [(0, None)])),
        (b'{"geo":{"country":"NL"}}', (["NL"], [""], [(0, None)])),
        (b"{}", ("missing_field", "country")),
        (b'{"geo":{}}', ("missing_field", "country")),
        (b'{"geo":{"country":null}}', ("wrong_type", "country")),
        (b'{"geo":null}', ("wrong_type", "country")),
        (b'{"geo":"country"}', ("wrong_type", "country")),
        (b'{"geo":{"country":"NL","city":7}}', ("wrong_type", "city")),
    ],
)
def test_nested_and_optional_fields(payload: bytes, expected: tuple[Any, ...]) -> None:
    decoded = decode([payload], NESTED)
    assert (decoded.columns if decoded.rows else decoded.rejects[0][1:3]) == expected


@pytest.mark.parametrize(
    ("geo", "rows"), [(b"null", 1), (b"{}", 1), (b'"NL"', 0), (b"[]", 0), (b"0", 0), (b"false", 0)]
)
def test_an_optional_fields_parent_may_be_missing_or_null_but_nothing_else(geo: bytes, rows: int) -> None:
    fields = [Field("city", ("geo", "city"), optional, required=False)]
    assert decode([b'{"geo":' + geo + b"}"], fields).rows == rows
    assert decode([b"{}"], fields).rows == 1


def test_a_converter_that_fails_for_a_column_of_valid_values_raises() -> None:
    def fail_for_several(values: list[Any]) -> list[Any]:
        if len(values) > 1:
            raise ValueError("broken converter")
        return values

    with pytest.raises(ValueError, match="broken converter"):
        decode([b'{"a":1}', b'{"a":2}'], [Field("a", ("a",), fail_for_several)])


@pytest.mark.parametrize(
    ("low", "high", "code"),
    [(-128, 127, "b"), (0, 255, "B"), (0, 10, "b"), (-1, 200, "h"), (0, 2**32 - 1, "I"), (-(2**63), 2**63 - 1, "q")],
)
def test_integers_accept_their_range_and_return_the_narrowest_array(low: int, high: int, code: str) -> None:
    convert = integers(low, high)
    assert convert([low, high]) == array(code, [low, high])
    assert convert([]).typecode == code
    for value in (low - 1, high + 1):
        with pytest.raises((BadValue, OverflowError)):
            convert([low, value])
    for wrong in (True, 1.0, "1", None, [1]):
        with pytest.raises(BadValue, match="wrong_type"):
            convert([low, wrong])


def test_integers_beyond_machine_words_are_rejected_at_once() -> None:
    with pytest.raises(ValueError, match="machine integer"):
        integers(-1, 2**63)


@pytest.mark.parametrize("wrong", [None, 7, 7.0, True, ["a"], {"a": "b"}])
def test_texts_accept_only_strings(wrong: Any) -> None:
    assert texts(["", "a", "é"]) == ["", "a", "é"]
    with pytest.raises(BadValue, match="wrong_type"):
        texts(["a", wrong])


def test_an_invalid_timestamp_has_its_own_reason() -> None:
    assert millis(["2021-12-03T16:15:30", 1726668850124]) == array("q", [1638548130000, 1726668850124])
    with pytest.raises(BadValue, match="bad_timestamp"):
        millis([1726668850124, None])


def test_the_framing_of_a_schema_registry_is_named_as_such() -> None:
    framed = [b"\0\0\0\0\7" + GOOD, b"\0\0\0\0\7", b"\1\0\0\0\7" + GOOD, GOOD]
    decoded = decode(framed, FIELDS)
    assert [reject.reason for reject in decoded.rejects] == ["schema_framing", "not_json", "not_json"]
    assert decoded.rows == 1


ANY_NUMBER = Field("n", ("n",), integers(0, 2**64 - 1))
TEXT = Field("s", ("s",), texts)


@pytest.mark.parametrize(
    ("payload", "field", "reason"),
    [
        (b'{"n":18446744073709551616}', ANY_NUMBER, "out_of_range"),
        (b'{"n":-1e30}', ANY_NUMBER, "out_of_range"),
        (b'{"n":1e400}', ANY_NUMBER, "out_of_range"),
        (b'{"n":' + b"9" * 5000 + b"}", ANY_NUMBER, "out_of_range"),
        (b'{"n":5.0}', ANY_NUMBER, "wrong_type"),
        (b'{"n":NaN}', ANY_NUMBER, "not_json"),
        (b'{"n":Infinity}', ANY_NUMBER, "not_json"),
        (b'{"s":"\\ud83d"}', TEXT, "invalid_text"),
        (b'{"s":["\\ud83d"]}', TEXT, "invalid_text"),
        (b'{"s":"\xed\xa0\xbd"}', TEXT, "not_json"),
        (b'{"s":' + b"[" * 5000 + b"]" * 5000 + b"}", TEXT, "not_json"),
        (b'{"s":"\\ud83d","n":' + b"[" * 600 + b"]" * 600 + b"}", TEXT, "not_json"),
    ],
)
def test_a_reject_has_the_true_reason(payload: bytes, field: Field, reason: str) -> None:
    (reject,) = decode([payload], [field]).rejects
    assert reject.reason == reason


def test_values_that_no_column_stores_refuse_no_event() -> None:
    payloads = [b'{"n":1,"x":1e400}', b'{"n":2,"x":"\\ud83d"}', b'{"n":3,"\\ud83d":1}', b'{"n":4,"n":5}']
    assert list(decode(payloads, [ANY_NUMBER]).columns[0]) == [1, 2, 3, 5]
