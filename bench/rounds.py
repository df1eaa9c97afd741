"""The rounds: every contender in turn, over its topic and over an empty one."""

from __future__ import annotations

import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from statistics import median
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from bench import machine, measure, verify
from bench.contenders import Contender, Job
from bench.services import Dataset, Services
from worker.local.process import free_port

STEAL_LIMIT = 0.10
_TRIES = 3  # of one run, if the host takes too much CPU time
_TIMEOUT_S = 900.0
_MIN_S = 0.3  # a shorter drain gives no useful rate


@dataclass
class Sample:
    """One contender in one round.

    The reader's CPU time and the wall time are those of the whole topic minus those of an empty one. So start-up,
    joining the group and leaving it are not included. The servers' CPU time excludes what they use when idle.
    """

    reader_us: float
    store_us: float
    broker_us: float
    rate: float  # messages/s; 0 if the run was too short to measure it
    steal: float
    wall: float  # of the whole run, s
    rss: int
    rss_sum: int
    stages: dict[str, float]  # µs per message in each stage
    split_us: list[float]  # µs per message of the program itself and of each child


@dataclass
class Result:
    """All rounds of one contender."""

    contender: Contender
    data: Dataset
    empty: Dataset  # with as many partitions
    samples: list[Sample] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    repeated: int = 0  # runs discarded because the host took too much CPU time

    def median(self, figure: str) -> float:
        return float(median([getattr(sample, figure) for sample in self.samples]))

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.contender.name,
            "store": self.contender.store,
            "events": self.data.events,
            "in_store": self.contender.in_store,
            "ok": not self.failures,
            "failures": self.failures,
            "repeated": self.repeated,
            "samples": [asdict(sample) for sample in self.samples],
        }


def play(
    services: Services,
    contenders: Sequence[tuple[Contender, Dataset, Dataset]],
    rounds: int,
    report_progress: Callable[[str], None],
) -> list[Result]:
    """Run all rounds; return one result per contender, in their order. Each has its topic and an empty one."""
    results = [Result(*each) for each in contenders]
    report_progress("warming up")  # the broker's compiler, the page cache
    for result in results[:2]:
        _run(services, result.contender, result.data)
    idle = machine.idle_share(services.pids.values())
    total = rounds * len(results)
    for number in range(rounds):
        # Each round begins with another contender, so that none always follows the same one.
        shift = number % len(results)
        for position, result in enumerate(results[shift:] + results[:shift]):
            done = number * len(results) + position
            report_progress(f"[{done + 1}/{total}] round {number + 1}: {result.contender.key}")
            if len(result.failures) < 2:  # a contender that failed twice does not run again
                _once(services, result, idle)
    return results


def _once(services: Services, result: Result, idle: Mapping[int, float]) -> None:
    runs = []
    for data in (result.empty, result.data):
        run, failure, tries = _run(services, result.contender, data)
        result.repeated += tries - 1
        if failure:
            result.failures.append(failure + (" (on the empty topic)" if data is result.empty else ""))
        runs.append(run)
    nothing, full = runs
    if full.code == 0:
        shares = {name: idle.get(pid, 0.0) for name, pid in services.pids.items()}
        result.samples.append(_sample(result, nothing, full, shares))


def _run(services: Services, contender: Contender, data: Dataset) -> tuple[measure.Run, str, int]:
    """Run until the host takes at most a tenth of the CPU time, three times at most; return the run that lost least."""
    best: tuple[measure.Run, str] | None = None
    for tries in range(1, _TRIES + 1):
        name = f"bench_{uuid.uuid4().hex[:10]}"
        job = Job(services, data, group=name, target=name, metrics_port=free_port())
        verify.prepare(contender, job)
        try:
            run = measure.run(
                contender.command(job),
                servers=services.pids,
                cwd=contender.cwd,
                timeout=_TIMEOUT_S,
                watch=partial(scrape, port=job.metrics_port) if contender.ours else None,
                settle=partial(verify.settle, services) if contender.store == "clickhouse" else None,
            )
            problem = verify.problem(contender, job, run)
        finally:
            verify.remove(contender, job)
        if problem:
            return run, problem, tries
        if best is None or run.steal < best[0].steal:
            best = run, problem
        if run.steal <= STEAL_LIMIT:
            break
        time.sleep(2)  # the bursts pass
    assert best
    return *best, tries


def _sample(result: Result, nothing: measure.Run, full: measure.Run, idle: Mapping[str, float]) -> Sample:
    contender, events = result.contender, result.data.events
    store = {"redis": "redis", "clickhouse": "clickhouse"}.get(contender.store, "")

    drained = full.wall - (nothing.wall - contender.waits)

    def per_message(seconds: float) -> float:
        return seconds * 1e6 / events

    def server(name: str) -> float:
        return per_message(full.servers.get(name, 0.0) - idle.get(name, 0.0) * full.lasted)

    return Sample(
        reader_us=0.0 if contender.in_store else per_message(full.cpu - nothing.cpu),
        store_us=server(store),
        broker_us=server("kafka"),
        rate=events / drained if drained > _MIN_S else 0.0,
        steal=max(nothing.steal, full.steal),
        wall=full.wall,
        rss=full.rss,
        rss_sum=full.rss_sum,
        stages={stage: seconds * 1e6 / full.consumed for stage, seconds in full.stages.items() if full.consumed},
        split_us=[
            per_message(cpu - less)
            for cpu, less in zip(full.split, [*nothing.split, *[0.0] * len(full.split)], strict=False)
        ],
    )


def scrape(run: measure.Run, port: int) -> None:
    """Read the worker's stages from its metrics, if it serves them now."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2) as response:
            text = response.read().decode()
    except OSError:
        return
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "worker_stage_seconds_sum":
                run.stages[sample.labels["stage"]] = sample.value
            elif sample.name == "worker_consumed_messages_total":
                run.consumed = sample.value


def progress(text: str) -> None:
    """Show one line; on a terminal it replaces the last one."""
    terminal = sys.stderr.isatty()
    sys.stderr.write(f"\r{text}\x1b[K" if terminal else f"{text}\n")
    sys.stderr.flush()
