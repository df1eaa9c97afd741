"""`dlq` against a real broker: dead letters are listed without their payloads, and each is replayed once."""

from __future__ import annotations

import io
from contextlib import closing
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from tests.support.kit import PATIENCE_S, Service, create_topic, run_worker, wait_until
from tests.support.terminal import Terminal
from worker.commands import progress
from worker.commands.dlq import count_dead_letters, list_dead_letters, replay, sender
from worker.commands.dlq.dead_letters import StoredDeadLetter
from worker.commands.dlq.position import ReplayPosition
from worker.config.settings import Settings
from worker.core.batch import DeadLetter
from worker.core.errors import ExitCode, Fatal, Retryable
from worker.kafka.dead_letters import DeadLetterProducer
from worker.kafka.log_reader import LogReader
from worker.local import start_kafka

NOT_JSON = DeadLetter(3, b"{canary", "not_json", "")
TOO_HIGH = DeadLetter(4, b'{"error_code": 300}', "out_of_range", "error_code")
TOO_LOW = DeadLetter(9, b'{"error_code": -300}', "out_of_range", "error_code")
HOSTILE = DeadLetter(5, b"\x1b[2J\n\xff", "not_json", "")


@pytest.fixture
def settings(kafka: Service, topic_name: str, group_id: str) -> Settings:
    create_topic(kafka.address, topic_name, 2)
    return Settings(topic=topic_name, group_id=group_id, bootstrap_servers=kafka.address)


def write(settings: Settings, *dead_letters: DeadLetter, partition: int = 1, topic: str = "") -> None:
    DeadLetterProducer(settings).write(topic or settings.topic, partition, dead_letters)


def listed(settings: Settings, reason: str | None = None, limit: int = 100, payload: bool = False) -> list[str]:
    out = io.StringIO()
    assert list_dead_letters(settings, reason=reason, limit=limit, payload=payload, out=out) == ExitCode.OK
    return out.getvalue().splitlines()


def replayed(settings: Settings, reason: str | None = None, yes: bool = True) -> str:
    out = io.StringIO()
    assert replay(settings, reason=reason, yes=yes, out=out) == ExitCode.OK
    return out.getvalue().strip()


def origin(settings: Settings) -> list[tuple[int, bytes | None, dict[str, Any]]]:
    """Return partition, payload and headers of every event in the topic."""
    events: list[tuple[int, bytes | None, dict[str, Any]]] = []
    with closing(LogReader(settings, settings.topic)) as log_reader:
        for partition in range(log_reader.partitions()):
            for messages in log_reader.read(partition, *log_reader.bounds(partition)):
                events += [(partition, message.value(), dict(message.headers() or [])) for message in messages]
    return events


def replayed_to_origin(settings: Settings, count: int) -> list[tuple[int, bytes | None, dict[str, Any]]]:
    """Return the topic's events once there are `count`: a transaction becomes visible shortly after its commit."""
    wait_until(lambda: len(origin(settings)) >= count, PATIENCE_S, f"{count} events are back")
    return origin(settings)


def test_a_dead_letter_is_one_line_that_shows_its_payload_only_if_asked(settings: Settings) -> None:
    write(settings, NOT_JSON, TOO_HIGH)
    write(settings, HOSTILE, partition=0)
    write(settings, NOT_JSON, topic="another")
    lines = listed(settings)
    topic = settings.topic
    assert [line.split("  ")[:3] for line in lines] == [
        [f"{topic}[1]@3", "not_json", "-"],
        [f"{topic}[1]@4", "out_of_range", "error_code"],
        [f"{topic}[0]@5", "not_json", "-"],
    ]
    assert [line.split("  ")[4] for line in lines] == ["7 bytes", "19 bytes", "6 bytes"]
    assert "canary" not in "".join(lines)
    assert [line.split("  ")[6] for line in listed(settings, "not_json", payload=True)] == [
        "{canary",
        r"\x1b[2J\n\xff",
    ]
    assert listed(settings, limit=1) == [lines[0], "and 2 more (--limit 3)"]


