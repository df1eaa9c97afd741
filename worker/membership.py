"""What the consumer group gives and takes: take-over of partitions, orderly and disorderly loss, a log that is gone."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from worker import delivery
from worker.assignment import Assignment
from worker.batch import Key
from worker.errors import ExitCode, Fatal
from worker.log import fields
from worker.outbox import Outbox
from worker.partition import Partition
from worker.settings import Settings
from worker.sinks import Sink
from worker.source import Source
from worker.stats import Slot, Stats

log = logging.getLogger("worker.membership")

_POLL_S = 0.1


class Membership:
    """Answers the group's callbacks, which run in the thread that reads: see `Source.subscribe`."""

    def __init__(
        self,
        settings: Settings,
        stats: Stats,
        slot: Slot,
        source: Source,
        sink: Sink,
        assignment: Assignment,
        outbox: Outbox,
    ) -> None:
        self._settings = settings
        self._stats = stats
        self._slot = slot
        self._source = source
        self._sink = sink
        self._assignment = assignment
        self._outbox = outbox

    def on_assign(self, keys: list[Key]) -> dict[Key, int | None]:
        """Take partitions over at the offset, or at the unfinished range, that the group's commit names."""
        self._assignment.unpause()  # what it had before goes on with the rest
        starts: dict[Key, int | None] = {}
        for key, known in self._source.committed(keys).items():
            counted_to = self._stats.accounted_to(key[0], known.topic_id, key[1])
            try:
                start = delivery.resume(
                    known.offset, known.metadata, known.topic_id, known.log_start, counted_to, self._sink.exactly_once
                )
            except delivery.DataLost as loss:
                landed_to = self._landed_to(key, loss)
                if landed_to is None:
                    self.stop(key, str(loss))
                    starts[key] = None
                    continue
                start = delivery.Resume(landed_to)
            ledger = self._slot.ledger(key[0], known.topic_id, key[1])
            progress = delivery.Progress.at(start)
            one = Partition(ledger, progress, self._sink.fields, self._settings.batch_rows, counted_to)
            self._assignment.add(key, one)
            starts[key] = start.position
            log.info("took a partition", extra=fields(topic=key[0], partition=key[1], offset=start.position))
        self._slot.add("rebalances")
        self._slot.set("assigned", len(self._assignment.partitions))
        return starts

    def on_revoke(self, keys: list[Key]) -> None:
        """Settle the write that is under way, commit what is acknowledged, and let go of the rest."""
        self._outbox.settle(keys, time.monotonic() + self._settings.drain_timeout, _POLL_S)
        self.let_go(keys)

    def on_lost(self, keys: list[Key]) -> None:
        """Another member may own these by now: commit nothing."""
        log.warning("partitions lost: this consumer was expelled from the group", extra=fields(partitions=len(keys)))
        self.let_go(keys)

    def let_go(self, keys: Sequence[Key]) -> None:
        """Own these no longer; the next owner reads what was not settled."""
        self._outbox.give_up(keys)
        self._assignment.remove(keys)

    def stop(self, key: Key, text: str) -> None:
        """Read no more of a partition that would lose events by going on; the others go on."""
        message = (
            f"{key[0]}[{key[1]}] is stopped: {text}. Events were removed before they were read. To go on with what is "
            f"left, stop the workers and run kafka-consumer-groups --reset-offsets --group {self._settings.group_id} "
            f"--topic {key[0]}:{key[1]} --to-earliest --execute"
        )
        self._slot.set_error(message)
        if self._settings.until_end:
            raise Fatal(message, code=ExitCode.HALT)
        log.error("%s", message)
        self._assignment.stop(key)

    def _landed_to(self, key: Key, loss: delivery.DataLost) -> int | None:
        """Return where an intent ends that covers all that retention has removed, and whose rows are in the store."""
        intent = loss.intent
        if intent is None or not self._sink.exactly_once or loss.log_start > intent.end:
            return None
        return intent.end if self._sink.landed(*key, intent.start, intent.end) == intent.rows else None
