"""Columns of Kafka's metadata: those of the rows that are kept, made only where a field wants them."""

from __future__ import annotations

from array import array
from typing import Any, NamedTuple, NoReturn

from hypothesis import given
from hypothesis import strategies as st

from worker.core.counters import Stats
from worker.core.delivery import Resume
from worker.core.records import Field, RecordBatch
from worker.decoding import json, metadata
from worker.decoding.converters import BadValue, integers
from worker.decoding.metadata import decode_with_metadata
from worker.ingest.partition import Partition

EVENT = Field("n", ("n",), integers(-128, 127))


class Record(NamedTuple):
    """A message as a Kafka client has it."""

    its_key: bytes | None = None
    its_headers: list[tuple[str, bytes | None]] | None = None
    its_time: tuple[int, int] = (0, -1)

    def key(self) -> bytes | None:
        return self.its_key

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        return self.its_headers

    def timestamp(self) -> tuple[int, int]:
        return self.its_time


class Untouchable:
    """A message whose metadata nobody may ask for."""

    def key(self) -> NoReturn:
        raise AssertionError("key")

    headers = timestamp = key


def short_keys(values: list[Any]) -> list[Any]:
    if any(len(value) > 2 for value in values):
        raise BadValue("out_of_range")
    return values


KEY = Field("_key", ("_key",), short_keys, of_message=metadata.keys)
RAW = Field("_raw_message", ("_raw_message",), list, of_message=metadata.raw_messages)


@given(st.lists(st.tuples(st.sampled_from([b'{"n": 1}', b'{"n": 2}', b"{}", b"x", b"5"]), st.binary(max_size=4))))
def test_each_row_has_the_metadata_of_its_own_message(log: list[tuple[bytes, bytes]]) -> None:
    payloads, records = [payload for payload, _ in log], [Record(key) for _, key in log]
    decoded = decode_with_metadata(json.decode, payloads, records, (EVENT,), (KEY, RAW))
    good = [i for i, (payload, key) in enumerate(log) if b'"n"' in payload and len(key) < 3]
    assert list(range(len(log)) if decoded.kept is None else decoded.kept) == good
    assert decoded.rows == len(good)
    assert list(decoded.columns[0]) == [int(payloads[i][6:7]) for i in good]
    assert decoded.columns[1:] == ([log[i][1] for i in good], [log[i][0] for i in good])
    alone = json.decode(payloads, (EVENT,)).rejects
    assert [reject for reject in decoded.rejects if reject.field != "_key"] == list(alone)
    assert sorted(good + [reject.index for reject in decoded.rejects]) == list(range(len(log)))


def test_values_are_what_the_client_has() -> None:
    records = [Record(b"\xff", [("a", b"1"), ("b", None), ("a", b"2")], (1, 7)), Record()]
    assert metadata.keys(records, ()) == [b"\xff", None]
    assert metadata.timestamps(records, ()) == [7, None]
    assert metadata.headers(records, ()) == [{"a": b"2", "b": None}, {}]
    assert metadata.header_pairs(records, ()) == [[["a", b"1"], ["b", None], ["a", b"2"]], []]


def partition(fields: tuple[Field, ...]) -> Partition:
    assigned = Partition(("t", 0), 1000, json.decode)
    ledger = Stats().slot(0).ledger("t", "id", 0)
    assigned.start(ledger, Resume(0), fields, 0)
    return assigned


def test_messages_are_not_asked_where_no_field_wants_it() -> None:
    assigned = partition((EVENT,))
    assigned.take(RecordBatch("t", 0, [b'{"n": 1}', None], range(2), 2, 0, [Untouchable()] * 2))
    assigned.seal()
    assert [list(part) for part in assigned.sealed[0].columns[0]] == [[1]]


def test_tombstones_have_no_row() -> None:
    assigned = partition((EVENT, KEY))
    records = [Record(b"a"), Record(b"b"), Record(b"c")]
    assigned.take(RecordBatch("t", 0, [b'{"n": 1}', None, b'{"n": 3}'], range(3), 3, 0, records))
    assigned.seal()
    (batch,) = assigned.sealed
    assert batch.columns == [[array("b", [1, 3])], [[b"a", b"c"]]]
    assert batch.skipped == 1
