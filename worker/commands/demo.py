"""The `demo` command: the real worker, an embedded broker and store, a paced producer, and a live table."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from worker.commands.top import fetch, top
from worker.core.errors import ExitCode, Fatal
from worker.local import Server, start_clickhouse, start_embedded_kafka, start_embedded_redis, start_kafka
from worker.local.directory import Directory
from worker.local.process import free_port

TOPIC = "example"
_CHAOS_EVERY_S = 3.0
_EVENTS = 10**12  # practically endless
_LAST_EVENTS_S = 60.0


def demo(
    *, backend: str, processes: int, rate: int, seconds: float | None, chaos: bool, stop: Callable[[], bool]
) -> int:
    """Run until `stop`, or for `seconds`; then let the worker finish, print its accounts, and remove every server.

    Returns FAILED if an event is unaccounted for.
    """
    with ExitStack() as stack:
        print("starting a broker and a store …", file=sys.stderr, flush=True)
        # The embedded broker reassigns a killed member's partitions after ten seconds: too long for kills every 3 s.
        kafka = stack.enter_context(start_kafka() if chaos else start_embedded_kafka())
        store = stack.enter_context(start_clickhouse() if backend == "clickhouse" else start_embedded_redis())
        url = "WORKER_CLICKHOUSE_URL" if backend == "clickhouse" else "WORKER_REDIS_URL"
        env = {"WORKER_BOOTSTRAP_SERVERS": kafka.address, url: store.address}
        producer = stack.enter_context(_producer(processes, rate, env))
        worker = stack.enter_context(_worker(backend, processes, env, static=chaos))
        print(
            f"status page: {worker.address}  metrics: {worker.address}/metrics  ^C ends it", file=sys.stderr, flush=True
        )
        deadline = time.monotonic() + seconds if seconds else float("inf")
        killer = _ConsumerKiller(worker.address) if chaos else None

        def is_over() -> bool:
            if killer:
                killer.kill_when_due()
            if not worker.pid:
                raise Fatal(f"the worker stopped unexpectedly:\n{worker.log_tail()}", code=ExitCode.FAILED)
            return stop() or time.monotonic() > deadline

        top(worker.address, stream=sys.stdout, stop=is_over)
        producer.stop()
        return _finish(worker, producer)


def _producer(partitions: int, rate: int, env: dict[str, str]) -> Server:
    words = ["--topic", TOPIC, "--partitions", str(partitions), "--num-messages", str(_EVENTS)]
    command = [sys.executable, "-m", "worker", "produce", *words, "--pause-ms", str(1000 / rate)]
    return Server(Directory("producer"), command, lambda: True, address="", port=0, env=_environment(env))


def _worker(backend: str, processes: int, env: dict[str, str], *, static: bool) -> Server:
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    options = ["--topic", TOPIC, "--backend", backend, "--processes", str(processes), "--metrics-port", str(port)]
    # The embedded broker waits half a session timeout before it first assigns partitions.
    options += ["--report-interval", "5", "-X", "session.timeout.ms=6000", "-X", "heartbeat.interval.ms=500"]
    if static:  # a killed consumer rejoins as the same member, without a rebalance
        options += ["-X", "group.instance.id=demo"]
    command = [sys.executable, "-m", "worker", "run", *options]

    def answers() -> bool:
        try:
            return bool(fetch(f"{address}/status.json")["processes"])
        except ValueError:
            return False

    return Server(Directory("worker"), command, answers, address=address, port=port, env=_environment(env))


def _environment(env: dict[str, str]) -> dict[str, str]:
    """Add this package to the children's PYTHONPATH, whatever the current directory is."""
    root = str(Path(__file__).parents[2])
    return {**env, "PYTHONPATH": os.pathsep.join([root, *os.environ.get("PYTHONPATH", "").split(os.pathsep)])}


class _ConsumerKiller:
    """Kills a random consumer every three seconds."""

    def __init__(self, address: str) -> None:
        self._status_url = f"{address}/status.json"
        self._due = time.monotonic() + _CHAOS_EVERY_S

    def kill_when_due(self) -> None:
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + _CHAOS_EVERY_S
        with contextlib.suppress(OSError, ValueError):
            if pids := [item["pid"] for item in fetch(self._status_url)["processes"] if item["pid"]]:
                os.kill(random.choice(pids), signal.SIGKILL)


def _finish(worker: Server, producer: Server) -> int:
    """Wait until every produced event is written, stop the worker, and print its final accounts."""
    status: dict[str, Any] = {}
    deadline = time.monotonic() + _LAST_EVENTS_S
    while time.monotonic() < deadline and worker.pid:
        with contextlib.suppress(OSError, ValueError):
            status = fetch(f"{worker.address}/status.json")
            if status["lag"] == 0 and status["accounts"]["in_flight"] == 0:
                break
        time.sleep(0.2)
    worker.stop()
    accounts = status["accounts"]
    for line in producer.log_tail().splitlines():
        if line.startswith("produced"):
            print(line)
    print(
        f"read {accounts['consumed']} = written {accounts['written']} + dead-lettered {accounts['dead_lettered']} "
        f"+ skipped {accounts['skipped']} + replayed {accounts['replayed']} + in flight {accounts['in_flight']}; "
        f"unaccounted {accounts['unaccounted']}, unread {status['lag']}, {status['restarts']} restarts"
    )
    totals = [line for line in worker.log_tail(200).splitlines() if line.startswith("Total devices:")]
    print(totals[-1] if totals else "Total devices: not reported")
    complete = totals and status["lag"] == 0 and not accounts["unaccounted"] and not accounts["in_flight"]
    return ExitCode.OK if complete else ExitCode.FAILED
