"""`python -m tests.faults.chaos [--seconds 600] [--seed N]`: random faults of every kind, while events flow.

Two supervisors share a group that writes into ClickHouse, a third counts devices in Redis. At the end every fault is
repaired, and the oracle counts missing and doubled events: exit 0 only if both are 0. The same seed draws the same
faults in the same order; their exact moments differ.
"""

from __future__ import annotations

import argparse
import logging
import random
import secrets
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

from clickhouse_driver import Client

from tests.support.job import Job, kill, status, stopped
from tests.support.kit import Worker, clickhouse_client, host_and_port, run_worker, wait_until
from tests.support.oracle import EXACT, Verdict, event
from tests.support.proxy import END_OF_STREAM, Proxy
from worker.local import Server, start_clickhouse, start_kafka, start_redis

_PARTITIONS = 6
_BAD = 0.01
_PATIENCE_S = 600.0


class Place:
    """One supervisor's place: always one running there, through a proxy of its own."""

    def __init__(self, job: Job, proxy: Proxy) -> None:
        self.job = job
        self.proxy = proxy
        self.worker = self._start()

    def again(self) -> None:
        """Start another where the last one has ended."""
        self.close()
        self.worker = self._start()

    def close(self) -> None:
        self.worker.__exit__(None, None, None)

    def members(self) -> list[int]:
        """Return the pids of its children, the monitor among them."""
        return self.worker.children()

    def _start(self) -> Worker:
        return self.job.start("--processes", "2", "--batch-rows", "500", *self.job.via(self.proxy.port))


