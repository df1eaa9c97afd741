"""What native code decides is what the Python reference decides, whatever the bytes are; ordinary events it decides."""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
import worker_native
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.native.comparison import Wanted, compare, decode_by_reference, merge, wanted
from tests.native.corpus import ADDRESSES, DEEPEST, HARD, TIME_TEXTS, UUIDS, WORDS
from tests.native.events import LOW_CARDINALITY, TARGETS, TIMES, any_fields, event, mutate
from tests.support import column_values

settings.register_profile("worker", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # busy hosts
settings.load_profile("worker")

FIELDS = [
    *[wanted(("timestamp",), "DateTime64(3)"), wanted(("device_ip",), "String"), wanted(("error_code",), "UInt16")],
    *[wanted(("geo", "country"), "LowCardinality(Nullable(String))"), wanted(("v",), "Nullable(Float64)")],
]
GOOD = b'{"timestamp":"2026-11-24T05:30:00.123Z","device_ip":"10.1.2.3","error_code":7,"geo":{"country":"NL"},"v":0.5}'
MINIMAL = b'{"timestamp":1726668850124,"device_ip":"","error_code":0}'

seeds = st.integers(0, 2**64 - 1)
time_texts = st.one_of(
    st.from_regex(
        r"\A[0-9]{4}-[01][0-9]-[0-3][0-9][T ][0-2][0-9]:[0-5][0-9]:[0-5][0-9]([.,][0-9]{0,10})?(Z|[+-][0-9:]{0,6})?\Z"
    ),
    st.from_regex(r"\A-?[0-9]{1,20}(\.[0-9]{0,11})?(Z|\n)?\Z"),
    st.text("0123456789-:.,TtZz +_٠३\u2003\n\0", max_size=34),
    st.sampled_from(TIME_TEXTS),
)
numbers = st.integers(-(1 << 65), 1 << 65) | st.floats(allow_nan=False, allow_infinity=False) | st.floats(-1e13, 1e13)
values = st.one_of(
    *[time_texts, numbers, st.none(), st.booleans(), st.text(max_size=8), column_values.uuids, column_values.ipv6],
    *[st.sampled_from(UUIDS + ADDRESSES + WORDS), st.lists(st.integers(), max_size=2)],
)


@settings(max_examples=300)
@given(seeds, st.sampled_from([0.0, 0.02, 0.1, 0.3]))
def test_random_events(seed: int, oddness: float) -> None:
    random = Random(seed)
    fields = any_fields(random)
    payloads = [event(fields, random, oddness) for _ in range(40)]
    compare(worker_native.Decoder(fields), fields, payloads)
    compare(worker_native.Decoder(fields), fields, [mutate(payload, payloads, random) for payload in payloads])


@settings(max_examples=300)
@given(seeds)
def test_with_the_undecided_rows_put_between_all_is_as_the_reference_has_it(seed: int) -> None:
    random = Random(seed)
    # Each part of a LowCardinality has its own dictionary: its bytes depend on the parts.
    fields = [field for field in any_fields(random) if "LowCardinality" not in field.target]
    events = [event(fields, random, 0.05) for _ in range(60)]
    payloads = [payload if random.random() < 0.9 else mutate(payload, events, random) for payload in events]
    assert merge(worker_native.Decoder(fields), fields, payloads) == decode_by_reference(fields, payloads)


@settings(max_examples=100)
@given(st.data())
@pytest.mark.parametrize("target", TARGETS)
def test_values_of_every_kind(target: str, data: st.DataObject) -> None:
    kinds = {**column_values.STRINGS, **column_values.NUMBERS, **column_values.NESTED}
    column = data.draw(st.lists(st.one_of(kinds.get(target, values), values), min_size=1, max_size=20))
    payloads = [json.dumps({"v": value}).encode() for value in column]
    compare(worker_native.Decoder([wanted(("v",), target)]), [wanted(("v",), target)], payloads)


@settings(max_examples=500)
@given(st.lists(time_texts | numbers, min_size=1, max_size=20), st.sampled_from(TIMES))
def test_timestamps(column: list[Any], target: str) -> None:
    payloads = [json.dumps({"v": value}).encode() for value in column]
    compare(worker_native.Decoder([wanted(("v",), target)]), [wanted(("v",), target)], payloads)


@settings(max_examples=500)
@given(st.lists(st.binary(max_size=40) | st.text('{}[]",:\\u0123456789.eE+-truefalsn d8', max_size=40).map(str.encode)))
def test_random_bytes(payloads: list[bytes]) -> None:
    for target in ("String", "Float64", "Nullable(Int64)"):
        fields = [wanted(("a",), target)]
        compare(worker_native.Decoder(fields), fields, payloads)
        compare(worker_native.Decoder(fields), fields, [b'{"a":' + payload + b"}" for payload in payloads])


@pytest.mark.parametrize("hard", [*HARD, DEEPEST], ids=lambda hard: ascii(hard)[2:30])
def test_hard_json(hard: bytes) -> None:
    """As a whole payload, before and after a valid one, in a wanted and an unwanted field: neighbours stay decided."""
    unwanted = [b'{"x":%b,' % hard + GOOD[1:], GOOD[:-1] + b',"x":[{"y":%b}]}' % hard]
    in_wanted = [GOOD.replace(value, hard) for value in (b'"10.1.2.3"', b"7", b"0.5", b'"NL"', b'{"country":"NL"}')]
    in_wanted += [GOOD.replace(b'"2026-11-24T05:30:00.123Z"', hard), GOOD.replace(b'"device_ip"', hard)]
    for payload in [hard, hard + GOOD, GOOD + hard, *unwanted, *in_wanted, b'{"x":%b}' % hard]:
        compare(worker_native.Decoder(FIELDS), FIELDS, [payload])
        undecided = compare(worker_native.Decoder(FIELDS), FIELDS, [GOOD, MINIMAL, payload, GOOD, MINIMAL])
        assert set(undecided) <= {2}


@pytest.mark.parametrize("target", TARGETS)
def test_hard_json_in_every_target(target: str) -> None:
    fields = [wanted(("a",), target), wanted(("b",), target)._replace(required=False)]
    texts = [json.dumps(text).encode() for text in TIME_TEXTS + UUIDS + ADDRESSES + WORDS]
    for value in HARD + texts:
        compare(worker_native.Decoder(fields), fields, [b'{"a":%b}' % value, b'{"a":%b,"b":%b}' % (value, value)])


def test_ordinary_events_are_decided() -> None:
    assert compare(worker_native.Decoder(FIELDS), FIELDS, [GOOD, MINIMAL, b" " + GOOD + b"\n"] * 400) == []


ORDINARY: dict[str, Sequence[Any]] = {
    **dict.fromkeys(TIMES, ("2026-11-24T05:30:00Z", "2026-11-24 05:30:00,5+01", "1726668850.5", 1726668850124)),
    **dict.fromkeys(("Float32", "Float64"), (0, -1, 0.5, -1e10, 1e-30)),
    **dict.fromkeys(("String", "devices", "identities", *LOW_CARDINALITY), ("", "a", "ü", "\0", "x" * 300, "a")),
    **{"Bool": (True, False), "FixedString(6)": ("", "ü", "abcdef"), "UUID": UUIDS[:2], "IPv4": ADDRESSES[:3]},
    **dict.fromkeys(("Array(String)", "Array(LowCardinality(String))"), ([], ["a", "\n", "a"])),
    "Array(Nullable(Int32))": ([], [1, None, -1]),
    "Array(DateTime64(3))": ([], [1726668850124, "2026-11-24T05:30:00Z"]),
    "Map(String, String)": ({}, {"": "", "b": "ü"}, {"b": "c"}),
    "Map(LowCardinality(String), Nullable(UInt8))": ({}, {"a": None, "b": 255}),
    "Tuple(lat Float64, lon Nullable(Int16))": ({"lat": 1, "lon": None}, {"x": 1, "lon": 7, "lat": 0.5}),
    "Tuple(word LowCardinality(String), b Bool)": ({"word": "", "b": True}, {"b": False, "word": "a"}),
    "Decimal(9, 2)": (0, -1, 0.5, 0.29, 1e5, "12.34"),
    "Decimal(18, 6)": (0, 7.000001, "-0.5"),
    "Decimal(18, 18)": (0, 0.1, "0.123456789012345678"),
    "IPv6": ("::1", "10.1.2.3", "2001:DB8::1", "1:2:3:4:5:6:7:8"),
    "Enum8('a' = 1, 'b, (c)' = -128)": ("a", "b, (c)", 1, -128),
    "Enum16('a' = 32767, '' = -32768, 'ü' = 3)": ("", "ü", "a", 3),
    "SimpleAggregateFunction(anyLast, Nullable(String))": ("a", None),
}


@pytest.mark.parametrize("target", TARGETS)
def test_ordinary_values_are_decided(target: str) -> None:
    inner = target[9:-1] if target.startswith("Nullable(") else target
    column = list(ORDINARY.get(inner, (0, 1, 127)))
    if inner != target or target == "LowCardinality(Nullable(String))":
        column += [None, column[0], None]
    fields = [wanted(("v",), target)]
    payloads = [json.dumps({"x": [1, {"v": -0.5e3}], "v": value, "y": "\u00fc\n"}).encode() for value in column]
    assert compare(worker_native.Decoder(fields), fields, payloads) == []


@pytest.mark.parametrize(
    ("payload", "is_decided"),
    [
        (b'{"a":1,"g":{"b":2}}', True),
        (b'{"g":{"b":2},"a":1}', True),
        (b'{"\\u0061":1}', True),
        (b'{"a":1,"g":null}', True),
        (b'{"a":1,"g":{"b":null,"x":{"b":7,"a":8}}}', True),
        (b'{"a":1,"x":1,"x":2}', True),
        (b'{"a":1,"g":7}', False),
        (b'{"a":1,"g":[]}', False),
        (b'{"a":1,"a":1}', False),
        (b'{"a":1,"\\u0061":1}', False),
        (b'{"a":1,"g":{"b":1},"g":{}}', False),
        (b'{"a":1,"g":{"b":1,"b":2}}', False),
        (b'{"g":{"b":1}}', False),
        (b'{"a":null}', False),
        (b"null", False),
        (b"[]", False),
    ],
)
def test_paths_and_duplicate_keys(payload: bytes, is_decided: bool) -> None:
    fields = [wanted(("a",), "Int32"), wanted(("g", "b"), "Nullable(Int32)"), wanted(("a",), "Float64")]
    assert compare(worker_native.Decoder(fields), fields, [payload]) == ([] if is_decided else [0])


@pytest.mark.parametrize("key", ['a"b', '"', "a\\b", "\\", "a\nb", "\0", 'x":1,"y', "ü\x7f"])
def test_keys_that_need_escapes(key: str) -> None:
    fields = [wanted((key,), "Int32"), wanted(("g", key), "Nullable(Int32)")]
    escaped, raw = json.dumps(key).encode(), b'"' + key.encode() + b'"'
    payloads = [b'{"g":{%b:1},%b:2}' % (text, text) for text in (escaped, raw, escaped, raw)]
    undecided = compare(worker_native.Decoder(fields), fields, payloads)
    assert undecided == ([] if key == "ü\x7f" else [1, 3])


def test_a_field_of_which_another_path_goes_on() -> None:
    fields = [wanted(("g",), "Nullable(Int32)"), wanted(("g", "b"), "Nullable(Int32)")]
    payloads = [b"{}", b'{"g":null}', b'{"g":1}', b'{"g":{"b":1}}', b'{"g":{}}']
    assert compare(worker_native.Decoder(fields), fields, payloads) == [2, 3, 4]


@pytest.mark.parametrize(
    ("payload", "is_decided"),
    [
        (b'{"m":{},"l":[]}', True),
        (b'{"m":{"a":1,"b":null},"l":["", "\\u0061"]}', True),
        (b'{"l":["x"],"m":{"\\u0061\\n":1}}', True),
        (b'{"m":{"a":1,"a":2},"l":[]}', False),
        (b'{"m":{"a":1,"\\u0061":1},"l":[]}', False),
        (b'{"m":{"a":256},"l":["x"]}', False),
        (b'{"l":["x"],"m":{"a":1,"b":{}}}', False),
        (b'{"m":{"a":1},"l":["x",null]}', False),
        (b'{"m":{"a":1},"l":["x",]}', False),
        (b'{"m":[],"l":[]}', False),
        (b'{"m":{},"l":{}}', False),
        (b'{"m":null,"l":[]}', False),
        (b'{"m":{},"l":"x"}', False),
        (b'{"m":{}}', False),
        (b'{"m":{%b},"l":[]}' % b",".join(b'"%d":1' % i for i in range(64)), True),
        (b'{"m":{%b},"l":[]}' % b",".join(b'"%d":1' % i for i in range(65)), False),
    ],
)
def test_arrays_and_maps(payload: bytes, is_decided: bool) -> None:
    fields = [wanted(("m",), "Map(String, Nullable(UInt8))"), wanted(("l",), "Array(String)")]
    good = b'{"m":{"k":1},"l":["a","b"]}'
    expected = [] if is_decided else [1]
    assert compare(worker_native.Decoder(fields), fields, [good, payload, good]) == expected
    assert merge(worker_native.Decoder(fields), fields, [good, payload]) == decode_by_reference(fields, [good, payload])


def test_a_map_of_which_another_path_goes_on() -> None:
    fields = [wanted(("m",), "Map(String, String)"), wanted(("m", "a"), "Nullable(String)")]
    assert compare(worker_native.Decoder(fields), fields, [b'{"m":{"a":"x"}}', b'{"m":{}}', b"{}"]) == [0, 1, 2]
    twice = [wanted(("m",), "Map(String, String)"), wanted(("m",), "Map(String, String)")]
    assert compare(worker_native.Decoder(twice), twice, [b'{"m":{"a":"x"}}']) == [0]


def test_dictionaries_of_low_cardinality_grow_with_their_entries() -> None:
    for size in (255, 256, 257, 65_535, 65_536, 65_537):
        fields = [wanted(("v",), target) for target in LOW_CARDINALITY]
        payloads = [b'{"v":"%d"}' % (i * 7919 % size) for i in range(size + 10)]
        assert compare(worker_native.Decoder(fields), fields, payloads) == []


def test_many_fields_in_changing_orders() -> None:
    random = Random(5)
    keys = [f"{'long' * 20 if i % 3 else 'k'}{i}" for i in range(100)]
    fields = [wanted((key,), "Nullable(Int16)") for key in keys]
    payloads = []
    for _ in range(200):
        chosen = random.sample([*keys, *(f"k{i}x" for i in range(50))], 80)
        payloads.append(json.dumps({key: random.randrange(100) for key in chosen}).encode())
    assert compare(worker_native.Decoder(fields), fields, payloads) == []


def test_no_payloads_and_no_fields() -> None:
    assert worker_native.Decoder(FIELDS).decode([]) == ([], [])
    assert worker_native.Decoder([]).decode([b"{}", b"[]", b'{"a":1}']) == ([(0, 1, ()), (2, 3, ())], [1])


def test_unsupported_targets_and_paths_are_refused() -> None:
    for target in ("Int128", "Decimal(38, 2)", "Array(Array(String))", "Nullable(Nullable(String))", "string", ""):
        assert not worker_native.supports(target)
        with pytest.raises(ValueError, match="is not supported"):
            worker_native.Decoder([(("a",), target, True)])
    with pytest.raises(ValueError, match="no keys"):
        worker_native.Decoder([((), "String", True)])
    assert all(map(worker_native.supports, TARGETS))


def test_only_bytes_are_payloads() -> None:
    for payload in ("{}", None, bytearray(b"{}")):
        with pytest.raises(TypeError):
            worker_native.Decoder([wanted(("a",), "String")]).decode([payload])  # type: ignore[list-item]


def test_the_comparison_finds_a_wrong_column() -> None:
    """A decoder of another type stands for native code that is wrong."""
    wrong = worker_native.Decoder([Wanted(("a",), "UInt16", True)])
    with pytest.raises(AssertionError):
        compare(wrong, [wanted(("a",), "Int32")], [b'{"a":1}'])
