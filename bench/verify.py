"""Check that every event arrived once. A contender that lost or doubled events is measured, and marked as failed."""

from __future__ import annotations

import time

from bench.contenders import Contender, Job
from bench.measure import Run
from bench.services import Dataset, Services

_QUIET_S = 30.0


def problem(contender: Contender, job: Job, run: Run) -> str:
    """Return what is wrong in the store; empty if nothing is."""
    if run.code:
        last = run.errors.strip().splitlines()[-1:] or [""]
        return f"ended with {run.code}: {last[0][:300]}"
    if contender.arrived:
        return contender.arrived(job)
    if contender.store == "nothing":
        return _differences(read=(int(run.output.split()[-1]), job.data.events))
    if contender.store == "redis":
        return _in_redis(job)
    return _in_clickhouse(contender, job, run)


def _in_redis(job: Job) -> str:
    client = job.services.redis_client()
    return _differences(pfcount=(client.pfcount(job.target), clean_count(job.services, job.data)))


def clean_count(services: Services, data: Dataset) -> int:
    """Return PFCOUNT after each device was added once to another key: the result of every correct reader."""
    client = services.redis_client()
    key = f"bench-clean-{data.topic}"
    if not client.exists(key) and data.addresses:
        devices = sorted(data.addresses)
        for start in range(0, len(devices), 5000):
            client.pfadd(key, *devices[start : start + 5000])
    return int(client.pfcount(key))


def _in_clickhouse(contender: Contender, job: Job, run: Run) -> str:
    data = job.data
    millis = "0" if contender.as_text else "sum(toInt128(toUnixTimestamp64Milli(timestamp)))"
    offsets = "uniqExact(_partition, _offset)" if contender.ours else "count()"
    condition = "WHERE _partition >= 0" if contender.earlier else ""
    ((rows, devices, codes, actual_millis, actual_offsets),) = job.services.query(
        f"SELECT count(), uniqExact(device_ip), sum(error_code), {millis}, {offsets} FROM {job.target} {condition}"
    )
    differences = _differences(
        rows=(rows, data.events),
        devices=(devices, data.distinct),
        error_codes=(codes, data.error_codes),
        timestamps=(actual_millis, 0 if contender.as_text else data.millis),
        offsets=(actual_offsets, data.events),
    )
    if contender.ours and not differences:
        ((devices,),) = job.services.query(f"SELECT uniqExact(device_ip) FROM {job.target}")
        return _differences(printed=(run.output.strip().splitlines()[-1:], [f"Total devices: {devices}"]))
    return differences


def _differences(**pairs: tuple[object, object]) -> str:
    return ", ".join(
        f"{name} {actual}, not {expected}" for name, (actual, expected) in pairs.items() if actual != expected
    )


def prepare(contender: Contender, job: Job) -> None:
    """Create the table that the contender fills."""
    if contender.earlier:
        job.services.query(f"CREATE TABLE {job.target} CLONE AS {job.services.filled_table(contender.earlier)}")
    elif contender.store == "clickhouse" and (statement := contender.table(job.target)):
        job.services.query(statement)


def settle(services: Services) -> None:
    """Wait until ClickHouse has no merges to do: their cost belongs to the run that caused them."""
    deadline = time.monotonic() + _QUIET_S
    quiet = 0
    while quiet < 3 and time.monotonic() < deadline:
        busy = services.query("SELECT count() FROM system.merges")[0][0]
        quiet = 0 if busy else quiet + 1
        time.sleep(0.1)


def remove(contender: Contender, job: Job) -> None:
    """Remove the table or keys of the run, so that the next run starts from the same state."""
    if contender.store == "clickhouse":
        for table in (f"{job.target}_view", f"{job.target}_kafka", job.target):
            job.services.query(f"DROP TABLE IF EXISTS {table} SYNC")
    elif contender.store == "redis":
        client = job.services.redis_client()
        client.delete(job.target, *client.scan_iter(f"*{job.target}*", count=1000))
