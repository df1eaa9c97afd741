"""The events of the fleet: reproducible, every device, five timestamp forms, invalid events; the options' ranges."""

from __future__ import annotations

import json
import socket
import time
from array import array
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.commands.produce import ProduceOptions, produce
from worker.commands.produce.fleet import BAD_EVENTS, EVENTS_PER_TICK, SEEDED_EPOCH_MS, Fleet, device_ip
from worker.core.errors import ExitCode, Fatal
from worker.core.records import Field
from worker.decoding.json import decode
from worker.decoding.timestamps import to_millis


def devices_of(events: list[bytes]) -> set[str]:
    return {json.loads(event)["device_ip"] for event in events}


@settings(deadline=None)
@given(
    devices=st.integers(1, 3000),
    seed=st.integers(0, 2**63),
    bad_ratio=st.sampled_from([0.0, 0.01, 0.5, 1.0]),
    sizes=st.lists(st.integers(0, 400), max_size=20),
)
def test_a_seed_gives_the_same_bytes_however_many_are_taken_at_a_time(
    devices: int, seed: int, bad_ratio: float, sizes: list[int]
) -> None:
    at_once = Fleet(devices, seed=seed, bad_ratio=bad_ratio)
    in_parts = Fleet(devices, seed=seed, bad_ratio=bad_ratio)
    events = at_once.take(sum(sizes))
    assert len(events) == sum(sizes)
    assert events == [event for size in sizes for event in in_parts.take(size)]
    assert at_once.bad == in_parts.bad


def test_another_seed_gives_other_events() -> None:
    assert Fleet(100, seed=1).take(100) != Fleet(100, seed=2).take(100)
    assert Fleet(100).take(100) != Fleet(100).take(100)


@settings(deadline=None)
@given(devices=st.integers(1, 5000), seed=st.integers(0, 2**32))
def test_as_many_events_as_devices_have_every_device(devices: int, seed: int) -> None:
    fleet = Fleet(devices, seed=seed)
    expected = {device_ip(index) for index in range(devices)}
    assert devices_of(fleet.take(devices)) == expected
    assert devices_of(fleet.take(500)) <= expected


def test_bad_events_replace_no_device() -> None:
    fleet = Fleet(300, seed=1, bad_ratio=0.3)
    events = fleet.take(700)
    good = [event for event, ok in zip(events, map(is_good, events), strict=True) if ok]
    assert len(events) - len(good) == fleet.bad > 100
    assert devices_of(good) == {device_ip(index) for index in range(300)}


def test_every_device_has_its_own_address_up_to_the_last() -> None:
    assert device_ip(0) == "10.0.0.1"
    assert device_ip(254) == "10.0.0.255"
    assert device_ip(255) == "10.0.1.0"
    assert device_ip(2**24 - 2) == "10.255.255.255"
    assert devices_of(Fleet(2**24 - 1, seed=1).take(1))


def form_of(value: Any) -> str:
    if isinstance(value, str) and "T" in value:
        return "iso with milliseconds" * ("." in value) + " and zone" * value.endswith("Z") or "iso seconds"
    kind = "text" if isinstance(value, str) else "number"
    return f"unix {'milliseconds' if len(str(value)) == 13 else 'seconds'} as {kind}"


def test_codes_and_timestamp_forms_are_mixed_evenly() -> None:
    events = [json.loads(event) for event in Fleet(50, seed=7).take(20_000)]
    codes = Counter(event["error_code"] for event in events)
    assert sorted(codes) == list(range(11))
    assert max(codes.values()) < 1.3 * min(codes.values())
    forms = Counter(form_of(event["timestamp"]) for event in events)
    assert set(forms) == {
        "iso with milliseconds and zone",
        "iso with milliseconds",
        "iso seconds",
        "unix milliseconds as number",
        "unix milliseconds as text",
        "unix seconds as number",
        "unix seconds as text",
    }
    assert min(forms.values()) > 20_000 / 12


