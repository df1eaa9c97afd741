"""The `produce` command: write a fleet's events to a topic, as fast as possible or paced, and account for each."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from worker.commands.produce.fleet import MAX_DEVICES, Fleet
from worker.commands.produce.topic import SLICE_S, Topic
from worker.commands.progress import ProgressBar
from worker.config.settings import Settings
from worker.core.errors import ExitCode, Fatal

if TYPE_CHECKING:
    from worker.commands.produce.framed import FramedFleet

_BATCH = 1000  # events of one partition handed to librdkafka in one call
_BATCHES_PER_PARTITION = 16  # at least, so that a small run spreads evenly too
_TICK_S = 0.02  # the shortest sleep of a paced run: shorter ones cost more CPU than the events


@dataclass(frozen=True)
class ProduceOptions:
    """What to write, and where. Raises Fatal (usage) if a value is out of range."""

    bootstrap_servers: str
    topic: str
    num_devices: int = 10_000
    pause_ms: float = 0
    num_messages: int = 1_000_000
    seed: int | None = None
    partitions: int | None = None
    bad_ratio: float = 0.0
    properties: Mapping[str, str] = field(default_factory=dict)  # librdkafka's; they take precedence
    registry: Settings | None = None  # the format and its schema registry; None: JSON

    def __post_init__(self) -> None:
        for flag, value, is_valid, expected in (
            ("--num-devices", self.num_devices, 1 <= self.num_devices <= MAX_DEVICES, f"1 to {MAX_DEVICES}"),
            ("--num-messages", self.num_messages, self.num_messages >= 0, "0 or more"),
            ("--pause-ms", self.pause_ms, self.pause_ms >= 0, "0 or more"),
            ("--partitions", self.partitions, self.partitions is None or self.partitions >= 1, "1 or more"),
            ("--bad-ratio", self.bad_ratio, 0 <= self.bad_ratio <= 1, "a number from 0 to 1"),
        ):
            if not is_valid:
                raise Fatal(f"{flag} {value}: write {expected}", code=ExitCode.USAGE)


def produce(options: ProduceOptions, *, stop: Callable[[], bool], progress: TextIO | None) -> int:
    """Write the events and return the exit code: OK, or FAILED if the brokers did not accept every event.

    Once `stop()` is true it sends no more events, delivers those in the queue (10 s at most) and returns. It waits for
    brokers that do not answer. Raises Fatal for errors that retrying cannot fix: a missing topic or missing rights.
    The result is a line on stderr, `produced N, failed M …`. `progress` shows a progress bar if it is a terminal.
    """
    plain = Fleet(options.num_devices, seed=options.seed, bad_ratio=options.bad_ratio)
    fleet = _framed(plain, options.registry) if options.registry else plain
    topic = Topic(options.topic, {"bootstrap.servers": options.bootstrap_servers, **options.properties}, stop)
    partitions = topic.partitions(options.partitions)
    started = time.monotonic()
    try:
        with ProgressBar(progress, options.num_messages) as bar:
            if partitions:
                _write(options, fleet, topic, partitions, stop, bar)
            topic.drain(bar.show)
    finally:
        delivered = topic.delivered
        failed = topic.sent - delivered
        print(_report(topic, fleet, delivered, failed, time.monotonic() - started), file=sys.stderr, flush=True)
    return ExitCode.FAILED if failed else ExitCode.OK


def _framed(fleet: Fleet, settings: Settings) -> FramedFleet:
    from worker.commands.produce.framed import FramedFleet

    return FramedFleet(fleet, settings)


def _write(
    options: ProduceOptions,
    fleet: Fleet | FramedFleet,
    topic: Topic,
    partitions: int,
    stop: Callable[[], bool],
    bar: ProgressBar,
) -> None:
    """Send the events when they are due, in batches, to the partitions in turn."""
    batch_size = max(1, min(_BATCH, options.num_messages // (partitions * _BATCHES_PER_PARTITION)))
    pause_s = options.pause_ms / 1000
    started = time.monotonic()
    batches = 0
    while topic.sent < options.num_messages and not stop():
        due = options.num_messages
        if pause_s:
            # By the clock, not by a sleep after each event: that keeps pauses of microseconds on average, too.
            elapsed = time.monotonic() - started
            due = min(due, int(elapsed / pause_s) + 1)
            if due <= topic.sent:
                time.sleep(min(SLICE_S, max(_TICK_S, topic.sent * pause_s - elapsed)))
                topic.wait(0)
                continue
        topic.send(fleet.take(min(batch_size, due - topic.sent)), batches % partitions)
        batches += 1
        bar.show(topic.delivered)


def _report(topic: Topic, fleet: Fleet | FramedFleet, delivered: int, failed: int, seconds: float) -> str:
    text = f"produced {delivered}, failed {failed}: topic {topic.name}, {seconds:.1f} s"
    if delivered and seconds:
        text += f", {delivered / seconds:.0f}/s"
    if fleet.bad:
        text += f", {fleet.bad} bad on purpose"
    return "; ".join([text, *(f"{count} x {reason}" for reason, count in topic.failed.most_common(5))])
