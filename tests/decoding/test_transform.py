"""The function of --transform: each event gives the same row, skip or reject in any record batch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.batch import Batch
from worker.core.errors import ExitCode, Fatal
from worker.core.records import Decoded, Field, RecordBatch, Reject
from worker.decoding import json
from worker.decoding.converters import integers
from worker.decoding.formats import open_decoder
from worker.decoding.transform import Transform, load_transform
from worker.sinks.clickhouse.table import Column, bind_columns

FIELDS = (Field("v", ("v",), integers(0, 1_000_000)),)
PAYLOADS = st.sampled_from([b"x", b"null", b"[1]", b"{}", b'{"v":"word"}', b'{"v":-1}'])


def convert(events: list[dict[str, Any]]) -> list[dict[str, Any] | None]:
    """Multiply v by 10 in place; skip, fail or return nonsense where the event says so."""
    results: list[Any] = []
    while events:
        event = events.pop(0)
        match event.pop("do", ""):
            case "skip":
                results.append(None)
            case "fail":
                raise KeyError(event["v"])
            case "text":
                results.append("text")
            case "list":
                results.append([event])
            case _:
                if type(event.get("v")) is int:
                    event["v"] *= 10
                results.append(event)
    return results


def expected(payloads: list[bytes]) -> tuple[list[int], list[int], list[Reject]]:
    """Return the values, the indices of the rows and the rejects, event by event."""
    values: list[int] = []
    kept: list[int] = []
    rejects: list[Reject] = []
    for i, payload in enumerate(payloads):
        event = orjson.loads(payload) if payload != b"x" else None
        if type(event) is not dict:
            rejects.append(Reject(i, "not_json" if payload == b"x" else "not_object", ""))
        elif (do := event.get("do")) in ("text", "list"):
            rejects.append(Reject(i, "transform_failed", "", {"text": "returned str", "list": "returned list"}[do]))
        elif do == "fail":
            rejects.append(Reject(i, "transform_failed", "", f"KeyError in {Path(__file__).name}:{LINE}"))
        elif do != "skip":
            value = event.get("v")
            if value is None:
                rejects.append(Reject(i, "missing_field", "v"))
            elif type(value) is not int:
                rejects.append(Reject(i, "wrong_type", "v"))
            elif value < 0:
                rejects.append(Reject(i, "out_of_range", "v"))
            else:
                values.append(value * 10)
                kept.append(i)
    return values, kept, rejects


LINE = next(i for i, line in enumerate(Path(__file__).read_text().splitlines(), 1) if "raise KeyError" in line)


@st.composite
def events(draw: st.DrawFn) -> list[bytes]:
    kinds = st.sampled_from([{}] * 6 + [{"do": do} for do in ("skip", "fail", "text", "list")])
    objects = st.builds(lambda v, do: orjson.dumps({"v": v, **do}), st.integers(0, 100_000), kinds)
    return draw(st.lists(objects | objects | PAYLOADS, max_size=20))


@given(events(), st.integers(0, 20))
def test_each_event_gives_what_it_gives_alone(payloads: list[bytes], cut: int) -> None:
    for part in (payloads, payloads[:cut], payloads[cut:]):
        decoded = Transform("m:f", convert).decode(part, FIELDS)
        values, kept, rejects = expected(part)
        assert list(decoded.columns[0]) == values
        assert decoded.rows == len(values)
        assert list(range(len(part)) if decoded.kept is None else decoded.kept) == kept
        assert list(decoded.rejects) == rejects
        assert Transform("m:f", convert).decode(part, ()).rejects is not None


@given(events())
def test_a_batch_counts_skipped_events_and_keeps_the_payloads_of_dead_letters(payloads: list[bytes]) -> None:
    batch = Batch("t", "id", 0, 0, 0, 0.0, FIELDS, [[]])
    tombstones: list[bytes | None] = [None, *payloads, None]
    batch.add(
        RecordBatch("t", 0, tombstones, range(len(tombstones)), len(tombstones), 0),
        range(1, len(payloads) + 1),
        Transform("m:f", convert).decode(payloads, FIELDS),
    )
    assert batch.consumed == batch.rows + len(batch.dead_letters) + batch.skipped
    assert batch.skipped == 2 + sum(b'"skip"' in payload for payload in payloads)
    assert [(letter.offset, letter.payload) for letter in batch.dead_letters] == [
        (reject.index + 1, payloads[reject.index]) for reject in expected(payloads)[2]
    ]
    failed = [letter.error for letter in batch.dead_letters if letter.reason == "transform_failed"]
    assert len(failed) == sum(any(do in payload for do in (b'"fail"', b'"text"', b'"list"')) for payload in payloads)
    assert all(failed)


def test_a_function_that_changes_nothing_gives_what_plain_decoding_gives() -> None:
    payloads = [b'{"v":1}', b"x", b'{"v":"a"}', b'{"v":2}']
    plain, transformed = json.decode(payloads, FIELDS), Transform("m:f", list).decode(payloads, FIELDS)
    assert transformed == plain
    assert transformed == Decoded((transformed.columns[0],), [0, 3], 2, [Reject(1, "not_json", ""), *plain.rejects[1:]])


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda events: events[:1], "returned 1 items for 2 events"),
        (lambda events: [*events, None], "returned 3 items for 2 events"),
        (lambda _: None, "returned a value of type NoneType for 2 events"),
        (lambda events: (event for event in events), "returned a value of type generator for 2 events"),
    ],
)
def test_a_result_of_another_shape_stops_the_worker(function: Any, text: str) -> None:
    with pytest.raises(Fatal, match=text) as failure:
        Transform("fleet:transform", function).decode([b'{"v":1}', b'{"v":2}'], FIELDS)
    assert failure.value.code == ExitCode.CONFIG
    assert "--transform fleet:transform" in str(failure.value)
    assert "None to skip it" in str(failure.value)


def test_the_function_is_not_called_without_events() -> None:
    def raises(_: Any) -> Any:
        raise AssertionError

    assert Transform("m:f", raises).decode([b"1"], FIELDS).rejects == [Reject(0, "not_object", "")]
    assert Transform("m:f", raises).decode([], FIELDS).rows == 0


def test_no_memory_is_not_the_events_fault() -> None:
    def raises(_: Any) -> Any:
        raise MemoryError

    with pytest.raises(MemoryError):
        Transform("m:f", raises).decode([b"{}"], FIELDS)


def test_a_decimal_is_exact_if_the_function_leaves_it_alone() -> None:
    """Its digits come from the payload: those of a value that the function has changed are never used."""
    (binding,) = bind_columns([Column("v", "Decimal(38, 20)")], {})
    payloads = [b'{"v":0.12345678901234567890}', b'{"v":0.12345678901234567891,"double":1}']

    def double(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"v": event["v"] * 2} if "double" in event else event for event in events]

    decoded = Transform("m:f", double).decode(payloads, (binding.field,))
    assert decoded.rejects == [Reject(1, "out_of_range", "v")]
    assert decoded.columns == json.decode(payloads[:1], (binding.field,)).columns


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules = set(sys.modules)
    yield tmp_path
    for name in sys.modules.keys() - modules:
        del sys.modules[name]


def test_a_module_is_found_in_the_current_directory(directory: Path) -> None:
    package = directory / "fleet_package"
    package.mkdir()
    (package / "units.py").write_text(
        "class Units:\n    @staticmethod\n    def double(events):\n        return [{'v': 2 * e['v']} for e in events]\n"
    )
    decode = load_transform("fleet_package.units:Units.double").decode
    assert list(decode([b'{"v":4}'], FIELDS).columns[0]) == [8]


@pytest.mark.parametrize(
    ("source", "name", "text"),
    [
        (None, "no_such_module_here:f", "cannot be imported: ModuleNotFoundError: No module named 'no_such_module"),
        ("", "fleet_bad:transform", "cannot be imported: AttributeError: .*no attribute 'transform'"),
        ("import no_such_module_here", "fleet_bad:transform", "cannot be imported: ModuleNotFoundError"),
        ("def f(:", "fleet_bad:f", "cannot be imported: SyntaxError"),
        ("raise SystemExit(3)", "fleet_bad:f", "cannot be imported: SystemExit"),
        ("f = 3", "fleet_bad:f", "is not a function, but a value of type int"),
    ],
)
def test_what_cannot_be_imported_is_refused(directory: Path, source: str | None, name: str, text: str) -> None:
    if source is not None:
        (directory / "fleet_bad.py").write_text(source)
    with pytest.raises(Fatal, match=text) as failure:
        load_transform(name)
    assert failure.value.code == ExitCode.CONFIG


def test_without_a_function_the_decoder_is_the_plain_one() -> None:
    assert open_decoder("json", lambda _: None, "") is json.decode