def test_a_seeded_clock_advances_from_a_fixed_time() -> None:
    millis = [to_millis(json.loads(event)["timestamp"]) for event in Fleet(5, seed=3).take(5 * EVENTS_PER_TICK)]
    for tick in range(5):
        expected = {SEEDED_EPOCH_MS + tick, SEEDED_EPOCH_MS // 1000 * 1000}  # some forms have whole seconds
        assert set(millis[tick * EVENTS_PER_TICK : (tick + 1) * EVENTS_PER_TICK]) == expected


def test_timestamps_are_the_current_time_without_a_seed() -> None:
    before = time.time() * 1000
    millis = [to_millis(json.loads(event)["timestamp"]) for event in Fleet(5).take(1000)]
    assert before // 1000 * 1000 <= min(millis) <= max(millis) <= time.time() * 1000


def is_good(payload: bytes) -> bool:
    """Return whether a sink of all three fields would accept the event."""

    def of_type(kind: type, values: list[Any]) -> list[Any]:
        if not set(map(type, values)) <= {kind}:
            raise TypeError
        return values

    fields = [
        Field("timestamp", ("timestamp",), lambda values: [to_millis(value) for value in values]),
        Field("device_ip", ("device_ip",), lambda values: of_type(str, values)),
        Field("error_code", ("error_code",), lambda values: array("b", of_type(int, values))),
    ]
    return not decode([payload], fields).rejects


def test_good_events_are_good() -> None:
    assert all(map(is_good, Fleet(100, seed=1).take(1000)))


@pytest.mark.parametrize("payload", BAD_EVENTS, ids=range(len(BAD_EVENTS)))
def test_bad_events_are_bad(payload: bytes) -> None:
    assert not is_good(payload.replace(b"<ip>", b"10.0.0.1"))


def test_bad_events_are_of_every_kind_and_as_frequent_as_requested() -> None:
    fleet = Fleet(100, seed=1, bad_ratio=0.1)
    bad = [event for event in fleet.take(20_000) if not is_good(event)]
    assert len(bad) == fleet.bad
    assert 1800 < fleet.bad < 2200
    heads = {kind.partition(b"<ip>")[0] for kind in BAD_EVENTS}
    assert {head for head in heads if any(event.startswith(head) for event in bad)} == heads


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("num_devices", 0),
        ("num_devices", 2**24),
        ("num_messages", -1),
        ("pause_ms", -1),
        ("partitions", 0),
        ("bad_ratio", 1.1),
        ("bad_ratio", -0.1),
        ("bad_ratio", float("nan")),
    ],
)
def test_a_value_out_of_range_is_a_usage_error_that_names_the_flag(option: str, value: float) -> None:
    values: dict[str, Any] = {option: value}
    with pytest.raises(Fatal, match=f"--{option.replace('_', '-')} .*: write ") as caught:
        ProduceOptions("127.0.0.1:9092", "events", **values)
    assert caught.value.code == ExitCode.USAGE


def test_an_unknown_librdkafka_property_names_the_nearest() -> None:
    options = ProduceOptions("127.0.0.1:9092", "events", properties={"linger.mss": "1"})
    with pytest.raises(Fatal, match=r"linger\.mss.*did you mean linger\.ms\?") as caught:
        produce(options, stop=lambda: False, progress=None)
    assert caught.value.code == ExitCode.CONFIG


def test_brokers_that_do_not_answer_are_named_and_waited_for_until_stopped(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    deadline = time.monotonic() + 120

    def stop() -> bool:
        return address in caplog.text or time.monotonic() > deadline

    assert produce(ProduceOptions(address, "events"), stop=stop, progress=None) == ExitCode.OK
    assert f"Kafka at {address} does not answer" in caplog.text
    assert "Connection refused" in caplog.text
    assert capsys.readouterr().err.startswith("produced 0, failed 0")
