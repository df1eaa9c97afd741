"""`python -m bench.scrape`: CPU time of one response of /metrics, with 64 consumers and 256 partitions; no services."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).parents[1])

from worker.config.settings import Settings
from worker.core.accounts import Accounts
from worker.core.counters import Stats
from worker.kafka.group_lag import PartitionLag
from worker.monitor.metrics import Collector, Exposition
from worker.monitor.state import MonitorState

_ACCEPT = "application/openmetrics-text; version=1.0.0, text/plain; version=0.0.4; q=0.5"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.scrape", description=__doc__.partition("\n")[0])
    parser.add_argument("--consumers", type=int, default=64, help="[%(default)s]")
    parser.add_argument("--partitions", type=int, default=256, help="[%(default)s]")
    parser.add_argument("--rounds", type=int, default=50, help="[%(default)s]")
    options = parser.parse_args(argv)
    exposition = _exposition(options.consumers, options.partitions)
    times = []
    for _ in range(options.rounds):
        began = time.process_time()
        body, _ = exposition.text(_ACCEPT)
        times.append((time.process_time() - began) * 1000)
    print(f"{median(times):.1f} ms of CPU, {max(times):.1f} at most, {len(body) / 1000:.0f} kB")
    return 0


def _exposition(consumers: int, partitions: int) -> Exposition:
    """Return the metrics of a worker whose consumers own the partitions in turn."""
    stats = Stats()
    for number in range(partitions):
        slot = stats.slot(number % consumers)
        for cell in ("started_ns", "pid"):
            slot.set(cell, 1)
        ledger = slot.ledger("events", "id", number)
        ledger.set("assigned", 1)
        for cell in ("consumed", "written"):
            ledger.add(cell, 1000)
    state = MonitorState(Settings(topic="events"))
    lags = [PartitionLag("events", number, 0, 1000, 900, 1.5, 1000.0) for number in range(partitions)]
    state.record_lags(lags, {"events": partitions})
    state.record_devices({"events": 10_000})
    return Exposition(Collector(stats, state, Accounts(stats)))


if __name__ == "__main__":
    sys.exit(main())
