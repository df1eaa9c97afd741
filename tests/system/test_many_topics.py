"""Many topics in one worker: by name and by regular expression, into separate tables or a shared one."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from tests.support.job import Job, status
from tests.support.kit import PATIENCE_S, create_topic, run_worker, send, wait_until
from tests.support.oracle import EXACT, ends, events, judge_rows

COUNT = 3000


@pytest.fixture
def jobs(rows_job: Job) -> tuple[Job, Job]:
    """Two topics of one group, each with a table and 3000 events of different devices."""
    jobs = [replace(rows_job, topic=f"{rows_job.topic}_{n}", target=f"{rows_job.target}_{{topic}}") for n in (1, 2)]
    for n, job in enumerate(jobs):
        job.create(2)
        job.send(events(COUNT, first=n * COUNT))
    return jobs[0], jobs[1]


def table_of(job: Job) -> str:
    return job.target.replace("{topic}", job.topic)


def exact(job: Job, first: int) -> bool:
    return judge_rows(job.url, table_of(job), range(first, first + COUNT)) == EXACT


def command(name: str, job: Job, *more: str) -> tuple[int, list[str]]:
    """Run one of the other commands; return its exit code and its output."""
    own = job.arguments(*more)
    with run_worker(*name.split(), *own) as process:
        return process.wait(), process.stdout


def test_two_topics_go_into_two_tables_and_are_counted_separately_and_in_total(jobs: tuple[Job, Job]) -> None:
    first, second = jobs
    both = ("--topic", second.topic)
    worker = first.finish(*both)
    counted = [
        f"Total devices in {first.topic}: {COUNT}",
        f"Total devices in {second.topic}: {COUNT}",
        f"Total devices: {2 * COUNT}",
    ]
    assert worker.stdout[-3:] == counted, worker.tail()
    assert exact(first, 0)
    assert exact(second, COUNT)
    assert command("count", first, *both) == (0, counted)
    code, lines = command("verify", first, *both)
    assert code == 0, lines
    assert [line for line in lines if line.startswith("==")] == [f"== {first.topic}", f"== {second.topic}"]
    assert sum(f"total: {COUNT} events, {COUNT} rows" in line for line in lines) == 2
    code, lines = command("check", first, *both)
    assert code == 0, lines
    assert "OK    partitions: 2 topics have 4, a process for each" in lines
    for job in jobs:
        assert f"OK    rights: topic {job.topic} can be read" in lines
        assert any(f"sampled events of {job.topic} would be stored" in line for line in lines), lines


def test_two_topics_share_a_table_and_their_devices_are_counted_separately(jobs: tuple[Job, Job]) -> None:
    first, second = (replace(job, target=job.target.removesuffix("_{topic}")) for job in jobs)
    second.send(events(10))  # devices that the first topic also has
    worker = first.finish("--topic", second.topic)
    assert worker.stdout[-3:] == [
        f"Total devices in {first.topic}: {COUNT}",
        f"Total devices in {second.topic}: {COUNT + 10}",
        f"Total devices: {2 * COUNT}",
    ], worker.tail()
    assert first.rows() == 2 * COUNT + 10


def test_a_topic_that_appears_later_is_read_when_it_matches(jobs: tuple[Job, Job], rows_job: Job) -> None:
    first, second = jobs
    late = replace(first, topic=f"{rows_job.topic}_3")
    with first.start("--topic", f"^{rows_job.topic}_[0-9]$") as worker:
        for job in jobs:
            job.all_done()
        late.create(3)
        late.send(events(COUNT, first=2 * COUNT))
        late.all_done()
        shown = wait_until(lambda: {t["topic"]: t["partitions"] for t in status(worker)["topics"]}, PATIENCE_S)
        assert shown == {first.topic: 2, second.topic: 2, late.topic: 3}
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0, worker.tail()
    for n, job in enumerate((first, second, late)):
        assert exact(job, n * COUNT), job.topic


def test_a_regular_expression_never_finds_dead_letters(jobs: tuple[Job, Job], rows_job: Job) -> None:
    first, _ = jobs
    first.send([b"not json"] * 7)
    own = replace(first, topic=f"^{rows_job.topic}")
    own.finish()
    assert len(first.dead_letters()) == 7
    create_topic(first.kafka, f"{rows_job.topic}.other.dlq")  # of another worker
    send(first.kafka, f"{rows_job.topic}.other.dlq", [b"not json either"])
    worker = own.finish()
    assert not any(".dlq" in line for line in worker.stdout), worker.stdout
    assert len(first.dead_letters()) == 7
    assert ends(first.kafka, f"{first.topic}.dlq.dlq") == {}
    assert ends(first.kafka, f"{rows_job.topic}.other.dlq.dlq") == {}
    code, lines = command("dlq stats", own)
    assert code == 0
    assert "total: 7 dead letters of 7 events, 56 bytes" in "\n".join(lines)


def test_a_dead_letter_topic_that_is_also_its_own_is_refused(rows_job: Job) -> None:
    with rows_job.start("--topic", f"{rows_job.topic}.dlq") as worker:
        assert worker.wait() == 2, worker.tail()
    assert "would read its own dead letters in an endless loop" in worker.stderr[-1]


def test_a_pattern_without_a_matching_topic_is_an_error(rows_job: Job) -> None:
    nothing = replace(rows_job, topic=f"^{rows_job.topic}")
    with nothing.start("--until-end") as worker:
        assert worker.wait() == 78, worker.tail()
    assert any(f"matches ^{rows_job.topic}" in line for line in worker.stderr)
    for name in ("count", "verify", "dlq list"):
        with run_worker(*name.split(), *nothing.arguments()) as process:
            assert process.wait() != 0
        assert f"matches ^{rows_job.topic}" in process.stderr[-1]
    code, lines = command("check", nothing)
    assert code == 1
    assert any("FAIL  topic: no topic matches" in line for line in lines)
