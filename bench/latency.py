"""`python -m bench.latency`: the time from an event to the first query that sees it, by rate and --linger-ms.

Everything is measured from outside the worker, by the clock of one machine. A producer process (librdkafka, linger.ms
1) sends events every 5 ms and records the time. Meanwhile the store is queried with pauses of 2 ms:

- ClickHouse: `count()` of the table. The topic has one partition, so the n-th event is stored once count() ≥ n.
- Redis: PFCOUNT. The last event of each tick is from a new device. Adding the same devices to another key gives the
  count that the HyperLogLog must have after each tick.

An event's latency ends with the answer of the first query that sees it; that is at most one query late.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from array import array
from bisect import bisect_left
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).parents[1])

from clickhouse_driver import Client

from bench import contenders, machine, rounds, services
from bench.services import ROOT, Services
from worker.commands.produce.fleet import device_ip
from worker.core.errors import Fatal
from worker.local.process import free_port

_PATIENCE_S = 120.0
_PAUSE_S = 0.002
_SKIP_S = 3.0  # at the beginning, while everything warms up


class Observation(NamedTuple):
    """One answer of the store: when, and its count."""

    at_ns: int
    total: int


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.latency", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=int, action="append", help="events/s, repeatable [1000, 10000, 100000]")
    parser.add_argument(
        "--load", type=float, action="append", default=[], help="share of the capacity, repeatable (0.5)"
    )
    parser.add_argument("--linger-ms", type=int, action="append", help="repeatable [10, 100, 1000]")
    parser.add_argument("--store", action="append", choices=("redis", "clickhouse"), help="only this")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement [%(default)s]")
    options = parser.parse_args(argv)
    rates = options.rate or ([] if options.load else [1000, 10_000, 100_000])
    try:
        with services.running() as running:
            print(f"{'store':10} {'events/s':>9} {'linger':>7} {'p50':>7} {'p99':>7} {'p99.9':>7} {'max':>7} ms  steal")
            for store in options.store or ["redis", "clickhouse"]:
                capacity = _capacity(running, store) if options.load else 0.0
                for rate in [*rates, *(round(capacity * load) for load in options.load)]:
                    for linger in options.linger_ms or [10, 100, 1000]:
                        _measure(running, store, rate, linger, options.seconds)
    except Fatal as error:
        print(error, file=sys.stderr)
        return error.code
    return 0


def _capacity(running: Services, store: str) -> float:
    """Return the rate at which one process drains one partition."""
    rounds.progress(f"measuring the capacity: {store}")
    data, small = (running.dataset(count, 10_000, 1) for count in (1_000_000, services.SMALL))
    (result,) = rounds.play(running, [(contenders.ours(1, store), data, small)], 1, lambda _: None)
    if result.failures:
        raise SystemExit(result.failures[0])
    return result.median("rate")


def _measure(running: Services, store: str, rate: int, linger: int, seconds: float) -> None:
    """Run a worker and a producer, watch the store, and print one line."""
    name = f"latency_{uuid.uuid4().hex[:8]}"
    make = [sys.executable, "-m", "worker", "produce", "--bootstrap-servers", running.kafka, "--topic", name]
    subprocess.run([*make, "--partitions", "1", "--num-messages", "0"], cwd=ROOT, check=True, stderr=subprocess.PIPE)
    port = free_port()
    words = [
        sys.executable,
        "-m",
        "worker",
        "--topic",
        name,
        "--backend",
        store,
        "--processes",
        "1",
        "--group-id",
        name,
    ]
    if store == "redis":
        words += ["--redis-url", running.redis, "--redis-key", name]
    else:
        words += ["--clickhouse-url", running.clickhouse, "--table", name]
    words += ["--bootstrap-servers", running.kafka, "--linger-ms", str(linger)]
    words += ["--metrics-port", str(port), "--log-level", "warning"]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True) as worker:
        try:
            _wait_ready(worker, port)
            before = machine.processor()
            expected, seen = _watch(running, store, name, rate, seconds)
            steal = machine.processor().steal_since(before)
        finally:
            with suppress(ProcessLookupError):
                worker.send_signal(signal.SIGTERM)
            try:
                worker.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(worker.pid, signal.SIGKILL)
            running.query(f"DROP TABLE IF EXISTS {name} SYNC")
            running.redis_client().delete(name)
    weighted = sorted(_latencies(expected, seen))
    shares = [_percentile(weighted, share) for share in (0.5, 0.99, 0.999, 1.0)]
    figures = " ".join(f"{ns / 1e6:7.1f}" for ns in shares)
    print(f"{store:10} {rate:9} {linger:7} {figures}     {steal:5.0%}", flush=True)


def _watch(
    running: Services, store: str, name: str, rate: int, seconds: float
) -> tuple[list[tuple[int, int]], list[Observation]]:
    """Produce, and query the store until it has everything; return the expected counts by time, and what it had."""
    with tempfile.NamedTemporaryFile() as file:
        words = [sys.executable, "-m", "bench.peers.paced", running.kafka, name, str(rate), str(seconds)]
        producer = subprocess.Popen([*words, file.name, str(int(store == "redis"))], cwd=ROOT)
        seen: list[Observation] = []
        read_count = _counter(running, store, name)
        deadline = time.monotonic() + seconds + _PATIENCE_S
        ticks: array[int] = array("q")
        expected: list[tuple[int, int]] = []
        due = None
        while due is None or seen[-1].total < due:
            count = read_count()
            if not seen or count != seen[-1].total:
                seen.append(Observation(time.time_ns(), count))
            time.sleep(_PAUSE_S)
            if time.monotonic() > deadline:
                producer.kill()
                raise SystemExit(f"{store} has {count} of {due}: too slow for {rate} events/s")
            if due is None and producer.poll() is not None:
                if producer.returncode:
                    raise SystemExit("the producer failed")
                ticks.frombytes(Path(file.name).read_bytes())
                expected = _expected(running, ticks, store)
                due = expected[-1][1]
    return expected, seen


def _counter(running: Services, store: str, name: str) -> Callable[[], int]:
    if store == "redis":
        client = running.redis_client()
        return lambda: int(client.pfcount(name))
    connection = Client.from_url(running.clickhouse)
    return lambda: int(connection.execute(f"SELECT count() FROM {name}")[0][0])


def _expected(running: Services, ticks: array[int], store: str) -> list[tuple[int, int]]:
    """Return (ns, count) of each tick: the least count of the store once the tick's events are stored."""
    moments = list(ticks[::3])
    if store == "clickhouse":
        return list(zip(moments, ticks[1::3], strict=True))
    key = f"latency-{uuid.uuid4().hex}"
    pipeline = running.redis_client().pipeline()
    pipeline.pfadd(key, device_ip(0))
    for number in ticks[2::3]:
        pipeline.pfadd(key, device_ip(number))
        pipeline.pfcount(key)
    pipeline.delete(key)
    return list(zip(moments, pipeline.execute()[2::2], strict=True))


def _wait_ready(worker: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline and worker.poll() is None:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
            if answer.status == 200:
                return
        time.sleep(0.1)
    raise SystemExit("the worker did not become ready")


def _latencies(expected: list[tuple[int, int]], seen: list[Observation]) -> list[tuple[int, int]]:
    """Return (ns, added count) of each tick after the beginning; a tick that adds nothing cannot be observed."""
    counts = [observation.total for observation in seen]
    latencies, done = [], 0
    for at, total in expected:
        if total > done:
            if at > expected[0][0] + _SKIP_S * 1e9:
                latencies.append((seen[bisect_left(counts, total)].at_ns - at, total - done))
            done = total
    return latencies


def _percentile(weighted: list[tuple[int, int]], share: float) -> int:
    left = share * sum(events for _, events in weighted)
    for ns, events in weighted:
        left -= events
        if left <= 0:
            return ns
    return weighted[-1][0]


if __name__ == "__main__":
    sys.exit(main())
