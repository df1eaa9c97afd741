"""A compiled peer with a configuration made for it, stopped once the group has committed all: none ends by itself.

The configurations follow the programs' documentation; they were not tried here, where none of these can be had.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from confluent_kafka import Consumer, TopicPartition

from bench.peers.arguments import arguments

_ROWS = 100_000


def main() -> None:
    job = arguments()
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "config.json"  # which is YAML, too
        options, config = _CONFIGURATIONS[job.kind](job, str(file))
        file.write_text(json.dumps(config))
        look = Consumer({"bootstrap.servers": job.bootstrap, "group.id": job.group})  # never subscribes: no member
        with subprocess.Popen([job.program, *options], stdout=subprocess.DEVNULL) as process:
            while process.poll() is None and not finished(job, look):
                time.sleep(0.5)
            time.sleep(2.0)
            if process.poll() is not None:
                raise SystemExit(f"{job.kind} ended by itself with {process.returncode}")
            process.terminate()


def finished(job: argparse.Namespace, consumer: Consumer) -> bool:
    """Say whether the group's commits have reached the end of every partition."""
    places = [TopicPartition(job.topic, i) for i in range(job.partitions)]
    committed = sum(max(0, place.offset) for place in consumer.committed(places, timeout=10))
    return committed >= int(job.count)


def sinker(job: argparse.Namespace, file: str) -> tuple[list[str], dict[str, Any]]:
    url = urlsplit(job.url)
    types = {"timestamp": "String", "device_ip": "String", "error_code": "Int8"}
    task = {
        "name": job.group,
        "topic": job.topic,
        "consumerGroup": job.group,
        "earliest": True,
        "parser": "fastjson",
        "tableName": job.target,
        "dims": [{"name": name, "type": kind} for name, kind in types.items()],
        "bufferSize": _ROWS,
        "flushInterval": 1,
    }
    store = {"hosts": [[url.hostname]], "port": url.port, "db": "default", "username": "default", "password": ""}
    config = {"clickhouse": store, "kafka": {"brokers": job.bootstrap, "version": "2.5.0"}, "task": task}
    return ["--local-cfg-file", file], config


def redpanda_connect(job: argparse.Namespace, file: str) -> tuple[list[str], dict[str, Any]]:
    source = {
        "seed_brokers": [job.bootstrap],
        "topics": [job.topic],
        "consumer_group": job.group,
        "start_from_oldest": True,
        "batching": {"count": 10_000, "period": "1s"},
    }
    config: dict[str, Any] = {"input": {"kafka_franz": source}, "http": {"enabled": False}}
    if job.store == "redis":
        add = {"url": job.url, "command": "pfadd", "args_mapping": f'root = ["{job.target}", this.device_ip]'}
        config |= {"pipeline": {"processors": [{"redis": add}]}, "output": {"drop": {}}}
    else:
        config["output"] = {
            "sql_insert": {
                "driver": "clickhouse",
                "dsn": job.url,
                "table": job.target,
                "columns": ["timestamp", "device_ip", "error_code"],
                "args_mapping": "root = [this.timestamp.string(), this.device_ip, this.error_code]",
            }
        }
    return ["run", file], config


def vector(job: argparse.Namespace, file: str) -> tuple[list[str], dict[str, Any]]:
    source = {
        "type": "kafka",
        "bootstrap_servers": job.bootstrap,
        "group_id": job.group,
        "topics": [job.topic],
        "auto_offset_reset": "beginning",
        "decoding": {"codec": "json"},
    }
    sink = {
        "type": "clickhouse",
        "inputs": ["topic"],
        "endpoint": f"http://{job.http}",
        "table": job.target,
        "skip_unknown_fields": True,
        "batch": {"max_events": _ROWS, "timeout_secs": 1},
    }
    return ["--config-json", file], {"sources": {"topic": source}, "sinks": {"table": sink}}


_CONFIGURATIONS = {"clickhouse_sinker": sinker, "redpanda-connect": redpanda_connect, "vector": vector}

main()
