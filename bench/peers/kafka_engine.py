"""ClickHouse reads Kafka itself: a Kafka table and a materialized view into the target; this program only waits."""

from __future__ import annotations

import time

from clickhouse_driver import Client

from bench.peers.arguments import arguments


def main() -> None:
    job = arguments()
    client = Client.from_url(job.url)
    client.execute(
        f"CREATE TABLE {job.target}_kafka (timestamp String, device_ip String, error_code Int8) ENGINE = Kafka "
        f"SETTINGS kafka_broker_list = '{job.bootstrap}', kafka_topic_list = '{job.topic}', "
        f"kafka_group_name = '{job.group}', kafka_format = 'JSONEachRow', kafka_num_consumers = 1, "
        "kafka_max_block_size = 100000"
    )
    client.execute(
        f"CREATE MATERIALIZED VIEW {job.target}_view TO {job.target} AS SELECT device_ip, error_code, "
        "parseDateTime64BestEffort(timestamp, 3, 'UTC') "
        f"AS timestamp FROM {job.target}_kafka"
    )
    assigned = (
        f"SELECT count() FROM system.kafka_consumers WHERE table = '{job.target}_kafka' AND notEmpty(assignments.topic)"
    )
    while not client.execute(assigned)[0][0]:
        time.sleep(0.2)
    while client.execute(f"SELECT count() FROM {job.target}")[0][0] < job.count:
        time.sleep(0.2)
    time.sleep(1.0)  # whatever it doubles would come now; in the run over the small topic as well
    client.execute(f"DROP TABLE {job.target}_view SYNC")
    client.execute(f"DROP TABLE {job.target}_kafka SYNC")


main()
