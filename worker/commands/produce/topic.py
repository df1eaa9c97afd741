"""The topic that `produce` writes to: found or made, and every event handed over accounted for.

Brokers that do not answer are waited for, for as long as it takes; what no waiting mends raises Fatal.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicCollection
from confluent_kafka.admin import AdminClient, NewTopic

from worker.core.errors import ExitCode, Fatal
from worker.kafka.errors import raise_auth_error
from worker.kafka.properties import client_error

log = logging.getLogger(__name__)

SLICE_S = 0.2  # the longest wait in one call: how soon a signal is seen
_QUEUE = 200_000  # messages in memory at most: about 50 MB
_REQUEST_S = 10.0
_SILENCE_S = 4.0  # without an answer of the brokers, until it is said
_SAY_AGAIN_S = 30.0
_DRAIN_S = 10.0  # for what is queued when it is told to stop
_TRY_AGAIN = (KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._RESOLVE)


class Topic:
    """One topic and the producer that writes to it; `stop` is asked in every wait.

    `taken` events were handed over; each of them is then delivered, failed (`failed` counts them by error) or queued.
    `properties` are librdkafka's and win over those that are set here.
    """

    def __init__(self, name: str, properties: Mapping[str, Any], stop: Callable[[], bool]) -> None:
        self.name = name
        self.taken = 0
        self.failed: Counter[str] = Counter()
        self._servers = properties["bootstrap.servers"]
        self._stop = stop
        self._error: KafkaError | None = None
        self._heard = time.monotonic()
        self._said = 0.0
        self._last_delivered = 0
        # What librdkafka logs of a lost connection comes through error_cb too, and is said once.
        common = {"log_level": 2, **properties}
        logger = logging.getLogger("worker.librdkafka")
        try:
            self._admin = AdminClient(common, logger=logger)
            self._producer = Producer(
                {
                    "linger.ms": 20,
                    "compression.type": "lz4",
                    "acks": "all",
                    "enable.idempotence": True,
                    "message.timeout.ms": 0,  # an outage is waited out
                    "queue.buffering.max.messages": _QUEUE,
                    "delivery.report.only.error": True,
                    **common,
                },
                on_delivery=self._on_delivery,
                error_cb=self._on_error,
                logger=logger,
            )
        except KafkaException as error:
            raise client_error(error) from None

    @property
    def delivered(self) -> int:
        """Events that the brokers have acknowledged."""
        return self.taken - len(self._producer) - self.failed.total()

    def partitions(self, wanted: int | None) -> int:
        """Return how many partitions the topic has, making it with `wanted` if it is missing; 0 if stopped before.

        Raises Fatal where it is missing and none are wanted.
        """
        while not self._stop():
            found = self._ask(self._admin.describe_topics(TopicCollection([self.name]), request_timeout=_REQUEST_S))
            if found is not None:
                count = len(found.partitions)
                if wanted not in (None, count):
                    log.warning("topic %s has %d partitions, not %d; used as it is", self.name, count, wanted)
                return count
            if self._stop() or self._error is not None:
                continue
            if wanted is None:
                raise Fatal(
                    f"topic {self.name} does not exist on {self._servers}: "
                    "name another --topic, or add --partitions 4 to create it"
                )
            new = NewTopic(self.name, num_partitions=wanted, replication_factor=-1)
            self._ask(self._admin.create_topics([new], request_timeout=_REQUEST_S))
        return 0

    def send(self, events: Sequence[bytes], partition: int) -> None:
        """Hand over events for one partition, waiting for room; what has none when `stop` turns true is not taken."""
        messages: list[dict[str, Any]] = [{"value": event} for event in events]
        while messages:
            queued = self._producer.produce_batch(self.name, messages, partition=partition)
            self.taken += queued
            if queued == len(messages):
                break
            refused = [(message, message.pop("_error")) for message in messages if "_error" in message]
            messages = [message for message, error in refused if error.code() == KafkaError._QUEUE_FULL]
            lost = [error.name() for _, error in refused if error.code() != KafkaError._QUEUE_FULL]
            self.taken += len(lost)
            self.failed.update(lost)
            if messages and self._stop():
                break
            self.wait(SLICE_S / 4)
        self.wait(0)

    def wait(self, seconds: float) -> None:
        """Serve librdkafka's callbacks for `seconds`, or until one came. Raises Fatal once the producer is broken."""
        self._producer.poll(seconds)
        delivered = self.delivered
        if delivered == self._last_delivered and len(self._producer):
            self._complain(f"{delivered} delivered, {len(self._producer)} waiting")
        else:
            self._last_delivered = delivered
            self._heard = time.monotonic()
            self._error = None

    def drain(self, show: Callable[[int], None]) -> None:
        """Wait until everything taken is delivered or failed; after `stop` for _DRAIN_S, then the rest is given up."""
        deadline: float | None = None
        while len(self._producer):
            if deadline is None and self._stop():
                deadline = time.monotonic() + _DRAIN_S
            if deadline is not None and time.monotonic() > deadline:
                self._producer.purge()
                self._producer.flush(1)
                return
            self._producer.flush(SLICE_S)  # unlike poll() it does not wait for linger.ms
            self.wait(0)
            show(self.delivered)

    def _ask(self, answers: Mapping[str, Future[Any]]) -> Any:
        """Return the answer about the topic; None where it does not exist, was made before, or did not come.

        `_trouble` tells whether it came.
        """
        answer = answers[self.name]
        while not self._stop():
            self._producer.poll(0)
            try:
                result = answer.result(SLICE_S)
            except NotYet:
                self._complain("nothing written yet")
            except KafkaException as error:
                return self._answered(error.args[0])
            else:
                self._answered(None)
                return result
        return None

    def _answered(self, error: KafkaError | None) -> None:
        if error is None or error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.TOPIC_ALREADY_EXISTS):
            self._error = None
            self._heard = time.monotonic()
            return
        for seen in (self._error, error):
            if seen is not None:
                raise_auth_error(seen)
        if not error.retriable() and error.code() not in _TRY_AGAIN:
            raise Fatal(f"Kafka, topic {self.name}: {error.str()}")
        self._error = self._error or error
        self._complain("nothing written yet")
        self._producer.poll(SLICE_S)

    def _complain(self, state: str) -> None:
        now = time.monotonic()
        if now - self._heard > _SILENCE_S and (self._said < self._heard or now - self._said > _SAY_AGAIN_S):
            self._said = now
            reason = self._error.str() if self._error is not None else "no answer"
            log.warning("Kafka at %s does not answer (%s); still trying: %s", self._servers, reason, state)

    def _on_delivery(self, error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            self.failed[error.name()] += 1

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            raise Fatal(f"Kafka producer: {error.str()}", code=ExitCode.FAILED)
        self._error = error