class Chaos:
    """The servers, the workers, and the events that were sent."""

    def __init__(self, stack: ExitStack, seed: int) -> None:
        self.chance = random.Random(seed)
        self.kafka = stack.enter_context(start_kafka())
        self.clickhouse = stack.enter_context(start_clickhouse())
        self.redis = stack.enter_context(start_redis())
        self.sql: Client = clickhouse_client(self.clickhouse.address)
        stack.callback(self.sql.disconnect)
        self.rows = self._job("clickhouse", self.clickhouse, "events")
        self.devices = self._job("redis", self.redis, "devices")
        self.rows.create(_PARTITIONS)
        self.places = []
        for job, server in ((self.rows, self.clickhouse), (self.rows, self.clickhouse), (self.devices, self.redis)):
            place = Place(job, stack.enter_context(Proxy(*host_and_port(server.address))))
            stack.callback(place.close)
            self.places.append(place)
        self.good: list[int] = []
        self.bad = 0
        self._sent = 0

    def _job(self, backend: str, server: Server, target: str) -> Job:
        return Job(
            kafka=self.kafka.address, topic="chaos", group=backend, backend=backend, url=server.address, target=target
        )

    def send(self) -> None:
        """Write some events, a few of them invalid. The broker is up meanwhile, so nothing is sent twice."""
        payloads: list[bytes | None] = []
        for _ in range(self.chance.randrange(500, 8000)):
            if self.chance.random() < _BAD:
                self.bad += 1
                payloads.append(b"bad %d" % self.bad)
            else:
                self.good.append(self._sent)
                payloads.append(event(self._sent))
                self._sent += 1
        self.rows.send(payloads)

    def faults(self) -> dict[str, Callable[[], None]]:
        """Return the faults by name; each repairs its damage before it returns."""
        return {
            "kill -9 of a child": lambda: kill(*self._some(1)),
            "kill -9 of two children": lambda: kill(*self._some(2)),
            "kill -9 of a supervisor": self._kill_supervisor,
            "SIGTERM and start": self._terminate,
            "a child frozen": lambda: self._freeze(self._some(1)),
            "a whole worker frozen": self._freeze_worker,
            "broker restarted": lambda: self._restart(self.kafka),
            "broker frozen": lambda: self._pause(self.kafka),
            "store restarted": lambda: self._restart(self._store()),
            "store frozen": lambda: self._pause(self._store()),
            "answer lost": lambda: self._strike(lambda p: p.drop_reply(self._bytes(), until=END_OF_STREAM)),
            "cut to the store": lambda: self._strike(lambda p: p.cut_to_server(self._bytes())),
            "cut from the store": lambda: self._strike(lambda p: p.cut_to_client(self._bytes() // 10)),
            "black hole": lambda: self._strike(Proxy.blackhole),
            "slow network": lambda: self._strike(lambda p: p.delay(0.05)),
            "connections reset": lambda: self._strike(Proxy.reset),
            "too many parts": lambda: self._setting("parts_to_throw_insert", 1),
            "read-only": lambda: self._setting("table_readonly", 1),
            "disk full": lambda: self._setting("min_free_disk_bytes_to_perform_insert", 10**18),
            "a member joins and leaves": self._visit,
        }

    def _place(self) -> Place:
        return self.chance.choice(self.places)

    def _some(self, count: int) -> list[int]:
        """Draw `count` children of one worker; fewer if it has not forked so many."""
        pids = self._place().members()
        return self.chance.sample(pids, min(count, len(pids)))

    def _store(self) -> Server:
        return self.chance.choice((self.clickhouse, self.redis))

    def _bytes(self) -> int:
        return self.chance.randrange(1, 30_000)

    def _wait(self, longest: float) -> None:
        time.sleep(self.chance.uniform(0, longest))

    def _kill_supervisor(self) -> None:
        place = self._place()
        kill(place.worker.pid)
        self._wait(3)
        place.again()

    def _terminate(self) -> None:
        place = self._place()
        place.worker.signal(signal.SIGTERM)
        code = place.worker.wait(_PATIENCE_S)
        # Another fault may have killed it, or its drain may fail: neither loses an event.
        assert code in (0, 1, -signal.SIGTERM), place.worker.tail()
        place.again()

    def _freeze(self, pids: list[int]) -> None:
        with stopped(*pids):
            self._wait(9)

    def _freeze_worker(self) -> None:
        place = self._place()
        self._freeze([place.worker.pid, *place.members()])

    def _restart(self, server: Server) -> None:
        if self.chance.random() < 0.5:
            server.kill()
        else:
            server.stop()
        self._wait(12)
        server.start()

    def _pause(self, server: Server) -> None:
        server.pause()
        self._wait(9)
        server.resume()

    def _strike(self, strike: Callable[[Proxy], None]) -> None:
        proxy = self._place().proxy
        strike(proxy)
        self._wait(6)
        proxy.heal()

    def _setting(self, name: str, value: int) -> None:
        if self.sql.execute("EXISTS TABLE events") == [(1,)]:
            self.sql.execute(f"ALTER TABLE events MODIFY SETTING {name} = {value}")
            self._wait(6)
            self.sql.execute(f"ALTER TABLE events RESET SETTING {name}")

    def _visit(self) -> None:
        with self.rows.start("--processes", "1") as visitor:
            self._wait(6)
            visitor.signal(signal.SIGTERM)
            visitor.wait(_PATIENCE_S)

    def keep(self) -> None:
        """Restart stopped workers: the supervisor gives up after too many kills of a consumer without progress."""
        for place in self.places:
            if not place.worker.running():
                print(f"stopped with {place.worker.wait()}:\n{place.worker.tail(10)}", file=sys.stderr)
                place.again()

    def judge(self) -> tuple[Verdict, Verdict, int]:
        """Wait until everything is committed; return the verdicts and how many dead letters differ."""
        for job in (self.rows, self.devices):
            job.all_done(_PATIENCE_S)
        for place in self.places:
            wait_until(lambda place=place: _accounts_balance(place), 60, "the ledgers balance")  # type: ignore[misc]
            place.worker.signal(signal.SIGTERM)
        for place in self.places:
            assert place.worker.wait(_PATIENCE_S) == 0, place.worker.tail()
        expected = {
            (job.group.encode(), b"bad %d" % (i + 1)) for job in (self.rows, self.devices) for i in range(self.bad)
        }
        actual = {(dict(dead_letter.headers)["group"], dead_letter.payload) for dead_letter in self.rows.dead_letters()}
        return self.rows.judge(self.good), self.devices.judge(self.good), len(expected ^ actual)

    def verify(self) -> int:
        """Run the worker's own `verify` for both jobs; return the higher exit code."""
        codes = []
        for job in (self.rows, self.devices):
            where = "--table" if job.backend == "clickhouse" else "--redis-key"
            options = ("--topic", job.topic, "--bootstrap-servers", job.kafka, "--group-id", job.group)
            store = ("--backend", job.backend, f"--{job.backend}-url", job.url, where, job.target)
            with run_worker("verify", *options, *store) as verify:
                codes.append(verify.wait(_PATIENCE_S))
                print(*verify.stdout, *verify.stderr, sep="\n")
        return max(codes)


def _accounts_balance(place: Place) -> bool:
    return bool(status(place.worker)["accounts"]["unaccounted"] == 0)


def main() -> int:
    """Run; return the exit code."""
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    options = parser.parse_args()
    logging.getLogger("clickhouse_driver").setLevel(logging.CRITICAL)  # it logs each restart
    print(f"seed {options.seed}, {options.seconds:g} s", flush=True)
    with ExitStack() as stack:
        chaos = Chaos(stack, options.seed)
        began, faults = time.monotonic(), 0
        while time.monotonic() - began < options.seconds:
            chaos.send()
            name, fault = chaos.chance.choice(sorted(chaos.faults().items(), key=lambda item: item[0]))
            print(f"{time.monotonic() - began:6.1f} s  {len(chaos.good)} events  {name}", flush=True)
            fault()
            faults += 1
            chaos.keep()
        rows, devices, dead_letters = chaos.judge()
        code = chaos.verify()
    print(f"seed {options.seed}: {faults} faults, {len(chaos.good)} events and {chaos.bad} invalid ones")
    print(f"rows:    missing {rows.missing}, doubled {rows.doubled}, wrong {rows.wrong} {rows.examples}")
    print(f"devices: missing {devices.missing}, extra {devices.doubled}")
    print(f"dead letters: missing or extra {dead_letters}")
    return 0 if rows == devices == EXACT and not dead_letters and not code else 1


if __name__ == "__main__":
    sys.exit(main())