def test_dead_letters_are_counted_by_reason_and_partition_and_by_event(settings: Settings) -> None:
    write(settings, NOT_JSON, TOO_HIGH, TOO_LOW)
    write(settings, NOT_JSON, TOO_HIGH, TOO_LOW)
    write(settings, HOSTILE, partition=0)
    out = io.StringIO()
    assert count_dead_letters(settings, out=out) == ExitCode.OK
    *counts, total = out.getvalue().splitlines()
    assert counts == [
        "out_of_range error_code: 4",
        "not_json: 3",
        f"{settings.topic}[0]: 1",
        f"{settings.topic}[1]: 6",
    ]
    assert total.startswith("total: 7 dead letters of 4 events, 98 bytes, from 20")


def test_dead_letters_of_other_groups_are_left_out_and_counted(settings: Settings) -> None:
    other = replace(settings, group_id=f"{settings.group_id}-other")
    create_topic(settings.bootstrap_servers, settings.dead_letter_topic_name)
    write(settings, NOT_JSON)
    write(other, NOT_JSON, TOO_HIGH)
    left_out = f"left out: 2 dead letters of another group (--group-id {other.group_id})"
    line, hint = listed(settings)
    assert line.startswith(f"{settings.topic}[1]@3  not_json")
    assert hint == left_out
    out = io.StringIO()
    count_dead_letters(settings, out=out)
    assert "total: 1 dead letters of 1 events" in out.getvalue()
    assert out.getvalue().splitlines()[-1] == left_out
    assert f"every group that reads {settings.topic} will get" in replayed(settings, yes=False)
    assert replayed(settings).startswith("replayed 1 dead letters")
    assert replayed(other).startswith("replayed 2 dead letters")  # a replay of the other group is not a duplicate
    assert replayed(settings).startswith("replayed 0 dead letters")


def test_dead_letters_are_listed_while_a_new_cluster_creates_its_coordinator() -> None:
    with start_kafka({"offsets.topic.num.partitions": 200}) as broker:  # it takes seconds
        settings = Settings(topic="t", bootstrap_servers=broker.address)
        create_topic(broker.address, settings.dead_letter_topic_name)
        create_topic(broker.address, settings.topic)
        assert listed(settings) == []


def test_without_a_dead_letter_topic_there_are_no_dead_letters(settings: Settings) -> None:
    assert listed(settings) == []
    assert replayed(settings).startswith("replayed 0 dead letters")


def test_a_topic_that_does_not_exist_is_an_error_and_not_zero_dead_letters(settings: Settings) -> None:
    missing = replace(settings, topic=f"{settings.topic}-missing")
    options = ["--topic", missing.topic, "--bootstrap-servers", missing.bootstrap_servers]
    for action in ("list", "stats", "replay"):
        with run_worker("dlq", action, *options) as command:
            assert command.wait() == ExitCode.FAILED, command.tail()
        assert f"topic {missing.topic} does not exist" in command.stderr[-1]
    write(missing, NOT_JSON)  # the topic was deleted, its dead letters were not
    assert len(listed(missing)) == 1


def test_replayed_dead_letters_are_marked(settings: Settings) -> None:
    create_topic(settings.bootstrap_servers, settings.dead_letter_topic_name)
    write(settings, NOT_JSON, TOO_HIGH, TOO_LOW)
    assert {line.split("  ")[5] for line in listed(settings)} == {"-"}
    replayed(settings, "out_of_range")
    write(settings, TOO_HIGH, DeadLetter(11, b"new", "not_json", ""))  # the first is a duplicate of a replayed one
    assert [line.split("  ")[5] for line in listed(settings)] == ["-", "replayed", "replayed", "replayed", "-"]
    out = io.StringIO()
    count_dead_letters(settings, out=out)
    assert out.getvalue().splitlines()[-1].endswith("; 3 of them replayed")
    replayed(settings)
    assert {line.split("  ")[5] for line in listed(settings)} == {"replayed"}


