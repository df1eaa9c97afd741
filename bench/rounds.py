"""The rounds: every contender in turn, over its topic and over a small one."""

from __future__ import annotations

import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from bench import measure, verify
from bench.contenders import Contender, Job
from bench.figures import Result, Sample
from bench.services import Dataset, Services
from worker.local.process import free_port

STEAL_LIMIT = 0.10
_TRIES = 3  # of one run, if the host takes too much CPU time
_TIMEOUT_S = 900.0
_MAX_SHARE = 1.5  # of the work, as a multiple of an even share, that one of several consumers may do
_MEASURABLE_S = 0.1  # CPU time per consumer that its share is judged from: the kernel counts ticks of 10 ms


class Entry(NamedTuple):
    """A contender with its topic, and a small one with as many partitions."""

    contender: Contender
    data: Dataset
    small: Dataset


def play(
    services: Services,
    entries: Sequence[tuple[Contender, Dataset, Dataset]],
    rounds: int,
    report_progress: Callable[[str], None],
) -> list[Result]:
    """Run all rounds; return one result per contender, in their order. Each has its topic and a small one."""
    field = [(entry, _result(entry)) for entry in map(Entry._make, entries)]
    report_progress("warming up")  # the broker's compiler, the page cache
    for entry, _ in field[:2]:
        _run(services, entry.contender, entry.data)
    total = rounds * len(field)
    for number in range(rounds):
        # Each round begins with another contender, so that none always follows the same one.
        shift = number % len(field)
        for position, (entry, result) in enumerate(field[shift:] + field[:shift]):
            done = number * len(field) + position
            report_progress(f"[{done + 1}/{total}] round {number + 1}: {result.key}")
            if len(result.failures) < 2:  # a contender that failed twice does not run again
                _once(services, entry, result, number)
    return [result for _, result in field]


def _result(entry: Entry) -> Result:
    contender = entry.contender
    return Result(contender.name, contender.store, entry.data.events, contender.ours, contender.in_store)


def _once(services: Services, entry: Entry, result: Result, number: int) -> None:
    small, failure, tries = _run(services, entry.contender, entry.small)
    if failure:
        result.failures.append(f"{failure} (on the small topic)")
    full, failure, more_tries = _run(services, entry.contender, entry.data, small)
    if failure:
        result.failures.append(failure)
    result.repeated += tries + more_tries - 2
    if full.code == 0:
        result.samples.append(_sample(entry, number, small, full))


def _run(
    services: Services, contender: Contender, data: Dataset, small: measure.Run | None = None
) -> tuple[measure.Run, str, int]:
    """Run until the host takes at most a tenth of the CPU time and the work is shared; three times at most.

    `small` is the run over the small topic. Returns the best run, the error, and how many runs there were.
    """
    best: tuple[str, float, measure.Run] | None = None
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
        unfair = _unfair(run, small) if contender.ours and small else ""
        if best is None or (bool(unfair), run.steal) < (bool(best[0]), best[1]):
            best = unfair, run.steal, run
        if run.steal <= STEAL_LIMIT and not unfair:
            break
        time.sleep(2)  # the bursts pass
    assert best
    return best[2], best[0], tries


def _consumers(run: measure.Run, small: measure.Run) -> list[float]:
    """Return the CPU time of each of the worker's consumers, without that of its start-up."""
    return [max(0.0, cpu - less) for cpu, less in zip(run.split[2:], small.split[2:], strict=False)]


def _busiest(run: measure.Run, small: measure.Run) -> float:
    """Return the share of the consumers' work that one of them did."""
    work = _consumers(run, small)
    return max(work, default=0.0) / (sum(work) or 1.0)


def _unfair(run: measure.Run, small: measure.Run) -> str:
    """Return the error where one consumer of several did far more than its share of the work."""
    work, busiest = _consumers(run, small), _busiest(run, small)
    if sum(work) < _MEASURABLE_S * len(work) or busiest * len(work) <= _MAX_SHARE:
        return ""
    return f"one of {len(work)} consumers did {busiest:.0%} of the work"


def _sample(entry: Entry, number: int, small: measure.Run, full: measure.Run) -> Sample:
    contender, events = entry.contender, entry.data.events - entry.small.events
    drained = full.wall - small.wall

    def per_message(more: float, less: float) -> float:
        return (more - less) * 1e6 / events

    def server(name: str) -> float:
        return per_message(full.servers.get(name, 0.0), small.servers.get(name, 0.0))

    return Sample(
        round=number,
        reader_us=0.0 if contender.in_store else per_message(full.cpu, small.cpu),
        reader_s=full.cpu,
        startup_s=small.cpu,
        store_us=server(contender.store),
        broker_us=server("kafka"),
        rate=events / drained if drained > 0 else 0.0,
        steal=max(small.steal, full.steal),
        wall=full.wall,
        rss=full.rss,
        rss_sum=full.rss_sum,
        stages={stage: seconds * 1e6 / full.consumed for stage, seconds in full.stages.items() if full.consumed},
        split_us=[per_message(cpu, less) for cpu, less in zip_longest(full.split, small.split, fillvalue=0.0)],
        busiest=_busiest(full, small) if contender.ours else 1.0,
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
