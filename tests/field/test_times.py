"""Reports of times that were stored as other times, or refused although the column can hold them."""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest
from clickhouse_driver import Client

from tests.support.job import MakeJob
from tests.support.kit import Service, clickhouse_client


class Report(NamedTuple):
    source: str
    column: str
    value: str | int | float  # as the event has it
    stored: str  # as the server shows it


REPORTS = [
    Report(
        "clickhouse-kafka-connect#599", "DateTime64(9, 'UTC')", "2025-09-29T10:11:12Z", "2025-09-29 10:11:12.000000000"
    ),
    Report(
        "clickhouse-kafka-connect#406",
        "DateTime64(9, 'UTC')",
        "2024-04-02 03:59:00.072229523",
        "2024-04-02 03:59:00.072229523",
    ),
    Report("clickhouse-kafka-connect#57", "DateTime('UTC')", "1676283600", "2023-02-13 10:20:00"),
    Report("clickhouse-kafka-connect#57", "DateTime('UTC')", 1676283600, "2023-02-13 10:20:00"),
    Report("ClickHouse#39842", "DateTime64(6, 'UTC')", 1659386157.403862, "2022-08-01 20:35:57.403862"),
    Report("ClickHouse#13194", "DateTime64(3, 'UTC')", 1596215121682, "2020-07-31 17:05:21.682"),
    Report("ClickHouse#69309", "DateTime64(3, 'UTC')", "2024-09-05 17:38:56.344", "2024-09-05 17:38:56.344"),
    Report("ClickHouse#40474", "DateTime64(9, 'UTC')", "1687890970.208194001", "2023-06-27 18:36:10.208194001"),
    Report("ClickHouse#9786", "DateTime64(9, 'UTC')", 1584009186942540518, "2020-03-12 10:33:06.942540518"),
    Report("clickhouse-connect#422", "DateTime64(9, 'UTC')", 1731005237777063540, "2024-11-07 18:47:17.777063540"),
    Report("clickhouse-sink-connector#277", "DateTime('UTC')", 1565999999000, "2019-08-16 23:59:59"),
    Report("vector#5797", "DateTime('UTC')", "2021-01-02T08:09:10.123456789Z", "2021-01-02 08:09:10"),
]


@pytest.mark.parametrize("reader", ["auto", "python"])
def test_times_are_stored_as_they_are(
    kafka: Service, clickhouse: Service, make_job: MakeJob, table_name: str, reader: str
) -> None:
    """All reports in one table, a column for each: an event has the values of all."""
    job = make_job(kafka, clickhouse.address)
    client: Client = clickhouse_client(clickhouse.address)
    columns = ", ".join(f"c{i} {report.column}" for i, report in enumerate(REPORTS))
    client.execute(f"CREATE TABLE {table_name} ({columns}) ENGINE = MergeTree ORDER BY tuple()")
    job.create()
    job.send([json.dumps({f"c{i}": report.value for i, report in enumerate(REPORTS)}).encode()])
    job.finish("--reader", reader)
    (row,) = client.execute(f"SELECT {', '.join(f'toString(c{i})' for i in range(len(REPORTS)))} FROM {table_name}")
    client.disconnect()
    assert dict(zip([report.source for report in REPORTS], row, strict=True)) == {
        report.source: report.stored for report in REPORTS
    }