def test_a_replay_into_a_compacted_topic_needs_keys_and_is_refused_before_the_first_message(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "_TRANSACTION", 1)
    configure(settings, "cleanup.policy", "compact")
    write(settings, NOT_JSON._replace(key=b"k"), TOO_HIGH)
    for yes in (False, True):
        with pytest.raises(Fatal, match="1 of the 2 dead letters have none: nothing is replayed"):
            replayed(settings, yes=yes)
    assert origin(settings) == []
    assert "each of these events becomes the newest one of its key" in replayed(settings, "not_json", yes=False)
    assert replayed(settings, "not_json").startswith("replayed 1 dead letters")
    assert [payload for _, payload, _ in replayed_to_origin(settings, 1)] == [NOT_JSON.payload]


def test_the_raw_bytes_go_back_to_their_partition_with_their_origin_in_headers(settings: Settings) -> None:
    write(settings, TOO_HIGH)
    write(settings, HOSTILE, partition=0)
    assert replayed(settings, yes=False).startswith(f"would replay 2 dead letters to {settings.topic}")
    assert origin(settings) == []
    assert replayed(settings).startswith(f"replayed 2 dead letters to {settings.topic};")
    (first, hostile, _), (second, high, headers) = replayed_to_origin(settings, 2)
    assert (first, hostile, second, high) == (0, HOSTILE.payload, 1, TOO_HIGH.payload)
    assert headers == {
        "dlq_topic": settings.dead_letter_topic_name.encode(),
        "dlq_partition": b"0",
        "dlq_offset": b"0",
        "dlq_reason": b"out_of_range",
        "dlq_field": b"error_code",
        "dlq_origin": f"{settings.topic}[1]@4".encode(),
    }


def test_each_event_is_replayed_once_over_all_runs_reasons_and_duplicates(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "_TRANSACTION", 2)
    create_topic(settings.bootstrap_servers, settings.dead_letter_topic_name)
    for _ in range(2):  # a batch of dead letters that was retried
        write(settings, NOT_JSON, TOO_HIGH, TOO_LOW)
    assert replayed(settings, "out_of_range").startswith("replayed 2 dead letters")
    assert replayed(settings, "out_of_range").startswith("replayed 0 dead letters")
    write(settings, HOSTILE, partition=0)
    write(settings, TOO_HIGH._replace(payload=b"same offset, in a topic that was created again"))
    write(settings, NOT_JSON, topic="another")
    assert replayed(settings).startswith("replayed 3 dead letters")
    assert replayed(settings).startswith("replayed 0 dead letters")
    write(
        settings, NOT_JSON, NOT_JSON._replace(offset=77)
    )  # the first is a duplicate of an event that an earlier run replayed
    assert replayed(settings).startswith("replayed 1 dead letters")
    sent = [NOT_JSON, TOO_HIGH, TOO_LOW, HOSTILE, NOT_JSON]
    expected = [dead_letter.payload for dead_letter in sent] + [b"same offset, in a topic that was created again"]
    assert sorted(payload or b"" for _, payload, _ in replayed_to_origin(settings, len(expected))) == sorted(expected)


def test_the_next_replay_sends_what_a_failed_one_did_not(settings: Settings) -> None:
    large = TOO_HIGH._replace(offset=5, payload=Random(1).randbytes(5000))
    write(settings, NOT_JSON, large)
    limit(settings, 1000)
    with pytest.raises(Retryable, match="run it again"):
        replayed(settings)
    assert origin(settings) == []
    limit(settings, 100_000)
    assert replayed(settings).startswith("replayed 2 dead letters")
    assert [payload for _, payload, _ in replayed_to_origin(settings, 2)] == [NOT_JSON.payload, large.payload]


def limit(settings: Settings, size: int) -> None:
    configure(settings, "max.message.bytes", str(size))


