"""Real servers on this machine without Docker, for the demo, the tests and the benchmarks.

`with start_redis() as server:` runs a server; `server.address` is the value for the worker's option.
"""

from worker.local.clickhouse import start_clickhouse
from worker.local.embedded import start_embedded_kafka, start_embedded_redis
from worker.local.kafka import start_kafka
from worker.local.process import Server
from worker.local.prometheus import start_prometheus
from worker.local.redis import start_redis
from worker.local.schema_registry import start_schema_registry

__all__ = [
    "Server",
    "start_clickhouse",
    "start_embedded_kafka",
    "start_embedded_redis",
    "start_kafka",
    "start_prometheus",
    "start_redis",
    "start_schema_registry",
]
