"""`python -m worker demo`: the real worker, an embedded broker and store, a paced producer, and a live table."""

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
_EVENTS = 10**12  # more than anybody waits for
_LAST_EVENTS_S = 60.0


def demo(
    *, backend: str, processes: int, rate: int, seconds: float | None, chaos: bool, stop: Callable[[], bool]
) -> int:
    """Show it all until `stop`, or for `seconds`; then let the worker finish, print its accounts, leave nothing behind.

    Returns FAILED where an event is unaccounted for.
    """
    with ExitStack() as stack:
        print("starting a broker and a store …", file=sys.stderr, flush=True)
        # The embedded broker takes ten seconds to give a killed member's partitions away: too long for these kills.
        kafka = stack.enter_context(start_kafka() if chaos else start_embedded_kafka())
        store = stack.enter_context(start_clickhouse() if backend == "clickhouse" else start_embedded_redis())
        url = "WORKER_CLICKHOUSE_URL" if backend == "clickhouse" else "WORKER_REDIS_URL"
        env = {"WORKER_BOOTSTRAP_SERVERS": kafka.address, url: store.address}
        producer = stack.enter_context(_producer(processes, rate, env))
        worker = stack.enter_context(_worker(backend, processes, env, static=chaos))
        print(
            f"status page: {worker.address}  metrics: {worker.address}/metrics  ^C ends it", file=sys.stderr, flush=True
        )
        ends = time.monotonic() + seconds if seconds else float("inf")
        kill = _Chaos(worker.address) if chaos else None

        def over() -> bool:
            if kill:
                kill.now_and_then()
            if not worker.pid:
                raise Fatal(f"the worker ended by itself:\n{worker.log_tail()}", code=ExitCode.FAILED)
            return stop() or time.monotonic() > ends

        top(worker.address, stream=sys.stdout, stop=over)
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
    # The embedded broker takes half a session to assign partitions for the first time.
    options += ["--report-interval", "5", "-X", "session.timeout.ms=6000", "-X", "heartbeat.interval.ms=500"]
    if static:  # a consumer that was killed comes back as the same member, without a rebalance
        options += ["-X", "group.instance.id=demo"]
    command = [sys.executable, "-m", "worker", "run", *options]

    def answers() -> bool:
        try:
            return bool(fetch(f"{address}/status.json")["processes"])
        except ValueError:
            return False

    return Server(Directory("worker"), command, answers, address=address, port=port, env=_environment(env))


def _environment(env: dict[str, str]) -> dict[str, str]:
    """Let the children find this package, wherever it was started from."""
    root = str(Path(__file__).parents[2])
    return {**env, "PYTHONPATH": os.pathsep.join([root, *os.environ.get("PYTHONPATH", "").split(os.pathsep)])}


class _Chaos:
    """Kills a consumer, chosen by chance, every three seconds."""

    def __init__(self, address: str) -> None:
        self._status = f"{address}/status.json"
        self._due = time.monotonic() + _CHAOS_EVERY_S

    def now_and_then(self) -> None:
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + _CHAOS_EVERY_S
        with contextlib.suppress(OSError, ValueError):
            if victims := [item["pid"] for item in fetch(self._status)["processes"] if item["pid"]]:
                os.kill(random.choice(victims), signal.SIGKILL)


def _finish(worker: Server, producer: Server) -> int:
    """Wait until what was produced is written, stop the worker, and print its last accounts."""
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