def configure(settings: Settings, name: str, value: str) -> None:
    entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, settings.topic, incremental_configs=[entry])
    admin = AdminClient({"bootstrap.servers": settings.bootstrap_servers})
    admin.incremental_alter_configs([resource])[resource].result(PATIENCE_S)


def test_a_terminal_shows_a_progress_bar(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_EVERY_S", 0)
    write(settings, NOT_JSON, TOO_HIGH, TOO_LOW)
    terminal, out = Terminal(), io.StringIO()
    assert replay(settings, reason=None, yes=True, out=out, progress=terminal) == ExitCode.OK
    assert "100% 3/3" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")
    assert "\x1b" not in out.getvalue()


def test_the_commands_from_the_shell(settings: Settings) -> None:
    options = ["--topic", settings.topic, "--bootstrap-servers", settings.bootstrap_servers]
    options += ["--group-id", settings.group_id]
    create_topic(settings.bootstrap_servers, settings.dead_letter_topic_name)
    write(settings, DeadLetter(0, b"bad", "not_json", ""))
    with run_worker("dlq", "replay", *options) as command:
        assert command.wait() == ExitCode.OK
    assert "would replay 1 dead letters" in command.stdout[0]
    with run_worker("dlq", "replay", "--yes", *options) as command:
        assert command.wait() == ExitCode.OK, command.tail()
    assert command.stdout[0].startswith("replayed 1 dead letters")
    with run_worker("dlq", "list", *options) as command:
        assert command.wait() == ExitCode.OK
    assert len(command.stdout) == 1
    with run_worker("dlq", "stats", *options) as command:
        assert command.wait() == ExitCode.OK
    assert command.stdout[0] == "not_json: 1"
    with run_worker("dlq", "replay", "--reason", "boredom", *options) as command:
        assert command.wait() == ExitCode.USAGE


@pytest.mark.parametrize(
    "position", [ReplayPosition(), ReplayPosition(7), ReplayPosition(7, {"not_json": 9, "too_large": 12})]
)
def test_a_position_is_read_as_it_was_written(position: ReplayPosition) -> None:
    assert ReplayPosition.parse(position.offset, position.encode()) == position
    assert ReplayPosition.parse(None, "") == ReplayPosition()
    assert ReplayPosition.parse(3, "a comment of another tool") == ReplayPosition(3)


def test_a_reason_is_ahead_of_the_others_until_they_have_caught_up() -> None:
    def at(offset: int, reason: str) -> StoredDeadLetter:
        return StoredDeadLetter(0, offset, "", "t", 0, offset, reason, "", 0, b"", None, (), -1)

    position = ReplayPosition(2).after(at(5, "not_json"), "not_json")
    assert [position.is_past(at(n, "not_json")) for n in (1, 5, 6)] == [True, True, False]
    assert [position.is_past(at(n, "too_large")) for n in (1, 2, 5)] == [True, False, False]
    assert position.after(at(3, "too_large"), None) == ReplayPosition(4, {"not_json": 6})
    assert position.after(at(5, "too_large"), None) == ReplayPosition(6)


def test_a_replay_whose_position_may_have_expired_is_refused(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kafka deletes the offsets of a group without members after 7 days; here all dead letters are older than that."""
    write(settings, NOT_JSON, TOO_HIGH)
    monkeypatch.setattr(sender, "_OFFSETS_RETENTION_S", -1.0)
    with pytest.raises(Fatal, match=r"has no committed offset, and the oldest dead letter is 0 days old.*--from-start"):
        replayed(settings)
    assert not origin(settings)
    assert replayed(settings, yes=False).startswith("would replay 2 dead letters")
    out = io.StringIO()
    assert replay(settings, reason=None, yes=True, from_start=True, out=out) == ExitCode.OK
    assert len(origin(settings)) == 2
    assert replayed(settings).startswith("replayed 0 dead letters")  # it has a position now
