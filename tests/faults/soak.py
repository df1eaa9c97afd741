"""`python -m tests.faults.soak [--seconds 600]`: a paced load with scheduled faults, scraped by Prometheus.

A producer writes at a steady rate. In each tenth of the time one consumer is killed (never the first, whose memory is
measured over the whole time). In the fourth tenth the store is unavailable. At the end it compares the events produced,
the rows in the store and the counters of /metrics and of Prometheus, and the alerts that fired with the expected ones.
Exit 0 only if nothing differs.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from tests.support import oracle, prometheus
from tests.support.job import Job, kill
from tests.support.kit import clickhouse_client, run_worker, wait_until
from tests.support.pages import Pages
from tests.support.processes import ProcessUsage, Watch
from worker.local import Server, start_clickhouse, start_kafka, start_prometheus, start_redis

_DEVICES = 10_000
_TENTHS = 10
_OUTAGE = 3  # the tenth in which the store is unavailable
_PATIENCE_S = 600.0
_MAX_BYTES = 150 * 2**20
_MAX_GROWTH = 0.1
_EXPECTED_ALERTS = {"WorkerSinkDown", "WorkerRestarting"}
_SINK_DOWN_FOR_S = 120.0  # in alerts.yml; the alert must fire in the middle of the outage


class Soak:
    """The servers, the worker under load, and its measurements."""

    def __init__(self, stack: ExitStack, options: argparse.Namespace) -> None:
        self.seconds, self.rate, self.frozen = options.seconds, options.rate, options.frozen
        self.partitions = options.processes
        kafka = stack.enter_context(start_kafka())
        redis = options.backend == "redis"
        self.store: Server = stack.enter_context(start_redis() if redis else start_clickhouse())
        self.job = Job(
            kafka=kafka.address,
            topic="soak",
            group="soak",
            backend=options.backend,
            url=self.store.address,
            target="soak",
        )
        self.job.create(self.partitions)
        words = ("--batch-rows", "100000", "--linger-ms", "1000", "--processes", str(options.processes))
        self.worker = stack.enter_context(self.job.start(*words))
        self.pages = Pages(self.worker)
        self.names = {self.worker.pid: "supervisor", self.worker.children()[0]: "monitor"}  # it is forked first
        self.scale = min(1.0, self.seconds / _TENTHS / 2 / _SINK_DOWN_FOR_S)
        rules = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "alerts.yml"
        rules.write_text(prometheus.hastened((prometheus.GRAFANA / "alerts.yml").read_text(), self.scale))
        self.began = time.time()
        config = prometheus.scraping(self.pages.port, rules)
        self.prometheus = stack.enter_context(start_prometheus(config)).address
        self.watch = Watch()
        self.killed = 0

    def run(self) -> int:
        """Run load and faults; return how many events the producer reports as written, once all are stored."""
        count = int(self.rate * self.seconds)
        paced = ("--num-messages", str(count), "--pause-ms", str(1000 / self.rate), "--seed", "1")
        where = ("--bootstrap-servers", self.job.kafka, "--topic", self.job.topic, "--num-devices", str(_DEVICES))
        with run_worker("produce", *where, *paced) as producer:
            producing = time.monotonic()
            for moment, name, strike in sorted(self._schedule(), key=lambda fault: fault[0]):
                self._sample_until(lambda moment=moment: time.monotonic() - producing >= moment)  # type: ignore[misc]
                _log(producing, name)
                strike()
            self._sample_until(lambda: not producer.running())
            assert producer.wait() == 0, producer.tail()
            produced = int(producer.wait_for(r"produced (\d+), failed 0").group(1))
            _log(producing, producer.stderr[-1])
        self._sample_until(lambda: self._lag() == 0)
        _log(producing, "lag 0")
        return produced

    def _schedule(self) -> Iterator[tuple[float, str, Callable[[], None]]]:
        tenth = self.seconds / _TENTHS
        for i in range(_TENTHS):
            yield (i + 0.5) * tenth, "kill -9 of a consumer", self._kill
        freeze, thaw = (self.store.pause, self.store.resume) if self.frozen else (self.store.kill, self.store.start)
        yield _OUTAGE * tenth, "the store is stopped", freeze
        yield (_OUTAGE + 1) * tenth, "the store is started", thaw

    def _kill(self) -> None:
        """Kill the next consumer in turn, once it runs; never the first."""
        slot = 1 + self.killed % (self.partitions - 1)
        wait_until(lambda: f"consumer {slot}" in self._running().values(), _PATIENCE_S)
        kill(*(pid for pid, name in self._running().items() if name == f"consumer {slot}"))
        self.killed += 1

    def _running(self) -> dict[int, str]:
        """Return the names of the processes by pid; it reads the status page only for new processes."""
        pids = [self.worker.pid, *self.worker.children()]
        if not self.names.keys() >= set(pids):
            self.names |= {
                process["pid"]: f"consumer {process['slot']}" for process in self.pages.status()["processes"]
            }
        return {pid: self.names[pid] for pid in pids if pid in self.names}

    def _sample_until(self, reached: Callable[[], bool]) -> None:
        """Wait, and sample the processes every second."""
        due = 0.0

        def sample() -> bool:
            nonlocal due
            assert self.worker.running(), self.worker.tail()
            if time.monotonic() >= due:
                due = time.monotonic() + 1
                self.watch.sample(self._running())
            time.sleep(0.05)
            return reached()

        wait_until(sample, self.seconds + _PATIENCE_S)

    def _lag(self) -> float | None:
        """Return the lag in messages; None until it is known for every partition."""
        lags = self.pages.metrics("lag_messages")
        return sum(lags.values()) if len(lags) == self.partitions else None

    def figures(self, produced: int) -> dict[str, float | None]:
        """Return the number of events by each source, after the last scrape of Prometheus."""
        written = 'worker_messages_total{outcome="written"}'
        own = self.pages.metric("messages_total", "written")
        wait_until(lambda: prometheus.value(self.prometheus, written, time.time()) == own, _PATIENCE_S)
        return {
            "produced": produced,
            "in the topic": sum(oracle.ends(self.job.kafka, self.job.topic).values()),
            "committed": self.job.accounted(),
            **self._stored(),
            "written, by /metrics": own,
            "written, by Prometheus": prometheus.value(self.prometheus, written, time.time()),
        }

    def _stored(self) -> dict[str, float | None]:
        if self.job.backend == "redis":
            return {}  # it stores devices, not events: see `differences`
        client = clickhouse_client(self.job.url)
        try:
            rows = client.execute(f"SELECT count() FROM {self.job.target}")[0][0]
            distinct = f"SELECT _partition, groupBitmap(toUInt64(_offset)) FROM {self.job.target} GROUP BY _partition"
            return {"rows": rows, "distinct rows": sum(count for _, count in client.execute(distinct))}
        finally:
            client.disconnect()

    def differences(self, figures: dict[str, float | None]) -> Iterator[str]:
        """Yield every difference from the expected result."""
        if len(set(figures.values())) != 1:
            yield f"the counts differ: {figures}"
        if self.job.backend == "redis":
            verdict = self.job.judge(range(1, _DEVICES + 1))
            if verdict != oracle.EXACT:
                yield f"devices: {verdict}"
        for name in ("in_flight_messages", "unaccounted_messages"):
            if any(values := self.pages.metrics(name).values()):
                yield f"{name}: {list(values)}"
        if (restarts := self.pages.metric("restarts_total")) != self.killed:
            yield f"{self.killed} consumers were killed, and {restarts} restarted"
        ended = time.time()
        backwards = {name: n for name, n in prometheus.resets(self.prometheus, self.began, ended).items() if n}
        if backwards:
            yield f"counters decreased: {backwards}"
        fired = prometheus.fired(self.prometheus, self.began, ended)
        print(f"alerts that fired: {', '.join(sorted(fired)) or 'none'}")
        if fired != _EXPECTED_ALERTS:
            yield f"alerts: {sorted(fired)} fired, {sorted(_EXPECTED_ALERTS)} expected"
        for life in self.watch.sampled():
            yield from _excess(life, self.seconds)

    def scrapes(self) -> str:
        """Return how long scrapes took, and how many were answered."""
        span, now = f"{int(time.time() - self.began) + 1}s", time.time()
        series = {
            "mean": "avg_over_time(scrape_duration_seconds[{}])",
            "longest": "max_over_time(scrape_duration_seconds[{}])",
            "up": "avg_over_time(up[{}])",
        }
        values = {
            name: prometheus.value(self.prometheus, query.format(span), now) or 0.0 for name, query in series.items()
        }
        return "scrapes: mean {mean:.3f} s, longest {longest:.3f} s, {up:.1%} answered".format(**values)


def _log(since: float, text: str) -> None:
    print(f"{time.monotonic() - since:6.1f} s  {text}", flush=True)


def _excess(life: ProcessUsage, seconds: float) -> Iterator[str]:
    if max(life.rss) > _MAX_BYTES:
        yield f"{life.name} {life.pid} had {max(life.rss) >> 20} MiB"
    if life.seconds > seconds / 2 and life.growth() > _MAX_GROWTH:
        yield f"{life.name} {life.pid} grew by {life.growth():.0%} in the second half"


def main() -> int:
    """Run; return the exit code."""
    parser = argparse.ArgumentParser(prog="soak", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--rate", type=float, default=30_000.0, help="events a second (%(default)g)")
    parser.add_argument("--processes", type=int, default=4, help="and partitions; 2 or more (%(default)s)")
    parser.add_argument("--backend", choices=("clickhouse", "redis"), default="clickhouse")
    parser.add_argument("--frozen", action="store_true", help="the store is frozen (SIGSTOP), not ended and restarted")
    options = parser.parse_args()
    logging.getLogger("clickhouse_driver").setLevel(logging.CRITICAL)  # it logs each restart
    if options.processes < 2:
        parser.error("--processes: 2 or more")
    with ExitStack() as stack:
        soak = Soak(stack, options)
        print(f"{options.seconds:g} s, {options.rate:g} events/s, {options.processes} processes, {options.backend}")
        print(f"alerts.yml with each `for:` times {soak.scale:g}, so that half the outage is 2 minutes", flush=True)
        figures = soak.figures(soak.run())
        print("", soak.watch.table(), "", sep="\n")
        for name, count in figures.items():
            print(f"{name:<24} {count:>12,.0f}")
        print(f"\n{soak.scrapes()}")
        differences = list(soak.differences(figures))
        soak.worker.signal()
        if code := soak.worker.wait(_PATIENCE_S):
            differences.append(f"the worker ended with {code}")
        for difference in differences:
            print(f"DIFFERENCE {difference}")
        if differences:
            print(soak.worker.tail(40), file=sys.stderr)
    print(f"{len(differences)} differences" if differences else "no differences")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
