"""Reports of one invalid event that stopped the ingestion of all others."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from tests.support.job import MakeJob
from tests.support.kit import Service
from tests.support.oracle import EXACT, event


class Report(NamedTuple):
    source: str
    payload: bytes  # what is wrong with it is as in the report
    reason: str


REPORTS = [
    Report("ClickHouse#10647", b"invalid json from kafka-console-producer.sh", "not_json"),
    Report("ClickHouse#52005", b'{"timestamp": 1700000000, "device_ip": "a\\u12", "error_code": 1}', "not_json"),
    Report("ClickHouse#6916", b'{"timestamp": 1700000000, "device_ip": x","cols", "error_code": 1}', "not_json"),
    Report(
        "ClickHouse#2675", b'{"timestamp": 1700000000, "device_ip": "1.2.3.4", "error_code": "wrong"}', "wrong_type"
    ),
    Report("ClickHouse#7697", b'{"timestamp": 1700000000, "device_ip": 7, "error_code": 1}', "wrong_type"),
    Report("ClickHouse#1781", b"1516170000000\ttest", "not_json"),
    Report("ClickHouse#3814", b"", "not_json"),
]


@pytest.mark.parametrize("reader", ["auto", "python"])
def test_an_invalid_event_delays_no_other_and_its_origin_is_known(
    kafka: Service, clickhouse: Service, make_job: MakeJob, reader: str
) -> None:
    job = make_job(kafka, clickhouse.address)
    job.create()
    job.send([payload for i, report in enumerate(REPORTS) for payload in (event(i), report.payload)])
    job.finish("--reader", reader)
    assert job.judge(range(len(REPORTS))) == EXACT
    assert [(found.offset, found.reason) for found in job.dead_letters()] == [
        (2 * i + 1, report.reason) for i, report in enumerate(REPORTS)
    ]
